"""What an adapter's folder is like after somebody else's tools: a case, and edits of files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Case:
    """One adapter on one base.

    Attributes:
        base: A key of ``BASES``.
        options: Of PEFT's LoraConfig; ``targets`` for short.
        edit: What is done to the folder after saving.
        experts: Matrices of each expert that have their own LoRA, as older PEFT saved them; then
            the reference is the base with the products added to its file's tensors.
        rows: Rows of the vocabulary the base is given before tuning, if more.
        save: Of ``save_pretrained``.
        still: Parts of names of parameters that tuning leaves as they are.
        rounded: Type whose numbers all that is tuned is rounded to.
        vllm: ``scores``, or what the refusal of engine vllm says.
        hf: The same of engine hf.
    """

    base: str = "llama"
    options: dict[str, Any] = field(default_factory=dict)
    edit: Callable[[Path], None] | None = None
    experts: tuple[str, ...] = ()
    rows: int = 0
    save: dict[str, Any] = field(default_factory=dict)
    still: tuple[str, ...] = ()
    rounded: str = ""
    vllm: str = "scores"
    hf: str = "scores"


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def edit_tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        file = folder / "adapter_model.safetensors"
        made = {
            name: tensor.clone().contiguous() for name, tensor in change(load_file(file)).items()
        }
        save_file(made, file, metadata={"format": "pt"})

    return edit


def rename(old: str, new: str) -> Callable[[Path], None]:
    return edit_tensors(lambda tensors: {k.replace(old, new): v for k, v in tensors.items()})


def drop(part: str) -> Callable[[Path], None]:
    return edit_tensors(lambda t: {k: v for k, v in t.items() if part not in k})


def poison(value: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        next(iter(tensors.values())).view(-1)[3] = value
        return tensors

    return change


def both(*edits: Callable[[Path], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        for one in edits:
            one(folder)

    return edit
