"""What the Python scripts share. Runs in each client's own environment: nothing but the standard library.

A script is `python SCRIPT URL MODEL BESIDE [WORD…]`. Each function marked `@scenario` is one
scenario: it returns nothing, or a remark that belongs on the page, and fails by raising.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

URL, MODEL, BESIDE, *WORDS = sys.argv[1:]
HUB_MODEL = f"HuggingFaceTB/{MODEL}"  # how the Hub writes it, slash and all

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
STORY = [{"role": "user", "content": "Write a very long story about a river, a mill and a miller."}]
PLAN = [{"role": "user", "content": "Plan a trip of three days to Rome."}]

CITIES = ("Paris", "Rome", "Oslo")
# Bounded in every direction: a small model that must follow it is done before it has run out of tokens.
TRIP = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": list(CITIES)},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "note": {"type": "string", "maxLength": 12},
    },
    "required": ["city", "days", "note"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "plan_trip", "description": "Plans a trip.", "parameters": TRIP},
}
NAMED = {"type": "function", "function": {"name": "plan_trip"}}
RESULT = json.dumps({"hotel": "Albergo", "price": 120})
ENOUGH = 128  # tokens for one call

_scenarios: list[Callable[[], Any]] = []


def scenario(function: Callable[[], Any]) -> Callable[[], Any]:
    _scenarios.append(function)
    return function


def run() -> None:
    # One loop for all: some clients keep connections beyond a call.
    with asyncio.Runner() as runner:
        for function in _scenarios:
            try:
                detail = runner.run(function()) if inspect.iscoroutinefunction(function) else function()
                line = {"scenario": function.__name__, "ok": True, "detail": detail or ""}
            except Exception as error:
                line = {"scenario": function.__name__, "ok": False, "detail": _told(error)}
            print(json.dumps(line), flush=True)


def _told(error: Exception) -> str:
    script = Path(sys.argv[0]).name
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(script)]
    return f"{type(error).__name__} in line {lines[-1]}: {str(error)[:600]}"


def check_trip(arguments: Any) -> None:
    """`arguments`, an object or the JSON of one, is valid for `TRIP`."""
    trip = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert isinstance(trip, dict), arguments
    assert set(trip) == {"city", "days", "note"}, trip
    assert trip["city"] in CITIES, trip
    assert type(trip["days"]) is int, trip
    assert 1 <= trip["days"] <= 9, trip
    assert isinstance(trip["note"], str), trip
    assert len(trip["note"]) <= 12, trip


def check_text(text: Any) -> None:
    assert isinstance(text, str), repr(text)
    assert "Paris" in text, repr(text)


def error_of(call: Callable[[], Any], kind: type[Exception]) -> Any:
    """What `call` raises, which must be of this kind: the client's own class."""
    try:
        answer = call()
    except kind as error:
        return error
    raise AssertionError(f"no error but {answer!r}")


def while_it_loads(path: str) -> str:
    """An address at which the model is still loading, until a while after this program's first request."""
    return f"{BESIDE}/loading/{os.getpid()}{path}"


def attempts() -> int:
    """How many requests came to that address."""
    return int(_ask(f"attempts/{os.getpid()}")["attempts"])


def cancelled() -> int:
    """How many requests the server counts as cancelled."""
    return int(_ask("cancelled")["cancelled"])


def wait_until_cancelled(number: int) -> None:
    deadline = time.monotonic() + 5
    while (found := cancelled()) != number:
        assert time.monotonic() < deadline, f"{found} cancelled, not {number}"
        time.sleep(0.1)


def _ask(path: str) -> Any:
    with urllib.request.urlopen(f"{BESIDE}/{path}", timeout=10) as answer:
        return json.load(answer)
