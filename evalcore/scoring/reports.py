"""What a unit cost, and what a run did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from evalcore.errors import EvalcoreError
from evalcore.scoring.certificates.judging import Certificate, Rescored
from evalcore.scoring.witnessed import Witnessed


@dataclass(kw_only=True)
class Costs:
    """What is summed over units; seconds are a worker's.

    Attributes:
        prompt_tokens: Prompt tokens asked for, as planned.
        computed_tokens, cached_tokens: Prompt tokens run through the model / shared or cached.
        new_tokens: Generated tokens.
        fallbacks: Continuations scored again the slow exact way.
        start_s: Where an engine started, the time until it stood, reading the unit included.
        swap_s, proof_s: Weights put in place, proof that they are.
        engine_s: Time inside the engine's score and generate calls.
        certify_s: Time of scoring the sample again.
        wait_s: Time the worker waited for a unit after the one before.
    """

    prompt_tokens: int = 0
    computed_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    fallbacks: int = 0
    start_s: float = 0.0
    swap_s: float = 0.0
    proof_s: float = 0.0
    engine_s: float = 0.0
    certify_s: float = 0.0
    wait_s: float = 0.0

    def add(self, other: Costs) -> None:
        """Adds another's, one by one."""
        for cost in fields(Costs):
            setattr(self, cost.name, getattr(self, cost.name) + getattr(other, cost.name))

    def __add__(self, other: Costs) -> Costs:
        total = Costs()
        total.add(self)
        total.add(other)
        return total


@dataclass
class UnitReport(Costs):
    """What a unit cost, and what came of it.

    Attributes:
        examples, choices: Rows written and continuations asked for.
        checkpoint: Fingerprint of the checkpoint it was scored on.
        head_rows: Tokens whose log-probability was asked for.
        wall_s: The whole unit.
        loads: How each subject came into place (see ``LoadReport.kind``).
        adapters: Subject id -> how its adapter was applied.
        proven_share: The least share of a model's parameters that was proven.
        alone: Why engines were started for single subjects; ``""`` if none was.
        without: What the engine did without, and why; ``""`` if it had everything.
        rescored: The sample that was scored twice.
        witnessed: What the witness did since the report before.
    """

    unit_id: str
    examples: int = 0
    choices: int = 0
    checkpoint: str = ""
    head_rows: int = 0
    wall_s: float = 0.0
    loads: tuple[str, ...] = ()
    adapters: Mapping[str, str] = field(default_factory=dict)
    proven_share: float = 1.0
    alone: str = ""
    without: str = ""
    rescored: Rescored | None = None
    witnessed: Witnessed = field(default_factory=Witnessed)


@dataclass(frozen=True)
class FlushReport:
    """What committing the rest took.

    Attributes:
        wall_s: Time a worker spent on it, waiting for the order included.
        witnessed: What the witness did since the report before.
    """

    wall_s: float
    witnessed: Witnessed = field(default_factory=Witnessed)


@dataclass
class Effort:
    """What one checkpoint's subjects took: prompt and new tokens computed, rows of the head."""

    computed_tokens: int = 0
    head_rows: int = 0


@dataclass
class RunSummary(Costs):
    """What a run did; seconds are summed over workers, ``wall_s`` apart.

    Attributes:
        planned, covered: Examples to score, and examples that were there already.
        examples, choices: Rows committed, and the continuations in them.
        worker_s: Workers' time from the first unit they got to their last commit.
        checkpoints: Checkpoint fingerprint -> what its subjects took.
        loads: Kind of load -> how often.
        adapters: Subject id -> how its adapter was applied (``batched``, ``merged``, or ``merged:``
            and why it could not be batched).
        proven_share: The least share of a model's parameters that was proven (None before the
            first load).
        alone: Why engines were started for single subjects -> for how many units.
        without: What engines did without, and why -> for how many units.
        witnessed: What the witness did.
        disagreed: Weights whose scores are not transformers' -> one line.
        failed_cells: Cell key -> one line why (all of it or some of its rows).
        failed_examples: Rows of these that are not scored.
        given_up: Worker and machine -> why it got no more work.
        met: What workers met on the way, with who and where -> how often; what they had to do was
            tried again.
        error: What left nobody to go on, if anything did.
        stopped: Reason if it was asked to stop before the end.
        certificate: What scoring a sample again showed, where that was asked for.
        wall_s: From the first worker asked for to the last commit.
    """

    planned: int = 0
    covered: int = 0
    units: int = 0
    examples: int = 0
    choices: int = 0
    worker_s: float = 0.0
    wall_s: float = 0.0
    checkpoints: dict[str, Effort] = field(default_factory=dict)
    loads: dict[str, int] = field(default_factory=dict)
    adapters: dict[str, str] = field(default_factory=dict)
    proven_share: float | None = None
    alone: dict[str, int] = field(default_factory=dict)
    without: dict[str, int] = field(default_factory=dict)
    witnessed: Witnessed = field(default_factory=Witnessed)
    disagreed: dict[str, str] = field(default_factory=dict)
    restarts: int = 0
    stopped: str | None = None
    failed_cells: dict[str, str] = field(default_factory=dict)
    failed_examples: int = 0
    given_up: dict[str, str] = field(default_factory=dict)
    met: dict[str, int] = field(default_factory=dict)
    error: EvalcoreError | None = None
    certificate: Certificate | None = None

    def spent(self, report: UnitReport) -> None:
        """Counts what a unit cost; a unit done again after a crash costs again."""
        self.add(report)
        self.worker_s += report.wait_s + report.wall_s
        self.witnessed = self.witnessed.plus(report.witnessed)
        effort = self.checkpoints.setdefault(report.checkpoint, Effort())
        effort.computed_tokens += report.computed_tokens + report.new_tokens
        effort.head_rows += report.head_rows + report.new_tokens
        for kind in report.loads:
            self.loads[kind] = self.loads.get(kind, 0) + 1
        known = 1.0 if self.proven_share is None else self.proven_share
        self.proven_share = min(known, report.proven_share)
        if report.alone:
            self.alone[report.alone] = self.alone.get(report.alone, 0) + 1
        if report.without:
            self.without[report.without] = self.without.get(report.without, 0) + 1
        for subject, how in report.adapters.items():
            # A subject that was still in place is reported without a word on how.
            if how != "merged" or subject not in self.adapters:
                self.adapters[subject] = how

    def committed(self, report: UnitReport) -> None:
        """Counts what a unit brought, once its rows are on disk."""
        self.units += 1
        self.examples += report.examples
        self.choices += report.choices

    @property
    def after_start_s(self) -> float:
        """Workers' time once their engines stood."""
        return max(self.worker_s - self.start_s, 0.0)

    @property
    def idle_s(self) -> float:
        """Workers' time in which their engines neither computed nor took in or proved weights."""
        busy = self.engine_s + self.certify_s + self.swap_s + self.proof_s
        return max(self.after_start_s - busy, 0.0)

    @property
    def idle_share(self) -> float:
        """Idle time over the time after the start (0 to 1)."""
        return self.idle_s / self.after_start_s if self.after_start_s else 0.0

    def adapter_counts(self) -> Counter[str]:
        """Adapters by how they were applied."""
        return Counter(self.adapters.values())

    def as_record(self) -> dict[str, Any]:
        """Plain values for the run record."""
        record = asdict(replace(self, error=None))  # an exception is copied by its constructor
        record["error"] = None if self.error is None else str(self.error)
        record["adapters"] = dict(self.adapter_counts())
        return record | {"idle_s": self.idle_s, "idle_share": self.idle_share}
