"""litellm: `openai/…` on /v1, or with the word `huggingface` `huggingface/…` on the Hugging Face path."""

from __future__ import annotations

from typing import Any

import litellm
from scenarios import (
    ENOUGH,
    HUB_MODEL,
    MODEL,
    NAMED,
    PLAN,
    QUESTION,
    RESULT,
    STORY,
    TOOL,
    TRIP,
    URL,
    WORDS,
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

HUB = WORDS == ["huggingface"]
PLACE = f"/models/{HUB_MODEL}" if HUB else "/v1"
litellm.suppress_debug_info = True
GIVEN: dict[str, Any] = {
    "model": f"huggingface/{HUB_MODEL}" if HUB else f"openai/{MODEL}",
    "api_base": URL + PLACE,
    "api_key": "none",
    "max_retries": 0,
}
# Of calls in the task's own shape it drops those that are streamed.
TOOLS: dict[str, Any] = {"messages": PLAN, "tools": [TOOL], "temperature": 0, "max_tokens": ENOUGH, **GIVEN}
if HUB:
    TOOLS["extra_headers"] = {"x-dialect": "openai"}


@scenario
def text() -> None:
    answer = litellm.completion(messages=QUESTION, temperature=0, **GIVEN)
    check_text(answer.choices[0].message.content)
    assert answer.usage.total_tokens == 45, answer


@scenario
async def text_async() -> None:
    answer = await litellm.acompletion(messages=QUESTION, temperature=0, **GIVEN)
    check_text(answer.choices[0].message.content)


@scenario
def stream() -> None:
    chunks = list(litellm.completion(messages=QUESTION, temperature=0, stream=True, **GIVEN))
    check_text("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    assert len(chunks) > 4, chunks


@scenario
async def stream_async() -> None:
    made = await litellm.acompletion(messages=QUESTION, temperature=0, stream=True, **GIVEN)
    check_text("".join([chunk.choices[0].delta.content or "" async for chunk in made]))


@scenario
def usage_in_stream() -> None:
    options = {"include_usage": True}
    *_, last = litellm.completion(messages=QUESTION, temperature=0, stream=True, stream_options=options, **GIVEN)
    assert last.usage.total_tokens == 45, last


@scenario
def tool_named() -> str:
    (call,) = litellm.completion(tool_choice=NAMED, **TOOLS).choices[0].message.tool_calls
    assert call.function.name == "plan_trip", call
    check_trip(call.function.arguments)
    return "with the header `x-dialect: openai`, given as `extra_headers`" if HUB else ""


@scenario
def tool_required() -> str:
    answer = litellm.completion(tool_choice="required", parallel_tool_calls=False, **TOOLS)
    (call,) = answer.choices[0].message.tool_calls
    check_trip(call.function.arguments)
    return "with `parallel_tool_calls: false`: the small model calls until `max_tokens`"


@scenario
def tool_auto() -> None:
    message = litellm.completion(tool_choice="auto", **TOOLS).choices[0].message
    assert message.content or message.tool_calls, message


@scenario
def tool_result() -> None:
    message = litellm.completion(tool_choice=NAMED, **TOOLS).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": RESULT}
    answer = litellm.completion(**(TOOLS | {"messages": [*PLAN, message, result], "tool_choice": "none"}))
    assert answer.choices[0].message.content, answer


@scenario
def tool_stream() -> None:
    chunks = list(litellm.completion(tool_choice=NAMED, stream=True, **TOOLS))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert calls[0].function.name == "plan_trip", calls
    check_trip("".join(call.function.arguments or "" for call in calls))


@scenario
def tool_helper() -> None:
    """`stream_chunk_builder` puts a streamed call together."""
    chunks = list(litellm.completion(tool_choice=NAMED, stream=True, **TOOLS))
    (call,) = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    check_trip(call.function.arguments)


@scenario
def structured() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "trip", "schema": TRIP, "strict": True}}
    answer = litellm.completion(messages=PLAN, response_format=wanted, temperature=0, max_tokens=ENOUGH, **GIVEN)
    check_trip(answer.choices[0].message.content)


@scenario
def bad_temperature() -> str:
    kind = litellm.APIError if HUB else litellm.BadRequestError
    error = error_of(lambda: litellm.completion(messages=QUESTION, temperature=3, **GIVEN), kind)
    assert error.status_code == (422 if HUB else 400), error
    assert "temperature" in str(error), error
    return "an APIError with the status 422" if HUB else ""


@scenario
def unknown_model() -> str:
    nobody = {"api_base": f"{URL}/models/no/such"} if HUB else {"model": "openai/no/such"}
    kind = litellm.APIError if HUB else litellm.NotFoundError
    error = error_of(lambda: litellm.completion(messages=QUESTION, **(GIVEN | nobody)), kind)
    assert error.status_code == 404, error
    assert "no/such" in str(error), error
    return "an APIError with the status 404" if HUB else ""


@scenario
def while_loading() -> str:
    slow = GIVEN | {"api_base": while_it_loads(PLACE), "num_retries": 2}
    if HUB:  # else it tries again at once, which is too soon
        slow["retry_strategy"] = "exponential_backoff_retry"
    check_text(litellm.completion(messages=QUESTION, temperature=0, **slow).choices[0].message.content)
    assert attempts() >= 2, attempts()
    return "tries again with `num_retries`"


@scenario
def disconnect() -> None:
    before = cancelled()
    chunks = litellm.completion(messages=STORY, max_tokens=1500, stream=True, **GIVEN)
    next(iter(chunks))
    chunks.completion_stream.close()
    wait_until_cancelled(before + 1)


run()
