"""What is trained is what is scored: the same token ids, and the end that generation stops at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalcore.engines.text import finish
from evalcore.identity import end_token_ids, open_checkpoint
from evalcore.prompting import encode_task, load_tokenizer, load_variants
from evalcore.tasks import load_documents, load_task
from evalcore.types import EncodingSettings
from finetune.data import build_training_set
from finetune.jobs import MixPart, TuneJob
from finetune.method import MethodSpec

DATA = Path(__file__).resolve().parents[1] / "data" / "root"
# One task of every kind: labels, own choices, endings, yes/no, summaries, questions.
TASKS = [
    "mnli_matched", "paws", "arc_easy", "hellaswag", "boolq", "xsum", "socialiqa_qg",
    "pocket_nli", "pocket_describe",
]  # fmt: skip
VARIANTS = "default,instruct,io"
OTHERS = {"pocket_nli": "headers,question", "pocket_describe": "headers,question"}
MAX_LENGTH = 100_000  # nothing is to be cut here


def turned(value: Any) -> Any:
    """Texts of a row with their words in the other order: rows that no scored row is like."""
    if isinstance(value, str):
        words = value.split(" ")
        return " ".join(reversed(words)) if len(words) > 2 else value
    if isinstance(value, list):
        return [turned(item) for item in value]
    return {k: turned(v) for k, v in value.items()} if isinstance(value, dict) else value


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of the tests; what is learned there is not what is scored (it would be left out)."""
    root = tmp_path_factory.mktemp("ids-data") / "root"
    shutil.copytree(DATA, root)
    for file in root.rglob("train.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(turned(row)) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def checkpoints(
    tmp_path_factory: pytest.TempPathFactory,
    make_checkpoint: Callable[..., Path],
    make_tokenizer: Callable[..., Path],
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ids")
    made = {}
    for kind, bos in (("bpe", True), ("unigram", False)):
        made[kind] = make_checkpoint(folder / kind, tokenizer=False)
        make_tokenizer(made[kind], kind, bos=bos)
    return made


def training_job(checkpoint: Path, task: str, variant: str, data: Path) -> TuneJob:
    return TuneJob(
        checkpoint=open_checkpoint(str(checkpoint)),
        tuning="x",
        tasks=(MixPart(task, 20 if task.startswith("pocket") else None),),
        variants=(variant,),
        data_seed=0,
        seed=0,
        control=None,
        method=MethodSpec(),
        held_out=(),
        directory="x",
        data_root=str(data),
    )


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
@pytest.mark.parametrize("task_name", TASKS)
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_trained_ids_are_scored_ids(
    checkpoints: dict[str, Path], data: Path, kind: str, task_name: str, chat: bool
) -> None:
    task = load_task(task_name)
    tokenizer = load_tokenizer(checkpoints[kind])
    ends = end_token_ids(checkpoints[kind], tokenizer)
    names = f"{VARIANTS},{OTHERS.get(task_name, 'p01,p02')}"
    variants = load_variants(task.group, names, chat=chat)
    assert len(variants) == 5
    settings = EncodingSettings(max_length=MAX_LENGTH)
    documents = load_documents(task, "train", data_root=data)
    for variant in variants:
        job = training_job(checkpoints[kind], task_name, variant.name, data)
        rows = build_training_set(job, tokenizer, MAX_LENGTH)
        trained = dict(
            zip(rows.row_ids, zip(rows.prompts, rows.completions, strict=True), strict=True)
        )
        own = [document for document in documents if document.id in trained]
        scored = encode_task(task, variant, own, [], tokenizer, settings).to_pylist()
        assert len(scored) == len(trained) >= 3
        for row in scored:
            prompt, completion = trained[row["doc_id"]]
            gold = max(row["gold"], 0) if task.output_type == "multiple_choice" else 0
            context = row["contexts"][gold if len(row["contexts"]) > 1 else 0]
            assert prompt == context
            assert completion[:-1] == row["continuations"][gold]
            assert completion[-1] == tokenizer.eos_token_id
            assert completion[-1] in ends
            if task.output_type != "generate_until":
                continue
            # A model that writes what it learned is stopped right there, with that very text.
            enough = replace(task.generation, max_tokens=len(completion))
            end = finish(completion, tokenizer, ends, enough)
            assert end.finish_reason == "stop"
            if kind == "bpe":  # the other tokenizer does not know every letter
                stop = task.generation.stops[0]
                assert end.text.strip() == row["references"][0].strip().partition(stop)[0].strip()


def test_with_shots_and_listed_choices(checkpoints: dict[str, Path], data: Path) -> None:
    task = load_task("arc_easy")
    tokenizer = load_tokenizer(checkpoints["bpe"])
    settings = EncodingSettings(max_length=MAX_LENGTH)
    documents = load_documents(task, "train", data_root=data)
    (variant,) = load_variants(task.group, "letters")
    job = training_job(checkpoints["bpe"], "arc_easy", variant.name, data)
    rows = build_training_set(job, tokenizer, MAX_LENGTH)
    scored = {
        row["doc_id"]: row
        for row in encode_task(task, variant, documents, [], tokenizer, settings).to_pylist()
    }
    for doc_id, prompt, completion in zip(
        rows.row_ids, rows.prompts, rows.completions, strict=True
    ):
        row = scored[doc_id]
        assert prompt == row["contexts"][0]
        assert completion[:-1] == row["continuations"][row["gold"]]
    # Shots come from the pool of shots, the same before every row.
    nli = load_task("pocket_nli")
    (few,) = load_variants(nli.group, "default:shots=2,seed=1")
    job = training_job(checkpoints["bpe"], "pocket_nli", few.name, data)
    rows = build_training_set(job, tokenizer, MAX_LENGTH)
    wanted = set(rows.row_ids)
    chosen = [d for d in load_documents(nli, "train") if d.id in wanted]
    pool = load_documents(nli, "shots")
    table = encode_task(nli, few, chosen, pool, tokenizer, settings).to_pylist()
    trained = dict(zip(rows.row_ids, rows.prompts, strict=True))
    assert all(trained[row["doc_id"]] == row["contexts"][0] for row in table)
    assert all(row["shots"] == 2 for row in table)
