"""A grid in pieces is the grid at once: keys, rows of the cells table, units, limits, shards."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evalcore.scoring.run
from bench.stub import StubPool
from evalcore.app import pieces
from evalcore.app.adapters import AdapterPlan
from evalcore.app.cells import Grid
from evalcore.app.early import may_have_work
from evalcore.app.grid import GridMaker, build_grid
from evalcore.app.labels import label
from evalcore.app.limits import token_limits
from evalcore.app.ordering import ranked
from evalcore.app.outcome import ScoreOutcome
from evalcore.app.preparing import Preparer
from evalcore.app.score import Silent, score
from evalcore.app.settling import Settled
from evalcore.app.survey import Survey
from evalcore.config import ScoreConfig, SubjectsConfig
from evalcore.engines.protocol import EngineSpec, numerics_class
from evalcore.errors import EXIT_CELLS_FAILED, InputError, ResultsError
from evalcore.identity import NumericsClass, resolve_subjects
from evalcore.planning import Plan, PlanCounts, plan_units
from evalcore.store import ResultStore, read_progress
from evalcore.types import Adapter, Checkpoint, Subject

OTHER = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}[reply]"
SPEC = EngineSpec(kind="hf", device="cpu", threads=1, adapters="merged")


@pytest.fixture(scope="module")
def subjects(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_checkpoint: Path,
    make_adapter: Callable[..., Path],
) -> list[Subject]:
    """Five checkpoints with adapters, some of them with a chat template of their own; two that were
    fully tuned from one of them; one whose weights are asked in two ways. Made up from a real one.
    """
    root = tmp_path_factory.mktemp("models")
    base = Path(shutil.copytree(tiny_checkpoint, root / "step-1"))
    for name in ("plain", "chatty"):
        adapter = make_adapter(root / "runs" / name, base)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(base / file, adapter)
    config = root / "runs" / "chatty" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": OTHER}))
    found = resolve_subjects([root / "runs"]).subjects
    (bare,) = (s for s in found if s.adapter is None)
    own = next(s.own for s in found if s.own is not None)
    assert bare.checkpoint.template_fingerprint != own.template_fingerprint

    def made(number: int, parent: str | None = None) -> Checkpoint:
        name, fingerprint = f"c{number}", f"{number:032x}"
        base = bare.checkpoint
        return replace(base, name=name, step=number, fingerprint=fingerprint, parent=parent)

    def adapters(checkpoint: Checkpoint, count: int, chatty: int) -> list[Subject]:
        asked = replace(own, name=f"{checkpoint.name}~", fingerprint=checkpoint.fingerprint)
        return [
            Subject(
                checkpoint,
                Adapter(f"a{i}", f"/{checkpoint.name}/a{i}", f"{checkpoint.name}.{i}", 4),
                asked if i % count < chatty else None,
            )
            for i in range(count)
        ]

    every: list[Subject] = []
    for number, (count, chatty) in enumerate([(3, 0), (4, 2), (0, 0), (7, 0), (2, 1)]):
        checkpoint = made(number)
        every += [Subject(checkpoint), *adapters(checkpoint, count, chatty)]
    every += [Subject(made(10 + i, parent=f"{2:032x}")) for i in range(2)]
    twice = replace(made(3), name="c3 again", reading="1234abcd", end_tokens=(5,))
    return [*every, Subject(twice)]


def config(out: Path, **more: object) -> ScoreConfig:
    return ScoreConfig.of(
        grid=(("pocket_nli", "default,io,default:chat=1"), ("pocket_describe", "default")),
        limit=12, output=out,
        checkpoints=("made-up",), engine="hf", device="cpu", unit_examples=10, **more,
    )  # fmt: skip


def settled(own: ScoreConfig, subjects: Sequence[Subject], cache: Path) -> Settled:
    maker = GridMaker(own.grid, cache)
    survey = Survey(maker, subjects, _numerics(), {})
    return Settled(maker, survey, SPEC, AdapterPlan("merged"), {})


def _numerics() -> NumericsClass:
    return numerics_class(SPEC)


def at_once(subjects: Sequence[Subject], own: ScoreConfig, cache: Path) -> tuple[Grid, Plan]:
    """The slow way."""
    grid = build_grid(subjects, own.grid, _numerics(), cache)
    plan = plan_units(
        ranked(grid.cells), {}, max_examples_per_unit=own.run.unit_examples, shard=own.run.shard
    )
    return grid, plan


def in_pieces(
    subjects: Sequence[Subject], own: ScoreConfig, cache: Path
) -> tuple[Preparer, ScoreOutcome, list[Plan]]:
    preparer = Preparer(own, ResultStore(own.run.output), settled(own, subjects, cache), 32)
    outcome, plans = ScoreOutcome(own.run.output), []
    while preparer.left:
        plans.append(preparer.next())
        outcome.add(plans[-1], preparer.grids[-1])
    preparer.tell(outcome)
    return preparer, outcome, plans


def units(plan: Plan) -> list[tuple[str, str]]:
    return sorted((unit.subject.id, unit.id) for unit in plan.units)


def test_pieces_are_the_whole(
    subjects: list[Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "FIRST_CELLS", 8)
    monkeypatch.setattr(pieces, "MOST_CELLS", 30)
    own = config(tmp_path / "pieces")
    grid, plan = at_once(subjects, own, tmp_path / "cache")
    preparer, outcome, plans = in_pieces(subjects, own, tmp_path / "cache")
    assert len(plans) == 4
    assert outcome.cells == set(grid.cells.keys)
    assert sum(len(own.cells) for own in preparer.grids) == len(grid.cells), "each once"
    assert units(outcome.plan) == units(plan)
    assert [u.subject.checkpoint.fingerprint for u in plans[0].units] == ["0" * 32] * len(
        plans[0].units
    ), "the first comes first"
    assert outcome.plan.counts == replace(plan.counts, model_loads=outcome.plan.counts.model_loads)
    whole = ResultStore(tmp_path / "whole")
    whole.write_cells(grid.rows)
    drop = ["recorded"]
    kept = ResultStore(own.run.output).cells(every=True).drop_columns(drop)
    assert kept.equals(whole.cells(every=True).drop_columns(drop))
    summed: dict[str, int] = {}
    for each in plans:
        for name, count in preparer.limits(each).items():
            summed[name] = summed.get(name, 0) + count
    assert summed == token_limits(plan, 32)
    assert outcome.findings == [finding.message for finding in grid.findings]
    assert outcome.problems == grid.problems()


def test_a_survey_knows_who_is_asked_what(subjects: list[Subject], tmp_path: Path) -> None:
    own = config(tmp_path / "results")
    grid, _ = at_once(subjects, own, tmp_path / "cache")
    survey = settled(own, subjects, tmp_path / "cache").survey
    assert len(survey.grid.cells) < len(grid.cells)
    assert {s.id for s in survey.subjects_asked()} == {s.id for s in grid.cells.subjects()}
    for subject in grid.cells.subjects():
        assert survey.tokens_of({subject.id}) == grid.cells.tokens_of({subject.id}), subject.label
    bare = {s.id for s in subjects if s.adapter is None}
    assert survey.tokens_of(bare) == grid.cells.tokens_of(bare)
    asked = {(q.task.name, q.variant.name, q.file.path) for q in grid.cells.questions()}
    assert {(q.task.name, q.variant.name, q.file.path) for q in survey.questions()} == asked


def test_an_outline_has_the_cells_that_keys_tell_apart(
    subjects: list[Subject], tmp_path: Path
) -> None:
    own, cache = config(tmp_path / "results"), tmp_path / "cache"
    for asked in (subjects, [*subjects, *subjects[:4]], subjects[:1]):
        maker = GridMaker(own.grid, cache)
        grid, outline = maker.grid(asked, _numerics()), maker.outline(asked, _numerics())
        assert len(grid.cells) == len(outline.cells) <= len(grid.asked)
        for numbers in ("subject", "question"):
            assert np.array_equal(getattr(grid.cells, numbers), getattr(outline.cells, numbers))
    again = replace(subjects[0].checkpoint, name="the same", path=subjects[0].checkpoint.path + "/")
    maker = GridMaker(own.grid, cache)
    outline = maker.outline([subjects[0], Subject(again)], _numerics())
    assert len(outline.cells) == len(outline.asked) / 2, "the same weights, asked the same"


@pytest.mark.parametrize("count", [2, 5, 40])
def test_shards_are_the_whole_and_prepare_their_own(
    subjects: list[Subject], tmp_path: Path, count: int
) -> None:
    """Also where there are fewer subjects than shards."""
    _, plan = at_once(subjects, config(tmp_path / "results"), tmp_path / "cache")
    found: list[tuple[str, int]] = []
    cells = 0
    for i in range(count):
        own = config(tmp_path / "results", shard=(i, count))
        preparer, outcome, _ = in_pieces(subjects, own, tmp_path / "cache")
        found += [
            (part.cell_key, int(row))
            for unit in outcome.plan.units
            for part in unit.slices
            for row in part.rows
        ]
        cells += sum(len(grid.cells) for grid in preparer.grids)
    assert len(set(found)) == len(found), "nothing twice"
    assert set(found) == {
        (part.cell_key, int(row))
        for unit in plan.units
        for part in unit.slices
        for row in part.rows
    }
    if count < 40:
        assert cells == plan.counts.cells, "no shard makes another's cells"


def test_what_hangs_together_stays_together(subjects: list[Subject]) -> None:
    found = pieces.families(subjects)
    assert sorted(len(own) for own in found) == [3, 3, 4, 5, 9]
    first = pieces.pieces(subjects, lambda subject: 1000)
    assert [len(own) for own in first[:2]] == [1, 2], "adapters need not wait for each other"
    assert sum(map(len, first)) == len(subjects)
    whole = pieces.pieces(subjects, lambda subject: 1000, whole=True)
    assert [s for own in whole for s in own] == [s for own in found for s in own]


@pytest.fixture
def runs(
    make_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., ScoreOutcome]:
    """Scores four checkpoints with stubs for engines, each a piece of its own."""
    monkeypatch.setattr(evalcore.scoring.run, "JobPool", StubPool)
    monkeypatch.setenv("STUB_CONTEXT_S", "0")
    monkeypatch.setattr(pieces, "FIRST_CELLS", 1)
    monkeypatch.setattr(pieces, "MOST_CELLS", 1)
    own = [make_checkpoint(tmp_path / f"step-{i}", seed=i) for i in range(4)]

    def run(out: Path, **more: Any) -> ScoreOutcome:
        subjects = SubjectsConfig(checkpoints=tuple(map(str, own)))
        return score(replace(config(out), subjects=subjects), **more)

    return run


def test_a_run_in_pieces_stores_what_one_at_once_stores(
    runs: Callable[..., ScoreOutcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, bool]] = []

    class Told(Silent):
        def planned(self, counts: PlanCounts, limits: Mapping[str, int], whole: bool) -> None:
            told.append((counts.examples_planned, whole))

    one = runs(tmp_path / "pieces", progress=Told())
    assert one.exit_status == 0
    assert [n for n, _ in told] == sorted(n for n, _ in told)
    assert dict(told) == {48: False, 96: False, 144: False, 192: True}, "what it knows so far"
    monkeypatch.setattr(pieces, "FIRST_CELLS", 1000)
    other = runs(tmp_path / "once")
    assert (one.summary.examples, one.limits) == (192, other.limits)
    columns = ["cell", "doc_id", "choice_logprobs", "text"]
    scored = [ResultStore(tmp_path / name).examples(columns) for name in ("pieces", "once")]
    rows = [sorted(map(repr, table.to_pylist())) for table in scored]
    assert rows[0] == rows[1]
    seen = read_progress(tmp_path / "pieces").runs[0].record
    assert (seen["whole"], seen["planned"], seen["committed"]) == (True, 192, 192)


@pytest.mark.parametrize("fault", [ResultsError("no room"), ValueError("a bug")])
def test_a_preparation_that_fails_later_ends_the_run_and_keeps_what_was_scored(
    runs: Callable[..., ScoreOutcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    real = Preparer.next
    count = 0

    def fails(self: Preparer) -> Plan:
        nonlocal count
        count += 1
        if count == 3:
            time.sleep(2)  # so that what is there is begun
            raise fault
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Preparer, "next", fails)
        if isinstance(fault, ValueError):
            with pytest.raises(ValueError, match="a bug"):
                runs(tmp_path / "results")
        else:
            failed = runs(tmp_path / "results")
            assert failed.exit_status == ResultsError.exit_status
            assert failed.how_it_ended == "no room"
            assert failed.summary.stopped in (None, "preparation failed"), "there is no time limit"
    assert may_have_work(ResultStore(tmp_path / "results"))
    assert runs(tmp_path / "results").exit_status == 0
    assert ResultStore(tmp_path / "results").coverage().num_examples == 192


@pytest.mark.parametrize("broken", [False, True])
def test_a_checkpoint_that_goes_after_its_rows_are_committed_leaves_a_summary_and_a_record(
    runs: Callable[..., ScoreOutcome], tmp_path: Path, broken: bool
) -> None:
    class Goes(Silent):
        def ended(self) -> None:
            if broken:
                (tmp_path / "step-0" / "config.json").write_text("{")
            else:
                shutil.rmtree(tmp_path / "step-0")

    outcome = runs(tmp_path / "results", progress=Goes())
    assert (outcome.exit_status, outcome.summary.examples, outcome.flops) == (0, 192, None)
    (note,) = [note for note in outcome.notes if note.startswith("operations were not counted: ")]
    assert str(tmp_path / "step-0") in note
    (kept,) = ResultStore(tmp_path / "results").runs.list()
    assert (kept["flops"], kept["summary"]["examples"]) == (None, 192)


def test_what_is_found_wrong_once_rows_are_committed_is_told_with_what_was_done(
    runs: Callable[..., ScoreOutcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise InputError("it is gone")

    monkeypatch.setattr(Preparer, "tell", fails)
    monkeypatch.setattr(sys.modules["evalcore.app.score"], "left_out", fails)
    outcome = runs(tmp_path / "results")
    assert (outcome.exit_status, outcome.how_it_ended) == (EXIT_CELLS_FAILED, "it is gone")
    assert outcome.flops is not None, "each step of the end is for itself"
    (kept,) = ResultStore(tmp_path / "results").runs.list()
    assert kept["summary"]["examples"] == 192


def test_a_label_set_before_a_piece_is_recorded_is_recorded_with_it(
    subjects: list[Subject], tmp_path: Path
) -> None:
    """Cells of another prompt are there and get a label, while this run has planned already."""
    in_pieces(subjects, config(tmp_path / "whole"), tmp_path / "cache")
    rows = ResultStore(tmp_path / "whole").cells().to_pylist()
    own = config(tmp_path / "results")
    store = ResultStore(own.run.output)
    store.write_cells([row for row in rows if row["variant"] == "default"])
    preparer = Preparer(own, store, settled(own, subjects, tmp_path / "cache"), 32)
    label(store.path, tuned_on=["*=wanted"])
    while preparer.left:
        preparer.next()
    found = ResultStore(store.path).cells().to_pylist()
    assert len(found) == len(rows)
    tuned = [row for row in found if row["base"] is not None]
    assert {(row["tuned_on"], row["labels_from"]) for row in tuned} == {("wanted", "label")}
    assert {row["variant"] for row in tuned} > {"default"}
    assert all(not model.otherwise for model in label(store.path))
