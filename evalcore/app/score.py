"""``score()``: the whole scoring flow, top to bottom."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from evalcore.app.adapters import AdapterPlan, check_way, plan_adapters
from evalcore.app.cells import Grid, GridOptions, encoding_settings, installed_versions
from evalcore.app.flops import peak_flops, run_flops
from evalcore.app.grid import build_grid, require_documents
from evalcore.app.inputs import keep_inputs
from evalcore.app.kept import keep_answers
from evalcore.app.labels import labelled_subjects, untaught_notes
from evalcore.app.limits import token_limits
from evalcore.app.manifest import agreed, grid_name
from evalcore.app.ordering import ranked
from evalcore.app.place import Place, Wanted, changed_device, find_place
from evalcore.cluster import GRACE_S, Patience, StopSignals
from evalcore.cluster.ray_session import joined
from evalcore.engines.protocol import (
    BLOCK_SIZES,
    Dtype,
    EngineKind,
    EngineSpec,
    Strategy,
    numerics_class,
)
from evalcore.errors import EXIT_CELLS_FAILED, EXIT_STOPPED, InputError, ResultsError
from evalcore.files import utc_stamp
from evalcore.identity import CELL_KEY_VERSION, Applied, numeric_config
from evalcore.planning import Plan, PlanCounts, plan_units
from evalcore.scoring import CellWork, Progress, RunSummary, Watch, WorkerConfig, score_units
from evalcore.store import ResultStore
from evalcore.tasks import data_commits
from evalcore.types import Subject, generation_of

CHECKED_AT_START_BYTES = 4 << 30
"""Results up to this size are read and checked from end to end when a run starts."""


@dataclass(frozen=True)
class ScoreOptions(GridOptions):
    """What to score, with what, where to; field names follow the command line.

    Attributes:
        grid: Blocks of (task selection, prompt selection).
        output: Results folder.
        adapters: Folders searched for adapters.
        checkpoints: Checkpoints scored by themselves (PATH or REPO@REV).
        tokenizer: Whose tokenizer, chat template and end tokens ask: ``adapter`` (an adapter's own
            where they change what is asked), ``base`` (never), or a directory for everything.
        parent_map: ``GLOB=CHECKPOINT``: what fully tuned checkpoints were tuned from.
        tuned_on: ``GLOB=TASK[,seed=..,control=..]``: what models were tuned on.
        name_pattern: Labels inside paths, for example ``{step}/{tuning}-seed{seed}``.
        shard: (i, n): do part i of n.
        time_limit: Seconds after which to stop, committed, with status 75.
        stop_grace: Seconds units at hand get to end after a wish to stop, before they are killed.
        unit_examples: Examples handed to a worker at once, at most.
        documents: Keep documents and prompts beside the results.
        commit_every: Seconds that rows may wait to be committed together.
        adapter_way: How adapters are applied (see ``app.adapters``).
        certify: Share of the examples scored a second time; 0: none.
        device: ``auto``: GPUs where the engines are, if there are some (see ``app.place``).
        num_gpus: GPUs to use at most, over all engines; None: all that are shown.
        log_json: File that gets one JSON line per event of the run.
    """

    output: Path = Path("results")
    adapters: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    base_map: tuple[str, ...] = ()
    assume_base: str | None = None
    include_bases: bool = True
    tokenizer: str = "adapter"
    parent_map: tuple[str, ...] = ()
    tuned_on: tuple[str, ...] = ()
    name_pattern: str | None = None
    shard: tuple[int, int] | None = None
    time_limit: float | None = None
    unit_examples: int = 4096
    commit_every: float = 60.0
    stop_grace: float = GRACE_S
    dry_run: bool = False
    strict: bool = False
    documents: bool = True
    engine: EngineKind = "vllm"
    dtype: Dtype | Literal["auto"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_gpus: int | None = None
    strategy: Strategy = "auto"
    adapter_way: Literal["auto", "merged", "batched"] = "auto"
    certify: float = 0.0
    cluster: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    workers: int | None = None
    tensor_parallel: int = 1
    threads: int | None = None
    trust_remote_code: bool = False
    peak_tflops: float | None = None
    log_json: Path | None = None


@dataclass
class ScoreOutcome:
    """What came of :func:`score`.

    Attributes:
        problems: (what, message) of adapters and cells that could not be scored.
        findings: What the checks of the data found, as lines.
        limits: Least work of what was planned (see ``app.limits``).
        flops: Operations the engines did; None where the model family is not known.
        peak_flops: Operations per second a worker's devices can do, if known.
        examples_per_s: Rate of the last run into this folder, for a dry run's estimate.
        lm_eval: lm-eval's own metrics of its tasks, as lines.
        cells: Keys of the cells that were asked for.
        asked: Names of the subjects, tasks and prompts of these cells.
        engines: Where and in what the engines compute, in words.
    """

    output: Path
    plan: Plan
    summary: RunSummary
    dry_run: bool
    notes: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    limits: dict[str, int] = field(default_factory=dict)
    flops: float | None = None
    peak_flops: float | None = None
    examples_per_s: float | None = None
    lm_eval: list[str] = field(default_factory=list)
    cells: frozenset[str] = frozenset()
    asked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    engines: str = ""

    @property
    def exit_status(self) -> int:
        if self.summary.error is not None:
            return self.summary.error.exit_status
        if self.summary.stopped:
            return EXIT_STOPPED
        return EXIT_CELLS_FAILED if self.problems or self.summary.failed_cells else 0

    @property
    def how_it_ended(self) -> str:
        """In a line, for whoever looks from outside."""
        if self.summary.error is not None:
            return str(self.summary.error)
        if self.summary.stopped:
            return f"stopped ({self.summary.stopped}); run the same command again to go on"
        return "some cells could not be scored" if self.exit_status else "done"

    def lines(self, *, scores: bool = True) -> list[str]:
        """The summary for a person: scores (if wanted), how to go on, what it cost."""
        from evalcore.app.words import next_lines, plan_lines, score_lines, summary_lines

        if self.dry_run:
            return [*self.notes, *plan_lines(self)]
        told = [*score_lines(self), *self.lm_eval, *next_lines(self)] if scores else self.lm_eval
        return [*self.notes, *told, *summary_lines(self)]

    def problem_lines(self) -> list[str]:
        """Findings and failures, one line each."""
        lines = [f"data: {finding}" for finding in self.findings]
        certificate = self.summary.certificate
        if certificate is not None and not certificate.holds:
            lines.append(certificate.lines()[-1])
        lines += [f"{who} got no more work: {why}" for who, why in self.summary.given_up.items()]
        lines += [f"not scored: {what}: {message}" for what, message in self.problems]
        if self.summary.error is not None:
            lines.append(f"evalcore: {self.summary.error}")
        return lines


class Silent:
    """A :class:`~evalcore.scoring.Progress` that says nothing."""

    def begin(self, counts: PlanCounts, limits: Mapping[str, int]) -> None: ...

    def worker(self, index: int, state: str) -> None: ...

    def unit(self, label: str, report: Any) -> None: ...

    def committed(self, report: Any) -> None: ...

    def failure(self, label: str, message: str) -> None: ...


def score(
    options: ScoreOptions, progress: Progress | None = None, signals: StopSignals | None = None
) -> ScoreOutcome:
    """Scores what is missing of a grid and commits it to the results folder.

    Args:
        options: What, with what, where to.
        progress: Told of what goes on.
        signals: What may stop it, entered already; None: signals and the options' time limit.

    Raises:
        InputError: Something given is wrong; nothing was scored.
        StoppedError: It was stopped before anything was scored.
    """
    if signals is None:
        with StopSignals(options.time_limit, options.stop_grace) as own:
            return score(options, progress, own)
    ray = joined(options.ray_address) if options.cluster == "ray" else nullcontext()
    with ray, nullcontext(Watch()) if options.dry_run else _watch(options) as watch:
        with signals.interrupting(), _results(options) as (store, cache, place, notes):
            outcome, prepared = _prepare(options, place, store, cache, notes)
        if prepared is not None:
            _run(outcome, options, prepared, progress or Silent(), signals, watch)
        watch.end(outcome.exit_status, outcome.how_it_ended)
    return outcome


def _watch(options: ScoreOptions) -> Watch:
    about: dict[str, Any] = {"engine": options.engine, "cluster": options.cluster}
    if options.shard is not None:
        about["shard"] = "{}/{}".format(*options.shard)
    return Watch(_run_name(), options.output, options.log_json, about)


@dataclass(frozen=True)
class _Prepared:
    """What a run needs beside its plan."""

    store: ResultStore
    place: Place
    spec: EngineSpec
    grid: Grid
    subjects: list[Subject]


@contextmanager
def _results(options: ScoreOptions) -> Iterator[tuple[ResultStore, Path, Place, list[str]]]:
    """(results, folder for encoded requests, where the engines are, what is to be said of that).

    Results are made last, so that what is refused leaves no folder; a dry run writes nothing but
    into a temporary one.
    """
    known = (options.output / "store.json").is_file()
    there = ResultStore(options.output, read_only=True) if known else None
    place, notes = _place(options, there)
    if not options.dry_run:
        store = ResultStore(options.output)
        yield store, store.cache_folder, place, notes
        return
    with TemporaryDirectory(prefix="evalcore-") as folder:
        cache = Path(folder) / "cache"
        cache.mkdir()
        if there is not None and there.cache_folder.is_dir():
            for file in there.cache_folder.iterdir():
                (cache / file.name).symlink_to(file.resolve())
        yield there or ResultStore(Path(folder) / "results"), cache, place, notes


def _prepare(
    options: ScoreOptions, place: Place, store: ResultStore, cache: Path, said: list[str]
) -> tuple[ScoreOutcome, _Prepared | None]:
    """Everything before the first engine; None for a dry run, where nothing follows."""
    subjects, problems, notes = _subjects(options, place, store)
    notes += said
    if not options.dry_run:
        notes += _set_aside(store)
    spec = _engine_spec(options, place, subjects)
    spec, grid, adapters = _grid(options, spec, subjects, store, cache)
    beside = adapters.beside
    notes += adapters.notes
    named = {planned.cell.subject.id: planned.cell.subject for planned in grid.cells}
    problems += [(named[own].label, reason) for own, reason in adapters.refused.items()]
    notes += _keys_changed(store, grid)
    if beside:
        notes.append(
            f"{len(beside):,} adapters are applied beside the weights, up to {spec.max_loras} of a "
            f"checkpoint at once"
        )
    notes += untaught_notes(subjects, grid.cell_rows)
    if options.strict:
        require_documents(grid.findings)
    if not options.dry_run:
        store.write_cells(grid.cell_rows)
        notes += keep_answers(store, grid)
    plan = plan_units(
        ranked(grid.cells),
        store.coverage(),
        max_examples_per_unit=options.unit_examples,
        shard=options.shard,
        beside=beside,
        most_together=spec.max_loras,
    )
    limits = token_limits(plan, BLOCK_SIZES[place.device])
    outcome = ScoreOutcome(
        options.output,
        plan,
        RunSummary(planned=plan.counts.examples_planned, covered=plan.counts.examples_covered),
        options.dry_run,
        notes=notes,
        problems=problems,
        findings=[finding.message for finding in grid.findings],
        limits=limits,
        cells=frozenset(planned.cell.key for planned in grid.cells),
        asked=_asked(grid),
        engines=f"{spec.kind} in {spec.dtype}, {place.line}",
    )
    if options.dry_run:
        outcome.examples_per_s = store.runs.examples_per_s()
        return outcome, None
    if options.documents:
        keep_inputs(store, grid)
    return outcome, _Prepared(store, place, spec, grid, subjects)


def _asked(grid: Grid) -> dict[str, tuple[str, ...]]:
    """Names of what the grid is made of, each once, in its order."""
    cells = [planned.cell for planned in grid.cells]
    names = {
        "subjects": (cell.subject.label for cell in cells),
        "tasks": (cell.task.name for cell in cells),
        "prompts": (cell.variant.name for cell in cells),
    }
    return {what: tuple(dict.fromkeys(of)) for what, of in names.items()}


def _run(
    outcome: ScoreOutcome,
    options: ScoreOptions,
    prepared: _Prepared,
    progress: Progress,
    signals: StopSignals,
    watch: Watch,
) -> None:
    """Scores the plan; whatever ends that, the run is recorded."""
    store, grid = prepared.store, prepared.grid
    if outcome.plan.units:
        try:
            _score_plan(outcome, options, prepared, progress, signals, watch)
        finally:
            _count_flops(outcome, prepared, options.peak_tflops)
            _name_failures(outcome, grid)
            _record(outcome, prepared)
    if grid.lm_eval is not None and outcome.summary.error is None:
        from evalcore.app.lm_eval import write_outcomes  # only where its tasks are asked for

        outcome.lm_eval, unmeasured = write_outcomes(store, grid.lm_eval)
        outcome.problems += unmeasured


def _record(outcome: ScoreOutcome, prepared: _Prepared) -> None:
    try:
        prepared.store.runs.append(_run_record(outcome, prepared.spec))
    except InputError as error:
        # The folder may be what ended the run: that is the error to show.
        outcome.summary.error = outcome.summary.error or ResultsError(str(error))


def _set_aside(store: ResultStore) -> list[str]:
    """What of the results is damaged is scored again: lines about it.

    Large results are not read from end to end by every run: `evalcore verify` does that.
    """
    if store.num_bytes > CHECKED_AT_START_BYTES:
        return []
    report = store.verify()
    return [] if report.sound else report.lines()


def _place(options: ScoreOptions, store: ResultStore | None) -> tuple[Place, list[str]]:
    """(where the engines are, a line where earlier results are of another device)."""
    labels = set() if store is None else set(store.cells()["numerics"].to_pylist())
    scored_on = {parts[3] for label in labels if label and len(parts := label.split("/")) > 3}
    wanted = Wanted(**{f.name: getattr(options, f.name) for f in fields(Wanted)})
    place = find_place(wanted, scored_on)
    return place, changed_device(place, scored_on, str(options.output))


def _keys_changed(store: ResultStore, grid: Grid) -> list[str]:
    """One line where cells of this grid were scored under keys of an earlier version."""
    names = ("checkpoint_fingerprint", "adapter_fingerprint", "task", "variant")
    asked = {tuple(row[name] for name in names) for row in grid.cell_rows}
    table = store.cells().select([*names, "key_version"])
    old = sum(
        (row["key_version"] or 0) < CELL_KEY_VERSION and tuple(row[n] for n in names) in asked
        for row in table.to_pylist()
    )
    if not old:
        return []
    return [
        f"{old:,} cells of {store.path} have keys of an earlier evalcore: since version "
        f"{CELL_KEY_VERSION} of the keys data counts by its rows, chat templates and end tokens "
        "too (docs/identity.md); they are scored anew, and what was there can still be read"
    ]


def _subjects(
    options: ScoreOptions, place: Place, store: ResultStore
) -> tuple[list[Subject], list[tuple[str, str]], list[str]]:
    """(subjects, problems, notes); a hub base's resolved commit is among the notes."""
    resolved = labelled_subjects(options, store, _applied(options, place))
    problems = [(problem.path, problem.message) for problem in resolved.problems]
    subjects = _supported(options, place, resolved.subjects, problems)
    if options.shard is not None and not options.dry_run and (name := grid_name()) is not None:
        subjects, gone = agreed(store.path, subjects, name)
        what = "part of this array job's grid, but not found by this part: scored by the next run"
        problems += [(f"subject {subject_id[:12]}", what) for subject_id in gone]
    if not subjects:
        first = f": {problems[0][1]}" if problems else ""
        raise InputError(f"no subject can be scored{first}")
    return subjects, problems, list(resolved.notes)


