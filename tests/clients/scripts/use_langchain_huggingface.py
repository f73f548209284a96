"""langchain-huggingface's ChatHuggingFace: text as the Hugging Face path is, tools with `x-dialect: openai`."""

from __future__ import annotations

from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint
from scenarios import (
    ENOUGH,
    HUB_MODEL,
    RESULT,
    TOOL,
    TRIP,
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
PLACE = f"/models/{HUB_MODEL}"
# Its messages take calls in openai's shape only.
OPENAI = {"headers": {"x-dialect": "openai"}}


def chat(url: str = URL + PLACE, *, server_kwargs: dict[str, Any] | None = None, **settings: Any) -> ChatHuggingFace:
    endpoint = HuggingFaceEndpoint(
        endpoint_url=url,
        task="text-generation",
        server_kwargs=server_kwargs or {},
        timeout=60,
        temperature=0,  # the chat model takes a zero of its own for nothing said, and this one's 0.8 instead
    )
    return ChatHuggingFace(llm=endpoint, **({"temperature": 0, "max_tokens": ENOUGH} | settings))


@scenario
def text() -> None:
    answer = chat().invoke(QUESTION)
    check_text(answer.content)
    assert answer.usage_metadata["total_tokens"] == 45, answer


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
    return chat(server_kwargs=OPENAI).bind_tools([TOOL], tool_choice=choice)


@scenario
def tool_named() -> str:
    (call,) = _with_tool("plan_trip").invoke(PLAN).tool_calls
    assert call["name"] == "plan_trip", call
    check_trip(call["args"])
    return "with the header `x-dialect: openai`, given as `server_kwargs={'headers': …}` of HuggingFaceEndpoint"


@scenario
def tool_required() -> str:
    calls = _with_tool("required").invoke(PLAN).tool_calls
    assert calls
    for call in calls:
        check_trip(call["args"])
    return "with the same header; a last call that `max_tokens` cut off is among its `invalid_tool_calls`"


@scenario
def tool_auto() -> None:
    answer = _with_tool("auto").invoke(PLAN)
    assert answer.content or answer.tool_calls, answer


@scenario
def tool_result() -> None:
    message = _with_tool("plan_trip").invoke(PLAN)
    result = ToolMessage(RESULT, tool_call_id=message.tool_calls[0]["id"])
    answer = chat(server_kwargs=OPENAI, max_tokens=16).invoke([HumanMessage(PLAN), message, result])
    assert answer.content, answer


@scenario
def tool_stream() -> None:
    whole: Any = sum(_with_tool("plan_trip").stream(PLAN), AIMessageChunk(content=""))
    (call,) = whole.tool_calls
    assert call["name"] == "plan_trip", call
    check_trip(call["args"])


@scenario
def structured() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "trip", "schema": TRIP, "strict": True}}
    check_trip(chat().bind(response_format=wanted).invoke(PLAN).content)


@scenario
def structured_helper() -> str:
    schema = {"title": "plan_trip", "description": "Plans a trip.", **TRIP}
    check_trip(chat(server_kwargs=OPENAI).with_structured_output(schema, method="function_calling").invoke(PLAN))
    return "by a function, with the same header"


@scenario
def bad_temperature() -> None:
    error = error_of(lambda: chat(temperature=3).invoke(QUESTION), HfHubHTTPError)
    assert error.response.status_code == 422, error
    assert "temperature" in str(error), error


@scenario
def unknown_model() -> None:
    error = error_of(lambda: chat(f"{URL}/models/no/such").invoke(QUESTION), HfHubHTTPError)
    assert error.response.status_code == 404, error
    assert "no/such" in str(error), error


@scenario
def while_loading() -> str:
    error = error_of(lambda: chat(while_it_loads(PLACE)).invoke(QUESTION), HfHubHTTPError)
    assert error.response.status_code == 503, error
    assert "loading" in str(error), error
    assert attempts() == 1, attempts()
    return "does not try again: an HfHubHTTPError with the status 503"


@scenario
def disconnect() -> None:
    before = cancelled()
    leaver = chat(max_tokens=1500)
    chunks = leaver.stream(STORY)
    next(chunks)
    chunks.close()
    leaver.llm.client.close()
    wait_until_cancelled(before + 1)


run()
