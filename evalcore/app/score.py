"""``score()``: the whole scoring flow, top to bottom."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from tempfile import gettempdir
from typing import Any

from evalcore.app.early import EarlyWorkers, pool_options
from evalcore.app.engines import hf_spec, slow_ones
from evalcore.app.grid import Selected, selected
from evalcore.app.labels import untaught_notes
from evalcore.app.outcome import (
    ScoreOutcome,
    asked_names,
    count_flops,
    doubted,
    left_out,
    name_failures,
    run_record,
)
from evalcore.app.place import Place
from evalcore.app.preparing import Prepared, Preparer, Rest, StopOrFail
from evalcore.app.relabelled import LabelsSince
from evalcore.app.settling import (
    applied_by,
    set_aside,
    settle_place,
    settle_spec,
    settle_subjects,
    settle_ways,
)
from evalcore.app.tidying import tidying
from evalcore.cluster import StopSignals
from evalcore.cluster.ray_session import joined
from evalcore.config import ScoreConfig
from evalcore.engines.protocol import BLOCK_SIZES
from evalcore.engines.vllm.compat import unverified, vllm_version
from evalcore.errors import EvalcoreError, InputError, ResultsError
from evalcore.files import pinned, remove_dead_scratch, scratch_folder, utc_stamp
from evalcore.planning import PlanCounts
from evalcore.reading import is_there
from evalcore.scoring import Feed, Progress, RunSummary, Watch, WorkerConfig, score_units
from evalcore.scoring.localising import folders_of
from evalcore.store import ResultStore


class Silent:
    """A :class:`~evalcore.scoring.Progress` that says nothing."""

    def preparing(self, what: str) -> None: ...

    def planned(self, counts: PlanCounts, limits: Mapping[str, int], whole: bool) -> None: ...

    def worker(self, index: int, state: str) -> None: ...

    def unit(self, label: str, report: Any) -> None: ...

    def committed(self, report: Any) -> None: ...

    def failure(self, label: str, message: str) -> None: ...

    def ended(self) -> None: ...


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
    config = config.changed(output=pinned(config.run.output))
    progress = progress or Silent()
    if signals is None:
        with StopSignals(config.run.time_limit, config.run.stop_grace) as own:
            return score(config, progress, own)
    ray = joined(config.cluster.ray_address) if config.cluster.backend == "ray" else nullcontext()
    with ray, nullcontext(Watch()) if config.run.dry_run else _watch(config) as watch:
        with _nothing_left(config, watch.name), EarlyWorkers(config, watch.name) as early:
            with signals.interrupting(), _results(config) as (store, cache, place, notes):
                asked = selected(config.grid)  # unknown names are told before anything is started
                early.begin(place, store)
                outcome, prepared = _prepare(config, asked, place, store, cache, notes, progress)
            if prepared is not None:
                _run(outcome, config, prepared, progress, signals, watch, early)
        watch.end(outcome.exit_status, outcome.how_it_ended)
    return outcome


def _watch(config: ScoreConfig) -> Watch:
    about: dict[str, Any] = {"engine": config.engine.kind, "cluster": config.cluster.backend}
    if config.run.shard is not None:
        about["shard"] = "{}/{}".format(*config.run.shard)
    return Watch(_run_name(), config.run.output, config.run.log_json, about)


@contextmanager
def _nothing_left(config: ScoreConfig, name: str) -> Iterator[None]:
    """Where the output became no results, what early workers left there is removed again."""
    output = config.run.output
    made = [path for path in (output, *output.parents) if not path.exists()]
    known = config.run.dry_run or is_there(output / "store.json")
    try:
        yield
    finally:
        if not (known or is_there(output / "store.json")):
            rmtree(output / "logs" / name, ignore_errors=True)
            for path in (output / "logs", *made):
                with suppress(OSError):  # not there, or no longer this run's alone
                    path.rmdir()


@contextmanager
def _results(config: ScoreConfig) -> Iterator[tuple[ResultStore, Path, Place, list[str]]]:
    """(results, folder for encoded requests, where the engines are, what is to be said of that).

    A new folder is made once it is known what is scored (:func:`_prepare`), so that what is refused
    leaves none; a dry run writes nothing but into a temporary one.
    """
    known = is_there(config.run.output / "store.json")
    there = ResultStore(config.run.output, read_only=True) if known else None
    place, notes = settle_place(config, there)
    if not config.run.dry_run:
        remove_dead_scratch(Path(gettempdir()))
        store = ResultStore(config.run.output, later=True)
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
    config: ScoreConfig,
    asked: Selected,
    place: Place,
    store: ResultStore,
    cache: Path,
    said: list[str],
    progress: Progress,
) -> tuple[ScoreOutcome, Prepared | None]:
    """What has to be done before the first unit; None for a dry run, where nothing follows."""
    relabelled = LabelsSince(store)
    progress.preparing("reading adapters and their bases")
    subjects, problems, notes = settle_subjects(config, place, store)
    notes += said
    if not config.run.dry_run:
        store.create()
        notes += set_aside(store)
    if config.engine.kind != "hf" and (unknown := unverified(vllm_version())) is not None:
        notes.append(unknown)
    slow, why = slow_ones(config, place.device, applied_by(config, place), subjects)
    notes += why
    spec = settle_spec(config, place, subjects)
    if slow and all(s.checkpoint.fingerprint in slow for s in subjects):
        spec, slow = hf_spec(spec), frozenset()
    progress.preparing("reading tasks, writing prompts")
    settled = settle_ways(config.grid, asked, spec, subjects, store, cache, slow)
    notes += untaught_notes(subjects, settled.survey.questions())
    outcome = ScoreOutcome(
        config.run.output,
        dry_run=config.run.dry_run,
        notes=notes,
        problems=problems,
        asked=asked_names(settled.survey) if config.run.dry_run else {},
        engines=f"{settled.spec.kind}{' and hf' if slow else ''} in {spec.dtype}, {place.line}",
    )
    preparer = Preparer(config, store, settled, BLOCK_SIZES[place.device], relabelled)
    progress.preparing("planning")
    preparer.first(outcome)
    if not config.run.dry_run:
        return outcome, Prepared(store, place, settled, preparer)
    preparer.tell(outcome)
    outcome.limits = preparer.limits(outcome.plan)
    outcome.examples_per_s = store.runs.examples_per_s()
    return outcome, None


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
    store = prepared.store
    if outcome.plan.units:
        summary = outcome.summary
        try:
            with _rows_stay(summary):
                with tidying(store, lambda: bool(summary.stopped or summary.error)) as kept:
                    _score_plan(outcome, config, prepared, progress, signals, watch, early)
                outcome.notes += kept.lines()
        finally:
            _conclude(outcome, config, prepared)
    else:
        watch.planned(outcome.plan)
        prepared.preparer.keep_inputs()
        prepared.preparer.tell(outcome)
    if (work := prepared.lm_eval) is not None and outcome.summary.error is None:
        from evalcore.lm_eval.outcomes import write_outcomes  # only where its tasks are asked for

        with _rows_stay(outcome.summary):
            outcome.lm_eval, unmeasured = write_outcomes(store, work)
            outcome.problems += unmeasured


@contextmanager
def _rows_stay(summary: RunSummary) -> Iterator[None]:
    """Once rows are committed, what turns out wrong ends the run, which still says what it did."""
    try:
        yield
    except InputError as error:
        if not summary.units:
            raise
        summary.error = summary.error or error


def _conclude(outcome: ScoreOutcome, config: ScoreConfig, prepared: Prepared) -> None:
    """Says what came of the scoring and records it, whatever of the former cannot be had."""

    def attempt(what: str, step: Callable[[], None]) -> None:
        try:
            step()
        except (EvalcoreError, OSError) as error:
            outcome.notes.append(f"{what}: not known ({error})")

    with ExitStack() as last:  # in turn from the last to the first, each whatever became of others
        last.callback(_record, outcome, config, prepared)
        last.callback(attempt, "failures", lambda: name_failures(outcome, prepared.grids))
        peak = config.cluster.peak_tflops
        last.callback(attempt, "operations", lambda: count_flops(outcome, prepared, peak))
        last.callback(attempt, "what was planned", lambda: prepared.preparer.tell(outcome))


def _record(outcome: ScoreOutcome, config: ScoreConfig, prepared: Prepared) -> None:
    try:
        prepared.store.runs.append(run_record(outcome, config, prepared.spec))
    except (InputError, OSError) as error:
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
    spec, summary, slow = prepared.spec, outcome.summary, prepared.settled.apart
    worker = WorkerConfig(
        str(config.run.output.resolve()), spec, config.run.commit_every, doubted(prepared),
        config.cluster.disk_budget,
        folders_of(prepared.subjects) if config.cluster.backend == "ray" else (),
    )  # fmt: skip
    feed = Feed(progress, watch, apart=frozenset(slow), certify=config.run.certify)
    with Rest(prepared.preparer, outcome, feed) as rest:
        stop = StopOrFail(signals, rest)
        score_units(
            feed,
            worker,
            progress,
            stop,
            apart=replace(worker, spec=hf_spec(spec)) if slow else None,
            time_left_s=signals.left_s,
            summary=summary,
            watch=watch,
            warm=early.take(spec),
            **pool_options(config, prepared.place, watch.name),
        )
    progress.ended()
    if summary.stopped:
        limit = "time limit" if signals.left_s() is not None else summary.stopped
        summary.stopped = stop.reason or limit
    rest.judge(summary)
    outcome.problems += left_out(prepared, summary.disagreed)


def _run_name() -> str:
    """Of this run alone: shards of one grid write at the same time."""
    return f"{utc_stamp()}-{socket.gethostname()}-{os.getpid()}"
