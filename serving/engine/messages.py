"""What travels on the link between a front and an engine.

One file for both directions: small records, encoded as MessagePack arrays. A frame is a
four-byte little-endian length and one message. The order of fields is the wire format:
add at the end only, and raise `VERSION` when an old peer would misread it.
"""

from __future__ import annotations

import msgspec

from serving.core import Grammar, Output, Sampling

VERSION = 1


class _Message(msgspec.Struct, array_like=True, omit_defaults=True, frozen=True):
    pass


# engine → front, before the front is trusted


class Challenge(_Message, tag=1, frozen=True):
    """First message on a connection: prove that you know the deployment's secret."""

    nonce: bytes
    version: int = VERSION


# front → engine


class Hello(_Message, tag=2, frozen=True):
    """The answer to a challenge: `proof` = HMAC-SHA256(secret, nonce)."""

    front: str
    proof: bytes
    version: int = VERSION


class Submit(_Message, tag=3, frozen=True):
    """Generate. `prompt` is the token ids as native int32 bytes; `slot` names the request on this link."""

    slot: int
    prompt: bytes
    sampling: Sampling
    tenant: str
    priority: int = 0
    grammar: Grammar | None = None


class Abort(_Message, tag=4, frozen=True):
    slots: list[int]


class AskReport(_Message, tag=5, frozen=True):
    """Send a report now (a snapshot: reports are whole, never deltas)."""


# engine → front


class Welcome(_Message, tag=6, frozen=True):
    """The engine's constants. Sizes in tokens or KV blocks."""

    engine: str
    model: str
    block_size: int
    total_blocks: int
    max_model_len: int
    max_num_seqs: int
    max_batched_tokens: int
    device: str = ""


class Report(_Message, frozen=True):
    """The engine's state, numbered without gaps on each link."""

    number: int
    running: int
    waiting: int
    free_blocks: int
    live: int
    received: int
    step_seconds: float


class Step(_Message, tag=7, frozen=True):
    """One engine step as this front sees it.

    The common case, one plain token for a request, is two columns: `tokens[i]` belongs to the
    request in `slots[i]`. Everything richer (first tokens, finishes, logprobs) is in `outputs`,
    for the requests in `output_slots`.
    """

    report: Report
    slots: list[int] = []
    tokens: list[int] = []
    output_slots: list[int] = []
    outputs: list[Output] = []


class Rejected(_Message, tag=8, frozen=True):
    """The engine would not take the request."""

    slot: int
    reason: str


ToEngine = Hello | Submit | Abort | AskReport
ToFront = Challenge | Welcome | Step | Rejected

encode = msgspec.msgpack.Encoder().encode
decode_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
decode_to_front = msgspec.msgpack.Decoder(ToFront).decode
