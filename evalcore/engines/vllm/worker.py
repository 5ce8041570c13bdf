"""What runs inside vLLM's worker; reached by ``collective_rpc``.

vLLM mixes this class into its worker class, so ``self`` is the worker: ``model_runner`` and
``vllm_config`` are its. Method names carry a prefix so that they never hide vLLM's own.
"""

from __future__ import annotations

import pickle
import time
from typing import Any

from evalcore.engines.vllm import packed, weights
from evalcore.engines.vllm.growth import Growth
from evalcore.engines.vllm.proof import Verdict, check
from evalcore.errors import EvalcoreError
from evalcore.types import ScoreBatch


def call(llm: Any, name: str, *arguments: Any) -> Any:
    """Calls a method of :class:`WorkerExtension` in a running engine; the first worker's answer.

    Arguments and answer travel as bytes of our own: between processes vLLM's messages turn objects
    into dictionaries and every error into a RuntimeError.

    Args:
        llm: ``vllm.LLM``.
        name: The method.
        arguments: Its arguments; they can be pickled.

    Raises:
        EvalcoreError: As the method raised it.
    """
    answers = llm.collective_rpc("evalcore_call", args=(pickle.dumps((name, arguments)),))
    error, answer = pickle.loads(answers[0])
    if error is not None:
        raise error
    return answer


def _attention(runner: Any) -> str:
    """Names of the attention backends in use."""
    groups = [group for groups in getattr(runner, "attn_groups", ()) for group in groups]
    return ", ".join(sorted({group.backend.get_name() for group in groups}))


class WorkerExtension:
    """Loading with proof, and packed passes."""

    model_runner: Any
    vllm_config: Any

    def evalcore_call(self, message: bytes) -> bytes:
        """The other end of :func:`call`."""
        name, arguments = pickle.loads(message)
        try:
            return pickle.dumps((None, getattr(self, name)(*arguments)))
        except EvalcoreError as error:
            return pickle.dumps((error, None))

    def evalcore_describe(self) -> dict[str, Any]:
        """Facts the engine decides by."""
        runner = self.model_runner
        model_config = self.vllm_config.model_config
        return {
            "packed_obstacle": packed.obstacle(runner),
            "vocab_size": int(model_config.get_vocab_size()),
            "max_length": int(model_config.max_model_len),
            "blocks": int(getattr(runner.kv_cache_config, "num_blocks", 0)),
            "block_size": int(self.vllm_config.cache_config.block_size),
            "model_class": type(runner.get_model()).__name__,
            "attention": _attention(runner),
        }

    def evalcore_prove_start(self, path: str) -> Verdict | None:
        """Probes a model that vLLM loaded by itself; None where probing is not possible."""
        if self.vllm_config.parallel_config.tensor_parallel_size > 1:
            return None
        dtype = self.vllm_config.model_config.dtype
        products = weights.products_of(path, dtype, self.model_runner.device)
        return self._check(products)

    def evalcore_load(self, path: str, adapter: str | None, remedy: bool = True) -> dict[str, Any]:
        """Swaps checkpoint and adapter in; ``verdict`` is None where probing is not possible."""
        begin = time.perf_counter()
        loaded = weights.reload(self.model_runner, self.vllm_config, path, adapter, remedy=remedy)
        load_s = time.perf_counter() - begin
        probe = self.vllm_config.parallel_config.tensor_parallel_size == 1
        verdict = self._check(loaded.products) if probe else None
        return {
            "load_s": load_s,
            "proof_s": time.perf_counter() - begin - load_s,
            "changed_weights": loaded.changed_weights,
            "verdict": verdict,
        }

    def evalcore_run(self, batch: ScoreBatch, growth: Growth | None = None) -> dict[str, Any]:
        """Packed scoring and generation; the caller resets the prefix cache."""
        return packed.run(self.model_runner, batch, growth)

    def _check(self, products: Any) -> Verdict:
        name = str(self.vllm_config.model_config.dtype).removeprefix("torch.")
        tied = weights.is_tied(self.vllm_config)
        return check(self.model_runner.get_model(), products, name, tied=tied)
