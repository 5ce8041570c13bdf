"""vLLM's worker with faults on rank 1 only; imported in the workers' processes."""

from __future__ import annotations

from typing import Any

from evalcore.engines.vllm import weights
from evalcore.engines.vllm.worker import WorkerExtension
from evalcore.errors import EngineError
from evalcore.types import Subject


class Rank1(WorkerExtension):
    """Loads as asked on rank 0; what rank 1 does is told by ``evalcore_fault``."""

    rank: int
    evalcore_mode = ""
    evalcore_before: dict[str, Any] | None = None

    def evalcore_fault(self, mode: str) -> int:
        """What rank 1 does from now on: ``wrong``, ``error``, ``kept`` or ``""``."""
        self.evalcore_mode = mode if self.rank == 1 else ""
        return self.rank

    def evalcore_load(self, subject: Subject, remedy: bool = True) -> dict[str, Any]:
        if self.evalcore_mode == "error":
            raise EngineError(f"{subject.label}: reload stopped half way")
        if self.evalcore_mode == "kept":
            assert self.evalcore_before is not None
            return self.evalcore_before  # it says that all went well, and has done nothing
        return super().evalcore_load(subject, remedy)

    def _answer(self, loaded: weights.Loaded, begin: float) -> dict[str, Any]:
        if self.evalcore_mode == "wrong":
            model = self.model_runner.get_model()
            dict(model.named_parameters())["model.embed_tokens.weight"].data[3] *= 1.001
        self.evalcore_before = super()._answer(loaded, begin)
        return self.evalcore_before
