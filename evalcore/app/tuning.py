"""The tuning stage of a study: what is missing, what it costs, training it, its loss curves."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalcore.cluster import Stop, StopSignals
from evalcore.cluster.ray_session import is_connected, joined, ray_nodes
from evalcore.errors import EXIT_CELLS_FAILED, EXIT_STOPPED, InputError
from evalcore.identity import PROVENANCE_FILE, read_provenance, unasked
from evalcore.identity.listings import size_text
from evalcore.lm_eval.names import split_selection
from evalcore.machine import cores, gpu_bytes, visible_gpus
from evalcore.reading import is_there

if TYPE_CHECKING:
    import pyarrow as pa

    from evalcore.app.study import StudyOptions, StudyProgress
    from finetune import (
        Assumption,
        JobEstimate,
        Study,
        TuneEvent,
        TuneFailure,
        TuneJob,
        TunePlan,
        TuneSummary,
    )

LOSS_FILE = "loss.arrow"
MOST_JOBS_PER_GPU = 8
MOST_NAMED = 20
MOVED_SHARE = 0.5
"""Below this share of moved weights a model is named: most of what it learned was rounded away."""
GPU_SHARE = 0.85
"""Of a GPU's memory that estimates may fill."""


def plan_tuning(spec: Study, options: StudyOptions, progress: StudyProgress) -> TunePlan:
    """What is missing, with its rows checked; findings that are no errors are told.

    Raises:
        InputError: A checkpoint, task or data set is missing, or rows are unfit to be learned.
    """
    from finetune import check_data, plan_jobs

    plan = plan_jobs(
        spec,
        options.output,
        data_root=options.data_root,
        on_changed="replace" if options.replace_changed else "error",
    )
    for failure in _lost(plan):
        progress.failure(failure.job_id, str(failure.error))
    reports = check_data(plan.jobs, strict=options.scoring.grid.strict)
    lines = [f.line for report in reports.values() for f in report.findings]
    for line in dict.fromkeys([*lines, *_not_compared(spec)]):
        progress.stage("data", line)
    return plan


def _lost(plan: TunePlan) -> list[TuneFailure]:
    """Checkpoints that cannot be opened, each with the models that are not tuned for it."""
    from finetune import TuneFailure

    failures = []
    for one in plan.missing:
        jobs = [job.id for job in plan.lost if job.checkpoint.name == one.name]
        shown = ", ".join(jobs[:MOST_NAMED]) + (" ..." if len(jobs) > MOST_NAMED else "")
        with_it = f"; with it {len(jobs)} models: {shown}" if jobs else ""
        error = InputError(f"{one.message}{with_it}")
        failures.append(TuneFailure(f"checkpoint {one.name}", error))
    return failures


def _not_compared(spec: Study) -> list[str]:
    """A line where documents that are scored are not looked for among the rows to learn."""
    blocks = spec.evaluation.blocks if spec.evaluation is not None else []
    theirs = [name for tasks, _ in blocks for name in split_selection(tasks)[1]]
    if not theirs:
        return []
    return [
        f"documents of lm-eval's tasks ({', '.join(dict.fromkeys(theirs))}) are not looked for "
        "among the rows to learn"
    ]


