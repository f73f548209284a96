"""A closed-loop streaming load on a chat-completions endpoint; prints one JSON line.

Plain sockets and no JSON parsing: on a small machine the client must not be what is measured.

usage: python -m loadtests.load URL MODEL --concurrency 64 --requests 512 --max-tokens 128
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import uvloop

WORDS = (
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
)


@dataclass
class Record:
    """Times in seconds."""

    status: int = 0
    tokens: int = 0
    ttft: float = 0.0
    itl: list[float] = field(default_factory=list)
    whole: bool = False


class _Stream(asyncio.Protocol):
    """One request on one connection; resolves with its record."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.record = Record()
        self.done: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        self._last = 0.0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._started = time.perf_counter()
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        record, now = self.record, time.perf_counter()
        if not record.status:
            record.status = int(data[9:12])
        data = self._tail + data
        # Events may be split anywhere: keep what follows the last end of line.
        cut = data.rfind(b"\n") + 1
        data, self._tail = data[:cut], data[cut:]
        tokens = data.count(b'"content":"') - data.count(b'"role":"assistant","content":""')
        if tokens > 0:
            if record.tokens:
                record.itl.append(now - self._last)
            else:
                record.ttft = now - self._started
            record.itl.extend([0.0] * (tokens - 1))
            record.tokens += tokens
            self._last = now
        if b"[DONE]" in data or record.status != 200:
            record.whole = record.status == 200
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(self.record)


def request_bytes(url: str, body: dict[str, object], headers: dict[str, str] | None = None) -> bytes:
    parts = urlsplit(url)
    payload = json.dumps(body).encode()
    lines = [
        f"POST {parts.path} HTTP/1.1",
        f"host: {parts.netloc}",
        "content-type: application/json",
        f"content-length: {len(payload)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload


async def run(options: argparse.Namespace) -> dict[str, object]:
    parts, rng, records = urlsplit(options.url), random.Random(0), []
    todo = iter(range(options.requests))
    loop = asyncio.get_running_loop()

    async def user() -> None:
        for number in todo:
            words = " ".join(rng.choice(WORDS) for _ in range(options.prompt_words))
            body: dict[str, object] = {
                "model": options.model,
                "stream": True,
                "max_tokens": options.max_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "messages": [{"role": "user", "content": f"{number} {words}"}],
            }
            _, stream = await loop.create_connection(
                lambda body=body: _Stream(request_bytes(options.url, body)), parts.hostname, parts.port
            )
            records.append(await stream.done)

    started = time.perf_counter()
    await asyncio.gather(*(user() for _ in range(options.concurrency)))
    return summary(records, time.perf_counter() - started)


def summary(records: list[Record], wall: float) -> dict[str, object]:
    whole = [record for record in records if record.whole]
    itl = sorted(gap for record in whole for gap in record.itl)
    ttft = sorted(record.ttft for record in whole)
    tokens = sum(record.tokens for record in whole)
    statuses: dict[int, int] = {}
    for record in records:
        statuses[record.status] = statuses.get(record.status, 0) + 1
    return {
        "requests": len(records),
        "failed": len(records) - len(whole),
        "statuses": statuses,
        "wall_s": round(wall, 3),
        "tokens": tokens,
        "tokens_per_s": round(tokens / wall, 1),
        "ttft_ms": {f"p{p}": percentile(ttft, p) for p in (50, 90, 99)},
        "itl_ms": {f"p{p}": percentile(itl, p) for p in (50, 90, 99)},
    }


def percentile(ordered: list[float], percent: int) -> float | None:
    """In milliseconds."""
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] * 1000, 2) if ordered else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--prompt-words", type=int, default=40)
    print(json.dumps(uvloop.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
