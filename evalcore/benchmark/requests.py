"""Requests to measure with: synthetic ones of a given shape, or those of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from evalcore.app.flops import attended
from evalcore.errors import InputError, NodeError
from evalcore.planning import PrefixProfile, prefix_profile
from evalcore.prompting import REQUEST_SCHEMA, read_requests
from evalcore.types import IntArray, OffsetArray, ScoreBatch


@dataclass(frozen=True)
class RequestShape:
    """What synthetic requests look like; lengths are drawn evenly from 0.5 to 1.5 times the mean.

    Attributes:
        contexts: Questions, each with its own context.
        context_tokens: Tokens of a question, its shots left out.
        choices: Continuations of a context.
        continuation_tokens: Tokens of a continuation; 1 makes all of one token.
        shots: Worked examples before every question, the same for all; each as long as a question
            and a continuation.
    """

    contexts: int = 200
    context_tokens: int = 100
    choices: int = 4
    continuation_tokens: int = 5
    shots: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name == "shots" else 1
            if value < least:
                raise InputError(f"bench: {name} must be at least {least}, got {value}")

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence the shape can give, the first (BOS) token included."""
        shots = self.shots * (self.context_tokens + self.continuation_tokens)
        return 1 + shots + _most(self.context_tokens) + _most(self.continuation_tokens)


def _most(mean: int) -> int:
    return mean + mean // 2


def synthetic_requests(shape: RequestShape, vocabulary: int, seed: int = 0) -> ScoreBatch:
    """Random token ids in a shape; equal arguments give equal batches.

    The choices of a context differ in their first token, as real ones mostly do; questions share
    nothing but the shots and the first (BOS) token.

    Raises:
        InputError: The vocabulary is too small for so many choices.
    """
    if vocabulary <= shape.choices:
        raise InputError(
            f"bench: {shape.choices} choices need a vocabulary of more than that, got {vocabulary}"
        )
    rng = np.random.default_rng([seed, 20040])
    n, m = shape.contexts, shape.contexts * shape.choices
    bos = np.zeros(1, dtype=np.int32)
    shot_tokens = shape.shots * (shape.context_tokens + shape.continuation_tokens)
    head = np.concatenate([bos, rng.integers(1, vocabulary, shot_tokens, dtype=np.int32)])
    own = _lengths(rng, shape.context_tokens, n)
    context_offsets = _offsets(own + len(head))
    contexts = rng.integers(1, vocabulary, int(context_offsets[-1]), dtype=np.int32)
    contexts[context_offsets[:-1, None] + np.arange(len(head))] = head
    tails = _lengths(rng, shape.continuation_tokens, m)
    tail_offsets = _offsets(tails)
    continuations = rng.integers(1, vocabulary, int(tail_offsets[-1]), dtype=np.int32)
    first = rng.integers(0, vocabulary, n)[:, None] + np.arange(shape.choices)
    continuations[tail_offsets[:-1]] = (first % vocabulary).ravel()
    owner = np.repeat(np.arange(n, dtype=np.int32), shape.choices)
    return ScoreBatch(contexts, context_offsets, continuations, tail_offsets, owner)


def _lengths(rng: np.random.Generator, mean: int, count: int) -> OffsetArray:
    low = mean - mean // 2
    return rng.integers(low, _most(mean) + 1, count, dtype=np.int64)


def _offsets(lengths: OffsetArray) -> OffsetArray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])


def given_requests(path: Path, limit: int | None = None) -> ScoreBatch:
    """Requests of a file that a run encoded, or of all such files of a results folder.

    Args:
        path: A ``requests-*.arrow`` file, or a results folder (its ``cache``).
        limit: Only the first so many documents of each file.

    Raises:
        InputError: There are none, or a file is not one of requests.
    """
    import pyarrow as pa

    from evalcore.scoring.batching import score_requests

    files = [path] if path.is_file() else sorted((path / "cache").glob("requests-*.arrow"))
    if not files:
        raise InputError(
            f"--requests {path}: expected a request file or a results folder with "
            f"cache/requests-*.arrow; score something into it first"
        )
    tables = []
    for file in files:
        try:
            table = read_requests(file)
        except NodeError as error:
            raise InputError(f"--requests: not a readable Arrow file: {error}") from None
        missing = [n for n in ("contexts", "continuations", "flags") if n not in table.schema.names]
        if missing:
            raise InputError(
                f"--requests {file}: not a request file (column {missing[0]} is missing; "
                f"expected {', '.join(REQUEST_SCHEMA.names)})"
            )
        tables.append(table.slice(0, limit))
    batch = score_requests(pa.concat_tables(tables, promote_options="default")).batch
    if not batch.num_continuations:
        raise InputError(f"--requests {path}: its files ask for no continuation")
    return batch


def turned(batch: ScoreBatch, by: int, vocabulary: int) -> ScoreBatch:
    """The same requests in other words: every token id moved on by ``by``, round the vocabulary.

    What is shared stays shared, so that a repetition costs the same; yet no cache can answer it
    from the one before.
    """

    def move(tokens: IntArray) -> IntArray:
        return ((tokens.astype(np.int64) + by) % vocabulary).astype(np.int32)

    return replace(
        batch,
        context_tokens=move(batch.context_tokens),
        continuation_tokens=move(batch.continuation_tokens),
    )


@dataclass(frozen=True)
class RequestCounts:
    """What a batch asks for, without any clock.

    Attributes:
        examples: Contexts.
        requests: Continuations.
        prompt_tokens: Every context once and all continuations: what a person calls the prompts.
        naive_tokens: Context and continuation once per continuation: what one request per choice
            runs through the model.
        token_limit, block_limit: See ``planning.prefixes``.
        head_rows: Rows of the output head needed, at most: one a context and one for every
            continuation token but a first.
        attended: Positions attended to when the token limit is computed.
        naive_attended: The same for ``naive_tokens``.
    """

    examples: int
    requests: int
    prompt_tokens: int
    naive_tokens: int
    token_limit: int
    block_limit: int
    head_rows: int
    attended: int
    naive_attended: int

    @classmethod
    def of(cls, batch: ScoreBatch, block_size: int) -> RequestCounts:
        contexts = np.diff(batch.context_offsets)
        tails = np.diff(batch.continuation_offsets)
        whole = contexts[batch.continuation_context] + tails
        profile: PrefixProfile = prefix_profile([batch])
        return cls(
            examples=batch.num_contexts,
            requests=batch.num_continuations,
            prompt_tokens=int(contexts.sum() + tails.sum()),
            naive_tokens=int(whole.sum()),
            token_limit=profile.token_limit,
            block_limit=profile.block_limit(block_size),
            head_rows=int(batch.num_contexts + (tails - 1).sum()),
            attended=attended(profile.lengths, profile.shared),
            naive_attended=attended(whole),
        )


def longest_sequence(batches: Sequence[ScoreBatch]) -> int:
    """Tokens of the longest context + continuation."""
    return max(
        int(
            (
                np.diff(b.context_offsets)[b.continuation_context] + np.diff(b.continuation_offsets)
            ).max()
        )
        for b in batches
    )


def largest_token(batches: Sequence[ScoreBatch]) -> int:
    """The largest token id asked for."""
    return max(int(max(b.context_tokens.max(), b.continuation_tokens.max())) for b in batches)
