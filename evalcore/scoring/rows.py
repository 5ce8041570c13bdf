"""Engine answers -> rows of ``store.EXAMPLE_SCHEMA``, column by column (no Python loop over rows
where an array will do)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.scoring.batching import GenerateRequests, ScoreRequests
from evalcore.store import EXAMPLE_SCHEMA
from evalcore.types import FloatArray, GenerateResult, OffsetArray, ScoreResult

_CARRIED = ("doc_id", "doc_index", "gold", "choice_bytes", "choice_chars", "references")


def continuation_logprobs(requests: ScoreRequests, result: ScoreResult) -> FloatArray:
    """float64 [choices]: summed log-probability of each choice of each example, in order."""
    if not len(requests.slots):
        return np.zeros(0, dtype=np.float64)
    sums = np.add.reduceat(result.token_logprobs, requests.batch.continuation_offsets[:-1])
    return sums[requests.slots]


def first_argmax(values: FloatArray, offsets: OffsetArray) -> np.ndarray:
    """int32 [examples]: index of each group's largest value, the first of equals; -1 if empty."""
    out = np.full(len(offsets) - 1, -1, dtype=np.int32)
    for e in range(len(out)):
        if offsets[e + 1] > offsets[e]:
            out[e] = int(np.argmax(values[offsets[e] : offsets[e + 1]]))
    return out


def example_rows(
    cell: str,
    table: pa.Table,
    scored: ScoreRequests,
    answers: ScoreResult,
    first: int,
    *,
    predict: bool,
    generated: tuple[GenerateRequests, GenerateResult] | None = None,
) -> pa.Table:
    """Rows of one cell.

    Args:
        cell: The cell's key.
        table: The cell's slice of its request table (n rows).
        scored: Requests of the whole unit; this slice's examples start at ``first`` in it.
        answers: The engine's answer to ``scored.batch``.
        first: Where the slice starts among the unit's examples.
        predict: Whether the arg max over choices is the prediction (multiple choice).
        generated: Requests of this slice alone and their answer, for generation.

    Returns:
        Table of n rows with exactly ``EXAMPLE_SCHEMA``.
    """
    n = len(table)
    bounds = scored.choice_offsets[first : first + n + 1]
    own, offsets = slice(int(bounds[0]), int(bounds[-1])), bounds - bounds[0]
    logprobs = continuation_logprobs(scored, answers)[own]
    slots = scored.slots[own]
    lengths = np.diff(scored.batch.continuation_offsets)[slots]
    computed, cached, prompt = _token_counts(table, scored, answers, first)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {name: table[name] for name in _CARRIED}
    columns |= {
        "cell": pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([cell])),
        "prediction": pa.array(
            first_argmax(logprobs, offsets) if predict else np.full(n, -1, np.int32)
        ),
        "choice_logprobs": _lists(offsets, pa.array(logprobs)),
        "choice_tokens": _lists(offsets, pa.array(lengths.astype(np.int32))),
        "is_greedy": _lists(offsets, pa.array(answers.is_greedy[slots])),
        "shots": table["shots"],
        "shots_dropped": table["shots_dropped"],
        "flags": table["flags"],
    }
    if generated is not None:
        columns |= _generation_columns(*generated)
        more_computed, more_cached = _generation_counts(*generated, n)
        computed, cached = computed + more_computed, cached + more_cached
    else:
        columns |= {
            "text": pa.nulls(n, pa.string()),
            "gen_tokens": pa.nulls(n, pa.int32()),
            "finish_reason": pa.nulls(n, EXAMPLE_SCHEMA.field("finish_reason").type),
        }
    columns |= {
        "prompt_tokens": pa.array(prompt.astype(np.int32)),
        "computed_tokens": pa.array(computed.astype(np.int32)),
        "cached_tokens": pa.array(cached.astype(np.int32)),
    }
    arrays = [_cast(columns[field.name], field) for field in EXAMPLE_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=EXAMPLE_SCHEMA)


def _lists(offsets: OffsetArray, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values)


def _cast(column: pa.Array | pa.ChunkedArray, field: pa.Field) -> pa.Array | pa.ChunkedArray:
    if column.type == field.type:
        return column
    if pa.types.is_dictionary(field.type) and not pa.types.is_dictionary(column.type):
        return pc.dictionary_encode(column).cast(field.type)
    return column.cast(field.type)


def _token_counts(
    table: pa.Table, scored: ScoreRequests, answers: ScoreResult, first: int
) -> tuple[OffsetArray, OffsetArray, OffsetArray]:
    """(computed, cached, prompt) int64 [n].

    ``prompt`` is what the document asks for with every piece counted once: its context and all its
    continuations. What an identical request of another document computed counts as cached.
    """
    n = len(table)
    contexts = pc.list_element(table["contexts"], 0)
    prompt = pc.list_value_length(contexts).to_numpy().astype(np.int64)
    bounds = scored.choice_offsets[first : first + n + 1]
    lengths = np.diff(scored.batch.continuation_offsets)[scored.slots]
    total = np.concatenate([[0], np.cumsum(lengths)])
    prompt += total[bounds[1:]] - total[bounds[:-1]]
    computed = np.zeros(n, dtype=np.int64)
    cached = np.where(np.diff(bounds) > 0, prompt, 0)
    mine = np.flatnonzero((scored.context_owner >= first) & (scored.context_owner < first + n))
    owner = scored.context_owner[mine] - first
    cached[owner] = 0
    np.add.at(computed, owner, answers.computed_tokens[mine])
    np.add.at(cached, owner, answers.cached_tokens[mine])
    return computed, cached, prompt


def _generation_columns(requests: GenerateRequests, result: GenerateResult) -> dict[str, pa.Array]:
    slots = [int(s) for s in requests.slots]
    return {
        "text": pa.array([result.texts[s] if s >= 0 else None for s in slots], pa.string()),
        "gen_tokens": pa.array(
            [result.token_counts[s] if s >= 0 else None for s in slots], pa.int32()
        ),
        "finish_reason": pa.array(
            [result.finish_reasons[s] if s >= 0 else None for s in slots], pa.string()
        ),
    }


def _generation_counts(
    requests: GenerateRequests, result: GenerateResult, n: int
) -> tuple[OffsetArray, OffsetArray]:
    computed, cached = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    computed[requests.context_owner] = result.computed_tokens
    cached[requests.context_owner] = result.cached_tokens
    return computed, cached