def _supported(
    options: ScoreOptions,
    place: Place,
    subjects: Sequence[Subject],
    problems: list[tuple[str, str]],
) -> list[Subject]:
    """The subjects whose checkpoint the engine can run; the others become problems."""
    if options.engine != "vllm":
        return list(subjects)
    from evalcore.engines.vllm.bases import unsupported

    reasons = {
        path: unsupported(path, numeric_config(path), place.device)
        for path in {subject.checkpoint.path for subject in subjects}
    }
    problems += [
        (path, f"checkpoint {path}: {reason}; engine hf may score it (--engine hf)")
        for path, reason in sorted(reasons.items())
        if reason is not None
    ]
    return [subject for subject in subjects if reasons[subject.checkpoint.path] is None]


def _applied(options: ScoreOptions, place: Place) -> Applied:
    """What the engine does with adapters, in so far as it decides which it can apply."""
    if options.engine == "hf":
        return "unmerged"
    if options.adapter_way == "auto":
        return "batched" if place.device == "cuda" else "merged"
    return options.adapter_way


def _engine_spec(options: ScoreOptions, place: Place, subjects: list[Subject]) -> EngineSpec:
    longest = max(encoding_settings(s.checkpoint, options.max_length).max_length for s in subjects)
    default: Dtype = "float32" if place.device == "cpu" else "bfloat16"
    dtype = default if options.dtype == "auto" else options.dtype
    return EngineSpec(
        kind=options.engine,
        dtype=dtype,
        max_length=longest,
        device=place.device,
        threads=place.threads,
        strategy=options.strategy,
        adapters=options.adapter_way,
        tensor_parallel=options.tensor_parallel,
        trust_remote_code=options.trust_remote_code,
    )


