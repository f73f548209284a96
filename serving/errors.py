"""Every way a request can fail, as one tree. HTTP statuses live in `api/failures.py` only.

ServingError
├── BadRequest              the caller must change the request          raised by api
│   ├── BadSyntax               the body is not JSON
│   ├── BadField                a field or header is wrong; names it
│   ├── TooLarge                the body is over the limit
│   ├── TemplateRefused         the model's chat template refuses the messages
│   └── ToolRefused             tools or tool_choice cannot be honoured
├── UnknownModel            no such model here                          raised by api
├── Refused                 nothing wrong with it, but not now          raised by scheduler
│   ├── Overloaded              queue full or deadline out of reach
│   ├── ModelLoading            no engine of this model is ready
│   └── DeadlineExceeded        its deadline passed before it was done
└── EngineFault             the engine could not finish it              raised by pool, engine
    ├── EngineRefused           the engine would not accept the request
    └── EngineLost              the engine or its link went away
"""


class ServingError(Exception):
    """Root of the tree. `str()` of it is safe to show to the caller."""


class BadRequest(ServingError):
    """The caller must change the request. `field` names what is wrong, in JSON-path form."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class BadSyntax(BadRequest):
    pass


class BadField(BadRequest):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}", field)


class TooLarge(BadRequest):
    pass


class TemplateRefused(BadRequest):
    pass


class ToolRefused(BadRequest):
    pass


class UnknownModel(ServingError):
    def __init__(self, model: str) -> None:
        super().__init__(f"Model {model} does not exist")
        self.model = model


class Refused(ServingError):
    """Come back later. `retry_after` is in seconds, computed from the state of the fleet."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(Refused):
    pass


class ModelLoading(Refused):
    pass


class DeadlineExceeded(Refused):
    pass


class EngineFault(ServingError):
    pass


class EngineRefused(EngineFault):
    pass


class EngineLost(EngineFault):
    pass
