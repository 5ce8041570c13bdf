"""In 16 bits a results folder is scored in one way, whatever later engines would choose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evalcore.app.report import scores
from evalcore.store import ResultStore

pytestmark = pytest.mark.proof  # three starts of vLLM


def strategies(results: Path) -> set[str]:
    return {record["strategy"] for record in ResultStore(results).makers().values()}


def test_later_engines_score_as_the_first_did(
    make_checkpoint: Callable[..., Path], make_adapter: Callable[..., Path], evalcore: Callable,
    tmp_path: Path,
) -> None:  # fmt: skip
    base, out = make_checkpoint(tmp_path / "step-00100"), tmp_path / "results"
    config = json.loads((base / "config.json").read_text())
    one_head = {"num_attention_heads": 1, "num_key_value_heads": 1}  # of a size vLLM has on CPUs
    (base / "config.json").write_text(json.dumps(config | one_head))
    adapter = make_adapter(tmp_path / "lora", base)

    def score(*what: object, limit: int) -> None:
        done = evalcore(
            "score", *what, "-t", "pocket_nli", "-p", "default", "--limit", limit, "-o", out,
            "--device", "cpu", "--dtype", "bfloat16", "--engine", "vllm", "--witness", "off",
        )  # fmt: skip
        assert done.status == 0, done.err + done.out

    score("--checkpoint", base, "--strategy", "cached", limit=4)
    score(adapter, limit=4)
    assert strategies(out) == {"cached"}, "auto would take packed, and did before"
    assert not any("made by" in note for row in scores(ResultStore(out)) for note in row.notes)
    shutil.rmtree(out / "settled")  # as in a folder of before
    score(adapter, limit=8)
    assert strategies(out) == {"cached", "packed"}
    notes = [note for row in scores(ResultStore(out)) for note in row.notes if "made by" in note]
    assert notes
    assert all(note.endswith("different strategy (cached | packed)") for note in notes)
