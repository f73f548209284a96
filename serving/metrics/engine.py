"""The series of one engine replica."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric


class EngineState(Protocol):
    """What the engine's host can say of itself."""

    engine: str
    model: str

    def gauges(self) -> dict[str, float]:
        """Values of the names in `GAUGES`."""
        ...


GAUGES = {
    "running": ("serving_engine_running_requests", "Requests in the engine's batch"),
    "waiting": ("serving_engine_waiting_requests", "Requests waiting inside the engine"),
    "free_blocks": ("serving_engine_free_kv_blocks", "KV blocks that are free"),
    "total_blocks": ("serving_engine_kv_blocks", "KV blocks in all"),
    "step_seconds": ("serving_engine_step_seconds", "Duration of the last step"),
    "fronts": ("serving_engine_fronts", "Fronts with a link to this engine"),
}


class EngineMetrics:
    def __init__(self, state: EngineState) -> None:
        self.registry = CollectorRegistry()
        self._state = state
        self.registry.register(self)

    def collect(self) -> Iterator[Metric]:
        labels = [self._state.model, self._state.engine]
        for key, value in self._state.gauges().items():
            name, text = GAUGES[key]
            gauge = GaugeMetricFamily(name, text, labels=["model", "engine"])
            gauge.add_metric(labels, value)
            yield gauge
