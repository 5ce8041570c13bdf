"""What runs inside vLLM's worker; reached by ``collective_rpc``.

vLLM mixes this class into its worker class, so ``self`` is the worker: ``model_runner`` and
``vllm_config`` are its. Method names carry a prefix so that they never hide vLLM's own.
"""

from __future__ import annotations

import pickle
import time
from typing import Any

from evalcore.engines.vllm import compat, derived, packed, proof, slots, weights
from evalcore.engines.vllm.growth import Growth
from evalcore.engines.vllm.objects import LLM, Config, Runner
from evalcore.errors import EngineError, EvalcoreError
from evalcore.types import ScoreBatch, Subject


def call(llm: LLM, name: str, *arguments: Any) -> Any:
    """Calls a method of :class:`WorkerExtension` in a running engine; the first worker's answer.

    Args:
        llm: ``vllm.LLM``.
        name: The method.
        arguments: Its arguments; they can be pickled.

    Raises:
        EvalcoreError: As the method raised it on any rank.
    """
    return call_all(llm, name, *arguments)[0]


def call_all(llm: LLM, name: str, *arguments: Any) -> list[Any]:
    """Calls a method of :class:`WorkerExtension`; every worker's answer, by rank.

    Arguments and answers travel as bytes of our own: between processes vLLM's messages turn objects
    into dictionaries and every error into a RuntimeError.

    Raises:
        EvalcoreError: The first error of any rank, which is named if there are several.
    """
    answers = llm.collective_rpc("evalcore_call", args=(pickle.dumps((name, arguments)),))
    ranks = compat.ranks(llm)
    if len(answers) != ranks:
        raise EngineError(f"{len(answers)} of {ranks} ranks of the engine answered")
    read = [pickle.loads(answer) for answer in answers]
    for rank, (error, _) in enumerate(read):
        if error is not None:
            raise error if ranks == 1 else with_rank(error, rank)
    return [answer for _, answer in read]


def with_rank(error: EvalcoreError, rank: int) -> EvalcoreError:
    """The same error, saying on which rank it was raised."""
    error.args = (f"{error} (rank {rank})", *error.args[1:])
    return error


def _attention(runner: Runner) -> str:
    """Names of the attention backends in use."""
    groups = [group for groups in getattr(runner, "attn_groups", ()) for group in groups]
    return ", ".join(sorted({group.backend.get_name() for group in groups}))


class WorkerExtension:
    """Loading with proof, and packed passes."""

    model_runner: Runner
    vllm_config: Config
    evalcore_buffers: dict[str, Any]  # checksums at the start
    evalcore_lacks: compat.Verdicts  # what this vLLM lacks

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
        lacks = self.evalcore_lacks = compat.probe(runner)
        return {
            "lacks": lacks,
            "packed_obstacle": lacks["packed"] or packed.obstacle(runner),
            "vocab_size": int(model_config.get_vocab_size()),
            "max_length": int(model_config.max_model_len),
            "blocks": int(getattr(runner.kv_cache_config, "num_blocks", 0)),
            "block_size": int(self.vllm_config.cache_config.block_size),
            "model_class": type(runner.get_model()).__name__,
            "attention": _attention(runner),
        }

    def evalcore_prove_start(self, subject: Subject) -> dict[str, Any]:
        """Proves a model that vLLM loaded by itself."""
        begin = time.perf_counter()
        self.evalcore_buffers = derived.buffer_sums(self.model_runner.get_model())
        return self._answer(weights.read_again(self.model_runner, self.vllm_config, subject), begin)

    def evalcore_load(self, subject: Subject, remedy: bool = True) -> dict[str, Any]:
        """Swaps checkpoint and adapter in, and proves it."""
        begin = time.perf_counter()
        runner = self.model_runner
        buffers = self.evalcore_buffers
        loaded = weights.reload(runner, self.vllm_config, subject, buffers, remedy=remedy)
        return self._answer(loaded, begin)

    def evalcore_slot(self, subject: Subject, number: int) -> str:
        """Proves an adapter beside the weights; ``number`` is vLLM's.

        Returns:
            Why it cannot be asked, ``""`` if it could.
        """
        tied = weights.is_tied(self.vllm_config)
        try:
            slots.require_slot(self.model_runner, subject, number, tied=tied)
        except EvalcoreError:
            raise
        except Exception as error:
            return proof.reason(error)
        return ""

    def _answer(self, loaded: weights.Loaded, begin: float) -> dict[str, Any]:
        load_s = time.perf_counter() - begin
        verdict = loaded.traces.check(self.evalcore_lacks["proof"])
        return {
            "load_s": load_s,
            "proof_s": time.perf_counter() - begin - load_s,
            "changed_weights": loaded.changed_weights,
            "verdict": verdict,
        }

    def evalcore_run(self, batch: ScoreBatch, growth: Growth | None = None) -> dict[str, Any]:
        """Packed scoring and generation; the caller resets the prefix cache."""
        return packed.run(self.model_runner, batch, growth)
