"""``provenance.json``: what evalcore's tuning stage says about an adapter or checkpoint it made."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from evalcore.errors import InputError
from evalcore.reading import is_there, read_json

PROVENANCE_FILE = "provenance.json"
UNFINISHED_FILE = "unfinished"


class BaseRecord(BaseModel):
    """The checkpoint that was tuned: base of an adapter, parent of a fully tuned checkpoint."""

    model_config = ConfigDict(extra="allow")
    name: str = ""
    path: str | None = None
    path_relative: str | None = None
    source: str | None = None
    revision: str | None = None
    fingerprint: str
    step: int | None = None


class TuningRecord(BaseModel):
    """What it was trained on; ``group`` is ``tuned_by`` of the task it learned."""

    model_config = ConfigDict(extra="allow")
    name: str
    task: str | None = None
    group: str | None = None
    variant: str | None = None
    control: str | None = None
    seed: int | None = None
    examples: int | None = None


class Provenance(BaseModel):
    """The record; keys not named here are kept but not read by the evaluator."""

    model_config = ConfigDict(extra="allow")
    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["lora", "full"] = "lora"
    base: BaseRecord
    tuning: TuningRecord
    method: dict[str, Any] = {}
    data: dict[str, Any] = {}
    training: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    device: str | None = None
    adapter_fingerprint: str | None = None
    checkpoint_fingerprint: str | None = None

    @property
    def tuned_on(self) -> str:
        """Table group it was tuned for; by its tuning's name where the record does not say."""
        return self.tuning.group or self.tuning.name

    @property
    def untrained(self) -> bool:
        """Whether training changed nothing, by the word of who trained it."""
        return bool(self.training.get("untrained"))


def read_provenance(directory: Path) -> Provenance | None:
    """Reads the record of an adapter (or fully tuned checkpoint) directory; None without one.

    Raises:
        InputError: If the record is broken.
    """
    file = directory / PROVENANCE_FILE
    if not is_there(file):
        return None
    try:
        return Provenance.model_validate(read_json(file, "provenance record"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{file}: key {where!r}: {first['msg'].lower()}") from None


def write_provenance(directory: Path, record: dict[str, Any]) -> None:
    """Writes the record atomically; to be called last, it marks a directory as finished.

    Raises:
        pydantic.ValidationError: If the record lacks a key.
    """
    Provenance.model_validate(record)
    file = directory / PROVENANCE_FILE
    temporary = directory / f".{PROVENANCE_FILE}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as out:
        json.dump(record, out, indent=2, sort_keys=True)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, file)
