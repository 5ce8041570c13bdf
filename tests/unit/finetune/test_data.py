"""Rows of a tuning: chosen, cleaned, dealt out, encoded as scored; and what is planned."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import finetune.encoded
import finetune.fitting
import finetune.jobs
import finetune.rows
from evalcore.errors import DataError, DefinitionError, IncompatibleError, InputError
from evalcore.identity import text_fingerprint
from evalcore.prompting import encode_task, load_tokenizer, load_variants
from evalcore.tasks import (
    Compared,
    ScoredRows,
    TaskDefinition,
    documents_from_rows,
    load_documents,
    load_task,
    task_from_definition,
)
from evalcore.tasks.sources import load_rows
from evalcore.types import Document, EncodingSettings
from finetune import parse_study, plan_jobs
from finetune.data import TrainingSet, batch_order, build_training_set, deal_out_answers
from finetune.encoded import training_set
from finetune.jobs import MixPart, TuneJob
from finetune.plan import TunePlan
from finetune.rows import Chosen, TooFewRowsError, choose_rows

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


def rows_of(folder: Path, split: str, rows: list[dict[str, Any]]) -> None:
    (folder / "toy").mkdir(exist_ok=True, parents=True)
    (folder / "toy" / f"{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task "toy" over pairs of texts, its rows in tmp_path."""
    spec = {**load_task("pocket_paraphrase").spec, "name": "toy", "source": {"path": "toy"}}
    spec["splits"] = {"score": "test", "shots": "train[:5]", "train": "train"}
    task = task_from_definition(TaskDefinition.model_validate(spec))
    known = finetune.jobs.known_task
    monkeypatch.setattr(
        finetune.rows, "known_task", lambda name, *more: task if name == "toy" else known(name)
    )
    rows_of(tmp_path, "test", [pair(f"t{i}") for i in range(4)])
    rows_of(tmp_path, "train", [pair(f"r{i}") for i in range(60)])
    finetune.rows.choose_rows.cache_clear()
    finetune.rows.scored_rows.cache_clear()
    return tmp_path


def pair(name: str, **changes: Any) -> dict[str, Any]:
    one = f"the {name} of the old house by the sea was never seen again"
    other = f"nobody saw the {name} of the house any more"
    return {"sentence1": one, "sentence2": other, "label": 0, **changes}


def chosen(root: Path, examples: int | None, seed: int = 7) -> Chosen:
    finetune.rows.choose_rows.cache_clear()
    finetune.rows.scored_rows.cache_clear()
    return choose_rows(MixPart("toy", examples), seed, (), root)


def test_rows_are_drawn_first_seeded_and_nested(toy: Path) -> None:
    small, large = (chosen(toy, n).documents for n in (10, 20))
    assert small == large[:10]
    assert small != chosen(toy, 10, 8).documents
    assert len({row.id for row in large}) == 20
    everything = chosen(toy, None)
    # five rows are shown as worked examples
    assert [d.index for d in everything.documents] == list(range(5, 60))
    assert everything.counts["in_shots"] == 5
    with pytest.raises(TooFewRowsError, match=r"56 asked for, 55 usable .*5 in shots") as caught:
        chosen(toy, 56)
    assert pickle.loads(pickle.dumps(caught.value)).usable == 55


def test_the_draw_is_that_of_all_rows_in_memory(toy: Path) -> None:
    """The obvious way: all documents, those that may be learned, in the order of the seed."""
    rows_of(toy, "train", [pair(f"r{i}", label=None if i % 3 == 0 else i % 2) for i in range(60)])
    task = finetune.rows.known_task("toy")  # type: ignore[attr-defined]
    usable = {d.index: d for d in documents_from_rows(task, load_rows(task.spec["source"], "train",
              toy), "rows") if d.index > 4}  # fmt: skip
    order = np.random.default_rng([7, 1]).permutation(60)
    naive = [usable[int(n)] for n in order if int(n) in usable]
    for count in (1, 20, len(naive)):
        assert list(chosen(toy, count).documents) == naive[:count]


