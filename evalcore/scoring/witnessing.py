"""When a worker asks the witness, and what its answers mean for rows.

The first subject of each *kind* (architecture and configuration, way of the adapter, strategy) is
compared with transformers, then as many further ones as cost less than :data:`MOST_COST` of the
time spent on scoring. Rows of a subject wait until its answer is there, and so do those of others
of its kind until one of them was seen to agree. Nothing else waits for the witness, except where
the engine has never been seen to agree for such an architecture: then scoring does.

Canaries are short. The first text of a kind that is longer than what was compared of it (see
:mod:`evalcore.scoring.reach`) is compared, too; rows of such texts wait, and are not stored if it
does not agree.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from evalcore.cluster import pulse
from evalcore.config.engine import Device
from evalcore.engines.agreement import Comparison, architecture_of, compare, is_seen
from evalcore.engines.protocol import EngineSpec, LoadReport, resolve_device
from evalcore.engines.witness import WitnessProcess
from evalcore.engines.witness_process import Said, longest_text
from evalcore.errors import WitnessError
from evalcore.identity import numeric_config
from evalcore.scoring.reach import Reach
from evalcore.scoring.witnessed import LONGER, Witnessed
from evalcore.types import FloatArray, ScoreBatch, Subject

MOST_COST = 0.05
MOST_STARTS = 2  # of the process, in a worker's life
LOOK_EVERY_S = 0.5
ROW_TOKENS, ALL_ROW_TOKENS = 1024, 4096
"""Tokens of real rows that are compared for a certificate: of a unit, and of a subject in all."""
_ENDED = "the witness ended again and again; see the worker's log"
_log = logging.getLogger("evalcore")


@dataclass(frozen=True)
class _Kind:
    """Subjects that an engine computes in the same way."""

    architecture: str
    config: str
    way: str
    method: str
    strategy: str

    @classmethod
    def of(cls, subject: Subject, load: LoadReport) -> _Kind:
        config = numeric_config(subject.checkpoint.path)
        method = "" if subject.adapter is None else subject.adapter.method or "lora"
        return cls(
            architecture_of(config),
            json.dumps(config, sort_keys=True),
            load.adapter,
            method,
            load.strategy,
        )


@dataclass(frozen=True, eq=False)
class _Seen:
    """A subject that was loaded: what to compare, and of which kind it is."""

    subject: Subject
    kind: _Kind
    canary: FloatArray
    vocab_size: int
    rows: ScoreBatch | None = None  # of a certificate; ``canary`` is what is stored of them
    reach: int = 0  # tokens of a long text; ``canary`` is what the engine says of its end


def _refusal(what: str, kind: _Kind, found: Comparison, none: str = "of it") -> str:
    way = f", adapter {kind.way}" if kind.way else ""
    return (
        f"{what} are {found.gap:.2g} nats from transformers' (allowed {found.allowed:.2g}; "
        f"{kind.architecture}, strategy {kind.strategy}{way}): nothing {none} is stored; "
        f"--engine hf scores it with transformers"
    )


class Witnessing:
    """Asks the witness of one worker.

    Args:
        spec: The engine's; ``spec.witness``: ``auto``: as the module says; ``all``: every subject
            has to be compared; ``off``.
        doubted: Weights that disagreed in an earlier run: they are always compared.
    """

    def __init__(self, spec: EngineSpec, doubted: frozenset[str]) -> None:
        self._spec, self._mode, self._doubted = spec, spec.witness, doubted
        self._process: WitnessProcess | None = None
        self._starts = 0
        self._asked: dict[int, _Seen] = {}
        self._waiting: dict[str, _Seen] = {}  # until one of their kind agrees
        self._seen: dict[str, _Seen] = {}  # that were or are compared
        self._tokens: Counter[str] = Counter()
        self._known: set[_Kind] = set()  # one of these agreed, or cannot be compared
        self._said: dict[str, str] = {}
        self._loaded: dict[str, _Seen] = {}
        self._reach = Reach()
        self._refused: dict[str, str] = {}
        self._worked_s = self._spent_s = self._last_s = 0.0
        self._told = Witnessed()

    @cached_property
    def _device(self) -> Device:
        return resolve_device(self._spec)

    @property
    def on(self) -> bool:
        """Whether there is anything to compare: hf is what the others are compared with."""
        return self._mode != "off" and self._spec.kind != "hf"

    def begin(self) -> None:
        """Starts the process, so that it stands when it is asked."""
        if self.on and self._process is None and self._starts < MOST_STARTS:
            self._starts += 1
            self._process = WitnessProcess(self._spec)

    def worked(self, seconds: float) -> None:
        """Counts time spent on scoring, of which the witness may cost a share."""
        self._worked_s += seconds

    def loaded(self, subject: Subject, load: LoadReport) -> None:
        """A subject is in place: asks about it, if it is its turn.

        Raises:
            WitnessError: It is known to disagree, or it was compared at once (see the module's
                docstring) and does.
        """
        weights = subject.weights
        if (why := self._refused.get(weights)) is not None:
            raise WitnessError(why)
        if weights in self._said or self._is_open(weights):
            return
        if not self.on or load.canary is None:
            hf = self._spec.kind == "hf"
            self._said[weights] = "yes: it is transformers" if hf else "not compared: witness off"
            return
        device = self._device
        seen = _Seen(subject, _Kind.of(subject, load), load.canary, load.vocab_size)
        self._loaded[weights] = seen
        known = is_seen(seen.kind.architecture, device)
        if not known:
            self._tell(unseen={seen.kind.architecture: 1})
        if self._wanted(seen):
            self._ask(seen)
            if not known:
                self.wait(weights)
        elif seen.kind in self._known:
            self._said[weights] = "no: another subject of its kind agrees"
            self._tell(unasked=1)
        else:
            self._waiting[weights] = seen
        if (why := self._refused.get(weights)) is not None:
            raise WitnessError(why)

    def _wanted(self, seen: _Seen) -> bool:
        if self._mode == "all" or seen.subject.weights in self._doubted:
            return True
        if seen.kind not in self._known:
            return seen.kind not in {asked.kind for asked in self._asked.values()}
        return not self._asked and self._spent_s + self._last_s <= MOST_COST * self._worked_s

    def _ask(self, seen: _Seen) -> None:
        self.begin()
        if self._process is None:
            self._not_compared(seen, _ENDED)
        else:
            self._seen[seen.subject.weights] = seen
            self._asked[self._process.ask(seen.subject, seen.vocab_size)] = seen

    def tokens_left(self, weights: str) -> int:
        """Tokens of real rows that may be asked for of a subject: of one that is compared."""
        if weights not in self._seen or weights in self._refused:
            return 0
        return min(ROW_TOKENS, max(ALL_ROW_TOKENS - self._tokens[weights], 0))

    def ask_rows(self, subject: Subject, rows: ScoreBatch, stored: FloatArray) -> None:
        """Has rows of a certificate compared as well.

        Args:
            subject: Whose.
            rows: What was asked.
            stored: float64 [M], log-probabilities of the continuations as they are stored.
        """
        seen = replace(self._seen[subject.weights], rows=rows, canary=stored)
        lengths = np.diff(rows.context_offsets)[rows.continuation_context]
        self._tokens[subject.weights] += int(lengths.sum()) + len(rows.continuation_tokens)
        if self._process is not None:
            self._asked[self._process.ask(subject, rows)] = seen

    def reach(self, subject: Subject, tokens: int) -> int:
        """How many tokens of a text should be compared with transformers; 0: none.

        Args:
            subject: Whose; it is loaded.
            tokens: Of the longest text that it is asked now.

        Raises:
            WitnessError: Texts of that length do not agree.
        """
        weights = subject.weights
        if weights not in self._loaded or self._said.get(weights, "").startswith("not compared"):
            return 0
        kind = self._group(weights)
        if why := self._reach.refused(kind, tokens):
            raise WitnessError(f"{subject.label}: {why}")
        if not self._reach.wants(kind, tokens):
            return 0
        self.begin()
        if self._process is None:
            self._beyond(weights, _ENDED)
            return 0
        passes = 1 if self._spec.dtype == "float32" else 2
        most = longest_text(subject.checkpoint.path, passes, self._process.threads)
        if most < tokens:
            self._beyond(weights, f"{tokens:,} would take a processor too long")
        return min(tokens, most) if self._reach.longer(kind, most) else 0

    def is_asked(self, subject: Subject, tokens: int) -> bool:
        """Whether an answer on texts of so many tokens is there or to come."""
        return not self._reach.longer(self._group(subject.weights), tokens)

    def ask_reach(self, subject: Subject, text: ScoreBatch, tokens: int, said: FloatArray) -> None:
        """Has the end of a long text compared.

        Args:
            subject: Whose.
            text: What was asked.
            tokens: Of the text.
            said: float64 [T], the engine's log-probabilities.
        """
        weights = subject.weights
        if self._process is None:
            return
        self._reach.ask(self._group(weights), tokens)
        seen = _Seen(subject, self._loaded[weights].kind, said, 0, reach=tokens)
        self._asked[self._process.ask(subject, text)] = seen

    def _group(self, weights: str) -> Hashable:
        """Of whom one long text speaks for all."""
        return weights if self._mode == "all" else self._loaded[weights].kind

    def _beyond(self, weights: str, why: str, tokens: int | None = None) -> None:
        """Longer texts are not compared; that is told once, and refused where all have to be."""
        group = self._group(weights)
        if self._mode == "all":
            why = f"longer texts cannot be compared with transformers: {why}"
            self._reach.disagrees(group, tokens, f"{why} (--witness auto scores them all the same)")
            return
        self._reach.stops(group, why, tokens)
        if not self._said.get(weights, "").startswith("not compared"):
            self._tell(not_compared={f"{LONGER}: {why}": 1})

    def _is_open(self, weights: str) -> bool:
        asked = (seen.subject.weights for seen in self._asked.values())
        return weights in self._waiting or weights in asked

    def compared(self, weights: str, tokens: int = 0) -> str | None:
        """What a loaded subject was compared with, for records; None: the answer is still to come.

        Args:
            weights: The subject's.
            tokens: Of the longest text that it was asked.

        Raises:
            WitnessError: It disagrees, or texts of that length do.
        """
        if (why := self._refused.get(weights)) is not None:
            raise WitnessError(why)
        if self._is_open(weights):
            return None
        said = self._said[weights]
        if weights not in self._loaded or said.startswith("not compared"):
            return said
        group = self._group(weights)
        if why := self._reach.refused(group, tokens):
            raise WitnessError(f"{self._loaded[weights].subject.label}: {why}")
        if self._reach.waits(group, tokens):
            return None
        beyond = self._reach.beyond(group, tokens)
        return f"{said}; {beyond}" if beyond else said

    def look(self, wait_s: float = 0.0) -> None:
        """Takes in the answers there are."""
        if self._process is None:
            return
        process = self._process
        for said in process.poll(wait_s):
            self._take(self._asked.pop(said.id), said)
        if process.start_s or process.memory_bytes:
            self._tell(start_s=process.start_s, memory_bytes=process.memory_bytes)
            process.start_s = 0.0
        if process.gone:
            self._process = None

    def wait(self, weights: str | None = None) -> None:
        """Waits for the answer about one subject, or for all."""
        begin = time.perf_counter()
        while self._is_open(weights) if weights is not None else self._asked or self._waiting:
            self.look(LOOK_EVERY_S)
            pulse.tick()  # the process has deadlines of its own
        self._tell(wait_s=time.perf_counter() - begin)

    def _take(self, seen: _Seen, said: Said) -> None:
        self._spent_s += said.cpu_s
        self._last_s = self._last_s if seen.reach else said.cpu_s
        self._tell(cpu_s=said.cpu_s)
        if said.reason and seen.rows is not None:
            self._tell(not_compared={f"rows of a certificate: {said.reason}": 1})
            return
        if said.reason and seen.reach:
            self._beyond(seen.subject.weights, said.reason, seen.reach)
            return
        if said.reason:
            self._not_compared(seen, said.reason)
            return
        assert said.values is not None
        dtype = self._spec.dtype
        exact = said.values["float32"]
        rough = None if dtype == "float32" else said.values[dtype]
        if seen.rows is not None:
            begins = seen.rows.continuation_offsets[:-1]
            exact = np.add.reduceat(exact, begins)
            rough = None if rough is None else np.add.reduceat(rough, begins)
        found = compare(seen.canary, exact, rough, dtype, self._device, sums=seen.rows is not None)
        if seen.reach:
            self._take_reach(seen, found)
        elif found.agrees and seen.rows is not None:
            worst = found.gap / found.allowed
            self._tell(rows=seen.rows.num_contexts, largest=worst, gap=found.gap)
        elif found.agrees:
            self._agrees(seen, found)
        else:
            self._disagrees(seen, found)

    def _take_reach(self, seen: _Seen, found: Comparison) -> None:
        group = self._group(seen.subject.weights)
        if found.agrees:
            self._reach.agrees(group, seen.reach)
            worst = found.gap / found.allowed
            self._tell(tokens=seen.reach, largest=worst, gap=found.gap)
            return
        what = f"its scores of texts of {seen.reach:,} tokens"
        self._reach.disagrees(group, seen.reach, _refusal(what, seen.kind, found, "so long"))
        self._tell(disagreed=1)

    def _agrees(self, seen: _Seen, found: Comparison) -> None:
        self._said[seen.subject.weights] = "yes"
        self._tell(agreed=1, largest=found.gap / found.allowed, gap=found.gap)
        self._settle(seen.kind, "no: another subject of its kind agrees")

    def _disagrees(self, seen: _Seen, found: Comparison) -> None:
        kind, subject = seen.kind, seen.subject
        what = "its scores" if seen.rows is None else "scores of its examples"
        self._refused[subject.weights] = f"{subject.label}: {_refusal(what, kind, found)}"
        self._tell(disagreed=1)
        self._known.discard(kind)
        # Whoever relied on this one is asked in turn.
        following = next((w for w, other in self._waiting.items() if other.kind == kind), None)
        if following is not None:
            self._ask(self._waiting.pop(following))

    def _not_compared(self, seen: _Seen, reason: str) -> None:
        subject = seen.subject
        self._tell(not_compared={reason: 1})
        _log.warning("%s is not compared with transformers: %s", subject.label, reason)
        if self._mode == "all":
            self._refused[subject.weights] = (
                f"{subject.label}: it cannot be compared with transformers: {reason} (--witness "
                f"auto scores it all the same)"
            )
        self._said[subject.weights] = f"not compared: {reason}"
        self._settle(seen.kind, f"not compared: {reason}")

    def _settle(self, kind: _Kind, said: str) -> None:
        """Others of a kind need not wait any longer."""
        self._known.add(kind)
        for weights in [w for w, seen in self._waiting.items() if seen.kind == kind]:
            del self._waiting[weights]
            self._said[weights] = said
            self._tell(unasked=1)

    def _tell(self, **more: object) -> None:
        self._told = self._told.plus(replace(Witnessed(), **more))  # type: ignore[arg-type]

    def report(self) -> Witnessed:
        """What has happened since the last report."""
        told, self._told = self._told, Witnessed()
        return told

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.close()
            self._process = None
