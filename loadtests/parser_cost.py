"""What a tool format's parser costs a token: a stream of text, and one of a call with long arguments.

Tokens of four characters, one `feed` each, as a model streams them. Prints CPU microseconds a token.

usage: python -m loadtests.parser_cost
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from serving.api.tools import registry
from serving.api.tools.base import CallArguments, Tool

WIDTH, TIMES = 4, 5
TOOLS = [Tool("write_file", "Writes a file.", {"type": "object"}), Tool("get_weather", None, {"type": "object"})]
TEXT = "A river is a natural stream of fresh water, and <most> of them [nearly all] flow to the sea.\n" * 100
ARGUMENTS = json.dumps(
    {
        "path": "notes/rivers.md",
        "lines": [{"number": n, "text": f'The "{n}th" river\n\tflows {{south}}'} for n in range(200)],
    }
)


def seconds(name: str, answer: str) -> float:
    """What reading the whole answer takes, the best of several times."""
    pieces = [answer[at : at + WIDTH] for at in range(0, len(answer), WIDTH)]
    best = float("inf")
    for _ in range(TIMES):
        parser = registry.find(name).parser(TOOLS)
        before = time.process_time()
        for piece in pieces:
            parser.feed(piece)
        parser.finish()
        best = min(best, time.process_time() - before)
    return best / len(pieces)


def check(name: str, answer: str) -> None:
    parser = registry.find(name).parser(TOOLS)
    events = parser.feed(answer) + parser.finish()
    fragments = "".join(event.fragment for event in events if isinstance(event, CallArguments))
    assert json.loads(fragments) == json.loads(ARGUMENTS), name


def main() -> None:
    found: dict[str, dict[str, float]] = {}
    for name in ("json_tags", "llama3_json", "mistral", "pythonic", "generic"):
        call = registry.find(name).write([("write_file", ARGUMENTS)])
        check(name, call)
        found[name] = {"text": round(seconds(name, TEXT) * 1e6, 2), "call": round(seconds(name, call) * 1e6, 2)}
    print(json.dumps({"cpu_us_per_token": found}, indent=1))
    target = Path(__file__).parent / "results" / "parser_cost.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"cpu_us_per_token": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
