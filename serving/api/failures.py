"""Errors on their way out. HTTP statuses live in the dialects' tables, over the kinds named here.

Every class of the tree in `errors.py` has a kind (a test enumerates them); anything else that
escapes is our own bug and says no more than that to the caller.
"""

from __future__ import annotations

from enum import Enum, auto

from serving import errors
from serving.core import Outcome


class Kind(Enum):
    VALIDATION = auto()
    TEMPLATE = auto()
    TOOL = auto()
    SYNTAX = auto()
    TOO_LARGE = auto()
    NO_ROUTE = auto()
    UNKNOWN_MODEL = auto()
    OVERLOADED = auto()
    LOADING = auto()
    DEADLINE = auto()
    ENGINE = auto()
    ENGINE_LOST = auto()
    INTERNAL = auto()


_KIND_OF: dict[type[Exception], Kind] = {
    errors.ServingError: Kind.INTERNAL,
    errors.BadRequest: Kind.VALIDATION,
    errors.BadField: Kind.VALIDATION,
    errors.BadSyntax: Kind.SYNTAX,
    errors.TooLarge: Kind.TOO_LARGE,
    errors.TemplateRefused: Kind.TEMPLATE,
    errors.ToolRefused: Kind.TOOL,
    errors.UnknownModel: Kind.UNKNOWN_MODEL,
    errors.Refused: Kind.OVERLOADED,
    errors.Overloaded: Kind.OVERLOADED,
    errors.ModelLoading: Kind.LOADING,
    errors.DeadlineExceeded: Kind.DEADLINE,
    errors.EngineFault: Kind.ENGINE,
    errors.EngineRefused: Kind.ENGINE,
    errors.EngineLost: Kind.ENGINE_LOST,
}


class NoRoute(Exception):
    """No such path, or not with this method. Only HTTP knows of it."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def kind_of(error: Exception) -> Kind:
    if isinstance(error, NoRoute):
        return Kind.NO_ROUTE
    return _KIND_OF.get(type(error), Kind.INTERNAL)


def message_of(error: Exception) -> str:
    """What the caller may read of it."""
    if kind_of(error) is Kind.INTERNAL:
        return "an unexpected error in the server; the request id is in its log"
    return str(error)


_OUTCOMES = {
    Kind.UNKNOWN_MODEL: Outcome.UNKNOWN_MODEL,
    Kind.OVERLOADED: Outcome.OVERLOADED,
    Kind.LOADING: Outcome.LOADING,
    Kind.DEADLINE: Outcome.DEADLINE,
    Kind.ENGINE: Outcome.ENGINE_FAULT,
    Kind.ENGINE_LOST: Outcome.ENGINE_FAULT,
    Kind.INTERNAL: Outcome.INTERNAL,
}


def outcome_of(error: Exception) -> Outcome:
    return _OUTCOMES.get(kind_of(error), Outcome.BAD_REQUEST)
