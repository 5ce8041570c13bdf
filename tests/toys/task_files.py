"""Task files and their rows, written to be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from evalcore.tasks import (
    read_task,
)

CHOOSER: dict[str, Any] = {
    "name": "toy", "version": 1, "group": "toys", "output_type": "multiple_choice",
    "source": {"path": "toy"}, "splits": {"score": "test", "shots": "shots"},
    "fields": {"text": "sentence"}, "choices": {"labels": ["no", "yes"]},
    "gold": {"column": "label"}, "metrics": ["acc"], "primary": "acc",
}  # fmt: skip


def read(folder: Path, **changes: Any) -> Any:
    definition = {key: value for key, value in {**CHOOSER, **changes}.items() if value is not ...}
    return read_text(folder, yaml.safe_dump(definition, sort_keys=False))


def read_text(folder: Path, text: str | bytes) -> Any:
    file = folder / "toy.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_task(file)


def rows_of(root: Path, *rows: Any, split: str = "test") -> None:
    (root / "toy").mkdir(exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (root / "toy" / f"{split}.jsonl").write_text(text)
