"""Which tuned models of a study are missing: (checkpoint, tuning, seed, control) -> jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from evalcore.errors import IncompatibleError
from evalcore.types import Checkpoint
from finetune.checkpoints import Missing, known_checkpoints, resolve_checkpoints
from finetune.checks import check_names
from finetune.faults import StudyError, StudyFault
from finetune.jobs import (
    MixPart,
    Selection,
    TuneJob,
    changed_settings,
    known_task,
    output_directory,
    training_variants,
)
from finetune.search import own_tasks
from finetune.study import LAST, ControlSpec, Study, TuningSpec

__all__ = [
    "MixPart",
    "Selection",
    "TuneJob",
    "TunePlan",
    "plan_jobs",
    "resolve_checkpoints",
    "training_variants",
]
OnChanged = Literal["error", "replace"]


@dataclass(frozen=True, slots=True)
class TunePlan:
    """What there is to do.

    Attributes:
        jobs: Models to tune, checkpoint outermost.
        finished: Directories of those that are there already.
        checkpoints: All bases of the study, by step.
        missing: Bases that are not at hand, or cannot be opened.
        lost: Models that cannot be tuned for that; where a plan is made without bases at hand,
            these are among ``jobs``.
    """

    jobs: tuple[TuneJob, ...]
    finished: tuple[Path, ...]
    checkpoints: tuple[Checkpoint, ...]
    missing: tuple[Missing, ...] = ()
    lost: tuple[TuneJob, ...] = ()


def plan_jobs(
    study: Study,
    out_dir: str | Path,
    *,
    data_root: str | Path | None = None,
    on_changed: OnChanged = "error",
    at_hand_only: bool = False,
) -> TunePlan:
    """Finds the tuned models of a study that are missing below ``out_dir``.

    Args:
        study: The study.
        out_dir: Output folder; local checkpoint globs are looked for here first.
        data_root: Folder of local task data, handed to the jobs; None: the study's own.
        on_changed: What to do with a model that was tuned with other settings: refuse, or
            train it anew (the old one goes when the new one is ready).
        at_hand_only: Fetch nothing; checkpoints that are not there are planned for by name.

    Raises:
        InputError: If no checkpoint can be opened (one of several costs itself: ``missing``).
        StudyError: If the study names a task, prompt variant or checkpoint that is not there, a
            control has seeds that its tuning has not, or two models would be one folder.
        IncompatibleError: If one was made with other settings (``on_changed="error"``).
    """
    out = Path(out_dir)
    check_names(study)
    resolve = known_checkpoints if at_hand_only else resolve_checkpoints
    checkpoints, missing = resolve(study, out)
    root = data_root if data_root is not None else study.data_folder
    maker = _JobMaker(study, out, None if root is None else str(root))
    every = [
        maker.make(checkpoint, tuning, seed, control)
        for checkpoint in checkpoints
        for tuning, seed, control in _wanted(study, checkpoint, checkpoints)
    ]
    _check_folders(study, every)
    jobs: list[TuneJob] = []
    finished: list[Path] = []
    for job in every:
        changed = changed_settings(job)
        if changed is None or (changed and on_changed == "replace"):
            jobs.append(job)
        elif not changed:
            finished.append(Path(job.directory))
        else:
            raise IncompatibleError(
                f"{job.directory} was trained with other settings ({', '.join(changed)}); "
                f"give another output folder, or --replace-changed to train it anew"
            )
    gone = set() if at_hand_only else {one.name for one in missing}
    lost = tuple(job for job in jobs if job.checkpoint.name in gone)
    can = tuple(job for job in jobs if job.checkpoint.name not in gone)
    return TunePlan(can, tuple(finished), checkpoints, missing, lost)


def _check_folders(study: Study, jobs: Sequence[TuneJob]) -> None:
    """Whether every model has a name of its own, on file systems that fold letters too."""
    seen: dict[str, TuneJob] = {}
    for job in jobs:
        other = seen.setdefault(job.id.casefold(), job)
        if other is not job:
            text = (
                f"two models would be named {job.id}: {_described(other)} and {_described(job)}; "
                f"rename one of the tunings"
            )
            raise StudyError(study.file, [(StudyFault.NAME_TWICE, text)])


def _described(job: TuneJob) -> str:
    control = f", control {job.control}" if job.control else ""
    return f"tuning {job.tuning} (seed {job.seed}{control}) of {job.checkpoint.name}"


def scored_tasks(study: Study) -> tuple[str, ...]:
    """Names of all tasks that are scored in this study, those of lm-eval left out."""
    if study.evaluation is None:
        return ()
    found = (own_tasks(tasks, study.search) for tasks, _ in study.evaluation.blocks)
    return tuple(dict.fromkeys(task.name for tasks in found for task in tasks))


class _JobMaker:
    """Makes jobs; what is the same for many of them is worked out once."""

    def __init__(self, study: Study, out: Path, data_root: str | None) -> None:
        self._study = study
        self._out = out.resolve()
        self._data_root = data_root
        self._held_out = scored_tasks(study)
        self._variants: dict[str, tuple[str, ...]] = {}

    def make(
        self, checkpoint: Checkpoint, tuning: TuningSpec, seed: int, control: ControlSpec | None
    ) -> TuneJob:
        method = self._study.method_of(tuning)
        parts = [MixPart(*part, share=tuning.share) for part in tuning.parts]
        kind = control.kind if control is not None else None
        if control is not None and kind == "format_only":
            method = method.merged({"epochs": 1})
            parts = _few(parts, control.examples)
        directory = output_directory(
            self._out, checkpoint.name, tuning.name, seed, kind, method.kind
        )
        return TuneJob(
            checkpoint=checkpoint,
            tuning=tuning.name,
            tasks=tuple(parts),
            variants=self._variant_names(tuning),
            data_seed=seed if tuning.data_seed == "per_seed" else tuning.data_seed,
            seed=seed,
            control=kind,
            method=method,
            held_out=self._held_out,
            directory=str(directory),
            data_root=self._data_root,
            # what a control is compared with decides its learning rate
            selection=_selection(tuning) if kind != "format_only" else None,
            search=self._study.search,
        )

    def _variant_names(self, tuning: TuningSpec) -> tuple[str, ...]:
        """Canonical names; the same in every group of a mix."""
        if tuning.name not in self._variants:
            first = known_task(tuning.parts[0][0], self._study.search)
            found = training_variants(first, tuning.variants, self._study.search)
            self._variants[tuning.name] = tuple(variant.name for variant in found)
        return self._variants[tuning.name]


def _few(parts: Sequence[MixPart], rows: int) -> list[MixPart]:
    """The parts of a mix with ``rows`` rows in all, dealt as theirs are; never more than theirs."""
    known = [part.examples for part in parts]
    total = sum(count for count in known if count is not None)
    few = []
    for part, count in zip(parts, known, strict=True):
        own = max(2, rows * count // total) if count and None not in known else rows // len(parts)
        few.append(MixPart(part.task, min(own, count or own), part.weight))
    return few


def _selection(tuning: TuningSpec) -> Selection | None:
    spec = tuning.select
    if spec is None:
        return None
    rates = tuple(spec.learning_rate)
    if spec.held_out < 1:
        return Selection(rates, held_out_fraction=float(spec.held_out))
    return Selection(rates, held_out_rows=int(spec.held_out))


def _wanted(
    study: Study, checkpoint: Checkpoint, checkpoints: Sequence[Checkpoint]
) -> list[tuple[TuningSpec, int, ControlSpec | None]]:
    """(tuning, seed, control) trained on one checkpoint, in the study's order."""
    wanted: dict[tuple[str, int, str | None], tuple[TuningSpec, int, ControlSpec | None]] = {}
    tunings = study.expanded()
    for tuning in tunings:
        where = f"tuning {tuning.name}"
        if _chosen(checkpoint, checkpoints, tuning.checkpoints, study, where):
            for seed in _seeds_at(tuning, checkpoint, checkpoints, study):
                wanted[tuning.name, seed, None] = (tuning, seed, None)
    for i, control in enumerate(study.controls):
        if _chosen(checkpoint, checkpoints, control.checkpoints, study, f"controls.{i}"):
            for tuning in tunings:
                if not _named(tuning, control.of, study):
                    continue
                every = _seeds_at(tuning, checkpoint, checkpoints, study)
                seeds = every if control.seeds == "all" else control.seeds
                for seed in seeds or tuning.seeds[:1]:
                    if seed not in every:
                        there = ", ".join(map(str, every))
                        text = f"tuning {tuning.name} has no seed {seed} at {checkpoint.name}"
                        _refuse(study, f"controls.{i}.seeds: {text}; it has {there}")
                    key = (tuning.name, seed, control.kind)
                    if key in wanted and control.kind == "format_only":
                        text = f"format_only of tuning {tuning.name}, seed {seed}, is asked for"
                        _refuse(study, f"controls.{i}: {text} twice at {checkpoint.name}")
                    wanted[key] = (tuning, seed, control)
    return list(wanted.values())


