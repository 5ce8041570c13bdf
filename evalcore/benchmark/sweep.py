"""``bench()``: how fast this hardware scores, point by point of a sweep.

Every engine configuration (strategy, way of applying adapters) runs in a process of its own. What
is measured is the engine's ``load`` and ``score`` on requests that are already token ids; encoding,
planning and writing are measured by ``bench/components.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evalcore.app.place import find_place
from evalcore.benchmark.jobs import BenchJob, BenchPoint, Row, run_job
from evalcore.benchmark.models import (
    random_adapter,
    random_checkpoint,
    read_config,
    vocabulary_of,
)
from evalcore.benchmark.requests import (
    RequestShape,
    given_requests,
    largest_token,
    longest_sequence,
    synthetic_requests,
)
from evalcore.benchmark.tables import draw, write_rows
from evalcore.config import ClusterConfig, EngineConfig, options_of
from evalcore.engines.protocol import EngineSpec
from evalcore.errors import EXIT_CELLS_FAILED, InputError, UnknownNameError
from evalcore.identity import numeric_config, weight_files
from evalcore.types import ScoreBatch


@dataclass(frozen=True)
class BenchOptions:
    """What to measure; tuples are swept, each with each.

    Attributes:
        out: Folder of table, picture and Arrow file (and of random models).
        checkpoint: Directory of real weights; None for random ones.
        config: Of random weights: a built-in name, or the path of a ``config.json``.
        requests: Request file or results folder to take requests from; None for synthetic ones.
        limit: Documents of each given file.
        repeats: Measured repetitions, after one to warm up.
        engine, cluster: As of scoring; the sweep decides strategies and ways of adapters.
    """

    out: Path
    checkpoint: Path | None = None
    config: str = "pocket"
    requests: Path | None = None
    limit: int | None = None
    contexts: tuple[int, ...] = (200,)
    context_tokens: tuple[int, ...] = (100,)
    choices: tuple[int, ...] = (4,)
    continuation_tokens: tuple[int, ...] = (5,)
    shots: tuple[int, ...] = (0,)
    adapters: tuple[int, ...] = (0,)
    adapter_ways: tuple[str, ...] = ("merged",)
    strategies: tuple[str, ...] = ("auto",)
    rank: int = 16
    repeats: int = 5
    seed: int = 0
    engine: EngineConfig = field(default_factory=EngineConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    max_batch_tokens: int = 0
    max_num_seqs: int = 0
    dry_run: bool = False


@dataclass
class BenchOutcome:
    """What :func:`bench` did; ``files`` are table, Arrow file and picture."""

    points: list[BenchPoint]
    rows: list[Row] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        failed = any(row["status"] != "measured" for row in self.rows)
        return EXIT_CELLS_FAILED if failed else 0


def bench(options: BenchOptions, on_row: Callable[[Row], None] | None = None) -> BenchOutcome:
    """Measures every point of a sweep and writes table, picture and Arrow file.

    Raises:
        InputError: Something given is wrong; nothing was measured.
    """
    points = sweep(options)
    config = _config(options)
    batches = requests_of(options, points, vocabulary_of(config))
    spec = replace(engine_spec(options), max_length=_max_length(config, batches.values()))
    if options.dry_run:
        return BenchOutcome(points)
    checkpoint = _checkpoint(options, config, spec.dtype)
    most = max(point.adapters for point in points)
    adapters = [
        random_adapter(options.out / "models" / f"lora-{i:02d}", checkpoint, options.rank, i)
        for i in range(most)
    ]
    outcome = BenchOutcome(points)
    try:
        for (strategy, way), own in _by_engine(points).items():
            job = BenchJob(
                replace(spec, strategy=strategy, adapters=way),  # type: ignore[arg-type]
                own,
                checkpoint,
                adapters,
                options.requests,
                options.limit,
                options.rank,
                options.repeats,
                options.seed,
            )
            for row in run_job(job, batches, options.cluster.peak_tflops):
                outcome.rows.append(row)
                if on_row:
                    on_row(row)
    finally:  # stopped half-way, what was measured is kept
        if outcome.rows:
            files = write_rows(outcome.rows, options.out)
            outcome.files = [*files, draw(outcome.rows, options.out)]
    return outcome


def sweep(options: BenchOptions) -> list[BenchPoint]:
    """All points; without adapters the way of applying them makes no difference.

    Raises:
        InputError: A value is out of range or a name unknown.
    """
    known_as = options_of(EngineConfig)
    for kind, known, asked in (
        ("strategy", known_as["strategy"].choices, options.strategies),
        ("way of applying adapters", known_as["adapters"].choices, options.adapter_ways),
    ):
        for name in asked:
            if name not in known:
                raise UnknownNameError(kind, name, known)
    if options.repeats < 1 or min(options.adapters) < 0:
        raise InputError("bench: repeats must be at least 1 and adapters at least 0")
    shapes: list[RequestShape | None] = [None]
    if options.requests is None:
        shapes = [
            RequestShape(*values)
            for values in itertools.product(
                options.contexts,
                options.context_tokens,
                options.choices,
                options.continuation_tokens,
                options.shots,
            )
        ]
    points: list[BenchPoint] = []
    for strategy, way, adapters, shape in itertools.product(
        options.strategies, options.adapter_ways, options.adapters, shapes
    ):
        if adapters or way == options.adapter_ways[0]:
            points.append(BenchPoint(len(points), strategy, way, adapters, shape))
    return points


def _config(options: BenchOptions) -> dict[str, Any]:
    if options.checkpoint is None:
        return read_config(options.config)
    weight_files(options.checkpoint)
    return numeric_config(options.checkpoint)


def engine_spec(options: BenchOptions) -> EngineSpec:
    """The engine all points have in common."""
    place = find_place(replace(options.cluster, workers=1))
    return EngineSpec.of(
        options.engine,
        dtype=options.engine.dtype_on(place.device),
        device=place.device,
        threads=place.threads,
        tensor_parallel=options.cluster.tensor_parallel,
        max_batch_tokens=options.max_batch_tokens,
        max_num_seqs=options.max_num_seqs,
        max_lora_rank=options.rank,
    )


def _checkpoint(options: BenchOptions, config: dict[str, Any], dtype: str) -> Path:
    if options.checkpoint is not None:
        return options.checkpoint
    path = Path(options.config)  # a built-in name, or .../NAME/config.json, or .../NAME
    name = path.parent.name if path.name == "config.json" else path.name
    return random_checkpoint(
        options.out / "models" / f"{name}-{dtype}", config, dtype, options.seed
    )


def requests_of(
    options: BenchOptions, points: Sequence[BenchPoint], vocabulary: int
) -> dict[RequestShape | None, ScoreBatch]:
    """The batch of every shape.

    Raises:
        InputError: Given requests hold token ids the model does not have.
    """
    batches: dict[RequestShape | None, ScoreBatch] = {}
    for shape in dict.fromkeys(point.shape for point in points):
        if shape is None:
            assert options.requests is not None
            batches[shape] = given_requests(options.requests, options.limit)
        else:
            batches[shape] = synthetic_requests(shape, vocabulary, options.seed)
    largest = largest_token(list(batches.values()))
    if largest >= vocabulary:
        raise InputError(
            f"--requests {options.requests}: token id {largest} is outside the model's vocabulary "
            f"of {vocabulary}; give the checkpoint they were encoded for with -m"
        )
    return batches


def _max_length(config: dict[str, Any], batches: Iterable[ScoreBatch]) -> int:
    longest = longest_sequence(list(batches))
    most = config.get("max_position_embeddings") or config.get("n_positions")
    if most and longest > most:
        raise InputError(
            f"bench: a sequence of {longest} tokens is longer than the model's {most} positions; "
            f"take fewer shots or shorter contexts"
        )
    return longest


def _by_engine(points: Sequence[BenchPoint]) -> dict[tuple[str, str], list[BenchPoint]]:
    groups: dict[tuple[str, str], list[BenchPoint]] = {}
    for point in points:
        groups.setdefault((point.strategy, point.adapter_way), []).append(point)
    return groups
