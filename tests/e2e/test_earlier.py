"""Adapters, tuned checkpoints and results that evalcore 0.1.0 made are used as ever."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import evalcore as ec
from evalcore.app import report, score
from evalcore.config import ScoreConfig
from evalcore.identity import read_provenance, resolve_subjects
from evalcore.store import ResultStore

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "earlier"
FOLDERS = ("adapters", "checkpoints-tuned")


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A copy; the paths recorded in it are of another machine."""
    return Path(shutil.copytree(GOLDEN, tmp_path / "earlier"))


def asked(earlier: Path, **more: object) -> ScoreConfig:
    values = {
        "grid": (("pocket_nli", "default"), ("pocket_nli", "io")), "limit": 4, "engine": "hf",
        "device": "cpu", "adapters": tuple(str(earlier / name) for name in FOLDERS),
        "output": earlier / "results",
    }  # fmt: skip
    return ScoreConfig.of(**{**values, **more})


def test_records_name_base_tuning_and_parent(earlier: Path) -> None:
    found = resolve_subjects([str(earlier / name) for name in FOLDERS])
    assert not found.problems
    adapters = [s.adapter for s in found.subjects if s.adapter]
    (adapter,) = adapters
    assert (adapter.tuning, adapter.tuned_on, adapter.seed) == ("nli", "pocket_nli", 0)
    tuned = [s.checkpoint for s in found.subjects if s.checkpoint.parent]
    (whole,) = tuned
    assert (whole.tuning, whole.tuned_on, whole.seed) == ("whole", "pocket_nli", 0)
    base = next(s.checkpoint for s in found.subjects if s.checkpoint.name == "step-00100")
    assert {s.checkpoint.path for s in found.subjects if s.adapter} == {base.path}
    assert whole.parent == base.fingerprint
    # Fingerprints are those that were recorded: the checkpoint's, and the adapter's over it.
    record = read_provenance(earlier / "adapters" / "step-00100" / "nli")
    assert record
    assert record.schema_ == 1
    assert (record.base.fingerprint, record.adapter_fingerprint) == (
        base.fingerprint, adapter.fingerprint,
    )  # fmt: skip


def test_an_adapter_that_is_not_the_recorded_one_is_refused(earlier: Path) -> None:
    file = earlier / "adapters" / "step-00100" / "nli" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "lora_alpha": 8}))
    found = resolve_subjects([str(earlier / "adapters")])
    (line,) = found.problems
    assert "is not the one its provenance.json records" in str(line)
    assert "\n" not in str(line)
    assert not [s for s in found.subjects if s.adapter]


def test_results_are_opened_and_reported_on(earlier: Path, tmp_path: Path) -> None:
    results = ec.open(earlier / "results")
    models = ["step-00100", "step-00100 + nli", "step-00100 + whole"]
    scores = results.scores().to_pandas()
    assert dict(zip(scores["model"], scores["score"], strict=True)) == dict.fromkeys(models, 0.75)
    gains = results.gains().to_pandas()
    assert dict(zip(gains["model"], gains["gain"], strict=True)) == dict.fromkeys(models[1:], 0.0)
    table = report(earlier / "results", tmp_path / "report", title="old").table
    assert re.search(r"step-00100 +nli +0\.750  0\.750 +0\.000", table)


def test_a_run_over_them_says_in_one_line_why_keys_changed(earlier: Path) -> None:
    outcome = score(asked(earlier, dry_run=True))
    (line,) = [note for note in outcome.notes if "earlier evalcore" in note]
    assert line.startswith("6 cells of ")
    assert "\n" not in line


@pytest.mark.slow
def test_they_are_scored_anew_and_the_old_cells_stay(earlier: Path) -> None:
    score(asked(earlier))
    store = ResultStore(earlier / "results")
    rows = store.read().to_pylist()
    assert len(rows) == 24, "cells under older keys are superseded"
    assert all(row["made_by"] for row in rows)
    assert sorted(store.cell_states().values()) == ["current"] * 6 + ["superseded"] * 6
