"""Scoring and generation of a unit in one call, and text past its stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evalcore.engines.protocol import Engine
from evalcore.engines.text import first_stop
from evalcore.types import GenerateBatch, GenerateResult, ScoreBatch, ScoreResult


def score_and_generate(
    engine: Engine, batch: ScoreBatch, generations: Sequence[GenerateBatch]
) -> tuple[ScoreResult, list[GenerateResult]]:
    """What the engine answers; with ``run_on`` generation goes past the stop strings.

    A stop string then cuts the text but not the generation: the token count is that of the raw
    text, and ``stop`` means that the cut text ends by a stop string or an end token.
    """
    asked = [_unstopped(wanted) if wanted.settings.run_on else wanted for wanted in generations]
    answers, made = engine.score_and_generate(batch, asked)
    return answers, [
        _cut(result, wanted.settings.stops) if wanted.settings.run_on else result
        for wanted, result in zip(generations, made, strict=True)
    ]


def _unstopped(batch: GenerateBatch) -> GenerateBatch:
    return replace(batch, settings=replace(batch.settings, stops=(), run_on=False))


def _cut(raw: GenerateResult, stops: Sequence[str]) -> GenerateResult:
    cuts = [first_stop(text, stops) for text in raw.texts]
    return replace(
        raw,
        texts=[text[:at] for text, at in zip(raw.texts, cuts, strict=True)],
        raw_texts=list(raw.texts),
        finish_reasons=[
            reason if at is None else "stop"
            for reason, at in zip(raw.finish_reasons, cuts, strict=True)
        ],
    )
