"""vLLM's scheduler with this project's hooks. Loaded by vLLM inside the EngineCore process."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Any

from vllm.config import VllmConfig
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

REPLICA_PID = "SERVING_REPLICA_PID"  # environment variable: the process that started the core
_PR_SET_PDEATHSIG = 1


class _Hooks:
    """Mixed in over whichever scheduler vLLM would use."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _die_with_replica()
        super().__init__(*args, **kwargs)


class HookedScheduler(_Hooks, Scheduler):
    pass


class HookedAsyncScheduler(_Hooks, AsyncScheduler):
    pass


def build(vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> Scheduler:
    """vLLM's `scheduler_cls`: the hooked form of the scheduler that vLLM would choose itself."""
    scheduler = HookedAsyncScheduler if vllm_config.scheduler_config.async_scheduling else HookedScheduler
    return scheduler(vllm_config, *args, **kwargs)


def _die_with_replica() -> None:
    """The core's process lives no longer than the replica that started it (Linux)."""
    replica = os.environ.get(REPLICA_PID)
    if replica is None:  # not started by a replica: a test in process
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(replica):  # it ended while the model was loading
        os._exit(1)
