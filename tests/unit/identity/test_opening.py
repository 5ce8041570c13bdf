"""A checkpoint that cannot be opened costs itself and the adapters that were trained on it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from evalcore.app import score
from evalcore.config import ScoreConfig
from evalcore.errors import EXIT_CELLS_FAILED, InputError
from evalcore.identity import resolve_subjects

Make = Callable[..., Path]
WEIGHTS = "model.safetensors"


def _edit(base: Path, **changes: Any) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **changes}))


def _missing_shard(base: Path) -> None:
    (base / WEIGHTS).rename(base / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-2.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))


def _directory(base: Path) -> None:
    (base / WEIGHTS).unlink()
    (base / WEIGHTS).mkdir()


def _pipe(base: Path, name: str) -> None:
    """Where a small file may be left out, a pipe of its name is no reason to go on without it."""
    (base / name).unlink(missing_ok=True)
    os.mkfifo(base / name)


BREAK: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gone": (shutil.rmtree, "missing on disk"),
    "no config": (lambda base: (base / "config.json").unlink(), "no config.json"),
    "bad JSON": (lambda base: (base / "config.json").write_text("{"), "config.json"),
    "bad size": (lambda base: _edit(base, hidden_size=-1), "hidden_size"),
    "pointer": (
        lambda base: (base / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "Git LFS",
    ),
    "no weights": (lambda base: (base / WEIGHTS).unlink(), "safetensors"),
    "cut": (
        lambda base: (base / WEIGHTS).write_bytes((base / WEIGHTS).read_bytes()[:900]),
        WEIGHTS,
    ),
    "missing shard": (_missing_shard, "model-2.safetensors"),
    "no tokenizer": (lambda base: (base / "tokenizer.json").unlink(), "tokenizer"),
    "a directory": (_directory, WEIGHTS),
}
for _name in (
    "config.json", "checkpoint.json", "provenance.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "chat_template.jinja", "generation_config.json", WEIGHTS,
    "model.safetensors.index.json",
):  # fmt: skip
    BREAK[f"a pipe: {_name}"] = (
        partial(_pipe, name=_name), f"{_name} is a pipe, expected a regular file",
    )  # fmt: skip


@pytest.mark.parametrize("how", BREAK)
def test_a_broken_base_costs_itself_and_its_adapters(
    how: str, tmp_path: Path, tiny_checkpoint: Path, make_checkpoint: Make, make_adapter: Make
) -> None:
    base = make_checkpoint(tmp_path / "step-9", seed=9)
    good = make_adapter(tmp_path / "a/good", tiny_checkpoint)
    lost = [make_adapter(tmp_path / f"a/{name}", base, seed=i) for i, name in enumerate("xy")]
    BREAK[how][0](base)
    resolved = resolve_subjects([tmp_path / "a"], [str(base), str(tiny_checkpoint)])
    assert [s.label.partition(" + ")[2] for s in resolved.subjects] == ["", "good"], good
    (problem,) = resolved.problems
    assert problem.path == str(base)
    assert BREAK[how][1] in problem.message
    assert f"; with it 2 adapters: {lost[0]}, {lost[1]}" in problem.message
    assert "\n" not in problem.message
    with pytest.raises(InputError, match=r"step-9.*\(and 1 more checkpoints and adapters\)"):
        resolve_subjects(lost, [str(base), str(tmp_path / "nowhere")])


def test_adapters_of_a_broken_base_that_nobody_named(
    tmp_path: Path, tiny_checkpoint: Path, make_checkpoint: Make, make_adapter: Make
) -> None:
    base = make_checkpoint(tmp_path / "step-9", seed=9)
    many = [make_adapter(tmp_path / f"a/{i:02}", base, seed=1) for i in range(22)]
    (base / "tokenizer.json").unlink()
    resolved = resolve_subjects([tmp_path / "a"], [str(tiny_checkpoint)])
    (problem,) = resolved.problems
    assert f"; with it 22 adapters: {many[0]}" in problem.message
    assert problem.message.endswith(f"{many[19]} and 2 more")
    resolved = resolve_subjects(
        [tmp_path / "a"], [str(tiny_checkpoint)], [f"*/0*={tiny_checkpoint}", f"*={base}"]
    )
    (problem,) = resolved.problems
    assert "with it 12 adapters" in problem.message
    assert len(resolved.subjects) == 2  # ten copies of one adapter


@pytest.mark.slow
def test_a_dry_run_and_a_run_say_the_same(
    tmp_path: Path, tiny_checkpoint: Path, make_checkpoint: Make
) -> None:
    base = make_checkpoint(tmp_path / "step-9", seed=9)
    (base / "tokenizer.json").unlink()
    options = {
        "grid": (("pocket_nli", "default"),), "output": tmp_path / "r", "limit": 2,
        "checkpoints": (str(base), str(tiny_checkpoint)), "engine": "hf", "device": "cpu",
        "threads": 1,
    }  # fmt: skip
    planned = score(ScoreConfig.of(**options, dry_run=True))
    done = score(ScoreConfig.of(**options))
    for outcome in (planned, done):
        assert outcome.exit_status == EXIT_CELLS_FAILED
        (line,) = outcome.problem_lines()
        assert line.startswith(f"not scored: {base}: ")
        assert "tokenizer" in line
    assert done.summary.examples == 2
    options["checkpoints"] = (str(base),)
    for dry_run in (True, False):
        with pytest.raises(InputError, match="tokenizer"):
            score(ScoreConfig.of(**{**options, "output": tmp_path / "x", "dry_run": dry_run}))
    assert not list((tmp_path / "x").glob("segments/*"))


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "provenance.json",
             "tokenizer.json"],
)  # fmt: skip
def test_a_pipe_among_an_adapters_files_costs_the_adapter(
    name: str, tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make
) -> None:
    bad, _ = (make_adapter(tmp_path / f"a/{i}", tiny_checkpoint, seed=i) for i in (1, 2))
    _pipe(bad, name)
    resolved = resolve_subjects([tmp_path / "a"], [str(tiny_checkpoint)])
    (problem,) = resolved.problems
    assert f"{name} is a pipe, expected a regular file" in problem.message
    assert len(resolved.subjects) == 2
