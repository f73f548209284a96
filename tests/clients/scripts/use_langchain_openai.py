"""langchain-openai's ChatOpenAI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import openai
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field
from scenarios import (
    ENOUGH,
    MODEL,
    RESULT,
    TOOL,
    URL,
    attempts,
    cancelled,
    check_text,
    check_trip,
    error_of,
    run,
    scenario,
    wait_until_cancelled,
    while_it_loads,
)

QUESTION, PLAN = "What is the capital of France?", "Plan a trip of three days to Rome."
STORY = "Write a very long story about a river, a mill and a miller."


class Trip(BaseModel):
    """Plans a trip."""

    model_config = ConfigDict(extra="forbid")  # no end of more properties

    city: Literal["Paris", "Rome", "Oslo"]
    days: Annotated[int, Field(ge=1, le=9)]
    note: Annotated[str, Field(max_length=12)]


def chat(**settings: Any) -> ChatOpenAI:
    given = {"base_url": f"{URL}/v1", "api_key": "none", "model": MODEL, "temperature": 0, "max_retries": 0}
    return ChatOpenAI(**(given | settings))


@scenario
def text() -> None:
    answer = chat().invoke(QUESTION)
    check_text(answer.content)
    assert answer.usage_metadata["total_tokens"] == 45, answer
    assert answer.response_metadata["finish_reason"] == "stop", answer


@scenario
async def text_async() -> None:
    check_text((await chat().ainvoke(QUESTION)).content)


@scenario
def stream() -> None:
    chunks = list(chat().stream(QUESTION))
    check_text("".join(chunk.content for chunk in chunks))
    assert len(chunks) > 4, chunks


@scenario
async def stream_async() -> None:
    check_text("".join([chunk.content async for chunk in chat().astream(QUESTION)]))


@scenario
def usage_in_stream() -> None:
    whole: Any = sum(chat(stream_usage=True).stream(QUESTION), AIMessageChunk(content=""))
    assert whole.usage_metadata["total_tokens"] == 45, whole


def _with_tool(choice: str) -> Any:
    return chat(max_tokens=ENOUGH).bind_tools([TOOL], tool_choice=choice)


@scenario
def tool_named() -> None:
    (call,) = _with_tool("plan_trip").invoke(PLAN).tool_calls
    assert call["name"] == "plan_trip", call
    assert call["id"], call
    check_trip(call["args"])


@scenario
def tool_required() -> str:
    one_by_one = chat(max_tokens=ENOUGH).bind_tools([TOOL], tool_choice="required", parallel_tool_calls=False)
    (call,) = one_by_one.invoke(PLAN).tool_calls
    check_trip(call["args"])
    return "with `parallel_tool_calls: false`: the small model calls until `max_tokens`"


@scenario
def tool_auto() -> None:
    answer = _with_tool("auto").invoke(PLAN)
    assert answer.content or answer.tool_calls, answer


@scenario
def tool_result() -> None:
    message = _with_tool("plan_trip").invoke(PLAN)
    result = ToolMessage(RESULT, tool_call_id=message.tool_calls[0]["id"])
    answer = chat(max_tokens=16).invoke([HumanMessage(PLAN), message, result])
    assert answer.content, answer


@scenario
def tool_stream() -> None:
    whole: Any = sum(_with_tool("plan_trip").stream(PLAN), AIMessageChunk(content=""))
    (call,) = whole.tool_calls
    assert call["name"] == "plan_trip", call
    check_trip(call["args"])


@scenario
def structured() -> None:
    trip = chat(max_tokens=ENOUGH).with_structured_output(Trip, method="json_schema").invoke(PLAN)
    assert isinstance(trip, Trip), trip


@scenario
def structured_helper() -> None:
    """By a function."""
    trip = chat(max_tokens=ENOUGH).with_structured_output(Trip, method="function_calling").invoke(PLAN)
    assert isinstance(trip, Trip), trip


@scenario
def bad_temperature() -> None:
    error = error_of(lambda: chat(temperature=3).invoke(QUESTION), openai.BadRequestError)
    assert error.param == "temperature", error


@scenario
def unknown_model() -> None:
    error = error_of(lambda: chat(model="no/such").invoke(QUESTION), openai.NotFoundError)
    assert "no/such" in str(error), error


@scenario
def while_loading() -> str:
    check_text(chat(base_url=while_it_loads("/v1"), max_retries=2).invoke(QUESTION).content)
    assert attempts() == 3, attempts()
    return "tries again when Retry-After says, twice at most"


@scenario
def disconnect() -> None:
    before = cancelled()
    chunks = chat(max_tokens=1500).stream(STORY)
    next(chunks)
    chunks.close()
    wait_until_cancelled(before + 1)


run()
