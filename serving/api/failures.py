"""Errors on their way out. HTTP statuses live in the dialects' tables, over the kinds named here.

Every class of the tree in `errors.py` has a kind (a test enumerates them); anything else that
escapes is our own bug and says no more than that to the caller.
"""

from __future__ import annotations

from enum import Enum, auto

from serving import errors


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


KINDS = {Kind.INTERNAL: "an unexpected error in the server; the request id is in its log"}

_KIND_OF: dict[type[Exception], Kind] = {
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


def kind_of(error: Exception) -> Kind:
    return _KIND_OF.get(type(error), Kind.INTERNAL)
