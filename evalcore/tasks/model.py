"""What a task file may say (pydantic: outside input enters here)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from evalcore.errors import DefinitionError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
_RESERVED_FIELDS = {"choice", "choices"}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HubSource(_Strict):
    """A data set on the hub."""

    repo: str = Field(description="Repository of the data set, for example nyu-mll/glue.")
    config: str | None = Field(None, description="Configuration (subset) of the data set.")
    revision: str | None = Field(None, description="Commit; pin it, data sets change.")


class Source(_Strict):
    """Where rows come from: exactly one of generator, path and hub."""

    generator: Literal["pocket"] | None = Field(None, description="A built-in seeded generator.")
    dataset: str | None = Field(None, description="Which of the generator's data sets.")
    path: str | None = Field(
        None,
        description="Folder (absolute, or under --data-root) with <split>.parquet, .jsonl, ...",
    )
    hub: HubSource | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Source:
        given = [name for name in ("generator", "path", "hub") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"expected exactly one of generator, path, hub; found {', '.join(given) or 'none'}"
            )
        if (self.generator is None) != (self.dataset is None):
            raise ValueError("dataset goes with generator, and with nothing else")
        return self


class Splits(_Strict):
    """Which split serves what; shots and training rows never come from the scored one."""

    score: str = Field(description="Split that is scored; its labels must be public.")
    shots: str | None = Field(None, description="Split few-shot examples are drawn from.")
    train: str | None = Field(None, description="Split adapters are tuned on.")

    @model_validator(mode="after")
    def _apart(self) -> Splits:
        for role in ("shots", "train"):
            if getattr(self, role) == self.score:
                raise ValueError(
                    f"{role} may not be the scored split {self.score!r}: its rows would leak"
                )
        return self


class Choices(_Strict):
    """Choice texts: fixed labels, a list column, or several columns."""

    labels: list[str] | None = Field(None, description="Label names in gold order, for every row.")
    column: str | None = Field(None, description="Column that holds a list of texts.")
    columns: list[str] | None = Field(None, description="Columns that hold one text each.")

    @model_validator(mode="after")
    def _exactly_one(self) -> Choices:
        given = [n for n in ("labels", "column", "columns") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError("expected exactly one of labels, column, columns")
        several = self.labels if self.labels is not None else self.columns
        if several is not None and (len(several) < 2 or len(set(several)) != len(several)):
            raise ValueError("expected at least two different entries")
        return self

    @field_validator("labels", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(item, bool) for item in value):
            raise ValueError('quote yes/no labels: YAML reads them as true/false ("yes", "no")')
        return value


class Gold(_Strict):
    """Column of the right answer: an index, a label, or a value given by ``map``."""

    column: str
    map: dict[str, int] | None = Field(None, description="Value of the column -> choice index.")

    @field_validator("map", mode="before")
    @classmethod
    def _text_keys(cls, value: Any) -> Any:
        return {str(k): v for k, v in value.items()} if isinstance(value, dict) else value


class References(_Strict):
    """Column of the reference text (or list of texts)."""

    column: str


class Generation(_Strict):
    """When greedy generation ends."""

    max_tokens: int = Field(32, ge=1, description="New tokens at most.")
    stops: list[str] = Field(["\n"], description="Strings that end a generation.")

    @field_validator("stops")
    @classmethod
    def _not_empty(cls, value: list[str]) -> list[str]:
        if any(not stop for stop in value):
            raise ValueError("a stop string may not be empty")
        return value


class TaskDefinition(_Strict):
    """One task file."""

    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1, description="Raise it when documents or their meaning change.")
    group: str = Field(pattern=NAME_PATTERN, description="Prompt group: prompts/<group>/.")
    description: str = ""
    licence: str = Field("", description="Licence of the data.")
    citation: str = ""
    output_type: Literal["multiple_choice", "generate_until", "loglikelihood"]
    tuned_by: str | None = Field(None, description="Tuning whose table group this belongs to.")
    domain: Literal["in", "out", "none"] = "none"
    source: Source
    splits: Splits
    fields: dict[str, str] = Field(description="Template variable -> column (a.b for nested).")
    choices: Choices | None = None
    gold: Gold | None = None
    references: References | None = None
    generation: Generation | None = None
    metrics: list[str] = Field(min_length=1)
    primary: str = Field(description="The metric declared primary before anything is scored.")

    @field_validator("fields")
    @classmethod
    def _variables(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not re.match(r"^[A-Za-z_]\w*$", name) or name in _RESERVED_FIELDS:
                raise ValueError(f"{name!r} cannot be a template variable")
        return value

    @model_validator(mode="after")
    def _parts_fit(self) -> TaskDefinition:
        if self.output_type == "multiple_choice":
            if self.choices is None or self.gold is None:
                raise ValueError("multiple_choice needs choices and gold")
            if self.references is not None:
                raise ValueError("multiple_choice takes no references")
        else:
            if self.references is None:
                raise ValueError(f"{self.output_type} needs references")
            if self.choices is not None or self.gold is not None:
                raise ValueError(f"{self.output_type} takes no choices and no gold")
        if self.generation is not None and self.output_type != "generate_until":
            raise ValueError("generation goes with output_type generate_until only")
        if self.primary not in self.metrics:
            raise ValueError(f"primary {self.primary!r} should be one of metrics {self.metrics}")
        return self


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """Reads a YAML mapping with the safe loader.

    Raises:
        DefinitionError: If the file is missing or is not one YAML mapping; one line with its place.
    """
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise DefinitionError(f"{what} {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DefinitionError(f"{what} {path}: is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise DefinitionError(f"{what} {path}:{where}: broken YAML ({problem})") from None
    except (ValueError, RecursionError) as error:  # odd dates, deep nesting
        raise DefinitionError(f"{what} {path}: broken YAML ({error})") from None
    if not isinstance(data, dict):
        raise DefinitionError(f"{what} {path}: expected key: value lines, found {_kind(data)}")
    return data


def validation_line(error: ValidationError, what: str, path: Path) -> str:
    """One line of a pydantic error: file, key, what was expected."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "(whole file)"
    if first["type"] == "extra_forbidden":
        expected = "is not a known key"
    elif first["type"] == "missing":
        expected = "is missing"
    else:
        message = first["msg"].removeprefix("Value error, ")
        given = first.get("input")
        shown = f", not {given!r}" if isinstance(given, (str, int, float, bool)) else ""
        expected = message[0].lower() + message[1:] + shown
    more = len(error.errors()) - 1
    return f"{what} {path}: key {key}: {expected}" + (f" (and {more} more)" if more else "")


def _kind(data: Any) -> str:
    return "nothing" if data is None else f"a {type(data).__name__}"
