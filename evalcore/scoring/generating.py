"""Scoring and generation of a unit in one call, and text past its stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evalcore.engines.protocol import Engine
from evalcore.engines.text import first_stop
from evalcore.types import (
    GenerateBatch,
    GenerateResult,
    GenerationSettings,
    ScoreBatch,
    ScoreResult,
    Subject,
)

Answer = tuple[ScoreResult, list[GenerateResult]]


def score_and_generate(
    engine: Engine, batch: ScoreBatch, generations: Sequence[GenerateBatch]
) -> Answer:
    """What the engine answers; text that runs on or thinks goes past the stop strings.

    A stop string then cuts the text but not the generation: the token count is that of the raw
    text, and ``stop`` means that the cut text ends by a stop string or an end token. Of text that
    thinks, only what comes after the thinking is the answer; nothing, if it never ends.
    """
    answers, made = engine.score_and_generate(batch, generations)
    return answers, _answered(generations, made)


def score_and_generate_many(
    engine: Engine, items: Sequence[tuple[Subject, ScoreBatch, Sequence[GenerateBatch]]]
) -> list[Answer]:
    """The same for several subjects, in one run of the engine where it can."""
    answers = engine.score_many([(subject, batch) for subject, batch, _ in items])
    asked = [(subject, wanted) for subject, _, own in items for wanted in own]
    made = iter(engine.generate_many(asked) if asked else [])
    return [
        (answer, _answered(own, [next(made) for _ in own]))
        for answer, (_, _, own) in zip(answers, items, strict=True)
    ]


def _answered(
    generations: Sequence[GenerateBatch], made: Sequence[GenerateResult]
) -> list[GenerateResult]:
    return [
        _cut(result, wanted.settings)
        if wanted.settings.run_on or wanted.settings.think_end
        else result
        for wanted, result in zip(generations, made, strict=True)
    ]


def _cut(raw: GenerateResult, settings: GenerationSettings) -> GenerateResult:
    answers = [_after_thinking(text, settings.think_end) for text in raw.texts]
    cuts = [first_stop(text, settings.stops) for text in answers]
    return replace(
        raw,
        texts=[text[:at] for text, at in zip(answers, cuts, strict=True)],
        raw_texts=list(raw.texts),
        finish_reasons=[
            reason if at is None else "stop"
            for reason, at in zip(raw.finish_reasons, cuts, strict=True)
        ],
    )


def _after_thinking(text: str, end: str) -> str:
    """The answer: all of a text that does not think, nothing of one that never stops thinking."""
    if not end:
        return text
    _, found, answer = text.rpartition(end)
    if found:
        return answer.lstrip()
    return "" if text.lstrip().startswith(end.replace("/", "", 1)) else text
