"""`/openapi.json` and `/docs`: both dialects, from the very tables that check requests."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from serving import __version__
from serving.api import fields, huggingface, messages, openai, raw, tool_fields

Schema = dict[str, Any]


@lru_cache(maxsize=1)
def document() -> Schema:
    """The OpenAPI 3.1 document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "serving",
            "version": __version__,
            "description": "Chat completions in two dialects: OpenAI's under /v1, the Hugging Face task's at /models.",
        },
        "paths": {
            "/v1/chat/completions": {"post": _chat_operation("openai", _openai_request(), _OPENAI_EXAMPLES)},
            "/models/{model}/v1/chat/completions": {
                "parameters": [_MODEL],
                "post": _chat_operation("huggingface", _huggingface_request(), _HUGGINGFACE_EXAMPLES),
            },
            "/models/{model}": {
                "parameters": [_MODEL],
                "post": _raw_operation(),
                "get": _get("The model, as the Hub describes one", "huggingface"),
            },
            "/models/{model}/info": {
                "parameters": [_MODEL],
                "get": _get("text-generation-inference's description of an endpoint", "huggingface"),
            },
            "/models/{model}/health": {
                "parameters": [_MODEL],
                "get": _get("200 when the model has an engine, 503 until then", "huggingface"),
            },
            "/status/{model}": {"parameters": [_MODEL], "get": _get("Whether the model is loaded", "huggingface")},
            "/v1/models": {"get": _get("The models and their context", "openai")},
            "/v1/models/{model}": {"parameters": [_MODEL], "get": _get("One model", "openai")},
            "/health": {"get": _get("This front is alive", "openai")},
            "/ready": {"get": _get("200 when some model has an engine, 503 until then", "openai")},
        },
        "components": {"schemas": {"OpenAIError": _OPENAI_ERROR, "HuggingFaceError": _HUGGINGFACE_ERROR}},
    }


_MODEL = {
    "name": "model",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "The model's id; it may hold a slash",
}
_OPENAI_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_HUGGINGFACE_ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {
        "error": {"type": "string"},
        "error_type": {"type": "string"},
        "estimated_time": {"type": "number"},
    },
}
_HEADERS = {
    "authorization": "`Bearer TOKEN`, also `Bearer: TOKEN`",
    "x-request-id": "The request's id; comes back in the answer",
    "x-dialect": "`openai` or `huggingface`: instead of the path's dialect",
    "x-request-timeout": "Seconds until the request is given up",
    "x-use-cache": "Whether a known answer will do",
    "x-wait-for-model": "Wait for a model that is loading",
}


def _nullable(check: fields.Check) -> Schema:
    return {"anyOf": [check.schema, {"type": "null"}]}


def _request(table: dict[str, fields.Check], required: list[str], **more: Schema) -> Schema:
    properties: Schema = {"messages": {"type": "array", "items": messages.schema(), "minItems": 1}}
    properties |= {field: _nullable(check) for field, check in table.items()}
    return {"type": "object", "required": required, "properties": properties | more}


def _openai_request() -> Schema:
    return _request(
        openai.FIELDS,
        ["model", "messages"],
        model={"type": "string"},
        tools=tool_fields.TOOLS_SCHEMA | {"minItems": 1},
        tool_choice=tool_fields.OPENAI_CHOICE_SCHEMA,
        response_format=tool_fields.OPENAI_SHAPE_SCHEMA,
    )


def _huggingface_request() -> Schema:
    return _request(
        huggingface.FIELDS,
        ["messages"],
        tools=tool_fields.TOOLS_SCHEMA,
        tool_choice=tool_fields.HUGGINGFACE_CHOICE_SCHEMA,
        response_format=tool_fields.HUGGINGFACE_SHAPE_SCHEMA,
    )


def _chat_operation(dialect: str, request: Schema, examples: Schema) -> Schema:
    return {
        "operationId": f"{dialect}_chat",
        "summary": f"A chat completion in the {dialect} dialect",
        "tags": [dialect],
        "parameters": _header_parameters(),
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": request, "examples": examples}},
        },
        "responses": {
            "200": {
                "description": "The answer: one object, or with `stream` server-sent events that end with [DONE]",
                "content": {
                    "application/json": {"schema": {"type": "object"}},
                    "text/event-stream": {"schema": {"type": "string"}},
                },
            },
            "default": _error(dialect),
        },
    }


