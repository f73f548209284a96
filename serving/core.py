"""Words that every layer shares. No HTTP, no Ray, no vLLM.

A chat completion is one `Request` going down (`api → scheduler → pool → engine`) and a stream of
`Output` coming up. Each layer offers the same verb, `generate(request)`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Protocol

import msgspec


class FinishReason(StrEnum):
    """Why an engine stopped generating."""

    STOP = "stop"  # end of sequence, or a stop token
    STOP_SEQUENCE = "stop_sequence"  # one of the caller's stop strings, found by the front
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class Outcome(StrEnum):
    """Every way a request can end: the metric label and the error family at once."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"  # the client went away
    BAD_REQUEST = "bad_request"
    UNKNOWN_MODEL = "unknown_model"
    OVERLOADED = "overloaded"
    LOADING = "loading"
    DEADLINE = "deadline"
    ENGINE_FAULT = "engine_fault"
    INTERNAL = "internal"


class Sampling(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """How to choose tokens. Fully resolved: what the caller left out has its default here.

    Ranges are those of vLLM's SamplingParams; `api` has checked them.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none wanted; n: the chosen token's and the n best
    stop_token_ids: tuple[int, ...] = ()
    logit_bias: dict[int, float] | None = None  # token id → added to its logit, −100 to 100


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What the answer must look like, in the form that the engine's grammar backend reads.

    `kind` is the field of vLLM's StructuredOutputsParams that takes `text`.
    """

    kind: Literal["grammar", "structural_tag"]
    text: str


@dataclass(slots=True)
class Request:
    """One generation, ready for an engine: token ids and resolved sampling, nothing to parse.

    `deadline` is on the clock of `time.monotonic()`.
    """

    id: str
    model: str
    prompt: list[int]
    sampling: Sampling
    grammar: Grammar | None = None
    tenant: str = "default"
    priority: int = 0
    deadline: float = float("inf")
    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0  # when it was given to an engine


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities (natural log) at one position: the chosen token first, then the best n."""

    token_ids: list[int]
    logprobs: list[float]


class Output(msgspec.Struct, array_like=True, omit_defaults=True):
    """What one engine step gave one request."""

    tokens: list[int]
    finish: FinishReason | None = None
    logprobs: list[TokenLogprobs] | None = None
    cached_tokens: int | None = None  # on the first output: prompt tokens found in the prefix cache
    stop_token: int | None = None  # the stop token that ended it, when it is not the model's own EOS


@dataclass(slots=True)
class EngineView:
    """What a front knows of one engine. KV sizes are in blocks of `block_size` tokens."""

    engine: str
    model: str
    block_size: int
    total_blocks: int
    max_model_len: int
    max_num_seqs: int
    max_batched_tokens: int
    device: str = ""
    free_blocks: int = 0
    running: int = 0
    waiting: int = 0
    live: int = 0  # requests inside the engine, from all fronts
    received: int = 0  # of this front's requests, how many the last report had counted
    step_seconds: float = 0.0
    reports: int = 0  # number of the last report

    def blocks_for(self, tokens: int) -> int:
        """KV blocks that hold `tokens` tokens."""
        return -(-tokens // self.block_size)


@dataclass(frozen=True, slots=True)
class Finished:
    """The facts of one request that is over, for observers."""

    id: str
    model: str
    tenant: str
    outcome: Outcome
    seconds: float
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    first_token_seconds: float | None = None


class Observer(Protocol):
    """Told facts, never asked. Must not raise or block."""

    def finished(self, request: Finished) -> None: ...


class FleetState(Protocol):
    """One model's queue and engines as they are now."""

    @property
    def queued(self) -> int: ...

    @property
    def running(self) -> int: ...

    @property
    def engines(self) -> int: ...
