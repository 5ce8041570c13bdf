"""Wrong input: one clear line, status 2, no traceback, nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def assert_one_line(done, *words: str, status: int = 2) -> None:
    assert done.status == status, (done.status, done.err)
    assert "Traceback" not in done.err
    lines = [line for line in done.err.strip().splitlines() if line]
    assert len(lines) == 1, done.err
    for word in words:
        assert word in lines[0], (word, lines[0])


def test_no_adapters(evalcore, tmp_path: Path) -> None:
    done = evalcore("score", tmp_path, "-t", "pocket_nli", "-o", tmp_path / "r")
    assert_one_line(done, "adapter_config.json", str(tmp_path))


def test_nothing_to_score(evalcore, tmp_path: Path) -> None:
    done = evalcore("score", "-t", "pocket_nli", "-o", tmp_path / "r")
    assert_one_line(done, "--checkpoint PATH")


def test_base_missing_on_disk(evalcore, tmp_path: Path) -> None:
    done = evalcore("score", "-m", tmp_path / "gone", "-t", "pocket_nli", "-o", tmp_path / "r")
    assert_one_line(done, str(tmp_path / "gone"))


def test_adapter_whose_base_moved(mini: Path, evalcore, tmp_path: Path) -> None:
    shutil.copytree(mini / "adapters", tmp_path / "adapters")
    for record in (tmp_path / "adapters").rglob("provenance.json"):
        values = json.loads(record.read_text())
        values["base"]["path"] = values["base"]["path_relative"] = "nowhere/at/all"
        record.write_text(json.dumps(values))
    done = evalcore("score", tmp_path / "adapters", "-t", "pocket_nli", "-o", tmp_path / "r")
    assert_one_line(done, "--base-map")


def test_unknown_task_names_the_nearest(mini: Path, evalcore, tmp_path: Path) -> None:
    done = evalcore("score", mini / "adapters", "-t", "pocket_nlj", "-o", tmp_path / "r")
    assert_one_line(done, "pocket_nlj", "pocket_nli")


def test_unknown_prompt_names_the_nearest(mini: Path, evalcore, tmp_path: Path) -> None:
    command = ("score", mini / "adapters", "-t", "pocket_nli", "-o", tmp_path / "r")
    assert_one_line(evalcore(*command, "-p", "instrukt"), "instrukt", "instruct")


def test_broken_yaml(mini: Path, evalcore, tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("name: [unclosed\n")
    command = ("score", mini / "adapters", "-t", "broken", "-o", tmp_path / "r")
    assert_one_line(evalcore(*command, "--task-path", tmp_path), "broken.yaml")
    assert_one_line(evalcore("run", tmp_path / "broken.yaml"), "broken.yaml")


def test_output_not_writable(mini: Path, evalcore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "r"
    done = evalcore("score", mini / "adapters", "-t", "pocket_nli", "-o", out)
    assert_one_line(done, str(out), status=74)


def test_results_of_another_schema(mini: Path, evalcore, tmp_path: Path) -> None:
    shutil.copytree(mini / "results", tmp_path / "r")
    record = tmp_path / "r" / "store.json"
    values = json.loads(record.read_text())
    key = next(k for k in values if "schema" in k)
    record.write_text(json.dumps({**values, key: 999}))
    done = evalcore("score", mini / "adapters", "-t", "pocket_nli", "-o", tmp_path / "r")
    assert_one_line(done, "999")


def test_adapter_of_another_base_is_refused(mini: Path, evalcore, tmp_path: Path) -> None:
    first, second = sorted((mini / "pretrained").glob("step-*"))
    adapter = mini / "adapters" / second.name / "pocket_nli"
    command = ("score", adapter, "-t", "pocket_nli", "-o", tmp_path / "r")
    done = evalcore(*command, "--base-map", f"*={first}")
    assert_one_line(done, "pocket_nli")


def test_two_revisions_of_one_hub_base(mini: Path, evalcore, tmp_path: Path) -> None:
    for name, source in zip("ab", sorted((mini / "adapters").glob("*/pocket_nli")), strict=True):
        shutil.copytree(source, tmp_path / name)
        (tmp_path / name / "provenance.json").unlink()
        config = json.loads((tmp_path / name / "adapter_config.json").read_text())
        config |= {"base_model_name_or_path": "example/model-1b", "revision": None}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    command = ("score", tmp_path / "a", tmp_path / "b", "-t", "pocket_nli", "-o", tmp_path / "r")
    assert_one_line(evalcore(*command), "example/model-1b", "--base-map", "--assume-base")


def test_unknown_command(evalcore) -> None:
    done = evalcore("scoer")
    assert done.status == 2
    assert "score" in done.err


def test_one_broken_adapter_costs_its_own_cells_only(mini: Path, evalcore, tmp_path: Path) -> None:
    source = sorted((mini / "adapters").glob("*/pocket_nli"))[0]
    base = mini / "pretrained" / source.parent.name
    for name in ("good", "broken"):
        shutil.copytree(source, tmp_path / "adapters" / name)
    weights = tmp_path / "adapters" / "broken" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    command = ("score", tmp_path / "adapters", "-t", "pocket_nli", "--limit", 4, "--engine", "hf")
    done = evalcore(*command, "-o", tmp_path / "r", "--base-map", f"*={base}")
    assert done.status == 1, done.err
    assert "8 examples" in done.out  # the base and the good adapter
    assert "not scored" in done.err
    assert "broken" in done.err
    assert "Traceback" not in done.err
