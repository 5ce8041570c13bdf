"""The tables of a results folder; the only place where their columns are named.

A column of the cells table is one entry of :data:`CELL_COLUMNS`; rows written before are null
there. Raise :data:`SCHEMA_VERSION` whenever a column is added or changes its name, type or meaning;
where rows of the version before need more than nulls, :data:`evalcore.store.migration.MIGRATIONS`
says how they become such rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from evalcore import __version__
from evalcore.errors import IncompatibleError
from evalcore.types import (
    Adapter,
    Cell,
    Checkpoint,
    Document,
    EncodingSettings,
    GenerationSettings,
    Subject,
    Task,
    Variant,
    generation_of,
)

if TYPE_CHECKING:
    from evalcore.identity import NumericsClass

SCHEMA_VERSION = 3

NO_ADAPTER = "(base)"
"""``adapter`` of an untuned checkpoint: a name, for a null is dropped by pandas' ``groupby``."""
MAKER_COLUMN = "maker"
"""In joined tables: the record behind ``made_by`` as one line of text."""
FULLY_TUNED = "(full)"
"""``adapter`` of a checkpoint that was tuned in all its parameters."""

EXAMPLE_SCHEMA: pa.Schema = pa.schema(
    [
        pa.field("cell", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("doc_id", pa.large_string(), nullable=False),
        pa.field("doc_index", pa.int32()),
        pa.field("gold", pa.int32()),
        pa.field("golds", pa.list_(pa.int32())),
        pa.field("prediction", pa.int32()),
        pa.field("choice_logprobs", pa.list_(pa.float64())),
        pa.field("choice_tokens", pa.list_(pa.int32())),
        pa.field("choice_bytes", pa.list_(pa.int32())),
        pa.field("choice_chars", pa.list_(pa.int32())),
        pa.field("is_greedy", pa.list_(pa.bool_())),
        pa.field("unconditional_logprobs", pa.list_(pa.float64())),
        pa.field("text", pa.large_string()),
        pa.field("raw_text", pa.large_string()),
        pa.field("references", pa.list_(pa.large_string())),
        pa.field("gen_tokens", pa.int32()),
        pa.field("finish_reason", pa.string()),
        pa.field("prompt_tokens", pa.int32()),
        pa.field("computed_tokens", pa.int32()),
        pa.field("cached_tokens", pa.int32()),
        pa.field("shots", pa.int32()),
        pa.field("shots_dropped", pa.int32()),
        pa.field("truncated_tokens", pa.int32()),
        pa.field("flags", pa.list_(pa.string())),
        pa.field("made_by", pa.dictionary(pa.int32(), pa.string())),
    ]
)
"""One row per (cell, document); what an engine said, nothing derived from it but the prediction.

Text that there may be much of has 64-bit offsets: all rows of a column may pass 2 GiB."""


@dataclass(frozen=True)
class CellFacts:
    """What a row of the cells table is made of.

    Attributes:
        baseline: What a trivial answer scores.
        documents: Those to score.
        data: Fingerprint of all documents' content.
        asked: Key of the cell whatever its data; None: answers are not kept when the data changes.
        versions: Of the packages that decide numbers, as JSON.
        requests: Name of the file of encoded prompts.
        key_version: Of the cell's key.
        findings: What the checks found; None where they are told apart from the cell.
    """

    cell: Cell
    settings: EncodingSettings
    numerics: NumericsClass
    baseline: float
    documents: Sequence[Document]
    data: str
    asked: str | None
    versions: str
    requests: str
    key_version: int
    findings: Sequence[str] | None = None

    @property
    def subject(self) -> Subject:
        return self.cell.subject

    @property
    def checkpoint(self) -> Checkpoint:
        return self.cell.subject.checkpoint

    @property
    def adapter(self) -> Adapter | None:
        return self.cell.subject.adapter

    @property
    def task(self) -> Task:
        return self.cell.task

    @property
    def variant(self) -> Variant:
        return self.cell.variant

    @cached_property
    def generation(self) -> GenerationSettings | None:
        return generation_of(self.task, self.variant)

    @property
    def num_choices(self) -> int:
        return max((len(document.choices) for document in self.documents), default=0)

    @property
    def template(self) -> str | None:
        """Fingerprint of the chat template; None where none is asked through."""
        return self.checkpoint.template_fingerprint if self.variant.chat else None

    @property
    def template_date(self) -> str | None:
        """The day the chat template writes; None where it writes none."""
        dated = self.variant.chat and self.checkpoint.template_dated
        return self.variant.chat_date if dated else None

    @property
    def ends(self) -> list[int] | None:
        """Tokens that end what is generated; None where nothing is."""
        if self.generation is None:
            return None
        ends = set(self.checkpoint.end_tokens or ())
        if self.variant.chat and self.variant.template and self.checkpoint.turn_end is not None:
            ends.add(self.checkpoint.turn_end)
        return sorted(ends)


def adapter_name(subject: Subject) -> str:
    """What the results call a subject's adapter; also one without has a name there."""
    if subject.adapter is not None:
        return subject.adapter.name
    return NO_ADAPTER if subject.base_id is None else FULLY_TUNED


def of(thing: object, name: str) -> Any:
    """An attribute of a thing that may not be there."""
    return None if thing is None else getattr(thing, name)


Part = Literal["subject", "question", "pair", "cell"]


@dataclass(frozen=True)
class Column:
    """A column of the cells table: its name, its type, and where its value comes from.

    Attributes:
        part: What the value hangs on: the subject (and the numerics, which its checkpoint decides),
            the question (all but the subject), the pair of checkpoint and question, or (safe, and
            slow in large grids) the cell. Equal parts have equal values.
    """

    name: str
    type: pa.DataType
    value: Callable[[CellFacts], Any]
    part: Part = "cell"


CELL_COLUMNS: tuple[Column, ...] = (
    Column("cell", pa.string(), lambda c: c.cell.key),
    Column("checkpoint", pa.string(), lambda c: c.checkpoint.name, "subject"),
    Column("step", pa.int64(), lambda c: c.checkpoint.step, "subject"),
    Column("checkpoint_fingerprint", pa.string(), lambda c: c.checkpoint.fingerprint, "subject"),
    Column("checkpoint_source", pa.string(), lambda c: c.checkpoint.source, "subject"),
    Column("revision", pa.string(), lambda c: c.checkpoint.revision, "subject"),
    Column("adapter", pa.string(), lambda c: adapter_name(c.subject), "subject"),
    Column("adapter_fingerprint", pa.string(), lambda c: of(c.adapter, "fingerprint"), "subject"),
    Column("adapter_source", pa.string(), lambda c: of(c.adapter, "path"), "subject"),
    Column("tuning", pa.string(), lambda c: c.subject.tuning, "subject"),
    Column("tuned_on", pa.string(), lambda c: c.subject.tuned_on, "subject"),
    Column("method", pa.string(), lambda c: c.subject.method, "subject"),
    Column("control", pa.string(), lambda c: c.subject.control, "subject"),
    Column("seed", pa.int64(), lambda c: c.subject.seed, "subject"),
    Column("tuning_step", pa.int64(), lambda c: c.subject.made.tuning_step, "subject"),
    Column("labels_from", pa.string(), lambda c: c.subject.made.labels_from, "subject"),
    Column("subject", pa.string(), lambda c: c.subject.id, "subject"),
    Column("base", pa.string(), lambda c: c.subject.base_id, "subject"),
    Column("untrained", pa.bool_(), lambda c: bool(c.adapter and c.adapter.untrained), "subject"),
    Column("task", pa.string(), lambda c: c.task.name, "question"),
    Column("task_version", pa.int32(), lambda c: c.task.version, "question"),
    Column("task_fingerprint", pa.string(), lambda c: c.task.fingerprint, "question"),
    Column("group", pa.string(), lambda c: c.task.group, "question"),
    Column("tuned_by", pa.string(), lambda c: c.task.tuned_by, "question"),
    Column("domain", pa.string(), lambda c: c.task.domain, "question"),
    Column("output_type", pa.string(), lambda c: c.task.output_type, "question"),
    Column("primary_metric", pa.string(), lambda c: c.task.primary, "question"),
    Column("metrics", pa.list_(pa.string()), lambda c: list(c.task.metrics), "question"),
    Column("baseline", pa.float64(), lambda c: c.baseline, "question"),
    Column("num_choices", pa.int32(), lambda c: c.num_choices, "question"),
    Column("variant", pa.string(), lambda c: c.variant.name, "question"),
    Column("variant_fingerprint", pa.string(), lambda c: c.variant.fingerprint, "question"),
    Column("shots", pa.int32(), lambda c: c.variant.shots, "question"),
    Column("shots_seed", pa.int32(), lambda c: c.variant.shots_seed, "question"),
    Column("shots_order", pa.int32(), lambda c: c.variant.shots_order, "question"),
    Column("shots_balance", pa.bool_(), lambda c: c.variant.shots_balance, "question"),
    Column("chat", pa.bool_(), lambda c: c.variant.chat, "question"),
    Column("listing", pa.string(), lambda c: c.variant.listing, "question"),
    Column("answer", pa.string(), lambda c: c.variant.answer, "question"),
    Column(
        "stops", pa.list_(pa.string()), lambda c: list(of(c.generation, "stops") or ()), "question"
    ),
    Column("max_tokens", pa.int32(), lambda c: of(c.generation, "max_tokens"), "question"),
    Column("max_length", pa.int32(), lambda c: c.settings.max_length, "question"),
    Column("engine", pa.string(), lambda c: c.numerics.engine, "subject"),
    Column("dtype", pa.string(), lambda c: c.numerics.dtype, "subject"),
    Column("head_dtype", pa.string(), lambda c: c.numerics.head_dtype, "subject"),
    Column("device", pa.string(), lambda c: c.numerics.device, "subject"),
    Column("numerics", pa.string(), lambda c: c.numerics.label, "subject"),
    Column("findings", pa.list_(pa.string()), lambda c: c.findings, "question"),
    Column("evalcore_version", pa.string(), lambda c: __version__, "question"),
    Column("versions", pa.string(), lambda c: c.versions, "question"),
    Column("data", pa.string(), lambda c: c.data, "question"),
    Column("asked", pa.string(), lambda c: c.asked),
    Column("template", pa.string(), lambda c: c.variant.template, "question"),
    Column("target", pa.string(), lambda c: c.variant.target, "question"),
    Column("requests", pa.string(), lambda c: c.requests, "question"),
    Column("recorded", pa.string(), lambda c: None, "question"),
    Column("key_version", pa.int32(), lambda c: c.key_version, "question"),
    Column("tokenizer", pa.string(), lambda c: c.checkpoint.tokenizer_fingerprint, "subject"),
    Column("chat_template", pa.string(), lambda c: c.template, "pair"),
    Column("chat_args", pa.string(), lambda c: c.variant.chat_args or None, "question"),
    Column("template_date", pa.string(), lambda c: c.template_date, "pair"),
    Column("end_tokens", pa.list_(pa.int32()), lambda c: c.ends, "pair"),
)
"""Everything that is the same for all documents of a cell; ``recorded`` is the store's own."""

CELL_SCHEMA: pa.Schema = pa.schema(
    [pa.field(column.name, column.type, column.name != "cell") for column in CELL_COLUMNS]
)
"""One row per cell: everything that is the same for all its documents.

``recorded``: when a run last asked for this definition (UTC, as in file names). ``data`` names the
task's documents, ``requests`` the file of encoded prompts, both for the store's own tables. How it
was asked (docs/identity.md): ``tokenizer`` and ``chat_template`` are fingerprints, the latter and
``chat_args`` of chats, ``template_date`` where a template writes it, ``end_tokens`` where text is
generated; ``key_version`` null: made before version 3 of the keys."""


def cell_row(facts: CellFacts) -> dict[str, Any]:
    """One row of :data:`CELL_SCHEMA`."""
    return {column.name: column.value(facts) for column in CELL_COLUMNS}


DOCUMENT_SCHEMA: pa.Schema = pa.schema(
    [
        pa.field("task", pa.string(), nullable=False),
        pa.field("data", pa.string()),
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("doc_index", pa.int32()),
        pa.field("fields", pa.large_string()),
        pa.field("choices", pa.list_(pa.large_string())),
        pa.field("gold", pa.int32()),
        pa.field("golds", pa.list_(pa.int32())),
        pa.field("references", pa.list_(pa.large_string())),
    ]
)
"""One row per document of a task; ``fields`` is JSON: what templates may use."""


def joined_name(column: str) -> str:
    """Name of a cell column in the joined table: ``cell_<name>`` where the examples have it too."""
    taken = column != "cell" and column in EXAMPLE_SCHEMA.names
    return f"cell_{column}" if taken else column


def conform(
    rows: pa.Table | pa.RecordBatch | list[dict[str, Any]], schema: pa.Schema, what: str
) -> pa.Table:
    """Gives ``rows`` exactly the columns, order and types of ``schema``.

    Columns left out become null; unknown columns and nulls in keys are refused.

    Raises:
        IncompatibleError: Rows do not fit; the message names the column.
    """
    if isinstance(rows, pa.RecordBatch):
        rows = pa.Table.from_batches([rows])
    if isinstance(rows, pa.Table) and rows.schema.equals(schema):
        _require_keys(rows.columns, schema, what)
        return pa.Table.from_arrays(rows.columns, schema=schema)
    names = rows.column_names if isinstance(rows, pa.Table) else {k for row in rows for k in row}
    unknown = sorted(set(names) - set(schema.names))
    if unknown:
        raise IncompatibleError(
            f"{what}: unknown column {unknown[0]!r}; expected columns of schema {SCHEMA_VERSION}: "
            f"{', '.join(schema.names)}"
        )
    columns = []
    for field in schema:
        try:
            columns.append(_column(rows, field))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise IncompatibleError(
                f"{what}: column {field.name!r} does not fit type {field.type}: {error}"
            ) from error
    _require_keys(columns, schema, what)
    return pa.Table.from_arrays(columns, schema=schema)


def _require_keys(
    columns: Sequence[pa.Array | pa.ChunkedArray], schema: pa.Schema, what: str
) -> None:
    for field, column in zip(schema, columns, strict=True):
        if not field.nullable and column.null_count:
            raise IncompatibleError(f"{what}: column {field.name!r} has an empty value")


def _column(rows: pa.Table | list[dict[str, Any]], field: pa.Field) -> pa.Array | pa.ChunkedArray:
    if not isinstance(rows, pa.Table):
        values = [row.get(field.name) for row in rows]
        if pa.types.is_dictionary(field.type):
            plain = pa.array(values, type=field.type.value_type)
            return plain.dictionary_encode().cast(field.type)
        return pa.array(values, type=field.type)
    if field.name not in rows.column_names:
        return pa.nulls(rows.num_rows, type=field.type)
    column = rows.column(field.name)
    if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(column.type):
        column = column.cast(field.type.value_type).dictionary_encode()
    return column if column.type == field.type else column.cast(field.type)
