"""A host over a core that a test plays by hand, and peers that need not keep to the rules."""

from __future__ import annotations

import asyncio
import contextlib
from array import array
from collections.abc import Callable
from typing import Any

import msgspec

from serving.core import Request, Sampling
from serving.engine import messages
from serving.engine.host import CoreFacts, CoreState, Host
from serving.engine.link import EngineLink, proof

SECRET = b"secret"


class HandCore:
    """An engine core whose steps a test makes."""

    facts = CoreFacts(block_size=16, total_blocks=100, max_model_len=512, max_num_seqs=8, max_batched_tokens=256)

    def __init__(self) -> None:
        self.state = CoreState()
        self.requests: dict[str, messages.Submit] = {}
        self.aborted: list[str] = []
        self.step: Callable[..., None]
        self.die: Callable[[], None]

    def submit(self, request_id: str, request: messages.Submit, prompt: list[int]) -> None:
        if prompt == [666]:
            raise ValueError("not that one")
        self.requests[request_id] = request

    def abort(self, request_ids: list[str]) -> None:
        self.aborted += request_ids

    def listen(self, on_step: Any, on_death: Any) -> None:
        self.step, self.die = on_step, on_death

    def named(self, token: int) -> str:
        """The core's name of the request whose prompt is this one token."""
        wanted = array("i", [token]).tobytes()
        return next(name for name, message in self.requests.items() if message.prompt == wanted)


class Bench:
    def __init__(self) -> None:
        self.core = HandCore()
        self.dead = False
        self.host = Host(
            self.core,
            engine="e",
            model="m",
            secret=SECRET,
            send_limit=200_000,
            on_death=lambda: setattr(self, "dead", True),
        )
        self.links: list[EngineLink] = []
        self.lost: list[EngineLink] = []
        self.peers: list[Peer] = []

    async def start(self) -> None:
        self.port = await self.host.start("127.0.0.1")

    async def stop(self) -> None:
        for link in self.links:
            link.abort()
        for peer in self.peers:
            await peer.close()
        await self.host.stop()
        await asyncio.sleep(0)  # the sockets close in the loop's next turn

    async def link(self, secret: bytes = SECRET) -> EngineLink:
        link = await EngineLink.connect(
            "127.0.0.1", self.port, 2, front="f", secret=secret, on_report=lambda _: None, on_lost=self.lost.append
        )
        self.links.append(link)
        return link

    async def peer(self) -> Peer:
        """A bare connection that has been challenged."""
        peer = Peer(*await asyncio.open_connection("127.0.0.1", self.port))
        self.peers.append(peer)
        peer.challenge = await peer.read(messages.Challenge)
        return peer

    async def trusted_peer(self) -> Peer:
        """A bare connection that has proved the secret and read its first report."""
        peer = await self.peer()
        peer.send(messages.Hello("peer", proof(SECRET, peer.challenge.nonce)))
        await peer.read(messages.Welcome)
        await peer.read(messages.Step)
        return peer

    def _new(self, before: set[str], token: int) -> list[str]:
        wanted = array("i", [token]).tobytes()
        return [name for name, m in self.core.requests.items() if name not in before and m.prompt == wanted]

    async def still_serves(self, link: EngineLink) -> None:
        """One whole request over `link`, start to end, while whatever else is there stays as it is."""
        before = set(self.core.requests)
        async with link.generate(request(5)) as stream:
            await until(lambda: self._new(before, 5))
            (name,) = self._new(before, 5)
            self.core.step([(name, 7)], [])
            assert [output.tokens for output in await anext(stream)] == [[7]]
        await until(lambda: name in self.core.aborted)


class Peer:
    """One end of a link, byte by byte: it sends what a test likes."""

    challenge: messages.Challenge

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, message: msgspec.Struct) -> None:
        self.write(framed(messages.encode(message)))

    def write(self, data: bytes) -> None:
        """Does nothing when the other end has closed; uvloop would raise."""
        if not self.writer.transport.is_closing():
            self.writer.write(data)

    async def read(self, kind: type) -> Any:
        """The next frame, which must be a message of this kind."""
        async with asyncio.timeout(3):
            length = int.from_bytes(await self.reader.readexactly(4), "little")
            return msgspec.msgpack.decode(await self.reader.readexactly(length), type=kind)

    async def dropped(self) -> bytes:
        """Wait until the other end closes; what it still said."""
        async with asyncio.timeout(3):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def close(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "little") + payload


def submit(slot: int, *prompt: int) -> messages.Submit:
    return messages.Submit(slot, array("i", prompt or (1, 2, 3)).tobytes(), Sampling(max_tokens=4), "t")


def request(*prompt: int) -> Request:
    return Request("r", "m", list(prompt or (1, 2, 3)), Sampling(max_tokens=4))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(3):
        while not condition():
            await asyncio.sleep(0.002)
