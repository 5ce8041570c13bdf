"""The study file: which checkpoints are tuned on what, with which controls, and scored how.

A study is YAML, read by a safe loader and checked here; ``schema/study.schema.json`` is generated
from these models for editors. Nothing here imports torch or looks at a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    create_model,
    field_validator,
    model_validator,
)

from evalcore.config import Option, check_value, study_keys
from evalcore.errors import InputError
from finetune.grids import Value, as_number, expand_grid, grid_keys
from finetune.groups import GroupSpec, PrimarySpec, tasks_in_several
from finetune.method import Filled, MethodSpec, Strict
from finetune.search import Search

LAST = "last"
DEFAULT_EXAMPLES = 1000
FORMAT_ROWS = 256
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@+-]*$")]
Seed = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Rate = Annotated[float, Field(gt=0, le=1)]
CheckpointChoice = Literal["all", "last"] | Annotated[list[str], Field(min_length=1)]


class StepRange(Strict):
    """Steps from ``first`` to ``last``, both included, ``every`` so many."""

    first: int = Field(ge=0)
    last: int = Field(ge=0)
    every: int = Field(ge=1)

    @property
    def steps(self) -> list[int]:
        return list(range(self.first, self.last + 1, self.every))


class HubCheckpoints(Strict):
    """Checkpoints of one hub repository: named revisions, or steps that make the names."""

    repo: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
    revisions: list[str] = Field([], description="branches, tags or commits, as they are")
    steps: list[Annotated[int, Field(ge=0)]] | StepRange | None = None
    revision: str = Field(
        "step{step}",
        description="name of a step's revision; {step}, and {tokens}: billions of tokens, whole",
    )
    tokens_per_step: float | None = Field(None, gt=0, le=1e12, description="for {tokens}")
    parameters: int | None = Field(
        None, ge=1, description="weights of the model; estimates use it while it is not at hand"
    )

    @model_validator(mode="after")
    def _names_something(self) -> HubCheckpoints:
        if not self.revisions and self.steps is None:
            raise ValueError("give revisions, steps, or both")
        if isinstance(self.steps, StepRange) and not self.steps.steps:
            raise ValueError(f"steps: none from {self.steps.first} to {self.steps.last}")
        for name in self.revisions:
            if not name.strip() or name.startswith(("/", ".", "-")) or ".." in name:
                raise ValueError(f"revisions: {name!r} is no branch, tag or commit")
        if self.steps is not None:
            try:
                self.revision.format(step=1, tokens=1)
            except (KeyError, IndexError, ValueError):
                raise ValueError(
                    f"revision {self.revision!r}: only {{step}} and {{tokens}} may be in braces"
                ) from None
            if "{tokens}" in self.revision and self.tokens_per_step is None:
                raise ValueError("a revision with {tokens} needs tokens_per_step")
        twice = sorted({s for s in self.sources if self.sources.count(s) > 1})
        if twice:
            raise ValueError(f"{twice[0]} is named twice; name each revision once")
        return self

    @property
    def sources(self) -> list[str]:
        """``repo@revision`` of each checkpoint."""
        steps = self.steps.steps if isinstance(self.steps, StepRange) else self.steps or []
        per_step = Fraction(self.tokens_per_step or 0)
        named = [self.revision.format(step=s, tokens=s * per_step // 10**9) for s in steps]
        return [f"{self.repo}@{revision}" for revision in [*named, *self.revisions]]


class CheckpointsSpec(Strict):
    """Where the bases are.

    ``paths``: local globs (below the output folder, else beside the study file), plain paths, or
    ``repo@revision``; ``hub``: revisions and steps of hub repositories.
    """

    paths: list[str] = Field([])
    hub: list[HubCheckpoints] = Field([])

    @model_validator(mode="after")
    def _not_empty(self) -> CheckpointsSpec:
        if not self.paths and not self.hub:
            raise ValueError("give paths, hub, or both")
        return self


class MixEntry(Strict):
    """One task of a mix: so many rows, or a share of the tuning's."""

    task: str
    examples: int | None = Field(None, ge=1, description="rows of this task")
    weight: float = Field(1.0, gt=0, description="share of the rows, where examples is not given")


