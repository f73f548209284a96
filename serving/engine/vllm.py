"""vLLM's EngineCore as the host's `Core`. The only file that imports vLLM, with its siblings
`vllm_scheduler.py` and `simulated.py` which vLLM itself loads.

Supports vLLM 0.32. What it relies on below the public API, each held by a contract test:
`MPClient` (starts the core's process and speaks its ZeroMQ protocol), `InputProcessor`
(sampling parameters and stop ids from the generation config, once per request).
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from asyncio import AbstractEventLoop, get_running_loop
from collections.abc import Callable
from typing import Any, cast

import zmq
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.inputs.engine import tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, EngineCoreRequest, EngineCoreRequestType
from vllm.v1.engine import FinishReason as VllmFinish
from vllm.v1.engine.core_client import MPClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.executor import Executor
from vllm.v1.outputs import LogprobsLists

from serving.core import FinishReason, Grammar, Output, Sampling, TokenLogprobs
from serving.engine import messages
from serving.engine.host import CoreFacts, CoreState
from serving.engine.vllm_scheduler import REPLICA_PID
from serving.settings import EngineSettings

log = logging.getLogger(__name__)

_FINISH = {
    VllmFinish.STOP: FinishReason.STOP,
    VllmFinish.LENGTH: FinishReason.LENGTH,
    VllmFinish.ABORT: FinishReason.ABORT,
    VllmFinish.ERROR: FinishReason.ERROR,
    VllmFinish.REPETITION: FinishReason.STOP,
}

OnStep = Callable[[list[tuple[str, int]], list[tuple[str, Output]]], None]


def engine_args(settings: EngineSettings, path: str, revision: str | None = None) -> EngineArgs:
    """vLLM's arguments for these settings. Raises TypeError for an unknown key in `extra`."""
    cpu = current_platform.is_cpu()
    gib = settings.kv_cache_gib if settings.kv_cache_gib is not None else (2.0 if cpu else None)
    arguments: dict[str, Any] = {
        "model": path,
        "revision": revision,
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "block_size": settings.block_size,
        "kv_cache_memory_bytes": int(gib * 2**30) if gib is not None else None,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "pipeline_parallel_size": settings.pipeline_parallel_size,
        "enforce_eager": cpu if settings.enforce_eager is None else settings.enforce_eager,
        "seed": settings.seed,
        "scheduling_policy": "priority",
        "scheduler_cls": "serving.engine.vllm_scheduler.build",
        # Never `auto`: a core keeps the backend of its first structured request for good.
        "structured_outputs_config": {"backend": settings.grammar_backend},
    }
    if settings.executor != "auto":
        arguments["distributed_executor_backend"] = settings.executor
    elif settings.pipeline_parallel_size > 1:
        arguments["distributed_executor_backend"] = "ray"
    if settings.device == "simulated":
        arguments["distributed_executor_backend"] = "serving.engine.simulated.SimulatedExecutor"
        arguments["additional_config"] = {"profile": settings.profile.model_dump()}
    return EngineArgs(**(arguments | settings.extra))