def _grid(
    options: ScoreOptions,
    spec: EngineSpec,
    subjects: list[Subject],
    store: ResultStore,
    cache: Path,
) -> tuple[EngineSpec, Grid, AdapterPlan]:
    """(spec with the way of adapters settled, the grid, how adapters are applied)."""
    check_way(spec)
    numerics = numerics_class(spec)
    grid = build_grid(subjects, options, numerics, cache)
    adapters = plan_adapters(spec, store, grid.cells)
    generates = any(generation_of(c.cell.task, c.cell.variant) for c in grid.cells)
    spec = replace(adapters.fitted(spec), cuda_graphs=generates)  # scoring replays none
    if numerics_class(spec).label != numerics.label:
        # In 16-bit the way is part of every cell's key, and the rule needs the grid: once more.
        grid = build_grid(subjects, options, numerics_class(spec), cache)
    grid.cells = [c for c in grid.cells if c.cell.subject.id not in adapters.refused]
    return spec, grid, adapters


def _score_plan(
    outcome: ScoreOutcome,
    options: ScoreOptions,
    prepared: _Prepared,
    progress: Progress,
    signals: StopSignals,
    watch: Watch,
) -> None:
    spec, place, summary = prepared.spec, prepared.place, outcome.summary
    gpus = place.gpus if options.cluster == "local" else ()  # Ray gives its actors their own
    score_units(
        outcome.plan,
        {planned.cell.key: CellWork.of(planned.cell) for planned in prepared.grid.cells},
        WorkerConfig(str(options.output.resolve()), spec, options.commit_every),
        progress,
        signals,
        certify=options.certify,
        limits=outcome.limits,
        time_left_s=signals.left_s,
        summary=summary,
        watch=watch,
        workers=place.workers,
        backend=options.cluster,
        patience=Patience(),
        env=partial(worker_env, spec, gpus),
        log_dir=options.output / "logs" / watch.name,
        ray_options={**place.ray_options, "address": options.ray_address},
    )
    if summary.stopped:
        summary.stopped = signals.reason or "time limit"