class SelectSpec(Strict):
    """Choosing a learning rate on rows held out of the training rows (never on scored ones)."""

    learning_rate: list[Rate] = Field(min_length=2)
    held_out: int | float = Field(gt=0, description="below 1: share of the rows; else how many")

    @field_validator("learning_rate")
    @classmethod
    def _distinct(cls, value: list[float]) -> list[float]:
        if len(set(value)) != len(value):
            raise ValueError(f"learning rates {value} are not distinct")
        return value

    @field_validator("held_out")
    @classmethod
    def _share_or_count(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError("expected a share below 1 or a whole number of rows")
        return value


class MoreSeeds(Strict):
    """Training seeds beside a tuning's own, at some checkpoints."""

    seeds: list[Seed] = Field(min_length=1)
    checkpoints: CheckpointChoice = "last"


class TuningSpec(Strict):
    """One thing to tune on; trained on every checkpoint and seed it names."""

    name: Name
    task: str | None = Field(None, description="task whose train split is learned; or mix")
    mix: list[MixEntry] = Field([], description="several tasks learned together")
    examples: int | None = Field(
        DEFAULT_EXAMPLES, ge=1, description="rows of the train split (of a mix: in all); null: all"
    )
    share: float | None = Field(
        None, gt=0, le=1, description="share of the train split's rows, in place of examples"
    )
    data_seed: Seed | Literal["per_seed"] = Field(
        0,
        description="decides which rows, the same for every training seed; per_seed: each training "
        "seed draws its own",
    )
    variants: list[str] = Field(["default"], min_length=1, description="rows take turns")
    seeds: list[Seed] = Field([0], min_length=1)
    checkpoints: CheckpointChoice = "all"
    more_seeds: MoreSeeds | None = Field(
        None, description="seeds beside these at some checkpoints only, the last by default"
    )
    method: dict[str, Any] = Field({}, description="keys of `method` that differ here")
    grid: dict[str, Annotated[list[Value], Field(min_length=1)]] = Field(
        {}, description="key -> values: every combination becomes a tuning of its own"
    )
    select: SelectSpec | None = None

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value):
            raise ValueError(f"seeds {value} are not distinct")
        return value

    @field_validator("grid")
    @classmethod
    def _known_keys(cls, value: dict[str, list[Any]]) -> dict[str, list[Any]]:
        known = grid_keys()
        for key, values in value.items():
            if key not in known:
                raise ValueError(f"no grid over {key!r}; keys are {', '.join(known)}")
            if len({str(v) for v in values}) != len(values):
                raise ValueError(f"values of {key} are not distinct")
        return {key: [as_number(v) for v in values] for key, values in value.items()}

    @model_validator(mode="after")
    def _one_source(self) -> TuningSpec:
        again = self.more_seeds.seeds if self.more_seeds is not None else []
        if len({*self.seeds, *again}) < len(self.seeds) + len(again):
            raise ValueError(f"more_seeds {again} are not distinct from one another and from seeds")
        if (self.task is None) == (not self.mix):
            raise ValueError("give task or mix, one of them")
        names = [entry.task for entry in self.mix]
        if len(set(names)) != len(names):
            raise ValueError("a task is in the mix twice")
        fixed = sum(entry.examples or 0 for entry in self.mix)
        if "examples" in self.model_fields_set and fixed > (self.examples or fixed):
            raise ValueError(f"mix: its entries ask for {fixed} rows, examples for {self.examples}")
        whole = self.mix and all(entry.examples is not None for entry in self.mix)
        if whole and "examples" in self.model_fields_set and self.examples not in (None, fixed):
            raise ValueError(
                f"mix: its entries ask for {fixed} rows in all, examples for {self.examples}; "
                "leave examples out, or leave one entry without examples: it has the rest"
            )
        if self.share is not None and (self.mix or "examples" in self.model_fields_set):
            raise ValueError("share goes with task, in place of examples")
        if self.select is not None and "learning_rate" in self.grid:
            raise ValueError("learning_rate is in grid and in select; one of them")
        return self

    @property
    def parts(self) -> list[tuple[str, int | None, float]]:
        """(task, rows, weight) of what is learned; a mix's rows are dealt out by weight.

        Rows are None where all are learned, or a ``share`` of them.
        """
        if self.task is not None:
            return [(self.task, None if self.share is not None else self.examples, 1.0)]
        open_entries = [entry for entry in self.mix if entry.examples is None]
        fixed = sum(entry.examples for entry in self.mix if entry.examples is not None)
        rest = None if self.examples is None else max(0, self.examples - fixed)
        shares = _deal_out(rest, [entry.weight for entry in open_entries])
        return [
            (
                entry.task,
                entry.examples if entry.examples is not None else next(shares),
                entry.weight,
            )
            for entry in self.mix
        ]


class ControlSpec(Strict):
    """Extra tuned models that tell format from content.

    ``shuffled_labels``: the same inputs, format and settings, with gold answers dealt out anew
    among the rows. Learned over and over, such answers are memorised, and the model may come out
    worse than format alone makes it. ``format_only``: few such rows, each learned once: enough for
    the form of an answer, too little for anything else.
    """

    kind: Literal["shuffled_labels", "format_only"]
    of: list[str] = Field(min_length=1)
    checkpoints: CheckpointChoice = "last"
    seeds: Annotated[list[Seed], Field(min_length=1)] | Literal["all"] | None = Field(
        None, description="default: the tuning's first; all: one control for each seed"
    )
    examples: int = Field(
        FORMAT_ROWS, ge=2, description="rows of format_only, dealt over the parts of a mix"
    )


class ExtraEvaluation(Strict):
    """More prompt variants for some tasks."""

    tasks: list[str] = Field(min_length=1)
    prompts: str


def _scoring_key(about: Option) -> tuple[Any, Any]:
    """(type, field) of a key that gives a field of the scoring's configuration."""
    rules: dict[str, Any] = {"ge": about.low, "le": about.high, "gt": about.above}
    rules = {rule: bound for rule, bound in rules.items() if bound is not None}
    kind = about.hint | None
    if about.check is not None:
        kind = Annotated[kind, AfterValidator(partial(_checked, about))]
    spelled = f" (as {about.words[-1]} of evalcore score)" if about.words else ""
    return kind, Field(None, description=about.help + spelled, **rules)


