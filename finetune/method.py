"""How a model is tuned: every hyper-parameter of one job, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from finetune.faults import StudyFault

LORA_ONLY = ("rank", "alpha", "dropout", "targets", "rslora", "dora", "init")
NOT_IN_TENSORS = ("save_every", "gradient_checkpointing", "devices")
"""Keys that change how fast a job runs or what it survives, not (but for rounding) its result."""
DEFAULT_EPOCHS = 3.0
Filled = Annotated[str, Field(pattern=r"\S")]
"""A name that is not empty."""
TargetModules = Literal["all-linear"] | Annotated[list[Filled], Field(min_length=1)]


class Strict(BaseModel):
    """A part of a study file: unknown keys are mistakes, numbers finite, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        values = value if isinstance(value, list) else [value]
        if any(isinstance(one, bool) for one in values):
            kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
            if kinds & {int, float} and bool not in kinds:
                raise ValueError("expected a number")
        return value


def _kinds(annotation: Any) -> set[type]:
    """Types that an annotation is made of; of a Literal, those of its values."""
    inner = get_args(annotation)
    if not inner:
        return {annotation if isinstance(annotation, type) else type(annotation)}
    return {kind for one in inner for kind in _kinds(one)}


_SCHEMA: dict[str, Any] = {
    "if": {"properties": {"kind": {"const": "full"}}, "required": ["kind"]},
    "then": {
        "required": ["learning_rate"],
        "not": {"anyOf": [{"required": [key]} for key in LORA_ONLY]},
    },
}


class MethodSpec(Strict):
    """How one model is tuned; the defaults are LoRA on every linear layer.

    At most one of ``steps`` and ``epochs`` may be given; with neither, 3 epochs. ``kind: full``
    tunes every weight: it takes no LoRA keys and needs a learning rate of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_SCHEMA)

    kind: Literal["lora", "full"] = "lora"
    rank: int = Field(16, ge=1, le=512)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: TargetModules = "all-linear"
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead of alpha / rank")
    dora: bool = Field(False, description="learn the magnitude of each weight column beside it")
    init: Literal["default", "gaussian", "orthogonal"] = Field(
        "default",
        description="of LoRA weights; ways that change the base's own weights are not offered",
    )
    learning_rate: float = Field(2e-4, gt=0, le=1)
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    steps: int | None = Field(None, ge=1)
    epochs: float | None = Field(None, gt=0, le=1_000_000)
    batch_size: int = Field(16, ge=1, description="rows of one batch, over all devices together")
    gradient_accumulation: int = Field(1, ge=1, description="batches per optimizer step")
    max_length: int | None = Field(None, ge=8, description="prompt + completion, tokens")
    overlong: Literal["leave_out", "truncate"] = Field(
        "leave_out",
        description="rows above max_length: left out whole, or their prompt cut at its beginning; "
        "both are counted",
    )
    warmup_ratio: float = Field(0.03, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="gradients are scaled down to this norm; null: never"
    )
    group_by_length: bool = Field(
        False, description="batches of rows of similar length: less padding, less mixing"
    )
    packing: bool = Field(
        False, description="rows share a sequence without seeing one another: no padding"
    )
    gradient_checkpointing: bool = Field(
        False, description="computes activations twice to keep fewer: less memory, slower"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of the base's weights; auto: bfloat16 on a GPU, float32 on a CPU"
    )
    save_every: int | None = Field(
        None,
        ge=1,
        description="optimizer steps between training checkpoints to resume from; null: none",
    )
    devices: int = Field(1, ge=1, description="GPUs of one job, by accelerate")

    @model_validator(mode="after")
    def _fits_together(self) -> MethodSpec:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.batch_size % self.devices:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be shared evenly by {self.devices} devices"
            )
        if self.kind == "full":
            given = [key for key in LORA_ONLY if key in self.model_fields_set]
            if given:
                raise PydanticCustomError(
                    StudyFault.LORA_KEY_WITH_FULL,
                    "kind full takes no {keys}: only lora does",
                    {"keys": ", ".join(given)},
                )
            if "learning_rate" not in self.model_fields_set:
                raise ValueError("kind full needs a learning_rate of its own (such as 2e-6)")
        elif self.init == "orthogonal" and self.rank % 2:
            raise ValueError(f"init orthogonal needs an even rank, not {self.rank}")
        return self

    def merged(self, override: Mapping[str, Any]) -> MethodSpec:
        """This method with some keys replaced.

        ``steps`` replaces ``epochs`` and the reverse. Another ``kind`` takes over neither the
        LoRA keys nor the learning rate: what is right for one is an order off for the other.
        """
        values = self.model_dump(exclude_unset=True)
        if override.get("kind", self.kind) != self.kind:
            for key in (*LORA_ONLY, "learning_rate"):
                values.pop(key, None)
        if override.get("steps") is not None:
            values.pop("epochs", None)
        if override.get("epochs") is not None:
            values.pop("steps", None)
        return MethodSpec.model_validate({**values, **override})

    def settings(self) -> dict[str, Any]:
        """The keys that decide what is trained, as JSON values."""
        left_out = {*NOT_IN_TENSORS, *(LORA_ONLY if self.kind == "full" else ())}
        return self.model_dump(mode="json", exclude=left_out)

    def rows_seen(self, rows: int) -> int:
        """Rows run through the model in all, repeats included, of a set of so many rows."""
        per_step = self.batch_size * self.gradient_accumulation
        if self.steps is not None:
            return self.steps * per_step
        return max(1, math.ceil((self.epochs or DEFAULT_EPOCHS) * rows / per_step)) * per_step