def tune(
    plan: TunePlan,
    options: StudyOptions,
    on_event: Callable[[TuneEvent], None],
    *,
    gpus: Sequence[str] | None = None,
    should_stop: Callable[[], Stop | bool] | None = None,
) -> TuneSummary:
    """Trains what a plan says is missing; ``gpus`` are those to use (default: all there are).

    Checkpoints that could not be opened are among the failures.
    """
    from finetune import tune as run
    from finetune.api import Devices

    asked = options.scoring.cluster.device
    names, count, here = _devices(options, gpus)
    if asked == "cuda" and not count:
        raise InputError("--device cuda: there is no GPU to tune on; use --device cpu")
    if asked == "cpu":
        names, count = (), 0
    share = options.jobs_per_gpu or (jobs_per_gpu(plan.jobs) if names else 1)
    workers = options.tune_workers or count * share or min(2, here)
    threads = max(1, here // workers)
    summary = run(
        plan.jobs,
        workers=workers,
        backend=options.scoring.cluster.backend,
        threads=threads,
        devices=Devices(
            "cuda" if count else "cpu",
            names,
            jobs_per_gpu=share,
            ray_gpus=1 / share if count else 0.0,
        ),
        on_event=on_event,
        should_stop=should_stop,
        ray_options={"address": options.scoring.cluster.ray_address, "num_cpus": threads},
        log_dir=options.output / "logs" / "finetune",
    )
    return replace(summary, failures=(*_lost(plan), *summary.failures))


def _devices(options: StudyOptions, gpus: Sequence[str] | None) -> tuple[tuple[str, ...], int, int]:
    """(names of the GPUs here, how many there are in all, cores of a machine).

    On a Ray that is joined the nodes decide; how much their GPUs hold is not known.
    """
    if options.scoring.cluster.backend == "ray" and is_connected():
        nodes = ray_nodes()
        there = int(sum(node.gpus for node in nodes))
        most = options.scoring.cluster.num_gpus
        count = there if most is None else min(there, most)
        lending = [int(n.cpus) for n in nodes if n.cpus >= 1 and (n.gpus or not count)]
        return (), count, max(1, min(lending, default=1))
    names = tuple(visible_gpus() if gpus is None else gpus)[: options.scoring.cluster.num_gpus]
    return names, len(names), cores()


def tune_missing(
    spec: Study,
    options: StudyOptions,
    progress: StudyProgress,
    signals: StopSignals | None = None,
) -> TuneSummary:
    """Trains everything of the study that is not finished yet, and shows how it goes."""

    def on_event(event: TuneEvent) -> None:
        progress.step("training", event.done, event.total, f"{event.remaining_s:.0f} s left")
        if event.failure is not None:
            progress.failure(event.failure.job_id, str(event.failure.error))

    plan = plan_tuning(spec, options, progress)
    address = options.scoring.cluster.ray_address
    on_ray = options.scoring.cluster.backend == "ray"
    with joined(address) if on_ray else contextlib.nullcontext():
        if signals is not None:
            return tune(plan, options, on_event, should_stop=signals)
        with StopSignals() as own:
            return tune(plan, options, on_event, should_stop=own)


def tuned_status(summary: TuneSummary) -> int:
    """Exit status of a tuning run."""
    if summary.stopped:
        return EXIT_STOPPED
    return EXIT_CELLS_FAILED if summary.failures else 0


def tuned_lines(summary: TuneSummary) -> list[str]:
    """What a tuning run did, for a person."""
    stopped = ["stopped: run the same command again to go on"] if summary.stopped else []
    if not (summary.results or summary.failures):
        return stopped or ["no adapter is missing"]
    lines = [
        f"{len(summary.results)} adapters trained in {summary.wall_s:.1f} s, "
        f"{summary.tokens_per_s:,.0f} tokens/s"
    ]
    lines += [f"not trained: {failure.job_id}: {failure.error}" for failure in summary.failures]
    lines += [f"untrained (zero change): {result.job_id}" for result in summary.untrained]
    lines += [
        f"{result.job_id}: training moved {100 * result.moved_share:.1f} % of the weights as they "
        "are written; smaller steps are lost in the base's data type"
        for result in summary.results
        if 0 < result.moved_share < MOVED_SHARE
    ]
    return [*lines, *stopped]


def dry_run_lines(spec: Study, options: StudyOptions) -> list[str]:
    """What would be trained, from what, at which cost; fetches and trains nothing.

    Raises:
        InputError: The study names something that is not there.
        TuningDataError: Rows at hand are unfit to be learned.
    """
    from finetune import Assumption, check_data, estimate, plan_jobs

    with unasked():
        plan = plan_jobs(
            spec,
            options.output,
            data_root=options.data_root,
            on_changed="replace" if options.replace_changed else "error",
            at_hand_only=True,
        )
        if not plan.checkpoints and plan.missing:  # a run would end here, too
            raise InputError(plan.missing[0].message)
        reports = check_data(plan.jobs, strict=options.scoring.grid.strict, required=False)
    assumption = Assumption(*(options.gpu_speed or ()))
    costs = estimate(spec, plan.jobs, reports, assumption)
    findings = dict.fromkeys(f for report in reports.values() for f in report.findings)
    root = options.output.resolve()
    return [
        *(f"missing: {missing.name}: {missing.message}" for missing in plan.missing),
        *(_job_line(cost) for cost in costs),
        *(f"finished: {path.relative_to(root)}" for path in plan.finished),
        *(f"data: {finding.line}" for finding in findings),
        *(f"data: {line}" for line in _not_compared(spec)),
        *_total_lines(plan, costs, assumption),
    ]


def _job_line(cost: JobEstimate) -> str:
    job = cost.job
    rows = "+".join(part.wanted for part in job.tasks)
    length = (
        f"{job.method.steps:,} steps"
        if job.method.steps is not None
        else f"{job.method.epochs or 3:g} epochs"
    )
    rates = f", {len(job.selection.learning_rates)} learning rates" if job.selection else ""
    return (
        f"{job.id}: {job.method.kind}, {job.label}, {rows} examples, {length}{rates}, "
        f"{_tokens(cost.tokens, cost.rough)}, {_hours(cost.gpu_hours)}"
    )


def _total_lines(plan: TunePlan, costs: Sequence[JobEstimate], assumption: Assumption) -> list[str]:
    known = [cost for cost in costs if cost.gpu_hours is not None]
    lines = [line for name, own in _by_tuning(costs).items() for line in [_tuning_line(name, own)]]
    rows = [cost.rows if cost.rows is not None else cost.job.examples for cost in costs]
    examples = sum(count or 0 for count in rows)
    more = f", {rows.count(None)} with a number not known yet" if None in rows else ""
    lines.append(
        f"{len(plan.jobs)} to train ({examples:,} examples{more}), {len(plan.finished)} finished, "
        f"{len(plan.missing)} checkpoints not at hand"
    )
    if known:
        tokens = sum(cost.tokens or 0 for cost in known)
        hours = sum(cost.gpu_hours or 0.0 for cost in known)
        part = "" if len(known) == len(costs) else f" for {len(known)} of {len(costs)}"
        rough = sum(cost.rough for cost in known)
        how = "tokens sampled with the bases' own tokenizers"
        if rough:
            how += f", of {rough} jobs guessed from characters (~)"
        lines.append(f"{_tokens(tokens, rough > 0)}, {_hours(hours)}{part} at {assumption}; {how}")
    elif costs:
        lines.append("tokens and GPU-hours unknown: data or tokenizers are not at hand")
    if costs:
        state = max((cost.state or 0 for cost in costs), default=0)
        beside = f"; up to {size_text(state)} of training state beside each that is running"
        lines.append(f"{_disk(costs)} when all are finished{beside if state else ''}")
    away = [cost.job.checkpoint for cost in costs if cost.disk is None]
    if away:
        repo, at, revision = away[0].source.rpartition("@")
        fetch = f"; hf download {repo} config.json --revision {revision}" if at else ""
        lines.append(
            f"disk of {len(away)} models unknown: neither weights nor config.json of their bases "
            f"are at hand{fetch}"
        )
    return lines


def _by_tuning(costs: Sequence[JobEstimate]) -> dict[str, list[JobEstimate]]:
    found: dict[str, list[JobEstimate]] = {}
    for cost in costs:
        control = f" ({cost.job.control})" if cost.job.control else ""
        found.setdefault(cost.job.tuning + control, []).append(cost)
    return found


def _tuning_line(name: str, costs: Sequence[JobEstimate]) -> str:
    """What all models of one tuning cost together."""
    tokens = [cost.tokens for cost in costs]
    hours = [cost.gpu_hours for cost in costs]
    rough = any(cost.rough for cost in costs)
    return (
        f"in all, {name}: {len(costs)} {costs[0].job.method.kind} models, "
        f"{_tokens(None if None in tokens else sum(filter(None, tokens)), rough)}, "
        f"{_hours(None if None in hours else sum(filter(None, hours)))}, {_disk(costs)}"
    )


def _disk(costs: Sequence[JobEstimate]) -> str:
    known = [cost.disk for cost in costs if cost.disk is not None]
    if not known:
        return "disk unknown"
    part = "" if len(known) == len(costs) else f" for {len(known)} of {len(costs)}"
    return f"{size_text(sum(known))} on disk{part}"


def _tokens(tokens: int | None, rough: bool = False) -> str:
    if tokens is None:
        return "tokens unknown"
    sign = "~" if rough else ""
    return sign + (f"{tokens / 1e6:,.2f} M tokens" if tokens >= 10_000 else f"{tokens:,} tokens")


def _hours(hours: float | None) -> str:
    if hours is None:
        return "GPU-hours unknown"
    return f"{hours:,.2f} GPU-hours" if hours >= 0.01 else "under 0.01 GPU-hours"


def jobs_per_gpu(jobs: Sequence[TuneJob], memory: int | None = None) -> int:
    """How many of the largest one-GPU jobs fit on a GPU side by side, by estimate."""
    from finetune import job_bytes

    memory = gpu_bytes() if memory is None else memory
    needs = [need for job in jobs if job.method.devices == 1 and (need := job_bytes(job))]
    if not needs or memory is None:
        return 1
    return max(1, min(MOST_JOBS_PER_GPU, int(memory * GPU_SHARE // max(needs))))


def tuned_models(output: Path) -> tuple[list[Path], list[Path]]:
    """(adapters, fully tuned checkpoints) that are finished below an output folder, sorted."""
    from finetune import ADAPTERS_DIR, TUNED_DIR

    return _finished(output / ADAPTERS_DIR), _finished(output / TUNED_DIR)


def _finished(folder: Path) -> list[Path]:
    """Directories ``<checkpoint>/<name>`` with a record; hidden ones are still being written."""
    found = (file.parent for file in folder.glob(f"*/*/{PROVENANCE_FILE}"))
    return sorted(path for path in found if not path.name.startswith("."))


def collect_loss_curves(output: Path) -> pa.Table:
    """Loss curves of everything tuned below an output folder.

    Returns:
        One row per optimizer step: checkpoint, base_step, name, tuning, kind (``lora``, ``full``),
        control, seed, step (int32), loss (float64, nats per completion token), learning_rate
        (float64), completion_tokens (int64). Empty, with these columns, if there is none.

    Raises:
        InputError: A curve is broken.
    """
    import pyarrow as pa

    schema = pa.schema(
        [
            ("checkpoint", pa.string()), ("base_step", pa.int64()), ("name", pa.string()),
            ("tuning", pa.string()), ("kind", pa.string()), ("control", pa.string()),
            ("seed", pa.int64()), ("step", pa.int32()), ("loss", pa.float64()),
            ("learning_rate", pa.float64()), ("completion_tokens", pa.int64()),
        ]
    )  # fmt: skip
    tables = [schema.empty_table()]
    adapters, checkpoints = tuned_models(output)
    for directory in [*adapters, *checkpoints]:
        file = directory / LOSS_FILE
        if is_there(file):
            tables.append(_loss_curve(file, schema))
    return pa.concat_tables(tables)


def _loss_curve(file: Path, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    record = read_provenance(file.parent)
    assert record is not None  # the directory was found by it
    try:
        with pa.OSFile(str(file)) as source:
            curve = pa.ipc.open_file(source).read_all()
        about: dict[str, Any] = {
            "checkpoint": record.base.name,
            "base_step": record.base.step,
            "name": file.parent.name,
            "tuning": record.tuning.name,
            "kind": record.method.get("kind", "lora"),
            "control": record.tuning.control,
            "seed": record.tuning.seed,
        }
        columns = [
            curve[field.name].cast(field.type)
            if field.name in curve.column_names
            else pa.array([about[field.name]] * len(curve), field.type)
            for field in schema
        ]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise InputError(f"loss curve {file} is broken ({str(error).splitlines()[0]})") from None
    return pa.Table.from_arrays(columns, schema=schema)


class Every:
    """Says yes at most once in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = 0.0

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True