def _checked(about: Option, value: Any) -> Any:
    try:
        if value is not None:
            check_value(about, value)
    except InputError as error:
        raise ValueError(str(error)) from None
    return value


_KEYS: dict[str, Any] = {key: _scoring_key(about) for key, about in study_keys().items()}
_ScoringKeys: Any = create_model("_ScoringKeys", __base__=Strict, **_KEYS)


class EvaluationSpec(_ScoringKeys):
    """What every checkpoint and tuned model is scored on, and how."""

    tasks: list[str] = Field(min_length=1)
    prompts: str = "default,instruct,io"
    extra: list[ExtraEvaluation] = Field([])
    groups: dict[Filled, GroupSpec] = Field(
        {}, description="name -> tasks that the table per checkpoint averages; a task in one group"
    )
    primary: PrimarySpec | None = Field(
        None, description="way of asking of the headlines; default: the one most cells have"
    )

    @field_validator("groups")
    @classmethod
    def _each_task_once(cls, value: dict[str, GroupSpec]) -> dict[str, GroupSpec]:
        several = tasks_in_several(value)
        if several:
            raise ValueError(f"{', '.join(several)}: a task stands in one group, once")
        return value

    @property
    def blocks(self) -> list[tuple[str, str]]:
        """(task selection, prompt selection) of all that is scored."""
        extra = [(",".join(block.tasks), block.prompts) for block in self.extra]
        return [(",".join(self.tasks), self.prompts), *extra]

    @property
    def said(self) -> dict[str, Any]:
        """What the block says of the scoring's configuration, by the names of its fields."""
        values = {about.name: getattr(self, key) for key, about in study_keys().items()}
        return {name: value for name, value in values.items() if value is not None}


class PretrainSpec(Strict):
    """Pre-training of the pocket model; only for studies that bring their own checkpoints to be."""

    kind: Literal["pocket"]
    steps: int = Field(ge=1)
    save_steps: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    seed: Seed = 0

    @model_validator(mode="after")
    def _within(self) -> PretrainSpec:
        if max(self.save_steps) > self.steps:
            raise ValueError(f"save_steps go beyond steps ({self.steps})")
        return self


class Study(Strict):
    """A whole study file, checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="evalcore study")
    name: Name
    description: str = ""
    data_root: str | None = Field(
        None, description="folder of local task data; relative: beside the study file"
    )
    task_path: list[str] = Field(
        [], description="folders with more task definitions; relative: beside the study file"
    )
    prompt_path: list[str] = Field(
        [], description="folders with more prompts, one folder per group; relative likewise"
    )
    include_path: list[str] = Field(
        [], description="folders with more tasks of lm-eval's format; relative likewise"
    )
    pretrain: PretrainSpec | None = None
    checkpoints: CheckpointsSpec
    tunings: list[TuningSpec] = Field(min_length=1)
    controls: list[ControlSpec] = Field([])
    method: MethodSpec = MethodSpec()
    evaluation: EvaluationSpec | None = None
    _file: Path = PrivateAttr(default=Path("study.yaml"))

    @property
    def file(self) -> Path:
        """Where it was read from; relative checkpoint paths may start beside it."""
        return self._file

    @property
    def data_folder(self) -> Path | None:
        """``data_root`` as a path."""
        return None if self.data_root is None else self._beside(self.data_root)

    @property
    def search(self) -> Search:
        """Where its tasks and prompts are looked for, for tuning and scoring alike."""
        tasks, prompts = (
            tuple(str(self._beside(folder)) for folder in folders)
            for folders in (self.task_path, self.prompt_path)
        )
        return Search(tasks, prompts)

    @property
    def include_folders(self) -> tuple[Path, ...]:
        """``include_path`` as paths."""
        return tuple(self._beside(folder) for folder in self.include_path)

    def _beside(self, folder: str) -> Path:
        return self._file.parent / Path(folder).expanduser()

    def expanded(self) -> list[TuningSpec]:
        """Its tunings with every grid written out (see :func:`finetune.grids.expand_grid`)."""
        return [one for tuning in self.tunings for one in expand_grid(tuning)]

    def method_of(self, tuning: TuningSpec) -> MethodSpec:
        """The study's method with the tuning's own keys put over it."""
        override = dict(tuning.method)
        if tuning.select is not None:
            override["learning_rate"] = tuning.select.learning_rate[0]
        return self.method.merged(override)


def _deal_out(total: int | None, weights: list[float]) -> Iterator[int | None]:
    """Whole numbers that sum to ``total``, in proportion (largest remainders round up)."""
    if total is None:
        return iter([None] * len(weights))
    parts = [Fraction(str(weight)) for weight in weights]  # 0.1 is a tenth; no sum is too large
    exact = [total * part / sum(parts) for part in parts]
    dealt = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (dealt[i] - exact[i], i))
    for i in by_remainder[: total - sum(dealt)]:
        dealt[i] += 1
    return iter(dealt)
