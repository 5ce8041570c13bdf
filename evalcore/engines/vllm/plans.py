"""Plans of packed passes, made before they are needed and kept for who asks the same.

A plan hangs on the tokens and on the limits of the engine alone: in a full grid every subject asks
the same, and while one unit computes the plan of the next one can be made by another thread.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from evalcore.engines.vllm.packing import Limits, Plan, make_plan
from evalcore.types import ScoreBatch

MOST = 8
"""Plans that are kept: those used last."""


class Plans:
    """Plans by what they are of; for several threads.

    Nothing is changed in a plan while it is run: one with generations, which is, is not kept.
    """

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._known: OrderedDict[tuple[Limits, bytes], Plan] = OrderedDict()
        self._limits: Limits | None = None
        self._own = threading.Lock()

    def of(self, batch: ScoreBatch, limits: Limits, growing: int = 0) -> Plan:
        """As :func:`~evalcore.engines.vllm.packing.make_plan`, which is asked once."""
        if growing:
            return make_plan(batch, limits, growing)
        at = limits, _digest(batch)
        with self._own:
            self._limits = limits
            plan = self._known.get(at)
        if plan is None:
            plan = make_plan(batch, limits)
        with self._own:
            self._known[at] = plan
            self._known.move_to_end(at)
            while len(self._known) > self._most:
                self._known.popitem(last=False)
        return plan

    def expect(self, batch: ScoreBatch) -> None:
        """Makes the plan of a batch that will come, for the engine that was planned for last."""
        if self._limits is not None and batch.num_continuations:
            self.of(batch, self._limits)


PLANS = Plans()
"""Of this process, which is that of its engine."""


def _digest(batch: ScoreBatch) -> bytes:
    hasher = hashlib.blake2b(digest_size=16)
    for array in (
        batch.context_tokens, batch.context_offsets, batch.continuation_tokens,
        batch.continuation_offsets, batch.continuation_context,
    ):  # fmt: skip
        hasher.update(f"{array.dtype} {len(array)};".encode())
        hasher.update(array.tobytes())
    return hasher.digest()
