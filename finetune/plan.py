"""Which adapters of a study are missing: (checkpoint, tuning, seed, control) -> jobs.

An adapter is finished when its directory holds ``provenance.json``. The record says with which
settings it was made, so that one made with other settings is noticed, never taken for this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from evalcore.errors import DefinitionError, IncompatibleError, InputError
from evalcore.identity import data_fingerprint, open_checkpoint, read_provenance, text_fingerprint
from evalcore.prompting import load_variants
from evalcore.tasks import load_task, select_tasks
from evalcore.types import Checkpoint, Task, Variant
from finetune.study import LAST, MethodSpec, Study, TuningSpec

TRAINING_VERSION = 1
"""Raised when the same settings would train another adapter."""
ADAPTERS_DIR = "adapters"
OnChanged = Literal["error", "replace"]


@dataclass(frozen=True, slots=True)
class TuneJob:
    """One adapter to train; everything a worker needs, picklable.

    Attributes:
        checkpoint: The base.
        tuning: Name of the tuning.
        task: Task whose train split is learned.
        variants: Canonical names of prompt variants; rows take turns.
        examples: Rows of the train split; None for all.
        data_seed: Decides which rows.
        seed: Decides initialisation, order of rows and dropout (and the dealing of a control).
        control: ``shuffled_labels`` or None.
        method: Hyper-parameters.
        held_out: Tasks whose scored documents must not be learned.
        directory: Where the adapter goes.
        data_root: Folder of local task data.
    """

    checkpoint: Checkpoint
    tuning: str
    task: str
    variants: tuple[str, ...]
    examples: int | None
    data_seed: int
    seed: int
    control: str | None
    method: MethodSpec
    held_out: tuple[str, ...]
    directory: str
    data_root: str | None = None

    @property
    def id(self) -> str:
        """``checkpoint name/adapter name``: unique in a plan, and what people read."""
        return f"{self.checkpoint.name}/{Path(self.directory).name}"

    def settings(self) -> dict[str, Any]:
        """What decides the adapter's tensors, as JSON values: no paths, nothing about speed."""
        task = load_task(self.task)
        return {
            "version": TRAINING_VERSION,
            "base": self.checkpoint.fingerprint,
            "tokenizer": self.checkpoint.tokenizer_fingerprint,
            "task": self.task,
            "data": data_fingerprint(task),
            "stops": list(task.generation.stops) if task.output_type == "generate_until" else [],
            "variants": [[v.name, v.fingerprint] for v in training_variants(task, self.variants)],
            "examples": self.examples,
            "data_seed": self.data_seed,
            "seed": self.seed,
            "control": self.control,
            "method": self.method.model_dump(mode="json"),
        }


@dataclass(frozen=True, slots=True)
class TunePlan:
    """What there is to do.

    Attributes:
        jobs: Adapters to train, checkpoint outermost.
        finished: Directories of adapters that are there already.
        checkpoints: All bases of the study, by step.
    """

    jobs: tuple[TuneJob, ...]
    finished: tuple[Path, ...]
    checkpoints: tuple[Checkpoint, ...]


def plan_jobs(
    study: Study,
    out_dir: str | Path,
    *,
    data_root: str | Path | None = None,
    on_changed: OnChanged = "error",
) -> TunePlan:
    """Finds the adapters of a study that are missing below ``out_dir/adapters``.

    Args:
        study: The study.
        out_dir: Output folder; local checkpoint globs are looked for here first.
        data_root: Folder of local task data, handed to the jobs.
        on_changed: What to do with an adapter that was trained with other settings: refuse, or
            train it anew (the old one goes when the new one is ready).

    Raises:
        InputError: If a checkpoint is missing (as resolved by :func:`evalcore.identity`).
        DefinitionError: If a tuning names what is not there.
        IncompatibleError: If an adapter was made with other settings (``on_changed="error"``).
    """
    out = Path(out_dir)
    checkpoints = resolve_checkpoints(study, out)
    held_out = _held_out(study)
    jobs: list[TuneJob] = []
    finished: list[Path] = []
    for checkpoint in checkpoints:
        for tuning, seed, control in _wanted(study, checkpoint, checkpoints):
            directory = adapter_directory(out, checkpoint, tuning.name, seed, control)
            job = TuneJob(
                checkpoint=checkpoint,
                tuning=tuning.name,
                task=tuning.task,
                variants=_variant_names(study, tuning),
                examples=tuning.examples,
                data_seed=tuning.data_seed,
                seed=seed,
                control=control,
                method=study.method_of(tuning),
                held_out=held_out,
                directory=str(directory.resolve()),
                data_root=str(data_root) if data_root is not None else None,
            )
            changed = changed_settings(job)
            if changed is None or (changed and on_changed == "replace"):
                jobs.append(job)
            elif not changed:
                finished.append(directory)
            else:
                raise IncompatibleError(
                    f"{directory} was trained with other settings ({', '.join(changed)}); "
                    f"give another output folder, or ask for changed adapters to be replaced"
                )
    return TunePlan(tuple(jobs), tuple(finished), checkpoints)


