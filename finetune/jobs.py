"""One thing to train, with everything that decides it; and whether it is there already.

A tuned model is finished when its directory holds ``provenance.json``. The record says with which
settings it was made, so that one made with other settings is noticed, never taken for this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

from evalcore.errors import InputError
from evalcore.identity import data_fingerprint, read_provenance, text_fingerprint
from evalcore.prompting import load_variants
from evalcore.tasks import load_task
from evalcore.types import Checkpoint, Task, Variant
from finetune.method import MethodSpec
from finetune.search import PACKAGED, Search

TRAINING_VERSION = 5
"""Raised when the same settings would train another model."""
ADAPTERS_DIR = "adapters"
TUNED_DIR = "checkpoints-tuned"


@dataclass(frozen=True, slots=True)
class MixPart:
    """Rows of one task within a tuning.

    Attributes:
        task: The task whose train split is learned.
        examples: Rows of it, resolved from the study's weights; None for all (or ``share``).
        weight: Share the study asked for; a record only, ``examples`` says how many rows.
        share: Share of the rows of its train split, in place of ``examples``.
    """

    task: str
    examples: int | None
    weight: float = 1.0
    share: float | None = None

    def rows_of(self, total: int) -> int | None:
        """Rows wanted of a split of ``total`` (a decimal share is rounded down); None for all."""
        if self.share is None:
            return self.examples
        return max(1, int(total * Fraction(str(self.share))))

    @property
    def wanted(self) -> str:
        """What is asked for, for people."""
        if self.share is not None:
            return f"{100 * self.share:g} % of all"
        return f"{self.examples:,}" if self.examples is not None else "all"


@dataclass(frozen=True, slots=True)
class Selection:
    """Choosing the learning rate of one job on rows held out of its own training rows.

    Every candidate is trained alike on the rest; the one with the lowest held-out loss is trained
    anew on all rows. Rows that are scored anywhere in the study have left them before.

    Attributes:
        learning_rates: Candidates, distinct.
        held_out_fraction: Share of the training rows held out; or
        held_out_rows: how many.
    """

    learning_rates: tuple[float, ...]
    held_out_fraction: float | None = None
    held_out_rows: int | None = None

    def rows_of(self, total: int) -> int:
        """Rows held out of ``total``: at least one, never all.

        Raises:
            InputError: If nothing would be left to train on.
        """
        wanted = self.held_out_rows or max(1, round((self.held_out_fraction or 0) * total))
        if wanted >= total:
            raise InputError(
                f"select.held_out: {wanted} rows held out of {total} leave none to train on"
            )
        return wanted


@dataclass(frozen=True, slots=True)
class TuneJob:
    """One tuned model to make; everything a worker needs, picklable.

    Attributes:
        checkpoint: The base.
        tuning: Name of the tuning.
        tasks: What is learned; one part, or a mix of several.
        variants: Canonical names of prompt variants; rows take turns.
        data_seed: Decides which rows.
        seed: Decides initialisation, order of rows and dropout (and the dealing of a control).
        control: ``shuffled_labels``, ``format_only`` or None.
        method: Hyper-parameters. With a selection its learning rate is the first candidate.
        held_out: Tasks whose scored documents must not be learned.
        directory: Where the adapter or tuned checkpoint goes.
        data_root: Folder of local task data.
        selection: Learning rates to choose from, if any.
        search: Where definitions of tasks and prompts are looked for.
    """

    checkpoint: Checkpoint
    tuning: str
    tasks: tuple[MixPart, ...]
    variants: tuple[str, ...]
    data_seed: int
    seed: int
    control: str | None
    method: MethodSpec
    held_out: tuple[str, ...]
    directory: str
    data_root: str | None = None
    selection: Selection | None = None
    search: Search = PACKAGED

    @property
    def id(self) -> str:
        """``checkpoint name/directory name``: unique in a plan, and what people read."""
        return f"{self.checkpoint.name}/{Path(self.directory).name}"

    @property
    def label(self) -> str:
        """Names of its tasks, for people and for the record (``mnli``, ``mnli+xsum``)."""
        return "+".join(part.task for part in self.tasks)

    @property
    def examples(self) -> int | None:
        """Rows asked for in all; None if some part takes all of its split."""
        counts = [part.examples for part in self.tasks]
        return None if None in counts else sum(count for count in counts if count is not None)

    def settings(self) -> dict[str, Any]:
        """What decides the tensors, as JSON values: no paths, nothing about speed."""
        chosen = self.selection
        return {
            "version": TRAINING_VERSION,
            "base": self.checkpoint.fingerprint,
            "tokenizer": self.checkpoint.tokenizer_fingerprint,
            "tasks": [self._part_settings(part) for part in self.tasks],
            "data_seed": self.data_seed,
            "seed": self.seed,
            "control": self.control,
            "method": self.method.settings(),
            "selection": chosen
            and {
                "learning_rates": list(chosen.learning_rates),
                "held_out": chosen.held_out_rows or chosen.held_out_fraction,
            },
        }

    def _part_settings(self, part: MixPart) -> dict[str, Any]:
        task = known_task(part.task, self.search)
        variants = training_variants(task, self.variants, self.search)
        return {
            "task": part.task,
            "data": data_fingerprint(task),
            "stops": list(task.generation.stops) if task.output_type == "generate_until" else [],
            "variants": [[v.name, v.fingerprint] for v in variants],
            "examples": part.examples,
            **({"share": part.share} if part.share is not None else {}),
        }


def output_directory(
    out_dir: Path, checkpoint: str, tuning: str, seed: int, control: str | None, kind: str
) -> Path:
    """``OUT/adapters/<checkpoint>/<tuning>[-seed<k>][-<control>]``; seed 0 is not named.

    Fully tuned models go to ``OUT/checkpoints-tuned/<checkpoint>/...``.
    """
    name = tuning + (f"-seed{seed}" if seed else "") + (f"-{control}" if control else "")
    return out_dir / (TUNED_DIR if kind == "full" else ADAPTERS_DIR) / checkpoint / name


@lru_cache(maxsize=256)
def known_task(name: str, search: Search = PACKAGED) -> Task:
    """A task by name; read once, studies ask for the same few hundreds of times.

    Raises:
        UnknownNameError: If there is none.
    """
    return load_task(name, [Path(folder) for folder in search.tasks])


def training_variants(task: Task, names: Sequence[str], search: Search = PACKAGED) -> list[Variant]:
    """Loads prompt variants by canonical name."""
    return list(_variants(task.group, ",".join(names), search))


@lru_cache(maxsize=256)
def _variants(group: str, selection: str, search: Search) -> tuple[Variant, ...]:
    folders = [Path(folder) for folder in search.prompts]
    return tuple(load_variants(group, selection, search=folders))


def changed_settings(job: TuneJob) -> list[str] | None:
    """Names of the settings in which what is on disk differs; None if nothing finished is there.

    A base that is not at hand has no fingerprint: then bases are taken to be the same.

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
    values = made.get("values") or {}
    if not job.checkpoint.fingerprint:
        unknown = ("base", "tokenizer")
        values, wanted = (
            {key: value for key, value in one.items() if key not in unknown}
            for one in (values, wanted)
        )
        return _differences(values, wanted)
    return _differences(values, wanted) or ["settings"]


def _differences(made: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    names: list[str] = []
    for key in sorted(made.keys() | wanted.keys()):
        old, new = _numbered(made.get(key)), _numbered(wanted.get(key))
        if isinstance(old, dict) and isinstance(new, dict):
            names += [f"{key}.{inner}" for inner in _differences(old, new)]
        elif old != new:
            names.append(key)
    return names


def _numbered(value: Any) -> Any:
    """A list of parts as a mapping, so that a difference is named within its part."""
    parts = isinstance(value, list) and value and all(isinstance(part, dict) for part in value)
    return {str(i): part for i, part in enumerate(value)} if parts else value
