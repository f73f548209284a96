"""Where a request goes: a filter, then a score, on a snapshot. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable

from serving.core import EngineView, Request
from serving.scheduler.ledger import Ledger, Load


def choose(views: Iterable[EngineView], ledger: Ledger, request: Request, steps_ahead: int) -> EngineView | None:
    """The engine with the least to do among those that have room now; None when all are full."""
    loads = [(view, ledger.load(view)) for view in views]
    open_ones = [(view, load) for view, load in loads if has_room(view, load, request, steps_ahead)]
    if not open_ones:
        return None
    view, _ = min(open_ones, key=lambda pair: score(*pair))
    return view


def has_room(view: EngineView, load: Load, request: Request, steps_ahead: int) -> bool:
    """Late binding: an engine is given what its next steps can take, and no more.

    It must have the pages for the prompt, a seat in its batch, and less than `steps_ahead` steps'
    worth of prompts to prefill. An engine with nothing to do always has room.
    """
    if load.live == 0:
        return True
    return (
        load.live < view.max_num_seqs
        and load.free_blocks >= view.blocks_for(len(request.prompt) + 1)
        and load.prefill_tokens < steps_ahead * view.max_batched_tokens
    )


def score(view: EngineView, load: Load) -> tuple[float, int]:
    """Lower is better: share of the batch taken, prompts still to prefill counted as whole batches; then pages."""
    return load.live / view.max_num_seqs + load.prefill_tokens / view.max_batched_tokens, -load.free_blocks
