"""What a study is scored with: the command line, then the study file, then the defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from evalcore.app import ScoreOptions, StudyOptions
from evalcore.app.study import scoring_options, study
from evalcore.cli import cli
from evalcore.cli.progress import StudyProgress
from evalcore.cli.study import _study_options, run
from evalcore.errors import InputError
from finetune import load_study

STUDY = """
name: small
checkpoints: {{paths: [{base}]}}
tunings: [{{name: nli, task: pocket_nli, examples: 8}}]
evaluation:
  tasks: [pocket_nli]
  prompts: default
  limit: 7
  adapters: merged
  engine: hf
  dtype: float32
  max_length: 256
  device: cpu
"""


@pytest.fixture
def file(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(base=tiny_checkpoint))
    return path


def scored_with(file: Path, *words: str) -> ScoreOptions:
    """The scoring options of ``evalcore run FILE WORDS``."""
    found: list[StudyOptions] = []

    def kept(study_file: Path, output: Path | None, **options: Any) -> None:
        found.append(_study_options(study_file, output or study_file.parent, options))

    command = click.Command("run", params=run.params, callback=kept)
    command.main([str(file), *words], standalone_mode=False)
    return scoring_options(load_study(file), found[0])


def test_the_file_is_read_where_nothing_is_given(file: Path) -> None:
    found = scored_with(file)
    assert (found.limit, found.adapter_way, found.engine) == (7, "merged", "hf")
    assert (found.dtype, found.max_length, found.device) == ("float32", 256, "cpu")
    assert (found.certify, found.num_fewshot, found.strategy) == (0.0, None, "auto")


def test_what_is_given_goes_before_the_file_also_where_it_is_a_default(file: Path) -> None:
    found = scored_with(
        file, "--adapters", "auto", "--engine", "vllm", "--limit", "first:3", "--dtype", "auto",
        "--certify", "--certify-share", "0.5", "--shard", "1/4", "--time-limit", "90m",
    )  # fmt: skip
    assert (found.adapter_way, found.engine, found.limit) == ("auto", "vllm", "first:3")
    assert (found.dtype, found.certify) == ("auto", 0.5)
    assert (found.shard, found.time_limit, found.max_length) == ((1, 4), 5400.0, 256)


def test_from_python_what_differs_from_its_default_is_given(file: Path) -> None:
    scoring = ScoreOptions(grid=(), limit=2)
    found = scoring_options(load_study(file), StudyOptions(file, file.parent, scoring=scoring))
    assert (found.limit, found.engine) == (2, "hf")
    auto = StudyOptions(file, file.parent, scoring=scoring, given=frozenset({"engine"}))
    found = scoring_options(load_study(file), auto)
    assert (found.limit, found.engine) == (7, "vllm")


def test_a_dry_run_of_a_study_writes_nothing(file: Path) -> None:
    before = sorted(file.parent.rglob("*"))
    done = CliRunner().invoke(cli, ["run", str(file), "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "step-00100/nli: lora" in done.output.replace("adapters/", "")
    assert "scoring what is tuned by now:" in done.output
    assert "subjects (1): step-00100" in done.output
    assert "7 examples to score in 1 cells" in done.output
    assert sorted(file.parent.rglob("*")) == before


def test_a_part_needs_all_models(file: Path) -> None:
    options = StudyOptions(file, file.parent, scoring=ScoreOptions(grid=(), shard=(0, 2)))
    with StudyProgress(quiet=True) as progress, pytest.raises(InputError, match="1 models are not"):
        study(options, progress)
