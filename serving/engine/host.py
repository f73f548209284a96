"""Inside the engine replica: one engine core, any number of fronts.

The host does no text work. It passes requests down, groups each step's outputs by front, counts,
and puts the engine's state on every frame. It knows the core by `Core` only, so the real and the
simulated device are the same to it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from serving.core import Output
from serving.engine import messages
from serving.engine.link import HELLO_BYTES, FramedProtocol, proof

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
HELLO_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class CoreFacts:
    """Constants of a started core. Sizes in tokens or KV blocks."""

    block_size: int
    total_blocks: int
    max_model_len: int
    max_num_seqs: int
    max_batched_tokens: int
    device: str = "cpu"
    """What computes: cpu, gpu or simulated."""


@dataclass(slots=True)
class CoreState:
    """What a core said of itself with its last step."""

    running: int = 0
    waiting: int = 0
    free_blocks: int = 0


class Core(Protocol):
    """An engine core: takes requests by name, answers with steps."""

    facts: CoreFacts
    state: CoreState

    def submit(self, request_id: str, request: messages.Submit, prompt: list[int]) -> None:
        """Queue a request. Raises ValueError with a reason where it cannot be run."""
        ...

    def abort(self, request_ids: list[str]) -> None: ...

    def listen(
        self,
        on_step: Callable[[list[tuple[str, int]], list[tuple[str, Output]]], None],
        on_death: Callable[[], None],
    ) -> None:
        """Call back on the running loop: `on_death` once, `on_step` with each step's outputs.

        A plain output, one token and nothing else, is (request, token) in the first list; the
        others are (request, output) in the second.
        """
        ...


class Host:
    """The link server of one engine.

    `send_limit`: bytes that may wait to be read by one front before it is cut off.
    `stall_seconds`: no step for so long while there is work means that the engine is sick.
    """

    def __init__(
        self,
        core: Core,
        *,
        engine: str,
        model: str,
        secret: bytes,
        stall_seconds: float = 60.0,
        send_limit: int = 16 * 2**20,
        on_death: Callable[[], None],
    ) -> None:
        self.core = core
        self.engine = engine
        self.model = model
        self.secret = secret
        self.send_limit = send_limit
        self._stall_seconds = stall_seconds
        self._on_death = on_death
        self._fronts: set[_FrontPeer] = set()
        self._live: dict[str, tuple[_FrontPeer, int]] = {}
        self._names = 0
        self._last_step = time.monotonic()
        self._step_seconds = 0.0
        self._longest_step = 0.0
        self._server: asyncio.Server | None = None
        self._heartbeat: asyncio.Task[None] | None = None
        core.state.free_blocks = core.facts.total_blocks

    async def start(self, host: str, port: int = 0) -> int:
        """Listen; returns the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _FrontPeer(self), host, port)
        self.core.listen(self._on_step, self._on_death)
        self._heartbeat = loop.create_task(self._beat())
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        for front in list(self._fronts):
            front.abort()
        if self._server is not None:
            self._server.close()

    @property
    def live(self) -> int:
        """Requests inside the engine, from all fronts."""
        return len(self._live)

    def gauges(self) -> dict[str, float]:
        """For metrics: the engine's state in numbers."""
        state = self.core.state
        return {
            "running": state.running,
            "waiting": state.waiting,
            "free_blocks": state.free_blocks,
            "total_blocks": self.core.facts.total_blocks,
            "step_seconds": self._step_seconds,
            "fronts": len(self._fronts),
        }

    def stalled_for(self) -> float:
        """Seconds beyond the allowance in which a busy core has made no step; 0 when it is well.

        The allowance is the set time, but never below three times the longest step seen.
        """
        if not self._live:
            return 0.0
        allowance = max(self._stall_seconds, 3 * self._longest_step)
        return max(0.0, time.monotonic() - self._last_step - allowance)

    # requests, called by the peers

    def submit(self, front: _FrontPeer, message: messages.Submit) -> None:
        prompt = array("i")
        prompt.frombytes(message.prompt)
        self._names += 1
        name = f"{self._names}"
        if not self._live:
            self._last_step = time.monotonic()  # idle until now: the stall clock starts here
        try:
            self.core.submit(name, message, prompt.tolist())
        except ValueError as error:
            front.send(messages.Rejected(message.slot, str(error)))
            return
        self._live[name] = (front, message.slot)
        front.names[message.slot] = name

    def abort(self, front: _FrontPeer, slots: Iterable[int]) -> None:
        names = [name for slot in slots if (name := front.names.pop(slot, None))]
        for name in names:
            del self._live[name]
        if names:
            self.core.abort(names)

    def joined(self, front: _FrontPeer) -> None:
        self._fronts.add(front)
        facts = self.core.facts
        front.send(
            messages.Welcome(
                self.engine,
                self.model,
                facts.block_size,
                facts.total_blocks,
                facts.max_model_len,
                facts.max_num_seqs,
                facts.max_batched_tokens,
                facts.device,
            )
        )
        front.send(messages.Step(self.report(front)))

    def left(self, front: _FrontPeer) -> None:
        """A front is gone: nobody waits for its requests any more."""
        self._fronts.discard(front)
        self.abort(front, list(front.names))

    def report(self, front: _FrontPeer) -> messages.Report:
        state = self.core.state
        front.reports += 1
        return messages.Report(
            front.reports,
            state.running,
            state.waiting,
            state.free_blocks,
            len(self._live),
            front.received,
            self._step_seconds,
        )

    # steps, called by the core

    def _on_step(self, plain: list[tuple[str, int]], rich: list[tuple[str, Output]]) -> None:
        now = time.monotonic()
        live = self._live
        if live:  # the time before an idle engine's report is not a step's
            self._step_seconds = now - self._last_step
            self._longest_step = max(self._longest_step, self._step_seconds)
        self._last_step = now
        for name, token in plain:
            if (place := live.get(name)) is not None:  # else aborted while the step was in flight
                front, slot = place
                front.slots.append(slot)
                front.tokens.append(token)
        for name, output in rich:
            if (place := live.get(name)) is not None:
                front, slot = place
                front.output_slots.append(slot)
                front.outputs.append(output)
                if output.finish is not None:
                    del live[name]
                    del front.names[slot]
        for front in list(self._fronts):
            front.flush()

    async def _beat(self) -> None:
        """Report while idle, so that a front can tell a quiet engine from a lost one."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            for front in list(self._fronts):
                front.flush()


class _FrontPeer(FramedProtocol):
    """The engine's end of one link. Nothing is believed before the secret is proved."""

    max_frame = HELLO_BYTES

    def __init__(self, host: Host) -> None:
        self._host = host
        self._nonce = os.urandom(32)
        self._trusted = False
        self.names: dict[int, str] = {}  # slot → the core's name of the request
        self.received = 0
        self.reports = 0
        # the columns of the step being grouped
        self.slots: list[int] = []
        self.tokens: list[int] = []
        self.output_slots: list[int] = []
        self.outputs: list[Output] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        # Backpressure is not passed on to the engine: a front that does not read is cut off.
        self.send(messages.Challenge(self._nonce))
        self._hello_timer = asyncio.get_running_loop().call_later(HELLO_SECONDS, self._no_hello)

    def _no_hello(self) -> None:
        if not self._trusted:
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._hello_timer.cancel()
        self.transport = None
        self._host.left(self)

    def _hello(self, hello: messages.Hello) -> None:
        if hello.version != messages.VERSION or not hmac.compare_digest(
            hello.proof, proof(self._host.secret, self._nonce)
        ):
            raise ValueError("a front that does not know the secret, or of another version")
        self._trusted = True
        self.max_frame = FramedProtocol.max_frame
        self._host.joined(self)

    def _message(self, message: messages.ToEngine) -> None:
        match message:
            case messages.Submit():
                if message.slot in self.names:
                    raise ValueError(f"slot {message.slot} is in use")
                self.received += 1
                self._host.submit(self, message)
            case messages.Abort(slots):
                self._host.abort(self, slots)
            case messages.AskReport():
                self.flush()
            case messages.Hello():
                raise ValueError("hello twice")

    def handle(self, frame: memoryview) -> None:
        message = messages.decode_to_engine(frame)
        if self._trusted:
            self._message(message)
        elif isinstance(message, messages.Hello):
            self._hello(message)
        else:
            raise ValueError("the first message must be a hello")

    def flush(self) -> None:
        """Send what this step has for this front, and the engine's state."""
        if self.transport is None:
            return
        if self.transport.get_write_buffer_size() > self._host.send_limit:
            log.warning("cutting off a front that does not read its outputs")
            self.abort()
            return
        self.send(messages.Step(self._host.report(self), self.slots, self.tokens, self.output_slots, self.outputs))
        self.slots, self.tokens, self.output_slots, self.outputs = [], [], [], []
