"""openai: 1.x of 2024 and the latest."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import openai
from pydantic import BaseModel, ConfigDict, Field
from scenarios import (
    ENOUGH,
    MODEL,
    NAMED,
    PLAN,
    QUESTION,
    RESULT,
    STORY,
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

OLD = openai.__version__.startswith("1.")
HERE: dict[str, Any] = {"model": MODEL, "temperature": 0}
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
create = client.chat.completions.create
# What parses was in beta then.
parsing = client.beta.chat.completions if OLD else client.chat.completions


class Trip(BaseModel):
    model_config = ConfigDict(extra="forbid")  # no end of more properties

    city: Literal["Paris", "Rome", "Oslo"]
    days: Annotated[int, Field(ge=1, le=9)]
    note: Annotated[str, Field(max_length=12)]


def check_call(call: Any) -> None:
    assert call.type == "function", call
    assert call.function.name == "plan_trip", call
    assert call.id, call
    assert isinstance(call.function.arguments, str), call
    check_trip(call.function.arguments)


@scenario
def text() -> None:
    answer = create(messages=QUESTION, **HERE)
    check_text(answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop", answer
    assert answer.model == MODEL, answer
    assert answer.usage.total_tokens == 45, answer


@scenario
async def text_async() -> None:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none") as asynchronous:
        answer = await asynchronous.chat.completions.create(messages=QUESTION, **HERE)
    check_text(answer.choices[0].message.content)


@scenario
def stream() -> None:
    chunks = list(create(messages=QUESTION, **HERE, stream=True))
    check_text("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    assert len(chunks) > 4, chunks
    assert chunks[-1].choices[0].finish_reason == "stop", chunks[-1]


@scenario
async def stream_async() -> None:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none") as asynchronous:
        made = asynchronous.chat.completions.create(messages=QUESTION, **HERE, stream=True)
        chunks = [chunk async for chunk in await made]
    check_text("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


@scenario
def usage_in_stream() -> None:
    options = {"include_usage": True}
    *_, last = create(messages=QUESTION, **HERE, stream=True, stream_options=options)
    assert last.choices == [], last
    assert last.usage.total_tokens == 45, last


def _named_call() -> Any:
    return create(**HERE, messages=PLAN, tools=[TOOL], tool_choice=NAMED, max_tokens=ENOUGH)


@scenario
def tool_named() -> None:
    answer = _named_call()
    (call,) = answer.choices[0].message.tool_calls
    check_call(call)
    assert answer.choices[0].finish_reason == "stop", answer
    assert not answer.choices[0].message.content, answer


@scenario
def tool_required() -> str:
    answer = create(
        **HERE, messages=PLAN, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=ENOUGH
    )
    (call,) = answer.choices[0].message.tool_calls
    check_call(call)
    assert answer.choices[0].finish_reason == "tool_calls", answer
    return "with `parallel_tool_calls: false`: the small model calls until `max_tokens`"


@scenario
def tool_auto() -> None:
    answer = create(**HERE, messages=PLAN, tools=[TOOL], tool_choice="auto", max_tokens=ENOUGH)
    message = answer.choices[0].message
    assert message.content or message.tool_calls, message


@scenario
def tool_result() -> None:
    message = _named_call().choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": RESULT}
    answer = create(**HERE, messages=[*PLAN, message, result], tools=[TOOL], tool_choice="none", max_tokens=16)
    assert answer.choices[0].message.content, answer


@scenario
def tool_stream() -> None:
    chunks = list(create(**HERE, messages=PLAN, tools=[TOOL], tool_choice=NAMED, max_tokens=ENOUGH, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert calls[0].id, calls[0]
    assert calls[0].function.name == "plan_trip", calls[0]
    assert all((call.index, call.id) == (0, None) for call in calls[1:]), calls
    check_trip("".join(call.function.arguments or "" for call in calls))


@scenario
def tool_helper() -> None:
    """`.stream()` puts a call together, and reads it into the model that the tool was made from."""
    tool = openai.pydantic_function_tool(Trip, name="plan_trip")
    with parsing.stream(**HERE, messages=PLAN, tools=[tool], tool_choice=NAMED, max_tokens=ENOUGH) as helper:
        done = [event for event in helper if event.type == "tool_calls.function.arguments.done"]
        (call,) = helper.get_final_completion().choices[0].message.tool_calls
    assert len(done) == 1, done
    check_call(call)
    assert isinstance(call.function.parsed_arguments, Trip), call


@scenario
def structured() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "trip", "schema": TRIP, "strict": True}}
    answer = create(**HERE, messages=PLAN, response_format=wanted, max_tokens=ENOUGH)
    check_trip(answer.choices[0].message.content)
    answer = create(**HERE, messages=PLAN, response_format={"type": "json_object"}, max_tokens=ENOUGH)
    if answer.choices[0].finish_reason == "stop":  # nothing bounds an object of any shape
        assert isinstance(json.loads(answer.choices[0].message.content), dict), answer


@scenario
def structured_helper() -> None:
    """`.parse()`, of a pydantic model."""
    answer = parsing.parse(**HERE, messages=PLAN, response_format=Trip, max_tokens=ENOUGH)
    assert isinstance(answer.choices[0].message.parsed, Trip), answer


@scenario
def bad_temperature() -> None:
    error = error_of(lambda: create(messages=QUESTION, model=MODEL, temperature=3), openai.BadRequestError)
    assert error.param == "temperature", error
    assert error.type == "invalid_request_error", error
    assert "temperature" in str(error), error


@scenario
def unknown_model() -> None:
    error = error_of(lambda: create(model="no/such", messages=QUESTION), openai.NotFoundError)
    assert error.code == "model_not_found", error
    assert "no/such" in str(error), error


@scenario
def while_loading() -> str:
    with openai.OpenAI(base_url=while_it_loads("/v1"), api_key="none") as slow:
        answer = slow.chat.completions.create(messages=QUESTION, **HERE)
    check_text(answer.choices[0].message.content)
    assert attempts() == 3, attempts()
    return "tries again when Retry-After says, twice at most"


@scenario
def service() -> str:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    return "the list of models, and one of it"


@scenario
def disconnect() -> None:
    before = cancelled()
    chunks = create(model=MODEL, messages=STORY, max_tokens=1500, stream=True)
    next(iter(chunks))
    chunks.close()
    wait_until_cancelled(before + 1)


run()
