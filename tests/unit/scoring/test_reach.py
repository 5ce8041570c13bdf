"""Long texts are compared with transformers, too, before rows of such texts are stored."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evalcore.app.words import witness_lines
from evalcore.cluster import Job
from evalcore.engines.protocol import EngineSpec
from evalcore.engines.witness_process import Question, longest_text, needed_bytes, parameters
from evalcore.errors import WitnessError
from evalcore.scoring import RunSummary, Witnessed
from evalcore.scoring.reach import SHORT, STEP, TAIL, Reach, longest_of, reach_batch
from evalcore.store import ResultStore
from evalcore.types import GenerateBatch, GenerationSettings, ScoreBatch, flatten
from tests.toys.scoring import ROWS_PER_UNIT, Run, subject, unit_job, write_requests

SPEC = EngineSpec(device="cpu")


def folder(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (root / "config.json").write_text(json.dumps(config))
    return root


def test_short_texts_are_believed_and_longer_ones_asked_about_step_by_step() -> None:
    reach = Reach()
    assert not reach.wants("a", SHORT)
    assert reach.wants("a", 200)
    reach.ask("a", 200)
    assert not reach.wants("a", int(200 * STEP)), "near enough"
    assert reach.wants("a", 1000), "while the shorter one is open"
    reach.ask("a", 1000)
    assert [reach.waits("a", n) for n in (SHORT, SHORT + 1, 200, 1000)] == [False, True, True, True]
    reach.agrees("a", 200)
    assert [reach.waits("a", n) for n in (200, 250, 251, 1000)] == [False, False, True, True]
    reach.disagrees("a", 1000, "1 nat off")
    assert [reach.refused("a", n) for n in (250, 251)] == ["", "1 nat off"]
    assert not reach.wants("a", 5000)
    assert reach.wants("b", 200), "another kind"


def test_an_agreement_after_a_disagreement_changes_nothing() -> None:
    reach = Reach()
    reach.ask("a", 100)
    reach.ask("a", 400)
    reach.disagrees("a", 100, "1 nat off")
    reach.agrees("a", 400)
    assert reach.refused("a", 400) == "1 nat off"


def test_where_it_ends_is_said_of_longer_texts_alone() -> None:
    reach = Reach()
    reach.ask("a", 100)
    reach.agrees("a", 100)
    reach.ask("a", 900)
    reach.stops("a", "too large", 900)
    assert reach.beyond("a", 125) == ""
    assert reach.beyond("a", 126) == "not beyond 100 tokens: too large"
    assert not reach.waits("a", 900)
    assert not reach.wants("a", 900)


def test_the_longest_text_of_a_unit_is_scored_or_generated() -> None:
    scored = ScoreBatch.from_lists([([1, 2, 3], [[4], [5, 6]]), ([7] * 4, [[8, 9, 10]])])
    share: Any = SimpleNamespace(scored=SimpleNamespace(batch=scored), generated=[None])
    assert longest_of([share]).tolist() == [7, 7, 7, 7, 8, 9, 10]
    settings = GenerationSettings(max_tokens=6)
    batch = GenerateBatch(*flatten([[1], [1, 2]]), settings)
    made: Any = SimpleNamespace(scored=share.scored, generated=[SimpleNamespace(batch=batch)])
    assert longest_of([share, made]).tolist() == [1, 2, 1, 2, 1, 2, 1, 2]
    none = SimpleNamespace(scored=SimpleNamespace(batch=ScoreBatch.from_lists([])), generated=[])
    empty: Any = none
    assert len(longest_of([empty])) == 0


def test_the_end_of_a_text_is_asked_where_it_stands() -> None:
    text = np.arange(SHORT + 1, dtype=np.int32)
    batch = reach_batch(text)
    assert np.concatenate([batch.context(0), batch.continuation(0)]).tolist() == text.tolist()
    assert [len(batch.continuation(i)) for i in range(batch.num_continuations)] == [48, 24]
    assert Question(1, subject("a"), ("float32",), batch).longest == SHORT + 1
    assert Question(1, subject("a"), ("float32",), 9).longest == 0


def test_what_a_long_text_takes(tiny_checkpoint: Path) -> None:
    path = str(tiny_checkpoint)
    assert needed_bytes(path, 100) == needed_bytes(path), "as much as is allowed for anyway"
    heads = json.loads((tiny_checkpoint / "config.json").read_text())["num_attention_heads"]
    assert needed_bytes(path, 40_000) > 3 * heads * 4 * 40_000**2
    tokens = longest_text(path, passes=2, threads=4)
    assert tokens == int(240 * 20e9 * 4 / (8 * parameters(path)))


@pytest.mark.parametrize("witness", ["auto", "all"])
def test_rows_of_long_texts_that_disagree_never_reach_the_disk(
    tmp_path: Path, witness: Any
) -> None:
    """The real worker: subjects of one kind, whose canaries agree."""
    path = folder(tmp_path / "m")
    short = write_requests(tmp_path / "short.arrow")
    long = write_requests(tmp_path / "long.arrow", tokens=150)

    def jobs(name: str, requests: Path, first: int) -> list[Job]:
        return [unit_job(requests, name, i, once=path) for i in range(first, first + 3)]

    config = {"spec": replace(SPEC, witness=witness)}

    def run(names: tuple[str, ...]) -> Run:
        todo = [job for name in names for job in (*jobs(name, short, 0), *jobs(name, long, 3))]
        results = tmp_path / names[0]
        return Run(results, make="make_witnessed_long", config=config, workers=1)(todo)

    good = run(("good", "fine"))
    assert not good.failures
    assert good.rows_written() == 12 * ROWS_PER_UNIT
    wrong = run(("windowed",))
    assert wrong.rows_written() == 3 * ROWS_PER_UNIT, "the short ones"
    (error, *_) = wrong.failures.values()
    assert isinstance(error, WitnessError)
    assert "windowed: its scores of texts of 15" in str(error)
    assert "1 nats from transformers'" in str(error)
    assert "nothing so long is stored; --engine hf scores it" in str(error)
    wide = run(("wide",))
    made = {record["compared"] for record in ResultStore(wide.results).makers().values()}
    if witness == "auto":
        assert made == {"yes", "yes; not beyond 64 tokens: too large"}
        assert wide.rows_written() == 6 * ROWS_PER_UNIT
    else:
        assert made == {"yes"}
        assert wide.rows_written() == 3 * ROWS_PER_UNIT
        (error, *_) = wide.failures.values()
        assert "cannot be compared with transformers: too large (--witness auto" in str(error)


def test_what_would_take_too_long_is_compared_as_far_as_it_can_be(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    long = write_requests(tmp_path / "long.arrow", tokens=250)
    jobs = [unit_job(long, "good", i, once=path) for i in range(3)]
    config = {"spec": replace(SPEC, witness="auto")}
    run = Run(tmp_path / "results", make="make_witnessed_to_100", config=config, workers=1)(jobs)
    assert run.rows_written() == 3 * ROWS_PER_UNIT
    made = {record["compared"] for record in ResultStore(run.results).makers().values()}
    assert made == {"yes; not beyond 100 tokens: 252 would take a processor too long"}
    assert TAIL < SHORT


def test_the_summary_says_how_long() -> None:
    summary = RunSummary(worker_s=20.0, start_s=10.0)
    left = {"longer texts: too large": 1, "too large": 2}
    summary.witnessed = Witnessed(agreed=3, not_compared=left, gap=3e-6, tokens=1200)
    assert witness_lines(summary) == [
        "witness: of subjects and transformers 3 agree (within 3e-06 nats); so do texts of up to "
        "1,200 tokens",
        "witness: NOT COMPARED with transformers: longer texts: too large",
        "witness: NOT COMPARED with transformers: 2 subjects: too large",
    ]
    assert Witnessed(tokens=5).plus(Witnessed(tokens=3)).tokens == 5
