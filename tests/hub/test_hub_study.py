"""The published study, end to end, from a hub that has its repositories in small."""

from __future__ import annotations

import csv
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from evalcore.app.study import StudyOptions, study_plan
from evalcore.identity import read_provenance
from evalcore.store import ResultStore
from evalcore.tasks import load_documents
from finetune import load_study
from finetune.checkpoints import resolve_checkpoints
from tests.hub.loopback import LoopbackHub
from tests.hub.published import MODEL, STUDY_FILE, serve_data, serve_models

Run = Callable[..., subprocess.CompletedProcess]
LEARNED = ("xsum", "socialiqa_qg_answers", "mnli_matched", "paws", "tulu_v2")


def revisions() -> list[str]:
    (entry,) = load_study(STUDY_FILE).checkpoints.hub
    return [source.partition("@")[2] for source in entry.sources]


def test_the_whole_grid_is_planned_with_nothing_at_hand(hub: LoopbackHub, tmp_path: Path) -> None:
    """The file as it is shipped; a plan asks no hub."""
    serve_data(hub)
    lines = study_plan(StudyOptions(STUDY_FILE, tmp_path / "out"))
    assert not hub.requests
    assert sum(line.startswith("missing: OLMo-1B-hf@") for line in lines) == 8
    assert sum(line.startswith("OLMo-1B-hf@") for line in lines) == 8 * 10 * 3 + 2 * 2 * 8 * 3
    said = "\n".join(lines)
    assert "336 to train (1,452,288 examples, 48 with a number not known yet), 0 finished" in said
    assert (
        "in all, xsum: 24 full models, tokens unknown, GPU-hours unknown, 113.0 GB on disk" in said
    )
    assert "in all, tulu_v2+lora: 24 lora models" in said
    # 1,176,764,416 float32 weights; the state is those and two moments
    assert "790.8 GB on disk for 168 of 336 when all are finished; up to 14.1 GB of" in said
    assert "8 checkpoints and 336 tuned models x 97 prompts of 19 tasks = 33,368 cells" in said
    (loose,) = (line for line in lines if line.startswith("not pinned: "))
    assert loose.startswith("not pinned: xlsum_english, tweetqa_qg_answers: no commit is named")
    notes = [line.split(": ")[1] for line in lines if line.startswith("not comparable with")]
    assert notes == ["tweetqa_qg_answers", "rte", "qqp", "stsb"]


@pytest.mark.proof
def test_the_whole_grid_is_planned_from_what_was_fetched(hub: LoopbackHub, tmp_path: Path) -> None:
    serve_models(hub, tmp_path / "model", revisions())
    resolve_checkpoints(load_study(STUDY_FILE), tmp_path / "out")
    for task in serve_data(hub, dict.fromkeys(LEARNED, 7200)):
        for role, split in task.spec["splits"].items():
            if split:
                load_documents(task, role)
    lines = study_plan(StudyOptions(STUDY_FILE, tmp_path / "out"))
    said = "\n".join(lines)
    assert not [line for line in lines if line.startswith(("missing: ", "rows not at hand"))]
    # 5 % of 7,200 conversations are 360
    assert f"336 to train ({6000 * 4 * 48 + 360 * 48 + 6000 * 48 + 256 * 48:,} examples)" in said
    assert "on disk when all are finished" in said
    assert "tokens sampled with the bases' own tokenizers" in said
    rows = 8 * (6 + 3 + 3 + 6 + 3 + 3) + 12 * (10 + 7 + 7) + 8 * (7 + 10 + 7 + 7) + 8 * 3 * 6
    assert f"{344 * rows:,} examples (rows x prompts of one model: xsum 8 x 6, " in said
    assert f"{8 * rows:,} examples to score in {8 * 97} cells" in said


def small() -> dict[str, Any]:
    """The shipped file with its tunings, tasks, prompts and groups, at two checkpoints."""
    study = yaml.safe_load(STUDY_FILE.read_text())
    study["checkpoints"]["hub"][0]["steps"] = [1000]
    study["method"] |= {"steps": 2, "batch_size": 4, "dtype": "float32", "save_every": None}
    study["method"].pop("epochs")
    ways = {"mnli+lora"}  # of the LoRA tunings one: they are the others again
    study["tunings"] = [t for t in study["tunings"] if "+" not in t["name"] or t["name"] in ways]
    for tuning in study["tunings"]:
        tuning["seeds"] = [42]
        tuning["method"] = {k: v for k, v in tuning.get("method", {}).items() if k != "epochs"}
        if "examples" in tuning:
            tuning["examples"] = 6
        else:
            tuning["share"] = 0.75
    for control in study["controls"]:
        control |= {"of": ["mnli", "mnli+lora"], "checkpoints": "last"}
        if control["kind"] == "format_only":
            control["examples"] = 5  # two steps of one epoch, not the same as the shuffled one's
    study["evaluation"] |= {"limit": 2, "engine": "vllm", "dtype": "float32", "device": "cpu"}
    return study


@pytest.mark.proof
def test_the_study_runs_from_end_to_end(
    hub: LoopbackHub, evalcore_cli: Run, tmp_path: Path
) -> None:
    """All five tunings, full and LoRA, all sets, and the published table in both halves."""
    serve_models(hub, tmp_path / "model", revisions())
    serve_data(hub, dict.fromkeys(LEARNED, 12))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(small(), sort_keys=False))
    done = evalcore_cli("run", "study.yaml", "-o", "out", "--threads", "1", timeout_s=1500)
    assert done.returncode == 0, done.stderr + done.stdout
    tuned = [read_provenance(file.parent) for file in tmp_path.glob("out/*/*/*/provenance.json")]
    assert len(tuned) == 2 * (5 + 1) + 4
    assert all(record is not None and not record.untrained for record in tuned)
    cells = ResultStore(tmp_path / "out/results", read_only=True).cells().to_pylist()
    assert len(cells) == 97 * (2 + len(tuned))
    assert len({cell["task"] for cell in cells}) == 19  # SciQ is two of them
    refs = hub.repository("model", MODEL).refs
    assert {cell["revision"] for cell in cells if cell["revision"]} == {
        refs["step1000-tokens4B"], refs["main"],
    }  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "out/report/summary.csv").open()))
    halves = {"learned in fine-tuning": 7, "learned in pre-training": 5}
    for checkpoint in ("OLMo-1B-hf@step1000-tokens4B", "OLMo-1B-hf@main"):
        for group, tasks in halves.items():
            (row,) = (r for r in rows if (r["checkpoint"], r["method"], r["group"])
                      == (checkpoint, "full", group))  # fmt: skip
            assert len(row["tasks"].split()) == tasks
            assert row["missing"] == ""
            assert float(row["gain_n"]) >= 2 * tasks
            assert math.isfinite(float(row["gain"]))
    flags = (tmp_path / "out/report/flags.csv").read_text()
    for note in ("csebuetnlp/xlsum is not pinned", "task rte: scores are not comparable with"):
        assert note in flags
    assert "…step1000" in done.stdout  # two checkpoints of one repository, told apart
    again = evalcore_cli("run", "study.yaml", "-o", "out", "--dry-run")
    assert "0 to train (0 examples), 16 finished" in again.stdout, again.stderr
    assert "0 examples to score" in again.stdout