def changed_settings(job: TuneJob) -> list[str] | None:
    """Names of the settings in which the adapter on disk differs; None if there is none finished.

    Raises:
        InputError: If the directory holds something that this stage did not make.
    """
    directory = Path(job.directory)
    record = read_provenance(directory) if directory.is_dir() else None
    if record is None:
        if directory.is_dir() and any(directory.iterdir()):
            raise InputError(
                f"{directory} is in the way: it has no provenance.json of ours; "
                f"move it, or give another output folder"
            )
        return None
    wanted = job.settings()
    made: dict[str, Any] = (record.model_extra or {}).get("settings") or {}
    if made.get("fingerprint") == text_fingerprint(wanted):
        return []
    return _differences(made.get("values") or {}, wanted) or ["settings"]


def resolve_checkpoints(study: Study, out_dir: Path) -> tuple[Checkpoint, ...]:
    """Opens the study's checkpoints, sorted by step and name, each once.

    Raises:
        InputError: If a path or pattern matches nothing, or two have the same name.
    """
    sources = dict.fromkeys(
        source for text in study.checkpoints.paths for source in _expand(text, study, out_dir)
    )
    found = [open_checkpoint(source, what=str(study.file)) for source in sources]
    names = [checkpoint.name for checkpoint in found]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InputError(
            f"{study.file}: checkpoints.paths: {doubled[0]!r} is the name of two checkpoints; "
            f"names decide the folders of their adapters and must differ"
        )
    return tuple(sorted(found, key=lambda c: (c.step is None, c.step or 0, c.name)))


def adapter_directory(
    out_dir: Path, checkpoint: Checkpoint, tuning: str, seed: int, control: str | None
) -> Path:
    """``OUT/adapters/<checkpoint>/<tuning>[-seed<k>][-<control>]``; seed 0 is not named."""
    name = tuning + (f"-seed{seed}" if seed else "") + (f"-{control}" if control else "")
    return out_dir / ADAPTERS_DIR / checkpoint.name / name


def training_variants(task: Task, names: Sequence[str]) -> list[Variant]:
    """Loads prompt variants by canonical name."""
    return load_variants(task.group, ",".join(names))


def _expand(text: str, study: Study, out_dir: Path) -> list[str]:
    """Local directories a path or pattern names; a ``repo@revision`` stays as it is."""
    if text.startswith(("/", "~")):
        path = Path(text).expanduser()
        roots, pattern = [Path(path.anchor)], str(path.relative_to(path.anchor))
    else:
        roots, pattern = [out_dir, study.file.parent], text
    for root in roots:
        found = sorted(str(p) for p in root.glob(pattern) if (p / "config.json").is_file())
        if found:
            return found
    if "@" in text:
        return [text]
    where = " or ".join(dict.fromkeys(str(root) for root in roots))
    raise InputError(
        f"{study.file}: checkpoints.paths: {text!r} matches no checkpoint (a folder with "
        f"config.json) in {where}"
    )


def _wanted(
    study: Study, checkpoint: Checkpoint, checkpoints: Sequence[Checkpoint]
) -> list[tuple[TuningSpec, int, str | None]]:
    """(tuning, seed, control) trained on one checkpoint, in the study's order."""
    by_name = {tuning.name: tuning for tuning in study.tunings}
    wanted: dict[tuple[str, int, str | None], tuple[TuningSpec, int, str | None]] = {}
    for i, tuning in enumerate(study.tunings):
        if _chosen(checkpoint, checkpoints, tuning.checkpoints, study, f"tunings.{i}"):
            for seed in tuning.seeds:
                wanted[tuning.name, seed, None] = (tuning, seed, None)
    for i, control in enumerate(study.controls):
        if _chosen(checkpoint, checkpoints, control.checkpoints, study, f"controls.{i}"):
            for name in control.of:
                tuning = by_name[name]
                for seed in control.seeds or tuning.seeds[:1]:
                    wanted[name, seed, control.kind] = (tuning, seed, control.kind)
    return list(wanted.values())


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
            raise DefinitionError(
                f"{study.file}: {where}.checkpoints: no checkpoint is named {name!r}; "
                f"there are: {', '.join(known)}"
            )
    return checkpoint.name in names or (LAST in names and checkpoint is checkpoints[-1])


def _variant_names(study: Study, tuning: TuningSpec) -> tuple[str, ...]:
    task = load_task(tuning.task)
    variants = training_variants(task, tuning.variants)
    if "train" not in task.spec.get("splits", {}):
        raise DefinitionError(
            f"{study.file}: tuning {tuning.name}: task {task.name} has no split to train on "
            f"(key splits.train of its definition)"
        )
    return tuple(variant.name for variant in variants)


def _held_out(study: Study) -> tuple[str, ...]:
    """Names of all tasks that are scored in this study."""
    if study.evaluation is None:
        return ()
    names = [*study.evaluation.tasks, *(n for e in study.evaluation.extra for n in e.tasks)]
    return tuple(dict.fromkeys(task.name for task in select_tasks(",".join(names))))


def _differences(made: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    names: list[str] = []
    for key in sorted(made.keys() | wanted.keys()):
        old, new = made.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            names += [f"{key}.{inner}" for inner in _differences(old, new)]
        elif old != new:
            names.append(key)
    return names
