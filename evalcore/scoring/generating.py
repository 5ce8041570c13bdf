"""Generation of a unit: cells with equal settings together, and text past its stop strings."""

from __future__ import annotations

from dataclasses import replace

from evalcore.engines.protocol import Engine
from evalcore.engines.text import first_stop
from evalcore.types import GenerateBatch, GenerateResult


def generate(engine: Engine, batch: GenerateBatch) -> GenerateResult:
    """What the engine generates; with ``run_on`` past the stop strings, both texts kept.

    A stop string then cuts the text but not the generation: the token count is that of the raw
    text, and ``stop`` means that the cut text ends by a stop string or an end token.
    """
    if not batch.settings.run_on:
        return engine.generate(batch)
    stops = batch.settings.stops
    unstopped = replace(batch.settings, stops=(), run_on=False)
    raw = engine.generate(replace(batch, settings=unstopped))
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
