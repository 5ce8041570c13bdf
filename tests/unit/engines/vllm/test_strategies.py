"""All engines of a comparison score in the way that was settled, or refuse."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from evalcore.engines.vllm.strategies import (
    SCORERS,
    Scorer,
    settled_scorer,
)
from evalcore.errors import EngineError


class Here:
    """An engine that can score in some ways, and what is settled for its kind."""

    def __init__(self, *able: str, settled: str = "", faster: str = "") -> None:
        self.able, self.settled, self.faster = able, settled, faster

    def choose(self, asked: str) -> Scorer:
        name = self.able[0] if asked == "auto" else asked
        if name not in self.able:
            raise EngineError(f"strategy {name} is not possible here: a sliding window")
        kinds: dict[str, Any] = {k.name: k for k in SCORERS}
        made: Scorer = kinds[name]()
        return made

    def settle(self, chosen: str) -> str:
        if chosen:
            self.settled = self.settled or self.faster or chosen
        return self.settled

    def ask(self, asked: Any) -> str:
        return settled_scorer(self.choose, asked, self.settle, "vllm/bfloat16").name


def test_the_first_settles_and_the_others_follow() -> None:
    first = Here("packed", "cached", "plain")
    assert (first.ask("auto"), first.settled) == ("packed", "packed")
    assert Here("packed", "cached", "plain", settled="cached").ask("auto") == "cached"
    assert Here("packed", "cached", "plain", faster="cached").ask("auto") == "cached"
    named = Here("packed", "cached", "plain")
    assert (named.ask("plain"), named.settled) == ("plain", "plain")


def test_who_cannot_follow_refuses() -> None:
    with pytest.raises(EngineError) as refused:
        Here("cached", "plain", settled="packed").ask("auto")
    for part in ("a sliding window", "scored by packed in vllm/bfloat16", "--strategy"):
        assert part in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_strategy_that_is_named_is_taken_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    here = Here("packed", "cached", "plain", settled="packed")
    with caplog.at_level(logging.WARNING, "evalcore"):
        assert here.ask("cached") == "cached"
    assert here.settled == "packed"
    assert "scored by packed" in caplog.text
