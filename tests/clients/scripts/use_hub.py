"""huggingface_hub: 0.26 of 2024 and the latest, on the Hugging Face path."""

from __future__ import annotations

from typing import Any

import huggingface_hub
from huggingface_hub import AsyncInferenceClient, InferenceClient
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

try:
    from huggingface_hub.errors import HfHubHTTPError
except ImportError:
    from huggingface_hub.utils import HfHubHTTPError

PLACE = f"/models/{HUB_MODEL}"
OLD = huggingface_hub.__version__.startswith("0.")
client = InferenceClient(model=URL + PLACE, timeout=60)


def check_call(call: Any, streamed: bool = False) -> None:
    """As the task's schema has it: the id is a number, and the arguments are an object."""
    assert call.type == "function", call
    assert call.function.name == "plan_trip", call
    assert call.id == ("0" if streamed else 0), call
    if not streamed:
        assert isinstance(call.function.arguments, dict), call
        check_trip(call.function.arguments)


@scenario
def text() -> None:
    answer = client.chat_completion(QUESTION, temperature=0)
    check_text(answer.choices[0].message.content)
    assert answer.choices[0].finish_reason == "stop", answer
    assert answer.model == HUB_MODEL, answer
    assert answer.usage.total_tokens == 45, answer


@scenario
async def text_async() -> None:
    async with AsyncInferenceClient(model=URL + PLACE, timeout=60) as asynchronous:
        answer = await asynchronous.chat_completion(QUESTION, temperature=0)
    check_text(answer.choices[0].message.content)


@scenario
def stream() -> None:
    chunks = list(client.chat_completion(QUESTION, temperature=0, stream=True))
    check_text("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    assert len(chunks) > 4, chunks
    assert chunks[-1].choices[0].finish_reason == "stop", chunks[-1]


@scenario
async def stream_async() -> None:
    async with AsyncInferenceClient(model=URL + PLACE, timeout=60) as asynchronous:
        chunks = [chunk async for chunk in await asynchronous.chat_completion(QUESTION, temperature=0, stream=True)]
    check_text("".join(chunk.choices[0].delta.content or "" for chunk in chunks))


@scenario
def usage_in_stream() -> None:
    options = {"include_usage": True}
    *_, last = client.chat_completion(QUESTION, temperature=0, stream=True, stream_options=options)
    assert last.choices == [], last
    assert last.usage.total_tokens == 45, last


@scenario
def base_url() -> None:
    """Named like the openai client's, and called like it."""
    named_like_openai = InferenceClient(base_url=URL + PLACE, timeout=60)
    check_text(named_like_openai.chat.completions.create(messages=QUESTION, temperature=0).choices[0].message.content)


def _named_call() -> Any:
    # Each version writes the choice as its own types have it.
    choice = {"function": {"name": "plan_trip"}} if OLD else NAMED
    return client.chat_completion(PLAN, tools=[TOOL], tool_choice=choice, temperature=0, max_tokens=ENOUGH)


@scenario
def tool_named() -> None:
    answer = _named_call()
    (call,) = answer.choices[0].message.tool_calls
    check_call(call)
    assert answer.choices[0].finish_reason == "stop", answer
    assert answer.choices[0].message.content is None, answer


@scenario
def tool_required() -> str:
    chunks = client.chat_completion(
        PLAN, tools=[TOOL], tool_choice="required", temperature=0, max_tokens=ENOUGH, stream=True
    )
    calls = [chunk.choices[0].delta.tool_calls for chunk in chunks]
    check_trip("".join(call.function.arguments for call in calls if call is not None and call.index == 0))
    return (
        "streamed, and only the first call is looked at: the small model calls until `max_tokens`, "
        "and without a stream a call that was cut off is a 422"
    )


@scenario
def tool_auto() -> None:
    message = (
        client.chat_completion(PLAN, tools=[TOOL], tool_choice="auto", temperature=0, max_tokens=ENOUGH)
        .choices[0]
        .message
    )
    assert message.content or message.tool_calls, message


@scenario
def tool_result() -> None:
    message = _named_call().choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": RESULT}
    answer = client.chat_completion([*PLAN, message, result], temperature=0, max_tokens=16)
    assert answer.choices[0].message.content, answer


@scenario
def tool_stream() -> None:
    chunks = list(
        client.chat_completion(PLAN, tools=[TOOL], tool_choice=NAMED, temperature=0, max_tokens=ENOUGH, stream=True)
    )
    calls = [chunk.choices[0].delta.tool_calls for chunk in chunks]
    calls = [call for call in calls if call is not None]
    # `tool_calls` of a delta is one object in the task's schema.
    assert not any(isinstance(call, list) for call in calls), calls
    check_call(calls[0], streamed=True)
    assert all(call.index == 0 for call in calls), calls
    assert all(call.function.name is None for call in calls[1:]), calls
    check_trip("".join(call.function.arguments for call in calls))
    assert chunks[-1].choices[0].finish_reason == "stop", chunks[-1]


@scenario
def structured() -> None:
    wanted: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "trip", "schema": TRIP, "strict": True}}
    if OLD:
        wanted = {"type": "json", "value": TRIP}
    answer = client.chat_completion(PLAN, response_format=wanted, temperature=0, max_tokens=ENOUGH)
    check_trip(answer.choices[0].message.content)


@scenario
def bad_temperature() -> None:
    error = error_of(lambda: client.chat_completion(QUESTION, temperature=3), HfHubHTTPError)
    assert error.response.status_code == 422, error
    assert "temperature" in str(error), error


@scenario
def unknown_model() -> None:
    nobody = InferenceClient(model=f"{URL}/models/no/such", timeout=60)
    error = error_of(lambda: nobody.chat_completion(QUESTION), HfHubHTTPError)
    assert error.response.status_code == 404, error
    assert "no/such" in str(error), error


@scenario
def while_loading() -> str:
    slow = InferenceClient(model=while_it_loads(PLACE), timeout=60)
    if not OLD:
        error = error_of(lambda: slow.chat_completion(QUESTION), HfHubHTTPError)
        assert error.response.status_code == 503, error
        assert "loading" in str(error), error
        assert attempts() == 1
        return "does not try again: an HfHubHTTPError with the status 503"
    check_text(slow.chat_completion(QUESTION, temperature=0).choices[0].message.content)
    assert 2 <= attempts() <= 4, attempts()
    return "tries again each second"


@scenario
def service() -> str:
    # The latest wants to be told what it would otherwise know from the URL.
    typed = client if OLD else InferenceClient(model=URL + PLACE, provider="hf-inference")
    assert typed.health_check()
    info = typed.get_endpoint_info()
    assert info["model_id"] == MODEL, info
    assert info["max_total_tokens"] == 2048, info
    if not OLD:
        return "health, information"
    status = InferenceClient().get_model_status(HUB_MODEL)
    assert (status.loaded, status.state) == (True, "Loaded"), status
    check_text(InferenceClient(model=HUB_MODEL).chat_completion(QUESTION, temperature=0).choices[0].message.content)
    return "health, information, status; the model by its id, with HF_INFERENCE_ENDPOINT"


@scenario
def disconnect() -> None:
    before = cancelled()
    # Its own client: what the connection belongs to is closed with it.
    leaver = InferenceClient(model=URL + PLACE, timeout=60)
    chunks = leaver.chat_completion(STORY, max_tokens=1500, stream=True)
    next(iter(chunks))
    chunks.close()
    if hasattr(leaver, "close"):
        leaver.close()
    wait_until_cancelled(before + 1)


run()
