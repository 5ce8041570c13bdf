"""A fleet of GPUs on the real work queue, in simulated time: how long they wait, what they load.

    python -m bench.fleet -o fleet.json [--workers 1000] [--checkpoints 100] [--adapters 10000]

Adapters are spread evenly over the checkpoints; every subject has the same requests, cut into
units. A worker asks for a unit when it has done one, and works ``examples / rate`` on it, after
loading its subject if it has another: a checkpoint, or one with an adapter merged into it, which
are one stream of tensors either way. Rates vary from worker to worker and from unit to unit
(log-normal). The driver hands out one unit after the other and takes as long for each as the queue
really took here. Beside evalcore's queue: units taken in random order, and subjects dealt to the
workers in turn.

The defaults were measured on an H100 with a model of 8 billion parameters (docs/benchmarks.md): a
swap with its proof takes 2.76 s, 199 examples of four choices of 5 tokens are scored in a second.
``--fetch-s`` adds what a worker waits for a checkpoint that it did not have last.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from evalcore.benchmark.tables import markdown
from evalcore.planning import Plan, PlanCounts, Unit, WorkQueue
from evalcore.types import Adapter, Checkpoint, Subject


@dataclass(frozen=True)
class Fleet:
    """What is simulated.

    Attributes:
        workers: GPUs, each an engine of its own.
        checkpoints, adapters: Subjects are the checkpoints and all adapters.
        units: Units of each subject.
        unit_examples: In each of them.
        examples_per_s: Of a worker in the mean.
        load_s: Loading a subject.
        fetch_s: More than that, where its checkpoint is another than the one before.
        spread: Sd of the logarithm of a unit's time, and of a worker's speed.
        seed: Of everything that is drawn.
    """

    workers: int = 1000
    checkpoints: int = 100
    adapters: int = 10_000
    units: int = 18
    unit_examples: int = 4096
    examples_per_s: float = 199.0
    load_s: float = 2.76
    fetch_s: float = 0.0
    spread: float = 0.1
    seed: int = 0

    def plan(self) -> Plan:
        """Units in the order of a plan: by checkpoint, the bare one first."""
        units: list[Unit] = []
        for c in range(self.checkpoints):
            checkpoint = Checkpoint(f"c{c}", f"/c{c}", f"{c:032x}", "t")
            subjects = [Subject(checkpoint)]
            for a in range(c, self.adapters, self.checkpoints):
                subjects.append(Subject(checkpoint, Adapter(f"a{a}", f"/a{a}", f"{a:032x}", 16)))
            for number, subject in enumerate(subjects):
                for u in range(self.units):
                    units.append(Unit(f"{c}-{number}-{u}", subject, (), self.unit_examples, 1))
        return Plan(tuple(units), PlanCounts(*[0] * 9), {})

    @property
    def least_load_s(self) -> float:
        """Seconds of loading that no order of work avoids: every subject once, and every worker
        fetches some checkpoint."""
        loads = max(self.checkpoints + self.adapters, self.workers) * self.load_s
        return loads + max(self.workers, self.checkpoints) * self.fetch_s


class Queue(Protocol):
    """Whom a worker asks."""

    def next(self, worker_index: int) -> Unit | None: ...


class RandomQueue:
    """Units in random order."""

    def __init__(self, plan: Plan, fleet: Fleet) -> None:
        self._units = list(plan.units)
        random.Random(fleet.seed).shuffle(self._units)

    def next(self, worker_index: int) -> Unit | None:
        return self._units.pop() if self._units else None


class DealtQueue:
    """Subjects dealt to the workers in turn, each worker does its own."""

    def __init__(self, plan: Plan, fleet: Fleet) -> None:
        self._units: list[deque[Unit]] = [deque() for _ in range(fleet.workers)]
        order: dict[str, int] = {}
        for unit in plan.units:
            at = order.setdefault(unit.subject.id, len(order))
            self._units[at % fleet.workers].append(unit)

    def next(self, worker_index: int) -> Unit | None:
        own = self._units[worker_index]
        return own.popleft() if own else None


@dataclass(frozen=True)
class Run:
    """How a fleet fared.

    Attributes:
        hours: Until the last unit was done.
        waiting_pct: Share of the workers' time in which they waited for the driver.
        idle_pct: Share in which nothing was left for them while others still worked.
        loading_pct: Share in which they loaded.
        loads: Subjects loaded, and times a worker went to another checkpoint.
        loads_over_least: Seconds of loading over the least possible.
        next_us: Microseconds a call of the queue took here, in the mean; ``worst``: at most.
    """

    hours: float
    waiting_pct: float
    idle_pct: float
    loading_pct: float
    loads: tuple[int, int]
    loads_over_least: float
    next_us: float
    worst_us: float


def simulate(fleet: Fleet, make: Callable[[Plan, Fleet], Queue]) -> Run:
    """Runs a fleet to its end in simulated time."""
    rng = random.Random(fleet.seed + 1)
    queue = make(fleet.plan(), fleet)
    speed = [math.exp(rng.gauss(0, fleet.spread)) for _ in range(fleet.workers)]
    has: list[Subject | None] = [None] * fleet.workers
    free_at = [(0.0, worker) for worker in range(fleet.workers)]
    heapq.heapify(free_at)
    driver = waited = loading = worked = end = spent = worst = 0.0
    done: list[float] = []
    calls = subjects = moves = 0
    while free_at:
        now, worker = heapq.heappop(free_at)
        begin = time.perf_counter()
        unit = queue.next(worker)
        took = time.perf_counter() - begin
        calls, spent, worst = calls + 1, spent + took, max(worst, took)
        driver = max(driver, now) + took
        if unit is None:
            done.append(now)
            continue
        waited += driver - now
        load, before = 0.0, has[worker]
        if before is not unit.subject:
            load, subjects = fleet.load_s, subjects + 1
            has[worker] = unit.subject
        if before is None or before.checkpoint is not unit.subject.checkpoint:
            load, moves = load + fleet.fetch_s, moves + 1
        work = unit.num_examples / fleet.examples_per_s * speed[worker]
        work *= math.exp(rng.gauss(0, fleet.spread))
        loading, worked = loading + load, worked + work
        end = max(end, driver + load + work)
        heapq.heappush(free_at, (driver + load + work, worker))
    total = end * fleet.workers
    return Run(
        end / 3600, 100 * waited / total, 100 * sum(end - at for at in done) / total,
        100 * loading / total, (subjects, moves), loading / fleet.least_load_s,
        1e6 * spent / calls, 1e6 * worst,
    )  # fmt: skip


QUEUES: dict[str, Callable[[Plan, Fleet], Queue]] = {
    "evalcore": lambda plan, fleet: WorkQueue(plan),
    "random units": RandomQueue,
    "subjects in turn": DealtQueue,
}


def table(runs: dict[str, Run]) -> str:
    """A row for each queue."""
    head = ["", "hours", "waiting %", "idle at the end %", "loading %", "subjects loaded",
            "to another checkpoint", "loading / least", "next() us"]  # fmt: skip
    return markdown(
        head,
        [
            [
                name, f"{run.hours:.2f}", f"{run.waiting_pct:.3f}", f"{run.idle_pct:.2f}",
                f"{run.loading_pct:.1f}", f"{run.loads[0]:,}", f"{run.loads[1]:,}",
                f"{run.loads_over_least:.2f}", f"{run.next_us:.0f}",
            ]
            for name, run in runs.items()
        ],
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path)
    for name, value in asdict(Fleet()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    args = vars(parser.parse_args())
    output = args.pop("output")
    fleet = Fleet(**args)
    runs = {name: simulate(fleet, make) for name, make in QUEUES.items()}
    print(table(runs))
    if output is not None:
        record = {"fleet": asdict(fleet), "runs": {k: asdict(run) for k, run in runs.items()}}
        output.write_text(json.dumps(record, indent=1), "utf-8")


if __name__ == "__main__":
    main()
