"""Canaries: one fixed batch, scored after every load, cold.

Its numbers identify the weights in place: the same subject must give the same numbers whenever it
comes back, and an adapter that changes weights must change them.
"""

from __future__ import annotations

import numpy as np

from evalcore.errors import ProofError, SubjectError
from evalcore.types import FloatArray, ScoreBatch, Subject

# Same batch, same shapes, same machine: nothing but the weights can differ. 16-bit kernels may
# split their sums differently when the device is shared.
RETURN_TOLERANCE = {"float32": 1e-6, "bfloat16": 1e-3, "float16": 1e-3}
_CONTEXTS = (5, 33, 20)
_CONTINUATIONS = (1, 3, 2)


def canary_batch(vocab_size: int) -> ScoreBatch:
    """A fixed batch of three contexts with two continuations each, ids below ``vocab_size``."""
    rng = np.random.default_rng(20240816)

    def draw(count: int) -> list[int]:
        return [int(t) for t in rng.random(count) * vocab_size]

    return ScoreBatch.from_lists(
        [
            (draw(context), [draw(tokens), draw(tokens + 1)])
            for context, tokens in zip(_CONTEXTS, _CONTINUATIONS, strict=True)
        ]
    )


class CanaryBook:
    """Remembers what the canary batch gave for each subject."""

    def __init__(self, dtype: str) -> None:
        self._tolerance = RETURN_TOLERANCE[dtype]
        self._seen: dict[str, FloatArray] = {}

    def check(self, subject: Subject, logprobs: FloatArray) -> str:
        """Compares with what is known; gives a remark for the run record.

        Args:
            subject: What is loaded.
            logprobs: float64 [T_continuation] of the canary batch.

        Raises:
            SubjectError: Not finite.
            ProofError: Another answer than on the last visit; or an adapter with a
                nonzero delta that answers exactly as its base.
        """
        if not np.isfinite(logprobs).all():
            raise SubjectError(
                f"{subject.label}: canary log-probabilities are not finite; the weights are broken "
                f"or overflow in this dtype"
            )
        before = self._seen.get(subject.weights)
        if before is not None:
            gap = float(np.abs(before - logprobs).max())
            if gap > self._tolerance:
                raise ProofError(
                    f"{subject.label}: canaries differ by {gap:.2g} nats from the last visit "
                    f"(allowed {self._tolerance:g}); the weights in place are not the same"
                )
        adapter = subject.adapter
        base = self._seen.get(subject.checkpoint.fingerprint) if adapter is not None else None
        same = base is not None and bool(np.array_equal(base, logprobs))
        if adapter is not None and same and not adapter.untrained:
            raise ProofError(
                f"{subject.label}: canaries equal the base's exactly although the adapter's delta "
                f"is not zero; the adapter was not applied, or vanishes in this dtype"
            )
        self._seen[subject.weights] = logprobs
        if before is not None:
            return "return visit, equal"
        return "first visit" if base is None else "first visit, compared with base"
