"""Engine answers -> rows of ``store.EXAMPLE_SCHEMA``, column by column (no Python loop over rows
where an array will do)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.prompting import request_costs
from evalcore.scoring.answers import constrained_choice, written_choice
from evalcore.scoring.batching import GenerateRequests, ScoreRequests
from evalcore.scoring.texts import ChoiceTexts
from evalcore.store import EXAMPLE_SCHEMA
from evalcore.types import AnswerWay, FloatArray, GenerateResult, OffsetArray, ScoreResult

_CARRIED = (
    "doc_id", "doc_index", "gold", "golds", "choice_bytes", "choice_chars", "references", "shots",
    "shots_dropped", "truncated_tokens", "flags",
)  # fmt: skip


def continuation_logprobs(
    requests: ScoreRequests, result: ScoreResult, slots: OffsetArray
) -> FloatArray:
    """float64 [len(slots)]: summed log-probability of each of these continuations."""
    if not len(slots):
        return np.zeros(0, dtype=np.float64)
    sums = np.add.reduceat(result.token_logprobs, requests.batch.continuation_offsets[:-1])
    return sums[slots]


def first_argmax(values: FloatArray, offsets: OffsetArray) -> np.ndarray:
    """int32 [examples]: index of each group's largest value, the first of equals; -1 if empty."""
    out = np.full(len(offsets) - 1, -1, dtype=np.int32)
    sizes = np.diff(offsets)
    filled = np.flatnonzero(sizes)
    if len(filled):
        starts = offsets[filled] - offsets[0]
        values = values[offsets[0] : offsets[-1]]
        owner = np.repeat(np.arange(len(filled)), sizes[filled])
        best = np.flatnonzero(values == np.maximum.reduceat(values, starts)[owner])
        first = np.unique(owner[best], return_index=True)[1]
        out[filled] = best[first] - starts
    return out


def _constant(value: str | None, n: int) -> pa.Array:
    """The same text in every row."""
    if value is None:
        return pa.nulls(n, pa.dictionary(pa.int32(), pa.string()))
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([value]))


def example_rows(
    cell: str,
    table: pa.Table,
    scored: ScoreRequests,
    answers: ScoreResult,
    first: int,
    *,
    answer: AnswerWay | None = None,
    generated: tuple[GenerateRequests, GenerateResult] | None = None,
) -> pa.Table:
    """Rows of one cell.

    Args:
        cell: The cell's key.
        table: The cell's slice of its request table (n rows).
        scored: Requests of the whole unit; this slice's examples start at ``first`` in it.
        answers: The engine's answer to ``scored.batch``.
        first: Where the slice starts among the unit's examples.
        answer: How a choice is made (multiple choice); None where there is none to make.
        generated: Requests of this slice alone and their answer, where something is generated.

    Returns:
        Table of n rows with exactly ``EXAMPLE_SCHEMA``; what made them is null.
    """
    n = len(table)
    bounds = scored.choice_offsets[first : first + n + 1]
    slots, offsets = scored.slots[bounds[0] : bounds[-1]], bounds - bounds[0]
    computed, cached, prompt = _token_counts(table, scored, answers, first)
    columns: dict[str, pa.Array | pa.ChunkedArray] = {name: table[name] for name in _CARRIED}
    columns |= {
        "cell": _constant(cell, n),
        "unconditional_logprobs": _unconditional(scored, answers, first, n),
    }
    texts = ChoiceTexts.of(table, offsets)
    logprobs = continuation_logprobs(scored, answers, slots)
    columns |= texts.columns(scored, answers, slots, logprobs, columns)
    if generated is not None:
        columns |= _generation_columns(*generated)
        more_computed, more_cached = _generation_counts(*generated, n)
        computed, cached = computed + more_computed, cached + more_cached
    if answer == "constrained":
        chosen = texts.choice_of(_constrained(scored, answers, slots, offsets))
    elif answer == "free":
        chosen = texts.choice_of(_written(columns["text"], table))
    elif answer is not None:
        chosen = first_argmax(texts.together(logprobs, slots), texts.choice_offsets)
    else:
        chosen = np.full(n, -1, np.int32)
    columns |= {
        "prediction": pa.array(chosen),
        "prompt_tokens": pa.array(prompt.astype(np.int32)),
        "computed_tokens": pa.array(computed.astype(np.int32)),
        "cached_tokens": pa.array(cached.astype(np.int32)),
    }
    empty = {f.name: pa.nulls(n, f.type) for f in EXAMPLE_SCHEMA if f.name not in columns}
    arrays = [_cast((columns | empty)[field.name], field) for field in EXAMPLE_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=EXAMPLE_SCHEMA)


def with_maker(rows: pa.Table, made_by: str) -> pa.Table:
    """The rows, with the id of the record of what gave the numbers."""
    at = EXAMPLE_SCHEMA.get_field_index("made_by")
    column = _cast(_constant(made_by, len(rows)), EXAMPLE_SCHEMA.field(at))
    return rows.set_column(at, EXAMPLE_SCHEMA.field(at), column)


def _unconditional(
    scored: ScoreRequests, answers: ScoreResult, first: int, n: int
) -> pa.ListArray | pa.NullArray:
    bounds = scored.unconditional_offsets[first : first + n + 1]
    slots = scored.unconditional_slots[bounds[0] : bounds[-1]]
    if not len(slots):  # most tasks never ask: null says more than empty lists
        return pa.nulls(n, EXAMPLE_SCHEMA.field("unconditional_logprobs").type)
    values = continuation_logprobs(scored, answers, slots)
    return _lists(bounds - bounds[0], pa.array(values))


def _constrained(
    scored: ScoreRequests, answers: ScoreResult, slots: OffsetArray, offsets: OffsetArray
) -> np.ndarray:
    """int32 [examples]: what greedy decoding writes that may only write choices."""
    bounds = scored.batch.continuation_offsets
    chosen = np.full(len(offsets) - 1, -1, dtype=np.int32)
    for e in range(len(chosen)):
        own = slots[offsets[e] : offsets[e + 1]]
        tokens = [scored.batch.continuation(int(s)).tolist() for s in own]
        values = [answers.token_logprobs[bounds[s] : bounds[s + 1]].tolist() for s in own]
        chosen[e] = constrained_choice(tokens, values)
    return chosen


def _written(texts: pa.Array | pa.ChunkedArray, table: pa.Table) -> np.ndarray:
    """int32 [examples]: the choice each generated text begins with."""
    pairs = zip(texts.to_pylist(), table["choices"].to_pylist(), strict=True)
    chosen = [-1 if text is None else written_choice(text, choices) for text, choices in pairs]
    return np.asarray(chosen, dtype=np.int32)


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

    ``prompt`` is what the document asks for with every piece counted once: its contexts and all
    its continuations. What an identical request of another document computed counts as cached.
    """
    n = len(table)
    prompt = request_costs(table)
    asked = np.diff(scored.choice_offsets[first : first + n + 1]) > 0
    computed = np.zeros(n, dtype=np.int64)
    cached = np.where(asked, prompt, 0)
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
        "raw_text": pa.array(
            [result.raw_texts[s] if s >= 0 and result.raw_texts else None for s in slots],
            pa.string(),
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
