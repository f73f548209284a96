"""What this front has reserved where. Nothing else counts load."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from serving.core import EngineView, Request


@dataclass(slots=True, eq=False)
class Lease:
    """One request's place in one engine, from choosing it until the request is over."""

    engine: str
    blocks: int  # that the prompt will take
    prompt_tokens: int
    number: int | None = None  # of the submission on the engine's link, once made
    started: bool = False  # the first token has come: the prompt is prefilled

    def start(self) -> None:
        self.started = True


class Ledger:
    def __init__(self) -> None:
        self._leases: dict[str, set[Lease]] = defaultdict(set)

    def take(self, view: EngineView, request: Request) -> Lease:
        tokens = len(request.prompt)
        lease = Lease(view.engine, view.blocks_for(tokens + 1), tokens)
        self._leases[view.engine].add(lease)
        return lease

    def give_back(self, lease: Lease) -> None:
        leases = self._leases[lease.engine]
        leases.discard(lease)
        if not leases:
            del self._leases[lease.engine]

    def load(self, view: EngineView) -> Load:
        """The engine as it will be when it has seen everything that this front sent."""
        leases = self._leases.get(view.engine, ())
        unseen = [lease for lease in leases if lease.number is None or lease.number > view.received]
        return Load(
            live=view.live + len(unseen),
            free_blocks=view.free_blocks - sum(lease.blocks for lease in unseen),
            prefill_tokens=sum(lease.prompt_tokens for lease in leases if not lease.started),
        )

    @property
    def total(self) -> int:
        return sum(map(len, self._leases.values()))


@dataclass(frozen=True, slots=True)
class Load:
    live: int  # requests in the engine, from all fronts
    free_blocks: int
    prefill_tokens: int  # sent by this front and not yet prefilled
