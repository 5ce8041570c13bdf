"""``score()``: the whole scoring flow, top to bottom."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from evalcore.app.early import EarlyWorkers, pool_options
from evalcore.app.engines import hf_spec, slow_ones
from evalcore.app.grid import require_documents, selected
from evalcore.app.inputs import keep_clusters, keep_inputs, keep_weights
from evalcore.app.kept import keep_answers
from evalcore.app.labels import untaught_notes
from evalcore.app.limits import token_limits
from evalcore.app.ordering import ranked
from evalcore.app.outcome import (
    ScoreOutcome,
    asked_names,
    count_flops,
    doubted,
    left_out,
    name_failures,
    run_record,
)
from evalcore.app.pairs import draw, settle_marks
from evalcore.app.place import Place
from evalcore.app.settling import (
    Prepared,
    applied_by,
    keys_changed,
    set_aside,
    settle_grid,
    settle_place,
    settle_spec,
    settle_subjects,
)
from evalcore.app.tidying import tidying
from evalcore.cluster import StopSignals
from evalcore.cluster.ray_session import joined
from evalcore.config import ScoreConfig
from evalcore.engines.protocol import BLOCK_SIZES
from evalcore.engines.vllm.compat import unverified, vllm_version
from evalcore.errors import InputError, ResultsError
from evalcore.files import remove_dead_scratch, scratch_folder, utc_stamp
from evalcore.identity import away_at, bring
from evalcore.planning import Plan, PlanCounts, plan_units
from evalcore.scoring import CellWorks, Progress, RunSummary, Watch, WorkerConfig, score_units
from evalcore.store import ResultStore
from evalcore.types import Subject


class Silent:
    """A :class:`~evalcore.scoring.Progress` that says nothing."""

    def begin(self, counts: PlanCounts, limits: Mapping[str, int]) -> None: ...

    def worker(self, index: int, state: str) -> None: ...

    def unit(self, label: str, report: Any) -> None: ...

    def committed(self, report: Any) -> None: ...

    def failure(self, label: str, message: str) -> None: ...


def score(
    config: ScoreConfig, progress: Progress | None = None, signals: StopSignals | None = None
) -> ScoreOutcome:
    """Scores what is missing of a grid and commits it to the results folder.

    Args:
        config: What, with what, where to.
        progress: Told of what goes on.
        signals: What may stop it, entered already; None: signals and the config' time limit.

    Raises:
        InputError: Something given is wrong; nothing was scored.
        StoppedError: It was stopped before anything was scored.
    """
    if signals is None:
        with StopSignals(config.run.time_limit, config.run.stop_grace) as own:
            return score(config, progress, own)
    ray = joined(config.cluster.ray_address) if config.cluster.backend == "ray" else nullcontext()
    with ray, nullcontext(Watch()) if config.run.dry_run else _watch(config) as watch:
        with EarlyWorkers(config, watch.name) as early:
            with signals.interrupting(), _results(config) as (store, cache, place, notes):
                selected(config.grid)  # unknown names are told before anything is started
                early.begin(place, store)
                outcome, prepared = _prepare(config, place, store, cache, notes)
            if prepared is not None:
                _run(outcome, config, prepared, progress or Silent(), signals, watch, early)
        watch.end(outcome.exit_status, outcome.how_it_ended)
    return outcome


def _watch(config: ScoreConfig) -> Watch:
    about: dict[str, Any] = {"engine": config.engine.kind, "cluster": config.cluster.backend}
    if config.run.shard is not None:
        about["shard"] = "{}/{}".format(*config.run.shard)
    return Watch(_run_name(), config.run.output, config.run.log_json, about)


@contextmanager
def _results(config: ScoreConfig) -> Iterator[tuple[ResultStore, Path, Place, list[str]]]:
    """(results, folder for encoded requests, where the engines are, what is to be said of that).

    Results are made last, so that what is refused leaves no folder; a dry run writes nothing but
    into a temporary one.
    """
    known = (config.run.output / "store.json").is_file()
    there = ResultStore(config.run.output, read_only=True) if known else None
    place, notes = settle_place(config, there)
    if not config.run.dry_run:
        remove_dead_scratch(Path(gettempdir()))
        store = ResultStore(config.run.output)
        yield store, store.cache_folder, place, notes
        return
    with scratch_folder("plan") as folder:
        cache = folder / "cache"
        cache.mkdir()
        if there is not None and there.cache_folder.is_dir():
            for file in there.cache_folder.iterdir():
                (cache / file.name).symlink_to(file.resolve())
        yield there or ResultStore(folder / "results"), cache, place, notes


def _prepare(
    config: ScoreConfig, place: Place, store: ResultStore, cache: Path, said: list[str]
) -> tuple[ScoreOutcome, Prepared | None]:
    """Everything before the first engine; None for a dry run, where nothing follows."""
    subjects, problems, notes = settle_subjects(config, place, store)
    notes += said
    if not config.run.dry_run:
        notes += set_aside(store)
    if config.engine.kind != "hf" and (unknown := unverified(vllm_version())) is not None:
        notes.append(unknown)
    slow, why = slow_ones(config, place.device, applied_by(config, place), subjects)
    notes += why
    spec = settle_spec(config, place, subjects)
    if slow and all(s.checkpoint.fingerprint in slow for s in subjects):
        spec, slow = hf_spec(spec), frozenset()
    spec, grid, adapters = settle_grid(config.grid, spec, subjects, store, cache, slow)
    marks: dict[str, dict[str, Any] | None] = {}
    if config.grid.budget is not None:
        marks, drawn = draw(grid, config.grid.budget, config.grid.seed or 0)
        notes += drawn
    beside = adapters.beside
    notes += adapters.notes
    named = {subject.id: subject for subject in grid.asked.subjects}
    problems += [(named[own].label, reason) for own, reason in adapters.refused.items()]
    problems += grid.problems()
    notes += keys_changed(store, grid)
    if beside:
        notes.append(
            f"{len(beside):,} adapters are applied beside the weights, up to {spec.max_loras} of a "
            f"checkpoint at once"
        )
    notes += untaught_notes(subjects, grid.asked.questions)
    if config.grid.strict:
        require_documents(grid.findings)
    if not config.run.dry_run:
        store.write_cells(grid.rows)
        settle_marks(store, grid, marks)
        notes += keep_answers(store, grid)

    def planned() -> Plan:
        return plan_units(
            ranked(grid.cells),
            store.coverage(),
            max_examples_per_unit=config.run.unit_examples,
            shard=config.run.shard,
            beside=beside,
            most_together=spec.max_loras,
        )

    plan = planned()
    elsewhere = config.cluster.backend == "ray" or config.cluster.disk_budget is not None
    if not (config.run.dry_run or elsewhere) and (gone := bring_weights(plan)):
        problems += gone.items()
        grid.cells = grid.cells.chosen(lambda subject: subject.checkpoint.path not in gone)
        plan = planned()
        if not plan.units:
            raise InputError(next(iter(gone.values())))
    limits = token_limits(plan, BLOCK_SIZES[place.device])
    outcome = ScoreOutcome(
        config.run.output,
        plan,
        RunSummary(planned=plan.counts.examples_planned, covered=plan.counts.examples_covered),
        config.run.dry_run,
        notes=notes,
        problems=problems,
        findings=[finding.message for finding in grid.findings],
        limits=limits,
        cells=frozenset(grid.cells.keys),
        asked=asked_names(grid),
        engines=f"{spec.kind}{' and hf' if slow else ''} in {spec.dtype}, {place.line}",
    )
    if config.run.dry_run:
        outcome.examples_per_s = store.runs.examples_per_s()
        return outcome, None
    outcome.notes += weights_away(plan, subjects)
    keep_weights(store, subjects)
    keep_clusters(store, grid)
    if config.run.documents:
        keep_inputs(store, grid)
    return outcome, Prepared(store, place, spec, grid, subjects, slow)


def bring_weights(plan: Plan) -> dict[str, str]:
    """Fetches the weights that units need and that are still on the hub, where engines are here.

    Returns:
        Path -> why, of checkpoints whose weights are not to be had.
    """
    gone = {}
    for path in dict.fromkeys(unit.subject.checkpoint.path for unit in plan.units):
        try:
            bring(path)
        except InputError as error:
            gone[path] = str(error)
    return gone


def weights_away(plan: Plan, subjects: Sequence[Subject]) -> list[str]:
    """A line on the weights that stay on the hub, as nothing of them is left to score."""
    wanted = {made.path for unit in plan.units for s in unit.subjects for made in s.parts}
    away = {
        made.path
        for subject in subjects
        for made in subject.parts
        if made.path not in wanted and away_at(made.path) is not None
    }
    if not away:
        return []
    return [
        f"weights that stayed on the hub: of {len(away):,} checkpoints and adapters, known by "
        f"their hashes, of which nothing is left to score"
    ]


def _run(
    outcome: ScoreOutcome,
    config: ScoreConfig,
    prepared: Prepared,
    progress: Progress,
    signals: StopSignals,
    watch: Watch,
    early: EarlyWorkers,
) -> None:
    """Scores the plan; whatever ends that, the run is recorded."""
    store, grid = prepared.store, prepared.grid
    if outcome.plan.units:
        summary = outcome.summary
        try:
            with tidying(store, lambda: bool(summary.stopped or summary.error)) as kept:
                _score_plan(outcome, config, prepared, progress, signals, watch, early)
            outcome.notes += kept.lines()
        finally:
            count_flops(outcome, prepared, config.cluster.peak_tflops)
            name_failures(outcome, grid)
            _record(outcome, config, prepared)
    if grid.lm_eval is not None and outcome.summary.error is None:
        from evalcore.lm_eval.outcomes import write_outcomes  # only where its tasks are asked for

        outcome.lm_eval, unmeasured = write_outcomes(store, grid.lm_eval)
        outcome.problems += unmeasured


def _record(outcome: ScoreOutcome, config: ScoreConfig, prepared: Prepared) -> None:
    try:
        prepared.store.runs.append(run_record(outcome, config, prepared.spec))
    except InputError as error:
        # The folder may be what ended the run: that is the error to show.
        outcome.summary.error = outcome.summary.error or ResultsError(str(error))


def _score_plan(
    outcome: ScoreOutcome,
    config: ScoreConfig,
    prepared: Prepared,
    progress: Progress,
    signals: StopSignals,
    watch: Watch,
    early: EarlyWorkers,
) -> None:
    spec, summary = prepared.spec, outcome.summary
    worker = WorkerConfig(
        str(config.run.output.resolve()), spec, config.run.commit_every, doubted(prepared),
        config.cluster.disk_budget,
    )  # fmt: skip
    apart = (replace(worker, spec=hf_spec(spec)), prepared.slow) if prepared.slow else None
    score_units(
        outcome.plan,
        CellWorks(outcome.plan.cells),
        worker,
        progress,
        signals,
        apart=apart,
        certify=config.run.certify,
        limits=outcome.limits,
        time_left_s=signals.left_s,
        summary=summary,
        watch=watch,
        warm=early.take(spec),
        **pool_options(config, prepared.place, watch.name),
    )
    if summary.stopped:
        summary.stopped = signals.reason or "time limit"
    outcome.problems += left_out(prepared, summary.disagreed)


def _run_name() -> str:
    """Of this run alone: shards of one grid write at the same time."""
    return f"{utc_stamp()}-{socket.gethostname()}-{os.getpid()}"
