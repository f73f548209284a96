"""What the tests of all tool formats share: answers, read whole or in pieces, and grammars, walked by tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from serving.api.grammar import Node, lark
from serving.api.tools.base import CallArguments, CallStart, Event, Format, Text, Tool
from serving.models import embedded

WEATHER = Tool(
    "get_weather",
    "The weather.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "units": {"type": "string", "enum": ["C", "F"]},
        },
        "required": ["city"],
    },
)
CLOCK = Tool("clock", None, {"type": "object", "properties": {}})
TOOLS = [WEATHER, CLOCK]
OPEN_TOOLS = [Tool(name, None, {"type": "object"}) for name in ("f", "get_weather", "get-it", "f2")]

# What strings, keys and texts are made of: whatever a careless parser would take for structure.
SNARES = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", '"', "'", "\\", "{", "}", "[", "]", "(", ")"]
SNARES += ["é", "日本", "🦜", "\n", "\u2028", "\x00", ";", ",", "=", "<", "a", " ", '{"name": "f"}', "\\u00e9", "\\n"]


def read(format: Format, pieces: Iterable[str], tools: Sequence[Tool] = OPEN_TOOLS) -> list[Event]:
    """The events with adjacent texts and adjacent fragments joined. None of them is empty."""
    parser = format.parser(tools)
    events = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
    joined: list[Event] = []
    for event in events:
        match joined[-1:], event:
            case [Text(before)], Text(more):
                assert more
                joined[-1] = Text(before + more)
            case [CallArguments(before)], CallArguments(more):
                assert more
                joined[-1] = CallArguments(before + more)
            case _:
                assert event not in (Text(""), CallArguments(""))
                joined.append(event)
    return joined


def shown(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Text))


def calls(events: Sequence[Event]) -> list[tuple[str, Any]]:
    """The calls with their arguments parsed; each start is followed by its arguments."""
    rest = [event for event in events if not isinstance(event, Text)]
    found = []
    for start, arguments in zip(rest[::2], rest[1::2], strict=True):
        assert isinstance(start, CallStart)
        assert isinstance(arguments, CallArguments)
        found.append((start.name, json.loads(arguments.fragment)))
    return found


words = st.lists(st.sampled_from(SNARES), max_size=5).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
keywords = st.sampled_from(["a", "city", "name", "arguments", "is_true", "e5", "été"])
called = st.lists(
    st.tuples(st.sampled_from([tool.name for tool in OPEN_TOOLS]), st.dictionaries(keywords, values, max_size=3)),
    min_size=1,
    max_size=3,
)


@st.composite
def cut(draw: st.DrawFn, answer: str) -> list[str]:
    """The answer in pieces, some of them empty."""
    if draw(st.booleans()):
        return list(answer)
    cuts = sorted(draw(st.lists(st.integers(0, len(answer)), max_size=12)))
    return [answer[a:b] for a, b in pairwise([0, *cuts, len(answer)])]


@st.composite
def as_json(draw: st.DrawFn, value: Any) -> str:
    """The value in any of the ways to write JSON."""
    return json.dumps(
        value,
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 1])),
        separators=draw(st.sampled_from([None, (",", ":"), (" ,\n", " : ")])),
    )


@cache
def tokenizer() -> LLTokenizer:
    return LLTokenizer(str(embedded.prepare() / "tokenizer.json"))


class Walk:
    """A grammar as the engine has it, walked with the embedded model's tokens."""

    def __init__(self, node: Node) -> None:
        self._grammar = LLMatcher.grammar_from_lark(lark(node))
        assert LLMatcher.validate_grammar(self._grammar) == ""

    def accepts(self, answer: str, tokens: Mapping[str, int] | None = None) -> bool:
        """Whether every token may come and the answer may end there. `tokens`: what is one special token."""
        matcher = LLMatcher(tokenizer(), self._grammar, log_level=0)
        parts = [answer]
        for special in tokens or {}:
            parts = [piece for part in parts for piece in _around(part, special)]
        ids: list[int] = []
        for part in parts:
            special_id = (tokens or {}).get(part)
            ids += tokenizer().tokenize_bytes(part.encode()) if special_id is None else [special_id]
        return all(matcher.consume_token(token) for token in ids) and matcher.is_accepting()


def _around(part: str, special: str) -> list[str]:
    pieces = [piece for plain in part.split(special) for piece in (special, plain)][1:]
    return [piece for piece in pieces if piece]
