"""instructor, over openai: pydantic models by tools, by JSON schema, and in parts as they come."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import instructor
import openai
from instructor.core import InstructorRetryException
from pydantic import BaseModel, ConfigDict, Field
from scenarios import (
    ENOUGH,
    MODEL,
    PLAN,
    URL,
    attempts,
    error_of,
    run,
    scenario,
    while_it_loads,
)


class Trip(BaseModel):
    """Plans a trip."""

    model_config = ConfigDict(extra="forbid")  # no end of more properties

    city: Literal["Paris", "Rome", "Oslo"]
    days: Annotated[int, Field(ge=1, le=9)]
    note: Annotated[str, Field(max_length=12)]


def made(mode: instructor.Mode, url: str = URL) -> Any:
    return instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", api_key="none"), mode=mode)


ASK: dict[str, Any] = {"model": MODEL, "messages": PLAN, "max_tokens": ENOUGH, "temperature": 0, "max_retries": 0}
by_tools = made(instructor.Mode.TOOLS)


@scenario
def tool_named() -> None:
    trip = by_tools.create(response_model=Trip, **ASK)
    assert isinstance(trip, Trip), trip


@scenario
async def tool_named_async() -> None:
    asynchronous = instructor.from_openai(openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none"))
    assert isinstance(await asynchronous.create(response_model=Trip, **ASK), Trip)


@scenario
def tool_stream() -> None:
    *_, last = by_tools.create_partial(response_model=Trip, **ASK)
    Trip.model_validate(last.model_dump())


@scenario
def structured() -> None:
    trip = made(instructor.Mode.JSON_SCHEMA).create(response_model=Trip, **ASK)
    assert isinstance(trip, Trip), trip


@scenario
def bad_temperature() -> None:
    hot = {**ASK, "temperature": 3}
    error = error_of(lambda: by_tools.create(response_model=Trip, **hot), InstructorRetryException)
    assert "temperature" in str(error), error


@scenario
def unknown_model() -> None:
    nobody = {**ASK, "model": "no/such"}
    error = error_of(lambda: by_tools.create(response_model=Trip, **nobody), InstructorRetryException)
    assert "no/such" in str(error), error


@scenario
def while_loading() -> str:
    slow = made(instructor.Mode.TOOLS, while_it_loads(""))
    assert isinstance(slow.create(response_model=Trip, **ASK), Trip)
    assert attempts() == 3, attempts()
    return "tries again when Retry-After says, twice at most"


run()