def test_scored_rows_in_other_words_of_the_file_are_found(toy: Path) -> None:
    test, train = [pair(f"t{i}") for i in range(4)], [pair(f"r{i}") for i in range(60)]
    swapped = {**test[0], "sentence1": test[0]["sentence2"], "sentence2": test[0]["sentence1"]}
    quoted = {k: f"\u201c{v}.\u201d" if k != "label" else v for k, v in test[1].items()}
    inside = pair("x", sentence1=f"Read this: {test[2]['sentence1']}", sentence2=(
        f"and then this: {test[2]['sentence2']} - are they the same?"))  # fmt: skip
    half = pair("x", sentence1=test[3]["sentence1"], sentence2="something else was said by her")
    rows_of(toy, "train", [*train[:30], swapped, quoted, inside, half, *train[30:]])
    found = chosen(toy, None)
    assert found.counts["in_scored_split"] == 3
    assert found.found == {"toy": 3}
    assert {30, 31, 32}.isdisjoint(d.index for d in found.documents)
    assert 33 in {d.index for d in found.documents}
    (compared,) = found.compared
    assert (compared.documents, compared.by_grams) == (4, 4)


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


def test_a_conversation_that_holds_a_scored_question_is_found() -> None:
    """Tasks of other shapes: a question with choices, a pair, and a chat that quotes them."""
    index = ScoredRows()
    arc = load_task("arc_easy")
    index.add(
        arc,
        documents_from_rows(
            arc,
            [
                arc_row("Which factor will most likely cause a person to develop a fever?"),
                arc_row("What do plants need?"),
                arc_row("Why?"),
            ],
            "rows",
        ),
    )
    (compared,) = index.compared
    assert compared == Compared("arc_easy", 3, by_grams=1, by_question=1)
    tulu = load_task("tulu_v2")

    def said(prompt: str, answer: str = "B") -> set[str]:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        (document,) = documents_from_rows(tulu, [{"messages": messages}], "rows")
        return index.found_in(tulu, document)

    asked = (
        "Question:\n\u201cWhich factor will most likely cause a person to develop a fever\u201d?"
    )
    assert said(asked) == {"arc_easy"}
    assert said("Which factor will most likely cause rain to fall on the hills tonight?") == set()
    # a short question needs its answer beside it
    assert said("What do plants need? A. gold B. a bacterial population") == {"arc_easy"}
    assert said("What do plants need? I ask for a friend.") == set()
    assert said("WHY") == {"arc_easy"}  # equal as a whole
    assert said("Why not?") == set()


def arc_row(question: str) -> dict[str, Any]:
    choices = {"text": ["gold", "a bacterial population"], "label": ["A", "B"]}
    return {"question": question, "choices": choices, "answerKey": "B"}


def test_encoded_rows_are_kept_for_seeds_and_methods_and_nothing_else(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVALCORE_CACHE", str(tmp_path / "cache"))
    tokenizer = load_tokenizer(out / "step-00010")
    built: list[str] = []

    def counted(job: TuneJob, *rest: Any) -> TrainingSet:
        built.append(job.id)
        return build_training_set(job, *rest)

    monkeypatch.setattr(finetune.encoded, "build_training_set", counted)
    job = job_of(out, "step-00010/nli")
    first = training_set(job, tokenizer, 512)
    other = job_of(out, "step-00002/nli-seed3")  # another checkpoint and seed
    assert training_set(other, tokenizer, 512) == first == build_training_set(job, tokenizer, 512)
    assert built == ["step-00010/nli"]
    for changed in (
        job_of(out, "step-00010/nli-shuffled_labels"),
        replace(job, data_seed=1),
        replace(job, held_out=("pocket_nli_ood",)),
        replace(job, variants=("io",)),
        replace(job, tasks=(MixPart("pocket_nli", 29),)),
    ):
        assert training_set(changed, tokenizer, 512) != first
    training_set(job, tokenizer, 500)
    assert len(built) == 7
    (tmp_path / "cache/training").chmod(0o755)
    for file in (tmp_path / "cache/training").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert training_set(job, tokenizer, 512) == first  # a broken file is no file
    assert len(built) == 8


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
    monkeypatch.setattr(finetune.fitting, "training_turns", lambda *_: [("prompt", " ")])
    with pytest.raises(DataError, match="the completion is empty"):
        build_training_set(job_of(out, "step-00010/nli"), load_tokenizer(out / "step-00010"), 512)