def _run_name() -> str:
    """Of this run alone: shards of one grid write at the same time."""
    return f"{utc_stamp()}-{socket.gethostname()}-{os.getpid()}"


def _count_flops(outcome: ScoreOutcome, prepared: _Prepared, peak_tflops: float | None) -> None:
    """What the engines computed, in operations, checkpoint by checkpoint: shapes may differ."""
    limits = outcome.limits
    mean_context = limits["attended"] / max(limits["token_limit"], 1)
    configs = {s.checkpoint.fingerprint: Path(s.checkpoint.path) for s in prepared.subjects}
    counts = [
        run_flops(
            numeric_config(configs[fingerprint]),
            computed_tokens=effort.computed_tokens,
            head_rows=effort.head_rows,
            mean_context=mean_context,
        )
        for fingerprint, effort in outcome.summary.checkpoints.items()
    ]
    known = [count for count in counts if count is not None]
    outcome.flops = sum(known) if len(known) == len(counts) else None
    spec = prepared.spec
    peak = peak_flops(prepared.place.gpu_name or "", spec.dtype, peak_tflops)
    outcome.peak_flops = peak and peak * spec.tensor_parallel


def worker_env(spec: EngineSpec, gpus: tuple[str, ...], worker: int) -> dict[str, str | None]:
    """Environment of one worker: its threads, and its own GPUs where there are any."""
    env: dict[str, str | None] = {
        "OMP_NUM_THREADS": str(spec.threads or 1),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if gpus:
        first = worker * spec.tensor_parallel
        env["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[first : first + spec.tensor_parallel])
    return env


def _name_failures(outcome: ScoreOutcome, grid: Grid) -> None:
    """Failed cells as one problem per subject and reason."""
    why: dict[tuple[str, str], int] = {}
    for planned in grid.cells:
        message = outcome.summary.failed_cells.get(planned.cell.key)
        if message:
            adapter = planned.cell.subject.adapter
            copies = (
                f" and its copies {', '.join(adapter.copies)}" if adapter and adapter.copies else ""
            )
            at = (planned.cell.subject.label + copies, message)
            why[at] = why.get(at, 0) + 1
    outcome.problems += [(f"{label} ({n} cells)", message) for (label, message), n in why.items()]


def _run_record(outcome: ScoreOutcome, spec: EngineSpec) -> dict[str, Any]:
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "summary": outcome.summary.as_record(),
        "limits": outcome.limits,
        "flops": outcome.flops,
        "peak_flops": outcome.peak_flops,
        "engine": {f.name: getattr(spec, f.name) for f in fields(spec)},
        "problems": [list(problem) for problem in outcome.problems],
        "findings": outcome.findings,
        "data_commits": data_commits(),
        "versions": installed_versions(),
    }
