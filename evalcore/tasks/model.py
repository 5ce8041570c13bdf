"""What a task file may say (pydantic: outside input enters here).

Rules that concern several keys raise a ``TaskFault`` code as pydantic's error type, so that each
has a stable name (see ``evalcore.tasks.faults``).
"""

from __future__ import annotations

import re
from string import Formatter
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from evalcore.tasks.columns import EACH
from evalcore.tasks.faults import TaskFault
from evalcore.types import OutputType

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
# Repository, configuration and split become folder names under --data-root: no "..", no separators.
_REPO_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?$"
_CONFIG_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$"
_SPLIT = re.compile(r"^([A-Za-z0-9_][A-Za-z0-9_.-]*)(?:\[(\d{0,18}):(\d{0,18})\])?$")
_RESERVED_FIELDS = {"choice", "choices", "index", "listing", "letters"}


def _fault(code: TaskFault, message: str) -> PydanticCustomError:
    return PydanticCustomError(code.value, "{text}", {"text": message})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def _exactly_one_of(self, names: tuple[str, ...], code: TaskFault) -> None:
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise _fault(
                code,
                f"expected exactly one of {', '.join(names)}; found {', '.join(given) or 'none'}",
            )


class HubSource(_Strict):
    """A data set on the hub."""

    repo: str = Field(pattern=_REPO_PATTERN, description="Repository, such as nyu-mll/glue.")
    config: str | None = Field(
        None, pattern=_CONFIG_PATTERN, description="Configuration (subset) of the data set."
    )
    revision: str | None = Field(
        None,
        description="Commit, best of all; or a branch (refs/convert/parquet); null: the main "
        "branch. Whatever is no commit is resolved to one when it is loaded, and that is logged.",
    )
    files: str | None = Field(
        None,
        description="Parquet files inside the repository, {split} stands for the split "
        "(default/{split}/*.parquet): for data sets that come as a script, which `datasets` no "
        "longer runs.",
    )

    @field_validator("files")
    @classmethod
    def _named_by_split(cls, value: str | None) -> str | None:
        if value is not None and (
            "{split}" not in value or ".." in value or value.startswith("/")
            or not value.endswith(".parquet")
        ):  # fmt: skip
            raise _fault(
                TaskFault.HUB_FILES,
                "expected a pattern of parquet files with {split} in it, "
                f"such as default/{{split}}/*.parquet, not {value[:60]!r}",
            )
        return value


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
        self._exactly_one_of(("generator", "path", "hub"), TaskFault.SOURCE_KIND)
        if (self.generator is None) != (self.dataset is None):
            raise _fault(
                TaskFault.GENERATOR_DATASET, "dataset goes with generator, and with nothing else"
            )
        return self


class Splits(_Strict):
    """Which split serves what; shots and training rows never come from the scored one.

    A split may be cut: ``train[:1000]``, ``train[1000:]``; two cuts of one split that do not
    overlap count as two splits.
    """

    score: str | None = Field(
        description="Split that is scored; its labels must be public. null: tuning only."
    )
    shots: str | None = Field(None, description="Split few-shot examples are drawn from.")
    train: str | None = Field(None, description="Split adapters are tuned on.")

    @field_validator("score", "shots", "train")
    @classmethod
    def _well_named(cls, value: str | None) -> str | None:
        if value is not None:
            _, start, stop = split_range(value)
            if stop is not None and stop <= start:
                raise _fault(TaskFault.SPLIT_NAME, f"{value[:60]!r} holds no rows")
        return value

    @model_validator(mode="after")
    def _apart(self) -> Splits:
        if self.score is None:
            if self.train is None:
                raise _fault(
                    TaskFault.TUNING_WITHOUT_TRAIN, "expected score, or train where score is null"
                )
            return self
        for role in ("shots", "train"):
            other = getattr(self, role)
            if other is not None and _overlap(self.score, other):
                raise _fault(
                    TaskFault.SCORED_SPLIT_REUSED,
                    f"{role} may not be the scored split {self.score!r}: its rows would leak; name "
                    f"another, or cut it ({self.score.partition('[')[0]}[:100])",
                )
        return self


def split_range(split: str) -> tuple[str, int, int | None]:
    """``train[5:9]`` -> ("train", 5, 9); ``test`` -> ("test", 0, None)."""
    match = _SPLIT.match(split)
    if match is None:
        raise _fault(
            TaskFault.SPLIT_NAME,
            f"expected a name such as test or train[:1000], not {split[:60]!r}",
        )
    name, start, stop = match.groups()
    return name, int(start or 0), int(stop) if stop else None


def _overlap(one: str, other: str) -> bool:
    (name, start, stop), (name_b, start_b, stop_b) = split_range(one), split_range(other)
    return name == name_b and (
        (stop_b is None or start < stop_b) and (stop is None or start_b < stop)
    )


