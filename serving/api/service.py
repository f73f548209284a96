"""One model as the routes see it."""

from __future__ import annotations

from dataclasses import dataclass, field

from serving.api.compiler import Compiler, Guidance
from serving.api.tools import registry
from serving.errors import UnknownModel
from serving.models.text import ModelText
from serving.scheduler.scheduler import Scheduler


@dataclass(slots=True)
class ServedModel:
    name: str
    text: ModelText
    scheduler: Scheduler
    created: int
    compiler: Compiler = field(default_factory=Guidance)

    def __post_init__(self) -> None:
        """Raises ValueError for a tool format that is not there: at the start, and not with the first request."""
        registry.find(self.text.tool_format)


class Models:
    """The models of this server, found by name or alias."""

    def __init__(self, models: list[ServedModel], aliases: dict[str, str]) -> None:
        self.by_name = {model.name: model for model in models}
        self._aliases = aliases

    def find(self, name: str) -> ServedModel:
        """Raises `UnknownModel`."""
        model = self.by_name.get(self._aliases.get(name, name))
        if model is None:
            raise UnknownModel(name)
        return model

    @property
    def ready(self) -> bool:
        return any(model.scheduler.ready for model in self.by_name.values())
