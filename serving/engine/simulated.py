"""The simulated device: vLLM's EngineCore, scheduler and block manager over an executor that
computes nothing and takes the time a profile says. What is faked is the GPU, not the engine.

Tokens are a hash of the seed, the prompt and the position: the same request gives the same text
whatever it is batched with. Grammars are honoured: where a bitmask is given the first allowed
token after the hashed one is taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, cast

import numpy as np
import torch
from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
from vllm.v1.executor import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec
from vllm.v1.outputs import LogprobsLists, ModelRunnerOutput

from serving.settings import ProfileSettings

_FIRST_TOKEN = 300  # below it lie the special tokens and single bytes of most vocabularies


@dataclass(slots=True)
class _Sequence:
    digest: int
    prompt_tokens: int
    logprobs: int | None
    min_tokens: int
    stops: set[int]  # which may not come before `min_tokens`


class SimulatedExecutor(Executor):
    supports_pp = True

    def _init_executor(self) -> None:
        configured: Any = self.vllm_config.additional_config
        self._profile = ProfileSettings.model_validate(configured["profile"])
        self._vocabulary = self.model_config.get_vocab_size()
        self._sequences: dict[str, _Sequence] = {}
        self._pending: list[tuple[str, int | None]] = []  # request, position to sample or None

    # the worker's side of start-up, answered without a worker

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
    ) -> Any:
        answers = {"get_supported_tasks": ("generate",), "get_supported_kv_cache_layouts": ["NHD", "HND"]}
        result = [answers.get(method) if isinstance(method, str) else None]
        if not non_block:
            return result
        future: Future[Any] = Future()
        future.set_result(result)
        return future

    def compile_or_warm_up_model(self) -> None:
        pass

    def determine_available_memory(self) -> list[int]:
        return [self.cache_config.kv_cache_memory_bytes or 2 * 2**30]

    def get_kv_cache_specs(self) -> list[dict[str, KVCacheSpec]]:
        spec = FullAttentionSpec(
            block_size=self.cache_config.block_size,
            num_kv_heads=self.model_config.get_num_kv_heads(self.parallel_config),
            head_size=self.model_config.get_head_size(),
            dtype=cast(torch.dtype, self.model_config.dtype),
        )
        layers = self.model_config.get_num_layers(self.parallel_config)
        return [{f"layers.{n}": spec for n in range(layers)}]

    def check_health(self) -> None:
        pass

    def shutdown(self) -> None:
        pass

    # steps

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:
        seconds = self._take(scheduler_output)
        if seconds > 0:
            time.sleep(seconds)
        future: Future[None] = Future()
        future.set_result(None)  # the tokens follow in `sample_tokens`, as on a real device
        return future if non_block else None

    def _take(self, step: SchedulerOutput) -> float:
        """Note who samples in this step; returns the seconds it takes."""
        for request in step.finished_req_ids:
            self._sequences.pop(request, None)
        self._pending.clear()
        if not step.total_num_scheduled_tokens:
            return 0.0
        prefill = context = decoding = 0
        scheduled = step.num_scheduled_tokens

        def visit(request: str, computed: int, outputs: int) -> None:
            nonlocal prefill, context, decoding
            sequence, new = self._sequences[request], scheduled[request]
            known = sequence.prompt_tokens + outputs
            if computed + 1 < known or not outputs:
                prefill += new
            else:
                decoding += 1
                context += known
            self._pending.append((request, outputs if computed + new >= known else None))

        for data in step.scheduled_new_reqs:
            prompt = data.prompt_token_ids or []
            key = f"{self._profile.seed}:{prompt}".encode()
            params = data.sampling_params
            self._sequences[data.req_id] = _Sequence(
                int.from_bytes(blake2b(key, digest_size=8).digest()),
                len(prompt),
                params.logprobs if params else None,
                params.min_tokens if params else 0,
                params.all_stop_token_ids if params else set(),
            )
            visit(data.req_id, data.num_computed_tokens, 0)
        cached = step.scheduled_cached_reqs
        for request, computed, outputs in zip(
            cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True
        ):
            visit(request, computed, outputs)
        p = self._profile
        return p.step + prefill / p.prefill_rate + decoding * p.per_sequence + context * p.per_context_token

    def sample_tokens(self, grammar_output: GrammarOutput | None, non_block: bool = False) -> Any:
        masks: dict[str, Any] = {}
        if grammar_output is not None:
            rows = grammar_output.structured_output_request_ids
            masks = dict(zip(rows, grammar_output.grammar_bitmask, strict=False))
        requests = [request for request, _ in self._pending]
        tokens = [
            [] if position is None else [self._token(request, position, masks.get(request))]
            for request, position in self._pending
        ]
        output = ModelRunnerOutput(
            req_ids=requests,
            req_id_to_index={request: index for index, request in enumerate(requests)},
            sampled_token_ids=tokens,
            logprobs=self._logprobs(tokens),
        )
        if not non_block:
            return output
        future: Future[ModelRunnerOutput] = Future()
        future.set_result(output)
        return future

    def _token(self, request: str, position: int, mask: Any) -> int:
        sequence = self._sequences[request]
        mixed = (sequence.digest ^ (position * 0x9E3779B97F4A7C15)) & (2**64 - 1)
        mixed = (mixed ^ (mixed >> 29)) * 0xBF58476D1CE4E5B9 & (2**64 - 1)
        token = _FIRST_TOKEN + (mixed >> 17) % max(1, self._vocabulary - _FIRST_TOKEN)
        if mask is None:
            while position < sequence.min_tokens and token in sequence.stops:
                token = (token + 1) % self._vocabulary
            return token
        allowed = np.unpackbits(np.ascontiguousarray(mask).view(np.uint8), bitorder="little")[: self._vocabulary]
        choices = np.flatnonzero(allowed)
        return int(choices[np.searchsorted(choices, token) % len(choices)]) if len(choices) else token

    def _logprobs(self, tokens: list[list[int]]) -> LogprobsLists | None:
        """Plausible numbers of the right shape: the chosen token first, then it and its neighbours as the best."""
        wanted = [n for request, _ in self._pending if (n := self._sequences[request].logprobs) is not None]
        if not wanted:
            return None
        best, rows = max(wanted), len(tokens)
        chosen = np.array([[row[0] if row else 0] for row in tokens], dtype=np.int32)
        ids = np.concatenate([chosen, chosen + np.arange(best, dtype=np.int32)], axis=1) % self._vocabulary
        falling = np.tile(-0.1 - np.arange(best, dtype=np.float32), (rows, 1))
        values = np.concatenate([np.full((rows, 1), -0.1, dtype=np.float32), falling], axis=1)
        return LogprobsLists(ids, values, np.ones(rows, dtype=np.int32))
