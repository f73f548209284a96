"""Which clients there are, what each of them is asked to do, and what came of it the last time."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

RESULTS = Path(__file__).parents[2] / "loadtests" / "results" / "clients.json"

# Scenarios in the order of the page, and what it calls them.
TITLES = {
    "text": "text",
    "text_async": "text, async",
    "stream": "stream",
    "stream_async": "stream, async",
    "usage_in_stream": "usage at the end of a stream",
    "base_url": "`base_url` in place of `model`",
    "tool_named": "a named tool is called, its arguments valid",
    "tool_named_async": "the same, async",
    "tool_required": "some tool is called",
    "tool_auto": "the model may call a tool",
    "tool_result": "a tool's result, sent back",
    "tool_stream": "a streamed call",
    "tool_helper": "a streamed call, put together by the client",
    "structured": "an answer by a JSON schema",
    "structured_helper": "the same, by the client's own helper",
    "bad_temperature": "a bad value: the client's own error names the field",
    "unknown_model": "an unknown model: the client's own error",
    "while_loading": "a model that is still loading",
    "service": "what else it asks a server",
    "disconnect": "leaving in the middle of a stream frees the engine",
}

_EVERYTHING = {
    *("text", "stream", "usage_in_stream", "disconnect"),
    *("tool_named", "tool_required", "tool_auto", "tool_result", "tool_stream", "structured"),
    *("bad_temperature", "unknown_model", "while_loading"),
}
_ASYNC = {"text_async", "stream_async"}
_HUB = _EVERYTHING | _ASYNC | {"base_url", "service"}
_OPENAI = _EVERYTHING | {"tool_helper", "structured_helper", "service"}

HUB_PATH, OPENAI_PATH = "/models/{id}", "/v1"


@dataclass(frozen=True)
class Client:
    name: str
    package: str
    """Whose version is told: a distribution of PyPI, or a folder of node_modules."""
    environment: str
    program: str
    call: str
    """How it is told where the server is."""
    path: str
    scenarios: Set[str]
    words: tuple[str, ...] = ()


_ALL = (
    Client("hub-0.26", "huggingface_hub", "hub-0.26", "use_hub.py", 'InferenceClient(model="…")', HUB_PATH, _HUB),
    Client("hub-latest", "huggingface_hub", "hub-latest", "use_hub.py", 'InferenceClient(model="…")', HUB_PATH, _HUB),
    Client(
        *("inference-js-2", "hf-inference-2", "node", "use_inference.mjs", 'new HfInference().endpoint("…")'),
        *(HUB_PATH, _EVERYTHING),
        words=("2",),
    ),
    Client(
        *("inference-js-4", "@huggingface/inference", "node", "use_inference.mjs"),
        *('new InferenceClient().endpoint("…")', HUB_PATH, _EVERYTHING),
        words=("4",),
    ),
    Client(
        *("langchain-huggingface", "langchain-huggingface", "langchain", "use_langchain_huggingface.py"),
        *('HuggingFaceEndpoint(endpoint_url="…")', HUB_PATH, _EVERYTHING | _ASYNC | {"structured_helper"}),
    ),
    Client(
        *("litellm-huggingface", "litellm", "litellm", "use_litellm.py"),
        *('completion("huggingface/{id}", api_base="…")', HUB_PATH, _EVERYTHING | _ASYNC | {"tool_helper"}),
        words=("huggingface",),
    ),
    Client("openai-1", "openai", "openai-1", "use_openai.py", 'OpenAI(base_url="…")', OPENAI_PATH, _OPENAI | _ASYNC),
    Client(
        *("openai-latest", "openai", "openai-latest", "use_openai.py"),
        *('OpenAI(base_url="…")', OPENAI_PATH, _OPENAI | _ASYNC),
    ),
    Client("openai-js", "openai", "node", "use_openai.mjs", 'new OpenAI({ baseURL: "…" })', OPENAI_PATH, _OPENAI),
    Client(
        *("langchain-openai", "langchain-openai", "langchain", "use_langchain_openai.py"),
        *('ChatOpenAI(base_url="…")', OPENAI_PATH, _EVERYTHING | _ASYNC | {"structured_helper"}),
    ),
    Client(
        *("litellm-openai", "litellm", "litellm", "use_litellm.py"),
        *('completion("openai/{id}", api_base="…")', OPENAI_PATH, _EVERYTHING | _ASYNC | {"tool_helper"}),
    ),
    Client(
        *("instructor", "instructor", "instructor", "use_instructor.py"),
        *('instructor.from_openai(OpenAI(base_url="…"))', OPENAI_PATH),
        {"tool_named", "tool_named_async", "tool_stream", "structured"}
        | {"bad_temperature", "unknown_model", "while_loading"},
    ),
)
CLIENTS = {client.name: client for client in _ALL}
CASES = [(name, title) for name, client in CLIENTS.items() for title in TITLES if title in client.scenarios]


def results() -> dict[str, Any]:
    """Of each client its version and, for each scenario, `ok` and `detail`."""
    return orjson.loads(RESULTS.read_bytes()) if RESULTS.is_file() else {}


def record(client: Client, version: str, outcomes: dict[str, Any]) -> None:
    """Beside what is known of the other clients. Says the same in the same bytes: no times, no order of arrival."""
    known = results() | {client.name: {"version": version, "scenarios": outcomes}}
    ordered = {name: known[name] for name in CLIENTS if name in known}
    RESULTS.write_bytes(orjson.dumps(ordered, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
