"""Engines start beside the preparation, and only where there is something for them to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import evalcore.scoring.run
from bench.stub import StubPool
from evalcore.app.early import EarlyWorkers, may_have_work
from evalcore.app.place import find_place
from evalcore.app.score import score
from evalcore.config import ScoreConfig
from evalcore.engines.protocol import EngineSpec
from evalcore.errors import InputError
from evalcore.store import ResultStore


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[StubPool]:
    """Pools that were made, with stubs for engines."""
    made: list[StubPool] = []

    class Noted(StubPool):
        def __init__(self, factory: str, *args: Any, **more: Any) -> None:
            super().__init__(factory, *args, **more)
            self.was_warm = False
            made.append(self)

        def warm(self, function: str, *given: Any) -> None:
            super().warm(function, *given)
            self.was_warm = True

        @property
        def processes(self) -> int:
            return len(getattr(self._warm, "_children", ()))

    monkeypatch.setattr(evalcore.scoring.run, "JobPool", Noted)
    monkeypatch.setenv("STUB_CONTEXT_S", "0")
    return made


def config(checkpoint: Path, out: Path, **more: Any) -> ScoreConfig:
    options = {"grid": (("pocket_nli", "default"),), "limit": 4, "engine": "hf", "device": "cpu"}
    return ScoreConfig.of(
        **{**options, "output": out, "checkpoints": (str(checkpoint),), "threads": 1, **more}
    )


def test_they_wait_only_where_there_is_work(
    pools: list[Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    own = config(tiny_checkpoint, tmp_path / "results")
    first = score(own)
    assert (first.summary.examples, first.summary.restarts) == (4, 0)
    assert [pool.was_warm for pool in pools] == [True], "one pool, started beside the preparation"
    assert not may_have_work(ResultStore(own.run.output))
    assert score(own).summary.examples == 0
    assert len(pools) == 1, "nothing to do: nothing is started"
    more = score(config(tiny_checkpoint, tmp_path / "results", limit=6))
    assert more.summary.examples == 2
    assert [pool.was_warm for pool in pools] == [True, False], "work that nobody could expect"
    score(config(tiny_checkpoint, tmp_path / "dry", dry_run=True))
    assert len(pools) == 2


@pytest.mark.parametrize("fault", ["a name", "a checkpoint"])
def test_a_preparation_that_fails_leaves_none(
    pools: list[Any], tiny_checkpoint: Path, tmp_path: Path, fault: str
) -> None:
    wrong = config(tiny_checkpoint, tmp_path / "results", grid=(("pocket_nil", "default"),))
    if fault == "a checkpoint":
        wrong = config(tmp_path / "nothing", tmp_path / "results")
    with pytest.raises(InputError):
        score(wrong)
    assert [pool.was_warm for pool in pools] == ([True] if fault == "a checkpoint" else [])
    assert not any(pool.processes for pool in pools)


def test_what_imported_for_another_engine_is_not_used(
    pools: list[Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    own = config(tiny_checkpoint, tmp_path / "results")
    with EarlyWorkers(own, "run") as early:
        early.begin(find_place(own.cluster), ResultStore(own.run.output))
        assert pools[0].processes == 1
        assert early.take(EngineSpec(kind="vllm")) is None
        assert pools[0].processes == 0
        early.begin(find_place(own.cluster), ResultStore(own.run.output))
        taken: Any = early.take(EngineSpec(kind="hf"))
        assert taken is pools[1]
    assert pools[1].processes == 1, "whoever took them ends them"
    pools[1].close()
    assert pools[1].processes == 0
