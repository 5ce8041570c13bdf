"""A real run into results that were mended or damaged: what changed is scored, and it is said."""

from __future__ import annotations

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