def _raw_operation() -> Schema:
    def section(table: dict[str, fields.Check]) -> Schema:
        return {"type": "object", "properties": {field: _nullable(check) for field, check in table.items()}}

    request = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "inputs": {"type": "string", "minLength": 1},
            "parameters": section(raw.PARAMETERS),
            "options": section(raw.OPTIONS),
        },
    }
    examples = {"inputs": {"value": {"inputs": "Can you please let us know more details about your "}}}
    operation = _chat_operation("huggingface", {"anyOf": [request, _huggingface_request()]}, examples)
    return operation | {
        "operationId": "raw_text",
        "summary": "Text generation from a raw prompt, or a chat: `inputs` or `messages`",
    }


def _header_parameters() -> list[Schema]:
    return [
        {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": text}
        for name, text in _HEADERS.items()
    ]


def _get(summary: str, dialect: str) -> Schema:
    answer = {"description": summary, "content": {"application/json": {"schema": {"type": "object"}}}}
    return {"summary": summary, "tags": [dialect], "responses": {"200": answer, "default": _error(dialect)}}


def _error(dialect: str) -> Schema:
    name = "OpenAIError" if dialect == "openai" else "HuggingFaceError"
    return {
        "description": "What went wrong",
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
    }


_HELLO = [{"role": "user", "content": "What is the capital of France?"}]
_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
_PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
_OPENAI_EXAMPLES: Schema = {
    "chat": {"value": {"model": "SmolLM2-135M-Instruct", "messages": _HELLO, "max_tokens": 64}},
    "stream": {"value": {"model": "SmolLM2-135M-Instruct", "messages": _HELLO, "stream": True}},
    "tools": {"value": {"model": "SmolLM2-135M-Instruct", "messages": _HELLO, "tools": [_WEATHER]}},
    "structured": {
        "value": {
            "model": "SmolLM2-135M-Instruct",
            "messages": _HELLO,
            "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": _PERSON}},
        }
    },
}
_HUGGINGFACE_EXAMPLES: Schema = {
    "chat": {"value": {"messages": _HELLO, "max_tokens": 64}},
    "stream": {"value": {"messages": _HELLO, "stream": True}},
    "named tool": {"value": {"messages": _HELLO, "tools": [_WEATHER], "tool_choice": {"FunctionName": "get_weather"}}},
    "structured": {"value": {"messages": _HELLO, "response_format": {"type": "json", "value": _PERSON}}},
}


@lru_cache(maxsize=1)
def page() -> str:
    """The document as a page that needs nothing from elsewhere: it works where the network ends at the server."""
    parts: list[str] = []
    for path, item in document()["paths"].items():
        parts += [_section(method, path, item[method]) for method in ("post", "get") if method in item]
    return _PAGE.format(version=html.escape(__version__), body="\n".join(parts))


def _section(method: str, path: str, operation: Schema) -> str:
    body = f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(operation['summary'])}</p>"
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return body
    schema = content["schema"]
    for variant in schema.get("anyOf", [schema]):
        body += _table(variant)
    for name, example in content["examples"].items():
        body += f"<h3>{html.escape(name)}</h3><pre>{html.escape(json.dumps(example['value'], indent=2))}</pre>"
    return body


def _flat(properties: Schema) -> Iterator[tuple[str, Schema]]:
    """Properties, with those of a section under their full names: `parameters.top_p`."""
    for field, described in properties.items():
        if "properties" in described:
            yield from ((f"{field}.{inner}", schema) for inner, schema in described["properties"].items())
        else:
            yield field, described


def _table(schema: Schema) -> str:
    rows = []
    for field, described in _flat(schema["properties"]):
        star = " *" if field in schema["required"] else ""
        options = [one for one in described.get("anyOf", [described]) if one != {"type": "null"}]
        said = " or ".join(json.dumps(one) if len(json.dumps(one)) < 200 else one.get("type", "…") for one in options)
        rows.append(f"<tr><td><code>{html.escape(field)}{star}</code></td><td>{html.escape(said)}</td></tr>")
    return f"<table>{''.join(rows)}</table>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>serving {version}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
body {{ color-scheme: light dark }}
table {{ border-collapse: collapse }}
td {{ border-bottom: 1px solid #8884; padding: .2rem .8rem .2rem 0; vertical-align: top }}
pre {{ overflow-x: auto; padding: .8rem; background: #8881 }}
</style></head>
<body><h1>serving {version}</h1>
<p>Chat completions in two dialects. The whole description, for machines: <a href="/openapi.json">/openapi.json</a>.</p>
{body}
</body></html>
"""
