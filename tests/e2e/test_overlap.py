"""Tuning and scoring at once give what one after the other gives."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evalcore.identity import find_adapters
from evalcore.store import ResultStore


def rows(folder: Path) -> dict[tuple[str, str], tuple[list[float], int, str | None]]:
    table = ResultStore(folder / "results").examples().to_pylist()
    return {
        (r["cell"], r["doc_id"]): (r["choice_logprobs"], r["prediction"], r["text"]) for r in table
    }


@pytest.mark.proof
def test_overlapped_stages_store_what_sequential_ones_store(
    mini: Path, tmp_path: Path, evalcore: Callable
) -> None:
    found = {}
    # Steps enough that the bases are scored long before the last adapter is trained.
    study = (mini / "study.yaml").read_text().replace("steps: 12,", "steps: 600,")
    assert "steps: 600," in study
    for name, flag in (("overlapped", "--overlap"), ("sequential", "--no-overlap")):
        folder = tmp_path / name
        shutil.copytree(mini / "pretrained", folder / "pretrained")
        (folder / "study.yaml").write_text(study)
        if name == "sequential":  # scores the adapters that the other made
            shutil.copytree(tmp_path / "overlapped" / "adapters", folder / "adapters")
        run = evalcore(
            "run", folder / "study.yaml", flag, "--engine", "hf", "--threads", "1",
            "--tune-workers", "2",
        )  # fmt: skip
        assert run.status == 0, run.err + run.out
        found[name] = rows(folder)
        assert (folder / "report" / "report.html").is_file()
        rounds = re.search(r"scored in (\d+) rounds beside tuning", run.out)
        assert (rounds is not None) == (name == "overlapped")
        assert len(find_adapters([folder / "adapters"])) == 4
    # Scores were there before the last adapter was.
    folder = tmp_path / "overlapped"
    first_scores = min(p.stat().st_mtime for p in (folder / "results" / "segments").iterdir())
    last_adapter = max(p.stat().st_mtime for p in (folder / "adapters").rglob("provenance.json"))
    assert first_scores < last_adapter
    one, two = found["sequential"], found["overlapped"]
    assert one.keys() == two.keys()
    # checkpoints, subjects of each, tasks, prompts, documents
    assert len(one) == 2 * 3 * 2 * 2 * 12
    for key, (logprobs, prediction, text) in one.items():
        assert two[key][1:] == (prediction, text)
        np.testing.assert_allclose(two[key][0], logprobs, atol=1e-6)
