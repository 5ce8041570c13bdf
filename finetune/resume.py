"""Training checkpoints: what a job that died needs to go on as if nothing had happened.

A job with ``save_every`` keeps one training checkpoint in a hidden folder beside its final place:
trained parameters and both moments of AdamW (safetensors), losses so far (JSON). Order of rows,
learning rate and dropout of a step follow from seed and step number, so no generator states are
kept, and nothing is pickled. The folder goes when the adapter is published.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalcore.errors import InputError
from evalcore.identity import text_fingerprint
from finetune.provenance import sync

STATE_FILE = "state.json"
TENSORS_FILE = "state.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(slots=True)
class StepRecord:
    """Loss, learning rate and completion tokens of every optimizer step."""

    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    completion_tokens: list[int] = field(default_factory=list)


@dataclass(slots=True)
class TrainingState:
    """What a training checkpoint holds.

    Attributes:
        step: Optimizer steps done.
        record: Their losses.
        elapsed_s: Seconds they took, over all tries.
        resumed_at: Steps at which earlier tries went on.
        tensors: ``<part>.<parameter>``: parameter, exp_avg, exp_avg_sq and step.
    """

    step: int
    record: StepRecord
    elapsed_s: float
    resumed_at: list[int]
    tensors: dict[str, Any]


class Keeper:
    """Training checkpoints of one training run, in a folder of its own.

    Args:
        folder: Where they are; made when the first is written.
        identity: What decides the run (settings, data, learning rate); those of another are
            not used.
        every: Optimizer steps between two of them; None: none are written.
        writes: Whether this process writes (of several that train together, the first one).
    """

    def __init__(self, folder: Path, identity: Any, every: int | None, writes: bool = True) -> None:
        self._folder = folder
        self._identity = text_fingerprint(identity)
        self._every = every
        self._writes = writes

    def due(self, step: int, steps: int) -> bool:
        """Whether to write one after ``step``; after the last step the result itself is written."""
        return self._every is not None and step % self._every == 0 and step < steps

    def save(self, state: TrainingState) -> None:
        """Writes a checkpoint, complete or not at all, and removes the one before.

        Raises:
            InputError: If the folder cannot be written.
        """
        from safetensors.torch import save_file

        if not self._writes:
            return
        final = self._folder / f"step-{state.step:08d}"
        building = self._folder / f".{final.name}.{os.getpid()}"
        try:
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir(parents=True)
            save_file(state.tensors, str(building / TENSORS_FILE))
            about = {
                "identity": self._identity,
                "step": state.step,
                "losses": state.record.losses,
                "learning_rates": state.record.learning_rates,
                "completion_tokens": state.record.completion_tokens,
                "elapsed_s": state.elapsed_s,
                "resumed_at": state.resumed_at,
            }
            (building / STATE_FILE).write_text(json.dumps(about), "utf-8")
            for name in (TENSORS_FILE, STATE_FILE, ""):
                sync(building / name)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(building, final)
            sync(self._folder)
        except OSError as error:
            raise InputError(
                f"{self._folder}: a training checkpoint cannot be written "
                f"({error.strerror or error})"
            ) from None
        for other in self._folder.iterdir():
            if other != final:
                shutil.rmtree(other, ignore_errors=True)

    def load(self) -> TrainingState | None:
        """The newest whole checkpoint of this very run; None if there is none."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        for place in sorted(self._folder.glob("step-*"), reverse=True):
            try:
                about = json.loads((place / STATE_FILE).read_text("utf-8"))
                if about["identity"] != self._identity:
                    continue
                tensors = load_file(str(place / TENSORS_FILE))
            except (OSError, ValueError, KeyError, SafetensorError):
                continue  # half written or broken: what it saved is trained again
            record = StepRecord(
                about["losses"], about["learning_rates"], about["completion_tokens"]
            )
            done = [*about["resumed_at"], about["step"]]
            return TrainingState(about["step"], record, about["elapsed_s"], done, tensors)
        return None


def state_tensors(model: Any, optimizer: Any) -> dict[str, Any]:
    """Trained parameters and their moments, by name, on the CPU."""
    tensors: dict[str, Any] = {}
    for name, parameter in _trained(model):
        tensors[f"parameter.{name}"] = parameter
        for moment in _MOMENTS:
            value = optimizer.state.get(parameter, {}).get(moment)
            if value is not None:
                tensors[f"{moment}.{name}"] = value
    return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}


def restore_parameters(model: Any, tensors: dict[str, Any]) -> None:
    """Puts saved parameters into the model.

    Raises:
        InputError: If they are not those of this model.
    """
    import torch

    trained = dict(_trained(model))
    saved = {
        k.removeprefix("parameter."): v for k, v in tensors.items() if k.startswith("parameter.")
    }
    if saved.keys() != trained.keys():
        raise InputError("a training checkpoint holds other parameters; remove its folder")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(saved[name])


def restore_optimizer(model: Any, optimizer: Any, tensors: dict[str, Any]) -> None:
    """Puts saved moments into a fresh optimizer of the model's parameters."""
    for name, parameter in _trained(model):
        state = {m: tensors[f"{m}.{name}"] for m in _MOMENTS if f"{m}.{name}" in tensors}
        if state:
            # AdamW counts steps on the CPU; moments live beside their parameter.
            optimizer.state[parameter] = {
                m: v.clone() if m == "step" else v.to(parameter.device, parameter.dtype)
                for m, v in state.items()
            }


def _trained(model: Any) -> Iterator[tuple[str, Any]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)
