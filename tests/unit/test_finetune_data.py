"""Rows of a tuning: chosen, cleaned, dealt out, encoded as scored; and what is planned."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from evalcore.errors import DataError, DefinitionError, IncompatibleError, InputError
from evalcore.identity import text_fingerprint
from evalcore.prompting import encode_task, load_tokenizer, load_variants
from evalcore.tasks import load_documents, load_task
from evalcore.types import Document, EncodingSettings
from finetune import parse_study, plan_jobs
from finetune.data import batch_order, build_training_set, choose, deal_out_answers, input_key
from finetune.jobs import MixPart, TuneJob
from finetune.plan import TunePlan

STUDY = """
name: small
checkpoints: {paths: ["step-*"]}
tunings:
  - {name: nli, task: pocket_nli, examples: 30, seeds: [0, 3]}
  - {name: describe, task: pocket_describe, examples: 30, checkpoints: [step-00002]}
controls: [{kind: shuffled_labels, of: [nli]}]
method: {steps: 5}
evaluation: {tasks: [pocket_nli]}
"""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("study")
    for step in (10, 2):
        make_checkpoint(folder / f"step-{step:05d}", seed=step)
    return folder


def plan(out: Path, text: str = STUDY, **options: object) -> TunePlan:
    return plan_jobs(parse_study(text, out / "s.yaml"), out, **options)  # type: ignore[arg-type]


def job_of(out: Path, name: str, text: str = STUDY) -> TuneJob:
    return next(job for job in plan(out, text).jobs if job.id == name)


def documents(n: int, kinds: int = 3) -> list[Document]:
    return [
        Document(f"{i:032x}", i, {"a": f"text {i}"}, ("x", "y", "z"), i % kinds, (f"r{i}",))
        for i in range(n)
    ]


def test_plan_lists_what_is_missing_in_order_of_steps(out: Path) -> None:
    assert [job.id for job in plan(out).jobs] == [
        "step-00002/nli",
        "step-00002/nli-seed3",
        "step-00002/describe",
        "step-00010/nli",
        "step-00010/nli-seed3",
        "step-00010/nli-shuffled_labels",
    ]


def test_finished_is_skipped_changed_is_refused_or_replaced(out: Path) -> None:
    job = plan(out).jobs[0]
    directory = Path(job.directory)
    directory.mkdir(parents=True)
    settings = job.settings()
    record = {
        "schema": 1,
        "base": {"fingerprint": job.checkpoint.fingerprint},
        "tuning": {"name": "nli"},
        "settings": {"fingerprint": text_fingerprint(settings), "values": settings},
    }
    (directory / "provenance.json").write_text(json.dumps(record))
    try:
        again = plan(out)
        assert again.finished == (out / "adapters" / "step-00002" / "nli",)
        assert job.id not in [j.id for j in again.jobs]
        changed = STUDY.replace("steps: 5", "steps: 6")
        with pytest.raises(IncompatibleError, match=r"other settings \(method.steps\)"):
            plan(out, changed)
        assert job.id in [j.id for j in plan(out, changed, on_changed="replace").jobs]
        (directory / "provenance.json").unlink()
        (directory / "notes.txt").touch()
        with pytest.raises(InputError, match="is in the way"):
            plan(out)
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("old", "new", "error", "expected"),
    [
        ('"step-*"', '"ckpt-*"', InputError, "'ckpt-*' matches no checkpoint"),
        ("[step-00002]", "[step-3]", DefinitionError, "no checkpoint is named 'step-3'"),
        ("task: pocket_nli", "task: pocket_nil", InputError, "pocket_nli"),
        ("seeds: [0, 3]", "variants: [defualt]", InputError, "default"),
    ],
)
def test_plan_refuses_names_that_are_not_there(
    out: Path, old: str, new: str, error: type[Exception], expected: str
) -> None:
    with pytest.raises(error, match=expected.replace("*", r"\*")):
        plan(out, STUDY.replace(old, new, 1))


def test_choose_is_seeded_and_nested() -> None:
    rows = documents(50)
    small, large = (choose(rows, n, 7, where="t") for n in (10, 20))
    assert small == large[:10]
    assert small != choose(rows, 10, 8, where="t")
    assert len({row.id for row in large}) == 20
    with pytest.raises(DataError, match="51 asked for, 50 usable"):
        choose(rows, 51, 0, where="t")


@pytest.mark.parametrize("seed", range(5))
def test_dealt_answers_keep_inputs_and_counts_and_move_every_row(seed: int) -> None:
    rows = documents(60)
    dealt = deal_out_answers(rows, seed)
    assert [d.fields for d in dealt] == [d.fields for d in rows]
    assert Counter(d.gold for d in dealt) == Counter(d.gold for d in rows)
    assert sorted(d.references for d in dealt) == sorted(d.references for d in rows)
    assert all(a.references != b.references for a, b in zip(rows, dealt, strict=True))
    # Right by chance about once in three: neither always nor never.
    right = sum(a.gold == b.gold for a, b in zip(rows, dealt, strict=True))
    assert 6 <= right <= 36


def test_dealt_answers_fit_rows_with_fewer_choices() -> None:
    rows = [replace(row, choices=("x", "y", "z")[: 2 + row.index % 2]) for row in documents(30)]
    assert all(0 <= row.gold < len(row.choices) for row in deal_out_answers(rows, 0))
    with pytest.raises(DataError, match="at least 2"):
        deal_out_answers(documents(1), 0)


@pytest.mark.parametrize("grouped", [False, True])
def test_every_pass_holds_every_row_once(grouped: bool) -> None:
    lengths = [5 + (i * 7) % 13 for i in range(64)]
    order = batch_order(lengths, 4, 32, 0, group_by_length=grouped)
    assert len(order) == 128
    assert Counter(order) == Counter(dict.fromkeys(range(64), 2))
    assert order == batch_order(lengths, 4, 32, 0, group_by_length=grouped)
    assert order != batch_order(lengths, 4, 32, 1, group_by_length=grouped)
    padding = sum(
        max(lengths[i] for i in batch) * 4 - sum(lengths[i] for i in batch)
        for batch in (order[k : k + 4] for k in range(0, 128, 4))
    )
    assert padding < 120 if grouped else padding > 200


def test_partial_pass_with_grouping_still_fills_every_batch() -> None:
    order = batch_order([3] * 10, 4, 7, 0, group_by_length=True)
    assert len(order) == 28
    assert set(order) == set(range(10))


@pytest.mark.parametrize("variant", ["default", "instruct", "io", "default:shots=2"])
@pytest.mark.parametrize("task_name", ["pocket_nli", "pocket_describe"])
def test_trained_ids_are_scored_ids_and_the_end_token(
    out: Path, task_name: str, variant: str
) -> None:
    tuning = f"{{name: nli, task: {task_name}, examples: 30, variants: ['{variant}']}}"
    text = STUDY.replace("{name: nli, task: pocket_nli, examples: 30, seeds: [0, 3]}", tuning)
    text = text.replace("evaluation: {tasks: [pocket_nli]}", "")
    job = job_of(out, "step-00002/nli", text)
    tokenizer = load_tokenizer(job.checkpoint.path)
    rows = build_training_set(job, tokenizer, 512)
    task = load_task(task_name)
    by_id = {d.id: d for d in load_documents(task, "train")}
    chosen = [by_id[i] for i in rows.row_ids]
    pool = load_documents(task, "shots")
    (loaded,) = load_variants(task.group, variant)
    table = encode_task(task, loaded, chosen, pool, tokenizer, EncodingSettings(max_length=512))
    assert len(rows) == 30
    for i, scored in enumerate(table.to_pylist()):
        gold = max(scored["gold"], 0)
        context = scored["contexts"][0 if len(scored["contexts"]) == 1 else gold]
        assert rows.prompts[i] == context
        assert rows.completions[i] == [*scored["continuations"][gold], tokenizer.eos_token_id]


def test_variants_take_turns_and_a_control_keeps_the_prompts(out: Path) -> None:
    text = STUDY.replace("seeds: [0, 3]", "variants: [default, io]")
    tokenizer = load_tokenizer(out / "step-00010")
    rows = build_training_set(job_of(out, "step-00010/nli", text), tokenizer, 512)
    alone = build_training_set(job_of(out, "step-00010/nli"), tokenizer, 512)
    assert rows.prompts[0::2] == alone.prompts[0::2]
    assert all(a != b for a, b in zip(rows.prompts[1::2], alone.prompts[1::2], strict=True))
    control = build_training_set(job_of(out, "step-00010/nli-shuffled_labels"), tokenizer, 512)
    assert control.prompts == alone.prompts
    assert control.completions != alone.completions
    assert sorted(control.completions) == sorted(alone.completions)
    assert control.fingerprint != alone.fingerprint


def test_scored_documents_are_never_learned(out: Path, tmp_path: Path) -> None:
    """The scored rows of another task of the study, with other field names, are left out."""
    job = replace(job_of(out, "step-00010/nli"), tasks=(MixPart("pocket_nli", None),))
    tokenizer = load_tokenizer(out / "step-00010")
    scored = load_documents(load_task("pocket_nli"), "score")
    train = load_documents(load_task("pocket_nli"), "train")
    assert not {input_key(d) for d in scored} & {input_key(d) for d in train}
    renamed = replace(train[0], fields={"zzz": "  A  b", "aaa": "C"})
    assert input_key(renamed) == input_key(replace(train[0], fields={"p": "c ", "q": "a B"}))
    rows = build_training_set(replace(job, held_out=()), tokenizer, 512)
    assert len(rows) == len(train)
    assert rows.counts["in_evaluation"] == 0


def test_rows_in_the_evaluation_set_are_dropped_and_counted(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import finetune.data

    train = load_documents(load_task("pocket_nli"), "train")
    leaked = frozenset(input_key(d) for d in train[:7])
    monkeypatch.setattr(finetune.data, "scored_inputs", lambda tasks, root: leaked)
    job = replace(job_of(out, "step-00010/nli"), tasks=(MixPart("pocket_nli", None),))
    rows = build_training_set(job, load_tokenizer(out / "step-00010"), 512)
    assert rows.counts["in_evaluation"] == 7
    assert not {d.id for d in train[:7]} & set(rows.row_ids)


def test_rows_that_do_not_fit_are_left_out_whole_and_counted(out: Path) -> None:
    job, tokenizer = job_of(out, "step-00010/nli"), load_tokenizer(out / "step-00010")
    all_rows = build_training_set(job, tokenizer, 512)
    lengths = sorted(
        len(p) + len(c) for p, c in zip(all_rows.prompts, all_rows.completions, strict=True)
    )
    fewer = build_training_set(job, tokenizer, lengths[14])
    kept = sum(length <= lengths[14] for length in lengths)
    assert len(fewer) == kept
    assert fewer.counts["too_long"] == 30 - kept
    with pytest.raises(DataError, match="none of 30 rows fits into 8 tokens"):
        build_training_set(job, tokenizer, 8)


def test_an_empty_completion_is_an_error(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import finetune.data

    monkeypatch.setattr(finetune.data, "training_pair", lambda *_: ("prompt", " "))
    with pytest.raises(DataError, match="the completion is empty"):
        build_training_set(job_of(out, "step-00010/nli"), load_tokenizer(out / "step-00010"), 512)