class Gold(_Strict):
    """Column of the right answer: an index, a label or a choice's text, unless told otherwise."""

    column: str
    map: dict[str, int] | None = Field(None, description="Value of the column -> choice index.")
    among: str | None = Field(
        None, description="Column that lists the choices' keys (choices.label: A, B, C, D)."
    )
    above: float | None = Field(
        None, description="A number: greater than this is choice 1, else choice 0."
    )
    reading: Literal["index", "text"] | None = Field(
        None,
        description="What a value is that could be both a choice's number and another's text.",
    )

    @field_validator("map", mode="before")
    @classmethod
    def _text_keys(cls, value: Any) -> Any:
        return {str(k): v for k, v in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one_reading(self) -> Gold:
        given = [n for n in ("map", "among", "above", "reading") if getattr(self, n) is not None]
        if len(given) > 1:
            raise _fault(
                TaskFault.GOLD_READING,
                f"expected one of map, among, above, reading; found {' and '.join(given)}",
            )
        return self


Cleaning = Literal["headings"]


class Join(_Strict):
    """Several texts as one: the answers of a question, in the order of their columns."""

    columns: list[str] = Field(
        min_length=1, description="Columns of one text each, or of a list of texts."
    )
    each: str = Field(
        EACH,
        description="How each is written; {letter}: A, B, C, ...; {number}: 1, 2, 3, ...",
    )
    between: str = Field(" ", description="What stands between two.")

    @field_validator("each")
    @classmethod
    def _holds_the_text(cls, value: str) -> str:
        try:
            parts = [part[1:] for part in Formatter().parse(value) if part[1] is not None]
        except ValueError:
            parts = []
        plain = all(name in ("letter", "number", "text") and not how and not conversion
                    for name, how, conversion in parts)  # fmt: skip
        if not plain or [name for name, *_ in parts].count("text") != 1:
            raise _fault(
                TaskFault.FIELD_KIND,
                f"expected {{text}} once, and {{letter}} or {{number}}, not {value[:60]!r}",
            )
        return value


class FieldSource(_Strict):
    """A template variable that is more than a column."""

    column: str | None = Field(None, description="Column (a.b for nested, a.0 for list entries).")
    clean: Cleaning | None = Field(
        None, description="headings: how-to headings in [brackets] are taken out of the text."
    )
    columns: list[str] | None = Field(None, description="Columns of which `gold` picks one.")
    gold: Gold | None = Field(None, description="With columns: which of them.")
    join: Join | None = Field(None, description="Several texts, written one after the other.")
    text: str | None = Field(None, description="The same text in every row (may be empty).")
    messages: str | None = Field(None, description="Column of chat messages (role, content).")
    part: Literal["prompt", "turns"] = Field(
        "prompt",
        description="Of messages: the text before the last answer, or its list of turns.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> FieldSource:
        kinds = ("column", "columns", "join", "text", "messages")
        self._exactly_one_of(kinds, TaskFault.FIELD_KIND)
        if (self.columns is None) != (self.gold is None):
            raise _fault(TaskFault.FIELD_KIND, "columns and gold go together")
        return self


class Choices(_Strict):
    """Choice texts: fixed labels, a list column, or several columns."""

    labels: list[str] | None = Field(None, description="Label names in gold order, for every row.")
    column: str | None = Field(
        None,
        description="Column that holds a list of texts (choices.text also looks into lists of "
        "mappings and mappings of lists).",
    )
    columns: list[str] | None = Field(None, description="Columns that hold one text each.")
    words: dict[str, list[str]] = Field(
        {},
        description="Label -> texts it stands for, where a prompt has no words of its own: several "
        "texts for a label that is coarser than what models are tuned to say. Other labels are "
        "shown as they are.",
    )
    clean: Cleaning | None = Field(None, description="As for fields.")
    order: Literal["given", "shuffled"] = Field(
        "given",
        description="shuffled: an order of its own for each row, from a hash of the row, for data "
        "sets whose right choice always stands in one place. Needs gold given as text.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Choices:
        self._exactly_one_of(("labels", "column", "columns"), TaskFault.CHOICES_KIND)
        several = self.labels if self.labels is not None else self.columns
        if several is not None and (len(several) < 2 or len(set(several)) != len(several)):
            raise _fault(
                TaskFault.CHOICES_SAME, "expected at least two different entries, none twice"
            )
        unknown = [label for label in self.words if label not in (self.labels or ())]
        if unknown:
            raise _fault(TaskFault.CHOICES_KIND, f"words: {unknown[0]!r} is not one of the labels")
        shown = [w for label in self.labels or () for w in self.words.get(label, [label])]
        if self.labels and (len(set(shown)) != len(shown) or not all(w.strip() for w in shown)):
            raise _fault(
                TaskFault.CHOICES_SAME, "words: no text may be empty or stand for two labels"
            )
        if any(not texts for texts in self.words.values()):
            raise _fault(TaskFault.CHOICES_SAME, "words: a label needs at least one text")
        return self

    @field_validator("labels", mode="before")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        if isinstance(value, list) and any(isinstance(item, bool) for item in value):
            raise _fault(
                TaskFault.LABELS_NOT_TEXT,
                'quote yes/no labels: YAML reads them as true/false ("yes", "no")',
            )
        return value


class References(_Strict):
    """Column of the reference text (or list of texts)."""

    column: str | None = None
    messages: str | None = Field(
        None, description="Column of chat messages: the last turn of the assistant."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> References:
        self._exactly_one_of(("column", "messages"), TaskFault.REFERENCE_KIND)
        return self


class Generation(_Strict):
    """When greedy generation ends."""

    max_tokens: int = Field(32, ge=1, le=2**31 - 1, description="New tokens at most.")
    stops: list[str] = Field(
        ["\n"],
        description="Strings that end a text, once something visible was written. Generation goes "
        "on past them, and the raw text is kept too.",
    )

    @field_validator("stops")
    @classmethod
    def _not_empty(cls, value: list[str]) -> list[str]:
        if any(not stop for stop in value):
            raise _fault(TaskFault.EMPTY_STOP, "a stop string may not be empty; take it out")
        return value


class TaskDefinition(_Strict):
    """One task file."""

    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(
        ge=1, le=2**31 - 1, description="Raise it when documents or their meaning change."
    )
    group: str = Field(pattern=NAME_PATTERN, description="Prompt group: prompts/<group>/.")
    description: str = ""
    licence: str = Field("", description="Licence of the data.")
    citation: str = ""
    home: str = Field("", description="Where the hub copy lives today, in words.")
    published: str = Field(
        "",
        description="Why scores are not comparable with those of a published study, in words that "
        "reports repeat; empty: nothing is known against it.",
    )
    output_type: OutputType
    tuned_by: str | None = Field(None, description="Tuning whose table group this belongs to.")
    domain: Literal["in", "out", "none"] = "none"
    source: Source
    splits: Splits
    fields: dict[str, str | FieldSource] = Field(
        description="Template variable -> column (a.b for nested, a.0 for list entries)."
    )
    cluster: str | None = Field(
        None,
        description="One of the fields: documents that share its text (a passage, a premise) hang "
        "together, and intervals count them as one.",
    )
    choices: Choices | None = None
    gold: Gold | None = None
    references: References | None = None
    generation: Generation | None = None
    metrics: list[str] = Field(min_length=1)
    primary: str = Field(description="The metric declared primary before anything is scored.")
    baseline: Literal["auto", "majority", "uniform", "constant", "none"] = Field(
        "auto",
        description="The floor of the primary metric. majority: the most frequent label; uniform: "
        "1 / choices; constant: the best single reference as everybody's answer. auto: majority "
        "where labels are fixed, uniform where each row has its own choices, constant where text "
        "is generated.",
    )

    @field_validator("fields")
    @classmethod
    def _variables(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in value:
            if not re.match(r"^[A-Za-z_]\w*$", name) or name in _RESERVED_FIELDS:
                raise _fault(
                    TaskFault.FIELD_NAME, f"{name!r} cannot be a template variable; rename it"
                )
        return value

    @model_validator(mode="after")
    def _cluster_is_a_field(self) -> TaskDefinition:
        if self.cluster is not None and self.cluster not in self.fields:
            raise _fault(
                TaskFault.FIELD_NAME,
                f"cluster: {self.cluster!r} is none of the fields {', '.join(self.fields)}",
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> TaskDefinition:
        wanted, unwanted = (
            (("choices", "gold"), ("references",))
            if self.output_type == "multiple_choice"
            else (("references",), ("choices", "gold"))
        )
        missing = [part for part in wanted if getattr(self, part) is None]
        if missing:
            raise _fault(
                TaskFault.PARTS_MISSING,
                f"{self.output_type} needs {' and '.join(wanted)}; add {', '.join(missing)}",
            )
        extra = [part for part in unwanted if getattr(self, part) is not None]
        if self.generation is not None and self.output_type.startswith("loglikelihood"):
            extra.append("generation")
        if extra:
            raise _fault(
                TaskFault.PARTS_UNWANTED,
                f"{self.output_type} takes no {' and no '.join(extra)}; remove it",
            )
        return self

    @model_validator(mode="after")
    def _gold_in_range(self) -> TaskDefinition:
        if self.choices is None or self.gold is None:
            return self
        labels, gold = self.choices.labels, self.gold
        if self.choices.order == "shuffled" and (labels or gold.map or gold.among or gold.above):
            raise _fault(
                TaskFault.GOLD_READING,
                "shuffled choices need choices of each row and gold given as a choice's text",
            )
        if labels:
            indices = [0, *(gold.map or {}).values(), int(gold.above is not None)]
            least, most = min(indices), max(indices)
            if most >= len(labels) or least < 0:
                raise _fault(
                    TaskFault.GOLD_OUT_OF_RANGE,
                    f"gold reaches from {least} to {most}, the labels from 0 to {len(labels) - 1}",
                )
        return self

    @model_validator(mode="after")
    def _metrics_fit(self) -> TaskDefinition:
        if len(set(self.metrics)) != len(self.metrics):
            raise _fault(TaskFault.METRIC_TWICE, f"metrics {self.metrics} name one twice")
        if self.primary not in self.metrics:
            raise _fault(
                TaskFault.PRIMARY_NOT_A_METRIC,
                f"primary {self.primary!r} should be one of metrics {self.metrics}",
            )
        return self
