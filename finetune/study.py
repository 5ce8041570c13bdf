"""The study file: which checkpoints are tuned on what, with which controls, and scored how.

A study is YAML, read by a safe loader and checked here; ``schema/study.schema.json`` is generated
from these models for editors. Nothing here imports torch or looks at a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from evalcore.errors import DefinitionError, InputError

MAX_ERRORS_SHOWN = 8
LAST = "last"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@+-]*$")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
TargetModules = Literal["all-linear"] | Annotated[list[str], Field(min_length=1)]
CheckpointChoice = Literal["all", "last"] | Annotated[list[str], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CheckpointsSpec(_Strict):
    """Where the bases are: local globs (below the output folder, else beside the study file),
    plain paths, or ``repo@revision``."""

    paths: list[str] = Field(min_length=1)


class MethodSpec(_Strict):
    """How an adapter is trained; the defaults are LoRA on every linear layer.

    Exactly one of ``steps`` and ``epochs`` counts; with neither, 3 epochs.
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1, le=512)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: TargetModules = "all-linear"
    learning_rate: float = Field(2e-4, gt=0, le=1)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0)
    batch_size: int = Field(16, ge=1)
    gradient_accumulation: int = Field(1, ge=1, description="batches per optimizer step")
    max_length: int | None = Field(
        None,
        ge=8,
        description="prompt + completion, tokens; longer rows are left out and counted",
    )
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    group_by_length: bool = Field(
        False, description="batches of rows of similar length: less padding, less mixing"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the base's weights; auto: bfloat16 on a GPU, float32 on a CPU"
    )

    @model_validator(mode="after")
    def _one_length(self) -> MethodSpec:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        return self

    def merged(self, override: Mapping[str, Any]) -> MethodSpec:
        """This method with some keys replaced; ``steps`` replaces ``epochs`` and the reverse."""
        values = self.model_dump()
        if "steps" in override and "epochs" not in override:
            values["epochs"] = None
        if "epochs" in override and "steps" not in override:
            values["steps"] = None
        return MethodSpec.model_validate({**values, **override})


class TuningSpec(_Strict):
    """One thing to tune on; trained on every checkpoint and seed it names."""

    name: Name
    task: str
    examples: int | None = Field(1000, ge=1, description="rows of the train split; null: all")
    data_seed: Seed = Field(0, description="decides which rows, the same for every training seed")
    variants: list[str] = Field(["default"], min_length=1, description="rows take turns")
    seeds: list[Seed] = Field([0], min_length=1)
    checkpoints: CheckpointChoice = "all"
    method: dict[str, Any] = Field({}, description="keys of `method` that differ here")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value):
            raise ValueError(f"seeds {value} are not distinct")
        return value


class ControlSpec(_Strict):
    """Extra adapters that tell format from content.

    ``shuffled_labels``: the same inputs, format and settings, with gold answers dealt out anew
    among the rows.
    """

    kind: Literal["shuffled_labels"]
    of: list[str] = Field(min_length=1)
    checkpoints: CheckpointChoice = "last"
    seeds: list[Seed] | None = Field(None, min_length=1, description="default: the tuning's first")


class ExtraEvaluation(_Strict):
    """More prompt variants for some tasks."""

    tasks: list[str] = Field(min_length=1)
    prompts: str


class EvaluationSpec(_Strict):
    """What every checkpoint and adapter is scored on."""

    tasks: list[str] = Field(min_length=1)
    prompts: str = "default,instruct,io"
    extra: list[ExtraEvaluation] = []
    limit: int | None = Field(None, ge=1)


class PretrainSpec(_Strict):
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


class Study(_Strict):
    """A whole study file, checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="evalcore study")
    name: Name
    description: str = ""
    pretrain: PretrainSpec | None = None
    checkpoints: CheckpointsSpec
    tunings: list[TuningSpec] = Field(min_length=1)
    controls: list[ControlSpec] = []
    method: MethodSpec = MethodSpec()  # type: ignore[call-arg]
    evaluation: EvaluationSpec | None = None
    _file: Path = PrivateAttr(default=Path("study.yaml"))

    @property
    def file(self) -> Path:
        """Where it was read from; relative checkpoint paths may start beside it."""
        return self._file

    def method_of(self, tuning: TuningSpec) -> MethodSpec:
        """The study's method with the tuning's own keys put over it."""
        return self.method.merged(tuning.method)


def load_study(path: str | Path) -> Study:
    """Reads and checks a study file.

    Raises:
        InputError: If it cannot be read.
        DefinitionError: If it is not YAML or not what the schema says; one line per mistake.
    """
    file = Path(path)
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"study {file}: cannot be read ({reason})") from None
    return parse_study(text, file)


def parse_study(text: str, file: Path) -> Study:
    """Checks the text of a study file; ``file`` is named in errors (see :func:`load_study`)."""
    try:
        raw = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "broken"
        raise DefinitionError(f"{file}{line}: not valid YAML: {problem}") from None
    if not isinstance(raw, dict):
        raise DefinitionError(f"{file}: expected keys (name, checkpoints, tunings, ...) at the top")
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        raise DefinitionError(_lines(file, error)) from None
    study._file = file
    mistakes = _cross_check(study)
    if mistakes:
        raise DefinitionError("\n".join(f"{file}: {line}" for line in mistakes[:MAX_ERRORS_SHOWN]))
    return study


def study_schema() -> dict[str, Any]:
    """JSON schema of a study file (published as ``schema/study.schema.json``)."""
    schema = Study.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _cross_check(study: Study) -> list[str]:
    """What a schema cannot say: names that refer to one another, merged methods."""
    mistakes: list[str] = []
    seen: set[str] = set()
    for i, tuning in enumerate(study.tunings):
        if tuning.name in seen:
            mistakes.append(f"tunings.{i}.name: {tuning.name!r} is used twice; names must differ")
        seen.add(tuning.name)
        try:
            study.method_of(tuning)
        except ValidationError as error:
            mistakes += _messages(error, prefix=f"tunings.{i}.method")
    for i, control in enumerate(study.controls):
        for name in control.of:
            if name not in seen:
                known = ", ".join(sorted(seen))
                mistakes.append(f"controls.{i}.of: no tuning is named {name!r}; there are: {known}")
    return mistakes


def _lines(file: Path, error: ValidationError) -> str:
    lines = [f"{file}: {message}" for message in _messages(error)]
    rest = len(lines) - MAX_ERRORS_SHOWN
    return "\n".join(lines[:MAX_ERRORS_SHOWN]) + (f"\n{file}: and {rest} more" if rest > 0 else "")


def _messages(error: ValidationError, prefix: str = "") -> list[str]:
    lines: dict[str, None] = {}
    for item in error.errors(include_url=False):
        # Union members appear in a location as their type's name; people look for keys.
        parts = [str(part) for part in item["loc"] if not _is_union_tag(part)]
        key = ".".join([prefix, *parts] if prefix else parts)
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        else:
            message = item["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
            if item["type"] != "missing" and not isinstance(item["input"], (dict, list)):
                message += f", not {item['input']!r}"
        lines[f"{key}: {message}" if key else message] = None
    return list(lines)


def _is_union_tag(part: str | int) -> bool:
    return isinstance(part, str) and ("[" in part or part in ("str", "int", "float"))


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe loader that refuses a key given twice (YAML keeps the last one in silence)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = getattr(key_node, "value", None)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(str(key))
        return super().construct_mapping(node, deep=deep)
