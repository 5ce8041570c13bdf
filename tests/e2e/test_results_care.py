"""A real run into results that were mended or damaged: what changed is scored, and it is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evalcore.store import ResultStore
from evalcore.store.segments import list_segments

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1] / "data" / "root"
PROMPT = (
    "name: mine\ngroup: multiple_choice\ndescription: a prompt of the user's\ntemplate: '{text}'\n"
)


def test_a_mended_prompt_and_a_damaged_file(
    tiny_checkpoint: Path, tmp_path: Path, evalcore: Callable
) -> None:
    out, prompt = tmp_path / "results", tmp_path / "prompts" / "multiple_choice" / "mine.yaml"
    prompt.parent.mkdir(parents=True)
    command = (
        "score", "-m", tiny_checkpoint, "-t", "sciq", "-p", "mine", "--prompt-path",
        tmp_path / "prompts", "--data-root", ROOT, "--engine", "hf", "--limit", 4, "-o", out,
    )  # fmt: skip

    def score(text: str, *more: str) -> str:
        prompt.write_text(PROMPT.replace("{text}", text))
        done = evalcore(*command, *more)
        assert done.status == 0, done.err
        return done.out + done.err

    score("Q: {{ question }} A:", "--no-documents")
    store = ResultStore(out)
    assert not (out / "documents").exists()
    (old,) = store.cells()["cell"].to_pylist()
    assert store.read()["maker"].null_count == 0

    score("Question: {{ question }} Answer:")  # the mend
    store = ResultStore(out)
    assert sorted(store.cell_states().values()) == ["current", "superseded"]
    (new,) = store.cells()["cell"].to_pylist()
    assert set(store.read(["cell"])["cell"].to_pylist()) == {new} != {old}
    assert store.documents("sciq").num_rows == 4
    assert store.requests(new).num_rows == 4
    shown = evalcore("cells", out, "list")
    assert f"superseded {old[:12]}" in shown.out
    assert "template" in shown.out

    path = list_segments(store.segments_folder)[-1]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    path.write_bytes(data)
    assert evalcore("verify", out, "--check-only").status == 1
    said = score("Question: {{ question }} Answer:")
    assert "set aside" in said
    assert "4 examples" in said
    store = ResultStore(out)
    assert store.verify().sound
    assert store.read().num_rows == 4
    assert "nothing to do" in score("Question: {{ question }} Answer:")
    score(
        "Q: {{ question }} A:"
    )  # the mend is taken back: nothing is scored, the old cell is current
    assert ResultStore(out).cells()["cell"].to_pylist() == [old]


def test_answers_to_rows_that_stayed_are_kept_when_the_data_grows(
    tiny_checkpoint: Path, tmp_path: Path, evalcore: Callable
) -> None:
    """Grown, shortened and in another order: only what is new is scored, and nothing mixes."""
    out, data = tmp_path / "results", tmp_path / "data" / "mine"
    data.mkdir(parents=True)
    task = tmp_path / "mine.yaml"
    task.write_text(
        "name: mine\nversion: 1\ngroup: multiple_choice\noutput_type: multiple_choice\n"
        "source: {path: mine}\nsplits: {score: test}\nfields: {question: q, context: c}\n"
        "choices: {column: a}\ngold: {column: g}\nmetrics: [acc]\nprimary: acc\n"
    )

    def score(rows: range, *more: str) -> str:
        lines = [
            json.dumps({"q": f"Who has mule {i}?", "c": "", "a": ["Tavira", "Gorse"], "g": i % 2})
            for i in rows
        ]
        (data / "test.jsonl").write_text("\n".join(lines) + "\n")
        done = evalcore(
            "score", "-m", tiny_checkpoint, "-t", "mine", "--task-path", task, "-o", out,
            "--data-root", tmp_path / "data", "--engine", "hf", *more,
        )  # fmt: skip
        assert done.status == 0, done.err
        return done.out + done.err

    assert "6 examples" in score(range(6))
    first = ResultStore(out).examples(["doc_id", "choice_logprobs"]).to_pylist()
    said = score(range(9))
    assert "mine: the data changed; 6 answers to rows that stayed the same are kept" in said
    assert "3 examples" in said
    rows = ResultStore(out).examples(["doc_id", "doc_index", "choice_logprobs"]).to_pylist()
    assert sorted(row["doc_index"] for row in rows) == list(range(9))
    known = {row["doc_id"]: row["choice_logprobs"] for row in rows}
    assert all(known[row["doc_id"]] == row["choice_logprobs"] for row in first)
    said = score(range(8, 2, -1))  # fewer, and in another order: nothing is left to score
    assert "6 answers" in said
    assert "nothing to do" in said
    store = ResultStore(out)
    assert store.examples(["doc_id"]).num_rows == 6
    assert sorted(store.cell_states().values()) == ["current", "superseded", "superseded"]
