from __future__ import annotations

import inspect

import pytest

from serving import errors
from serving.api import failures, huggingface, openai
from serving.api.failures import Kind

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, errors.ServingError)]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_error_has_a_kind_and_stands_in_the_tree(error: type[Exception]) -> None:
    assert error in failures._KIND_OF
    assert error.__name__ in (errors.__doc__ or "")


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("dialect", [openai, huggingface], ids=lambda dialect: dialect.name)
def test_every_kind_has_a_status(dialect: object, kind: Kind) -> None:
    assert kind in dialect._TYPES  # type: ignore[attr-defined]


def test_our_own_bugs_say_nothing_of_themselves() -> None:
    for dialect in (openai, huggingface):
        status, body = dialect.failure(ZeroDivisionError("secret"))
        assert status == 500
        assert "secret" not in str(body)
        assert b"secret" not in dialect.failure_event(ZeroDivisionError("secret"))


def test_bodies() -> None:
    error = errors.BadField("temperature", "must be between 0 and 2, not 3")
    assert openai.failure(error) == (
        400,
        {
            "error": {
                "message": "temperature: must be between 0 and 2, not 3",
                "type": "invalid_request_error",
                "param": "temperature",
                "code": None,
            }
        },
    )
    assert huggingface.failure(error) == (
        422,
        {
            "error": "Input validation error: temperature: must be between 0 and 2, not 3",
            "error_type": "validation",
        },
    )
    assert huggingface.failure(errors.UnknownModel("x")) == (
        404,
        {"error": "Model x does not exist", "error_type": "not_found"},
    )