def _refuse(study: Study, text: str) -> NoReturn:
    raise StudyError(study.file, [(StudyFault.WRONG_VALUE, text)])


def _named(tuning: TuningSpec, names: Sequence[str], study: Study) -> bool:
    """Whether a control is of this tuning: by its own name, or by that of its grid."""
    grids = [t.name for t in study.tunings if t.grid]
    return tuning.name in names or any(
        name in grids and tuning.name.startswith(f"{name}+") for name in names
    )


def _seeds_at(
    tuning: TuningSpec, checkpoint: Checkpoint, checkpoints: Sequence[Checkpoint], study: Study
) -> list[int]:
    """Training seeds of a tuning at a checkpoint."""
    more = tuning.more_seeds
    where = f"tuning {tuning.name}: more_seeds"
    if more is None or not _chosen(checkpoint, checkpoints, more.checkpoints, study, where):
        return tuning.seeds
    return [*tuning.seeds, *more.seeds]


def _chosen(
    checkpoint: Checkpoint,
    checkpoints: Sequence[Checkpoint],
    choice: str | list[str],
    study: Study,
    where: str,
) -> bool:
    if choice == "all":
        return True
    names = [choice] if isinstance(choice, str) else choice
    known = [c.name for c in checkpoints]
    for name in names:
        if name != LAST and name not in known:
            text = (
                f"{where}.checkpoints: no checkpoint is named {name!r}; "
                f"there are: {', '.join(known)}"
            )
            raise StudyError(study.file, [(StudyFault.UNKNOWN_CHECKPOINT, text)])
    return checkpoint.name in names or (LAST in names and checkpoint is checkpoints[-1])
