# `make` lists the targets. Variables of `make up` only spell settings:
#   make up PORT=8000 ENGINES=1 FRONTS=1 MODEL=path-or-hub-id CONFIG=serving.yaml SET="engine.dtype=float32 a.b=c"

SHELL := /bin/bash
.DEFAULT_GOAL := help

settings = $(if $(CONFIG),--config "$(CONFIG)") \
	$(if $(PORT),--set http.port=$(PORT)) \
	$(if $(ENGINES),--set engine.replicas=$(ENGINES)) \
	$(if $(FRONTS),--set http.fronts=$(FRONTS)) \
	$(if $(MODEL),--set models.0.source=$(MODEL)) \
	$(foreach one,$(SET),--set $(one))

.PHONY: help up test test-fast lint bench tiny-models env clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

up: ## install what is missing and start the server in the foreground; Ctrl-C stops it
	@deploy/install.sh && exec .venv/bin/serving up $(settings)

test: ## install what the tests need and run them all; ARGS="-k name" for some
	@deploy/install.sh auto test && exec .venv/bin/pytest $(ARGS)

test-fast: ## the tests that start neither Ray nor vLLM: under a minute
	@deploy/install.sh auto test && exec .venv/bin/pytest -m "not ray and not vllm and not browser and not helm" $(ARGS)

lint: ## ruff and mypy
	@deploy/install.sh auto test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: ## what the serving edge costs, beside `vllm serve`; ARGS="--only edge"
	@deploy/install.sh auto test && exec .venv/bin/python -m loadtests.bench $(ARGS)

tiny-models: ## tiny random models of the six families, for tests; DIR=run/tiny-models
	@deploy/install.sh auto test && exec .venv/bin/python -m tests.tiny_models $(or $(DIR),run/tiny-models)

env: ## only install
	@deploy/install.sh auto test

clean: ## remove the environment and caches of the tools
	rm -rf .venv .venv-clients run .mypy_cache .ruff_cache .pytest_cache .hypothesis