class VllmCore(MPClient):
    """One EngineCore process, read from an event loop without threads or queues in between.

    vLLM's own asyncio client costs a task and a queue per step; here the loop watches the output
    socket's descriptor and decodes in place. The constructor blocks until the core is ready
    (seconds to minutes) and must run in a thread that outlives the core: the core dies with it.
    """

    def __init__(self, settings: EngineSettings, path: str, revision: str | None = None) -> None:
        config = engine_args(settings, path, revision).create_engine_config()
        os.environ[REPLICA_PID] = str(os.getpid())
        super().__init__(False, config, Executor.get_class(config), log_stats=True)
        assert isinstance(self.resources.output_socket, zmq.Socket)
        self._outputs = self.resources.output_socket
        self._inputs = InputProcessor(config)
        cache, scheduler = config.cache_config, config.scheduler_config
        self.facts = CoreFacts(
            block_size=cache.block_size,
            total_blocks=(cache.num_gpu_blocks or 1) - 1,  # vLLM keeps one null block
            max_model_len=config.model_config.max_model_len,
            max_num_seqs=scheduler.max_num_seqs,
            max_batched_tokens=scheduler.max_num_batched_tokens,
            device="simulated" if settings.device == "simulated" else _device(),
        )
        self.state = CoreState(free_blocks=self.facts.total_blocks)
        self._unsent: list[EngineCoreRequest] = []
        self._loop: AbstractEventLoop | None = None
        self._on_step: OnStep | None = None
        self._on_death: Callable[[], None] | None = None
        self._warm_up()

    def start_engine_core_monitor(self) -> None:
        """Watch the core's processes. vLLM's own monitor closes the sockets from its thread, under
        the loop that reads them; this one only says so."""
        manager, client = self.resources.engine_manager, weakref.ref(self)
        if manager is None:
            return

        def watch() -> None:
            manager.monitor_engine_liveness()
            if core := client():
                core._died()

        threading.Thread(target=watch, daemon=True, name="engine-core-monitor").start()

    def _warm_up(self) -> None:
        """Run one structured request while nobody waits.

        The first one makes both the core and this process build the grammar backend's view of the
        vocabulary: seconds in which no other request would move.
        """
        one_letter = StructuredOutputsParams(regex="[a-z]")
        params = SamplingParams(max_tokens=1, structured_outputs=one_letter, detokenize=False, skip_clone=True)
        self._send(EngineCoreRequestType.ADD, self._made("warm-up", [0], params, 0))
        finished = False
        while not finished:
            frames = cast(list[zmq.Frame], self._outputs.recv_multipart(copy=False))
            self.resources.validate_alive(frames)
            step: EngineCoreOutputs = self.decoder.decode(frames)
            finished = any(output.finish_reason is not None for output in step.outputs)

    # requests

    def submit(self, request_id: str, request: messages.Submit, prompt: list[int]) -> None:
        try:
            params = _sampling_params(request.sampling, request.grammar)
            made = self._made(request_id, prompt, params, request.priority)
        except (ValueError, TypeError, VLLMValidationError) as error:
            raise ValueError(str(error)) from error
        if not self._unsent:
            get_running_loop().call_soon(self._flush)
        self._unsent.append(made)

    def _made(self, request_id: str, prompt: list[int], params: SamplingParams, priority: int) -> EngineCoreRequest:
        made: EngineCoreRequest = self._inputs.process_inputs(
            request_id, tokens_input(prompt), params, ("generate",), priority=priority
        )
        return made

    def _flush(self) -> None:
        """Send what has gathered in this turn of the loop, back to back: the core's next step takes it together."""
        unsent, self._unsent = self._unsent, []
        for made in unsent:
            self._send(EngineCoreRequestType.ADD, made)

    def abort(self, request_ids: list[str]) -> None:
        self._flush()
        if not self.resources.engine_dead:
            self._send(EngineCoreRequestType.ABORT, request_ids)

    def _send(self, kind: EngineCoreRequestType, payload: Any) -> None:
        message = (self.core_engine, kind.value, *self.encoder.encode(payload))
        self.input_socket.send_multipart(message, copy=False)

    # steps

    def listen(self, on_step: OnStep, on_death: Callable[[], None]) -> None:
        self._loop, self._on_step, self._on_death = get_running_loop(), on_step, on_death
        if self.resources.engine_dead:
            self._loop.call_soon(on_death)
            return
        self._loop.add_reader(self._outputs.fileno(), self._readable)
        self._readable()  # the descriptor is edge-triggered: what came before is not announced

    def _readable(self) -> None:
        """Take every step that has arrived. The descriptor only says 'look': read until empty."""
        assert self._on_step is not None
        while not self.resources.engine_dead:
            try:
                frames = cast(list[zmq.Frame], self._outputs.recv_multipart(zmq.NOBLOCK, copy=False))
            except zmq.Again:
                return
            try:
                self.resources.validate_alive(frames)
            except EngineDeadError:
                self._died()
                return
            step: EngineCoreOutputs = self.decoder.decode(frames)
            if step.utility_output is not None:
                continue
            if (stats := step.scheduler_stats) is not None:
                self.state.running = stats.num_running_reqs
                self.state.waiting = stats.num_waiting_reqs + stats.num_skipped_waiting_reqs
                self.state.free_blocks = round((1 - stats.kv_cache_usage) * self.facts.total_blocks)
            self._on_step(*_sorted(step.outputs))

    def _died(self) -> None:
        """Called from the loop or from the monitor's thread; tells the host once."""
        self.resources.engine_dead = True
        on_death, self._on_death = self._on_death, None
        if on_death is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(on_death)

    def close(self) -> None:
        """Stop the core and its workers."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._outputs.fileno())
        self._on_death = None
        self.shutdown(timeout=5)


def _structured_outputs(grammar: Grammar) -> StructuredOutputsParams:
    if grammar.kind == "grammar":
        return StructuredOutputsParams(grammar=grammar.text)
    return StructuredOutputsParams(structural_tag=grammar.text)


def _device() -> str:
    return "cpu" if current_platform.is_cpu() else "gpu"


def _sampling_params(sampling: Sampling, grammar: Grammar | None) -> SamplingParams:
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        frequency_penalty=sampling.frequency_penalty,
        presence_penalty=sampling.presence_penalty,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed,
        min_tokens=sampling.min_tokens,
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs,
        stop_token_ids=list(sampling.stop_token_ids),
        logit_bias=sampling.logit_bias,
        structured_outputs=_structured_outputs(grammar) if grammar is not None else None,
        detokenize=False,
        skip_clone=True,
    )


def _sorted(outputs: list[EngineCoreOutput]) -> tuple[list[tuple[str, int]], list[tuple[str, Output]]]:
    """A step's outputs: the plain ones, which are nearly all, as (request, token); then the others."""
    plain, rich = [], []
    for output in outputs:
        tokens = output.new_token_ids
        if (
            output.finish_reason is None
            and output.new_logprobs is None
            and output.prefill_stats is None
            and len(tokens) == 1
        ):
            plain.append((output.request_id, tokens[0]))
        else:
            rich.append((output.request_id, _output(output)))
    return plain, rich


def _output(output: EngineCoreOutput) -> Output:
    finish = output.finish_reason
    return Output(
        output.new_token_ids,
        _FINISH[finish] if finish is not None else None,
        _logprobs(output.new_logprobs) if output.new_logprobs is not None else None,
        output.prefill_stats.num_cached_tokens if output.prefill_stats is not None else None,
        output.stop_reason if isinstance(output.stop_reason, int) else None,
    )


def _logprobs(lists: LogprobsLists) -> list[TokenLogprobs]:
    """One entry per new token: the chosen token's log probability first, then the best."""
    rows = zip(lists.logprob_token_ids.tolist(), lists.logprobs.tolist(), strict=True)
    return [TokenLogprobs(token_ids, logprobs) for token_ids, logprobs in rows]
