"""A small server beside the real one, for what the real one cannot show on demand.

`/loading/{key}/…` answers like a server whose model is still loading, for a while from the first
request with that key, and then passes everything on; `/attempts/{key}` tells how often it was asked.
`/cancelled` tells how many requests the real server counts as cancelled.
"""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.server import Server

LOADING_SECONDS = 1.5
HOLD_SECONDS = 0.25  # before a 503 in the huggingface dialect: some of its clients ask again at once


class _Beside(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, real: Server) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.real = real
        self.attempts: Counter[str] = Counter()
        self.ready_at: dict[str, float] = {}


class _Handler(BaseHTTPRequestHandler):
    server: _Beside
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        _, what, *rest = self.path.split("/")
        if what == "cancelled":
            counted = sum(self.server.real.metric("serving_requests_total", 'outcome="cancelled"'))
            self._answer(200, {"cancelled": counted})
        elif what == "attempts":
            self._answer(200, {"attempts": self.server.attempts[rest[0]]})
        else:
            self._answer(404, {"error": "nothing here"})

    def do_POST(self) -> None:
        _, _, key, path = self.path.split("/", 3)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.attempts[key] += 1
        left = self.server.ready_at.setdefault(key, time.monotonic() + LOADING_SECONDS) - time.monotonic()
        if left > 0 and self.headers.get("x-wait-for-model", "").lower() in ("true", "1"):
            time.sleep(left)
        elif left > 0:
            self._still_loading("/" + path, left)
            return
        request = urllib.request.Request(
            f"{self.server.real.url}/{path}", body, {"content-type": self.headers["content-type"]}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                self._answer(answer.status, answer.read(), answer.headers["content-type"])
        except urllib.error.HTTPError as error:
            self._answer(error.code, error.read(), error.headers["content-type"])

    def _still_loading(self, path: str, left: float) -> None:
        text = "Model is currently loading"
        if path.startswith("/models/"):
            time.sleep(HOLD_SECONDS)
            body: dict[str, Any] = {"error": text, "error_type": "loading", "estimated_time": round(left, 1)}
        else:
            body = {"error": {"message": text, "type": "service_unavailable", "param": None, "code": None}}
        self._answer(503, body, headers={"retry-after": "1"})

    def _answer(
        self,
        status: int,
        body: bytes | dict[str, Any],
        media_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: pytest shows what matters."""


@contextmanager
def beside(real: Server) -> Iterator[str]:
    """The address of a server beside `real`."""
    server = _Beside(real)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
