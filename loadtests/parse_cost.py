"""What parsing and checking a request costs: from the body's bytes to a `Chat`, in both dialects.

Bodies of 4 kB: a conversation, and one with tools. Prints CPU microseconds a request, the median of
several rounds.

usage: python -m loadtests.parse_cost
"""

from __future__ import annotations

import gc
import json
import statistics
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from serving.api import fields, huggingface, openai
from serving.settings import LimitSettings

SIZE, ROUNDS, TIMES, AIM = 4000, 15, 400, 150
LIMITS = LimitSettings()

_SAYING = "Where does the Rhine come from, and which towns does it pass on its way to the sea? "
_SAMPLING = {
    "model": "m",
    "temperature": 0.7,
    "top_p": 0.9,
    "max_tokens": 256,
    "seed": 7,
    "stop": ["\n\n"],
    "stream": True,
}


def _tool(name: str) -> dict[str, Any]:
    properties = {
        "city": {"type": "string", "description": "The town's name, as its people spell it"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
    }
    schema = {"type": "object", "properties": properties, "required": ["city"]}
    return {
        "type": "function",
        "function": {"name": name, "description": "The weather somewhere.", "parameters": schema},
    }


def _body(tools: int) -> bytes:
    """A request of `SIZE` bytes: so many tools, and a conversation that fills the rest."""
    given: dict[str, Any] = {"messages": [{"role": "system", "content": "Be terse."}], "model": "m", **_SAMPLING}
    if tools:
        given |= {"tools": [_tool(f"tool_{number}") for number in range(tools)], "tool_choice": "auto"}
    messages = given["messages"]
    while len(json.dumps(given)) < SIZE:
        role = "assistant" if messages[-1]["role"] == "user" else "user"
        messages.append({"role": role, "content": _SAYING * 2})
    surplus = len(json.dumps(given)) - SIZE
    messages[-1]["content"] = messages[-1]["content"][: max(1, len(messages[-1]["content"]) - surplus)]
    return json.dumps(given).encode()


def microseconds(dialect: ModuleType, body: bytes) -> float:
    gc.collect()
    rounds = []
    for _ in range(ROUNDS):
        before = time.process_time()
        for _ in range(TIMES):
            dialect.parse(fields.parse(body, LIMITS.nesting), None, LIMITS)
        rounds.append((time.process_time() - before) / TIMES)
    return statistics.median(rounds) * 1e6


def main() -> None:
    found: dict[str, dict[str, float]] = {}
    for dialect in (openai, huggingface):
        bodies = {"messages": _body(0), "messages and tools": _body(8)}
        assert all(abs(len(body) - SIZE) < 100 for body in bodies.values()), {k: len(b) for k, b in bodies.items()}
        found[dialect.name] = {what: round(microseconds(dialect, body), 1) for what, body in bodies.items()}
    result = {"cpu_us_per_request": found, "body_bytes": SIZE, "aim_us": AIM}
    print(json.dumps(result, indent=1))
    target = Path(__file__).parent / "results" / "parse_cost.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
