"""What one frame of an engine step costs on the link, TCP as built against ZeroMQ as first planned.

Two processes; frames of 64 tokens at a pace that leaves both ends idle in between, as an engine
does. Prints CPU microseconds for each frame of both ends together.

usage: python -m loadtests.link_cost
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
import zmq
import zmq.asyncio

from serving.engine import messages
from serving.engine.link import FramedProtocol

FRAMES, INTERVAL = 3000, 0.001
STEP = messages.Step(messages.Report(1, 64, 0, 1000, 64, 64, 0.01), list(range(64)), list(range(64)))


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _paced(send: Callable[[], Awaitable[None]]) -> None:
    for _ in range(FRAMES):
        await send()
        await asyncio.sleep(INTERVAL)


class _Counting(FramedProtocol):
    def __init__(self) -> None:
        self.frames, self.done = 0, asyncio.get_running_loop().create_future()

    def handle(self, frame: memoryview) -> None:
        messages.decode_to_front(frame)
        self.frames += 1
        if self.frames == FRAMES:
            self.done.set_result(None)


async def tcp_receive(port: Any) -> None:
    protocol = _Counting()
    await asyncio.get_running_loop().create_connection(lambda: protocol, "127.0.0.1", port.recv())
    await protocol.done


async def tcp_send(port: Any) -> None:
    accepted: asyncio.Future[FramedProtocol] = asyncio.get_running_loop().create_future()

    class Sender(FramedProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            accepted.set_result(self)

    server = await asyncio.get_running_loop().create_server(Sender, "127.0.0.1", 0)
    port.send(server.sockets[0].getsockname()[1])
    peer = await accepted

    async def send() -> None:
        peer.send(STEP)

    await _paced(send)


async def zmq_receive(port: Any) -> None:
    socket = zmq.asyncio.Context().socket(zmq.DEALER)
    socket.connect(f"tcp://127.0.0.1:{port.recv()}")
    await socket.send(b"hello")
    for _ in range(FRAMES):
        messages.decode_to_front(await socket.recv())


async def zmq_send(port: Any) -> None:
    socket = zmq.asyncio.Context().socket(zmq.ROUTER)
    port.send(socket.bind_to_random_port("tcp://127.0.0.1"))
    peer, _ = await socket.recv_multipart()

    async def send() -> None:
        await socket.send_multipart([peer, messages.encode(STEP)])

    await _paced(send)


def _end(role: Callable[[Any], Awaitable[None]], port: Any, result: Any) -> None:
    async def run() -> None:
        await role(port)

    before = cpu()
    uvloop.run(run())
    result.send(cpu() - before)


def measure(sender: Any, receiver: Any) -> float:
    context = multiprocessing.get_context("spawn")
    a, b = context.Pipe()
    results, processes = [], []
    for role, port in ((sender, a), (receiver, b)):
        result, theirs = context.Pipe()
        process = context.Process(target=_end, args=(role, port, theirs))
        process.start()
        results.append(result)
        processes.append(process)
    seconds = sum(result.recv() for result in results)
    for process in processes:
        process.join(5)
        process.kill()
    return seconds * 1e6 / FRAMES


def main() -> None:
    found: dict[str, list[float]] = {"tcp": [], "zmq": []}
    for _ in range(3):
        found["tcp"].append(round(measure(tcp_send, tcp_receive), 1))
        found["zmq"].append(round(measure(zmq_send, zmq_receive), 1))
        time.sleep(0.2)
    print(json.dumps({"cpu_us_per_frame": found}))
    target = Path(__file__).parent / "results" / "link_cost.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"cpu_us_per_frame": found}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
