"""The series of one front: the requests that it served, its queues, its links."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from serving.core import Finished, FleetState

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class FrontMetrics:
    """Observes finished requests; reads queues and engines when scraped."""

    def __init__(self, fleets: Mapping[str, FleetState]) -> None:
        self.registry = CollectorRegistry()
        self._fleets = fleets
        self._requests = self._counter("serving_requests", "Requests, by how they ended", "outcome")
        self._prompt = self._counter("serving_prompt_tokens", "Prompt tokens of finished requests")
        self._cached = self._counter("serving_cached_tokens", "Prompt tokens found in an engine's prefix cache")
        self._generated = self._counter("serving_generation_tokens", "Generated tokens of finished requests")
        self._ttft = self._histogram("serving_time_to_first_token_seconds", "From arrival to the first token")
        self._e2e = self._histogram("serving_request_seconds", "From arrival to the last token")
        self.registry.register(self)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, ("model", *labels), registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, ("model",), registry=self.registry, buckets=_SECONDS)

    def finished(self, request: Finished) -> None:
        model = request.model
        self._requests.labels(model, request.outcome.value).inc()
        self._prompt.labels(model).inc(request.prompt_tokens)
        self._cached.labels(model).inc(request.cached_tokens)
        self._generated.labels(model).inc(request.generated_tokens)
        if request.first_token_seconds is not None:
            self._ttft.labels(model).observe(request.first_token_seconds)
        self._e2e.labels(model).observe(request.seconds)

    def collect(self) -> Iterator[Metric]:
        queued = GaugeMetricFamily("serving_queue_requests", "Requests waiting in this front", labels=["model"])
        running = GaugeMetricFamily("serving_leases", "Requests that hold a place in an engine", labels=["model"])
        engines = GaugeMetricFamily("serving_engines", "Engines that this front has a link to", labels=["model"])
        for model, fleet in self._fleets.items():
            queued.add_metric([model], fleet.queued)
            running.add_metric([model], fleet.running)
            engines.add_metric([model], fleet.engines)
        yield from (queued, running, engines)
