"""The tables of a results folder; the only place where their columns are named.

Raise :data:`SCHEMA_VERSION` whenever a column is added or changes its name, type or meaning, and
say in :data:`evalcore.store.migration.MIGRATIONS` how rows of the version before become such rows.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from evalcore.errors import IncompatibleError

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

CELL_SCHEMA: pa.Schema = pa.schema(
    [
        pa.field("cell", pa.string(), nullable=False),
        pa.field("checkpoint", pa.string()),
        pa.field("step", pa.int64()),
        pa.field("checkpoint_fingerprint", pa.string()),
        pa.field("checkpoint_source", pa.string()),
        pa.field("revision", pa.string()),
        pa.field("adapter", pa.string()),
        pa.field("adapter_fingerprint", pa.string()),
        pa.field("adapter_source", pa.string()),
        pa.field("tuning", pa.string()),
        pa.field("tuned_on", pa.string()),
        pa.field("method", pa.string()),
        pa.field("control", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("tuning_step", pa.int64()),
        pa.field("labels_from", pa.string()),
        pa.field("subject", pa.string()),
        pa.field("base", pa.string()),
        pa.field("untrained", pa.bool_()),
        pa.field("task", pa.string()),
        pa.field("task_version", pa.int32()),
        pa.field("task_fingerprint", pa.string()),
        pa.field("group", pa.string()),
        pa.field("tuned_by", pa.string()),
        pa.field("domain", pa.string()),
        pa.field("output_type", pa.string()),
        pa.field("primary_metric", pa.string()),
        pa.field("metrics", pa.list_(pa.string())),
        pa.field("baseline", pa.float64()),
        pa.field("num_choices", pa.int32()),
        pa.field("variant", pa.string()),
        pa.field("variant_fingerprint", pa.string()),
        pa.field("shots", pa.int32()),
        pa.field("shots_seed", pa.int32()),
        pa.field("shots_order", pa.int32()),
        pa.field("shots_balance", pa.bool_()),
        pa.field("chat", pa.bool_()),
        pa.field("listing", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("stops", pa.list_(pa.string())),
        pa.field("max_tokens", pa.int32()),
        pa.field("max_length", pa.int32()),
        pa.field("engine", pa.string()),
        pa.field("dtype", pa.string()),
        pa.field("head_dtype", pa.string()),
        pa.field("device", pa.string()),
        pa.field("numerics", pa.string()),
        pa.field("findings", pa.list_(pa.string())),
        pa.field("evalcore_version", pa.string()),
        pa.field("versions", pa.string()),
        pa.field("data", pa.string()),
        pa.field("asked", pa.string()),
        pa.field("template", pa.string()),
        pa.field("target", pa.string()),
        pa.field("requests", pa.string()),
        pa.field("recorded", pa.string()),
        pa.field("key_version", pa.int32()),
        pa.field("tokenizer", pa.string()),
        pa.field("chat_template", pa.string()),
        pa.field("chat_args", pa.string()),
        pa.field("template_date", pa.string()),
        pa.field("end_tokens", pa.list_(pa.int32())),
    ]
)
"""One row per cell: everything that is the same for all its documents.

``recorded``: when a run last asked for this definition (UTC, as in file names). ``data`` names the
task's documents, ``requests`` the file of encoded prompts, both for the store's own tables. How it
was asked (docs/identity.md): ``tokenizer`` and ``chat_template`` are fingerprints, the latter and
``chat_args`` of chats, ``template_date`` where a template writes it, ``end_tokens`` where text is
generated; ``key_version`` null: made before version 3 of the keys."""

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
        if not field.nullable and columns[-1].null_count:
            raise IncompatibleError(f"{what}: column {field.name!r} has an empty value")
    return pa.Table.from_arrays(columns, schema=schema)


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
