"""Scoring and generation of a unit in one call, and text past its stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evalcore.engines.protocol import Engine
from evalcore.engines.text import first_stop
from evalcore.shown import visible_start
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
    text. Text that runs on is cut after its first visible character only: an answer that begins on
    a new line has not ended there, nor one that begins with a mark that writes nothing (of
    direction, of byte order: :func:`evalcore.shown.is_visible`). Of text that thinks, only what
    comes after the thinking is the answer; nothing, if it never ends. Why a text ended: ``stop`` an
    end token, or nothing visible after the stop string; ``run_on`` a stop string past which the
    model wrote on; ``length`` neither; ``empty`` nothing visible is left.
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
    texts, reasons = [], []
    for whole, reason in zip(raw.texts, raw.finish_reasons, strict=True):
        answer = _after_thinking(whole, settings)
        begun = visible_start(answer) if settings.run_on else 0
        at = first_stop(answer[begun:], settings.stops)
        kept = answer if at is None else answer[: begun + at]
        texts.append(kept)
        if not _shown(kept, settings):
            reasons.append("empty")
        elif at is None:
            reasons.append(reason)
        else:
            reasons.append("run_on" if _shown(answer[len(kept) :], settings) else "stop")
    return replace(raw, texts=texts, raw_texts=list(raw.texts), finish_reasons=reasons)


def _shown(text: str, settings: GenerationSettings) -> str:
    """A text from its first visible character; lm-eval's tasks know white space alone."""
    return text[visible_start(text) :] if settings.run_on else text.strip()


def _after_thinking(text: str, settings: GenerationSettings) -> str:
    """The answer: all of a text that does not think, nothing of one that never stops thinking."""
    end = settings.think_end
    if not end:
        return text
    _, found, answer = text.rpartition(end)
    if found:
        return answer.lstrip()
    return "" if _shown(text, settings).startswith(end.replace("/", "", 1)) else text
