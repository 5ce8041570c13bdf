"""What a study is scored with: the command line, then the study file, then the defaults."""

from __future__ import annotations

import pickle
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import evalcore.tasks.registry
from evalcore.app import StudyOptions, tuned_lines
from evalcore.app.study import as_given, scoring_config, study
from evalcore.app.tuning import plan_tuning, tune_missing, tuned_status
from evalcore.cli import cli
from evalcore.cli.progress import StudyProgress
from evalcore.cli.study import _study_options, run
from evalcore.cluster import StopSignals
from evalcore.config import ScoreConfig
from evalcore.errors import EXIT_CELLS_FAILED, InputError
from evalcore.prompting import load_tokenizer
from evalcore.prompting.variants import prompts_root
from finetune import TuneSummary, check_data, load_study, plan_jobs
from finetune.data import build_training_set

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


def scored_with(file: Path, *words: str) -> ScoreConfig:
    """The scoring of ``evalcore run FILE WORDS``."""
    found: list[StudyOptions] = []

    def kept(study_file: Path, output: Path | None, **options: Any) -> None:
        found.append(_study_options(study_file, output or study_file.parent, options))

    command = click.Command("run", params=run.params, callback=kept)
    command.main([str(file), *words], standalone_mode=False)
    return scoring_config(load_study(file), found[0])


def test_the_file_is_read_where_nothing_is_given(file: Path) -> None:
    found = scored_with(file)
    assert (found.grid.limit, found.engine.adapters, found.engine.kind) == (7, "merged", "hf")
    assert (found.engine.dtype, found.grid.max_length, found.cluster.device) == (
        "float32",
        256,
        "cpu",
    )
    assert (found.run.certify, found.grid.num_fewshot, found.engine.strategy) == (0.0, None, "auto")


def test_what_is_given_goes_before_the_file_also_where_it_is_a_default(file: Path) -> None:
    found = scored_with(
        file, "--adapters", "auto", "--engine", "vllm", "--limit", "first:3", "--dtype", "auto",
        "--certify", "--certify-share", "0.5", "--shard", "1/4", "--time-limit", "90m",
    )  # fmt: skip
    assert (found.engine.adapters, found.engine.kind, found.grid.limit) == (
        "auto",
        "vllm",
        "first:3",
    )
    assert (found.engine.dtype, found.run.certify) == ("auto", 0.5)
    assert (found.run.shard, found.run.time_limit, found.grid.max_length) == ((1, 4), 5400.0, 256)


def test_from_python_what_is_given_goes_before_the_file(file: Path) -> None:
    options = StudyOptions(file, file.parent, given={"limit": 2})
    found = scoring_config(load_study(file), options)
    assert (found.grid.limit, found.engine.kind) == (2, "hf")
    options = StudyOptions(file, file.parent, given={"engine": "vllm"})  # the default, but said
    found = scoring_config(load_study(file), options)
    assert (found.grid.limit, found.engine.kind) == (7, "vllm")


def test_what_is_given_of_a_study_is_checked_at_once(file: Path) -> None:
    for given, message in (
        ({"engin": "hf"}, "unknown argument 'engin'; nearest: engine"),
        ({"engine": "vlm"}, "--engine 'vlm': expected auto, vllm or hf"),
        ({"output": Path("x")}, "output is said by the study"),
    ):
        with pytest.raises(InputError, match=message):
            StudyOptions(file, file.parent, given=given)


def test_a_dry_run_of_a_study_writes_nothing(file: Path) -> None:
    before = sorted(file.parent.rglob("*"))
    done = CliRunner().invoke(cli, ["run", str(file), "--dry-run"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "step-00100/nli: lora" in done.output.replace("adapters/", "")
    assert "scoring what is tuned by now:" in done.output
    assert "subjects (1): step-00100" in done.output
    assert "7 examples to score in 1 cells" in done.output
    assert sorted(file.parent.rglob("*")) == before


@pytest.mark.parametrize("command", ["run", "finetune"])
def test_a_dry_run_without_any_checkpoint_ends_as_the_run_would(
    file: Path, tmp_path: Path, command: str
) -> None:
    text = file.read_text().replace("step-*", "nowhere-*").replace("step-00100", "nowhere-*")
    other = tmp_path / "other.yaml"
    other.write_text(text)
    with pytest.raises(InputError, match="matches no checkpoint"):
        CliRunner().invoke(cli, [command, str(other), "--dry-run"], catch_exceptions=False)


@pytest.mark.parametrize("words", [[], ["--num-fewshot", "4"], ["--num-fewshot", "3"]])
def test_the_primary_way_may_be_given_with_the_command(file: Path, words: list[str]) -> None:
    """Shots of the command line count for what the study declares of its report."""
    file.write_text(file.read_text() + "  primary: {shots: 4}\n")
    command = ["run", str(file), "--dry-run", *words]
    if words[1:] != ["4"]:
        with pytest.raises(InputError, match="primary: no prompt asks in this way"):
            CliRunner().invoke(cli, command, catch_exceptions=False)
        return
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0
    assert "7 examples to score in 1 cells" in done.output


def test_a_part_needs_all_models(file: Path) -> None:
    options = StudyOptions(file, file.parent, given={"shard": (0, 2)})
    with StudyProgress(quiet=True) as progress, pytest.raises(InputError, match="1 models are not"):
        study(options, progress)


@pytest.fixture
def own(file: Path) -> Path:
    """A study that brings its own task, prompts and a task of lm-eval, beside its file."""
    folder = file.parent
    definitions, prompts = (Path(p) for p in (evalcore.tasks.registry.DEFINITIONS, prompts_root()))  # type: ignore[attr-defined]
    (folder / "tasks").mkdir()
    text = (definitions / "pocket_nli.yaml").read_text()
    (folder / "tasks" / "my_nli.yaml").write_text(
        text.replace("name: pocket_nli", "name: my_nli").replace("group: pocket_nli", "group: mine")
    )
    (folder / "prompts" / "mine").mkdir(parents=True)
    prompt = (prompts / "pocket_nli" / "default.yaml").read_text().replace("pocket_nli", "mine")
    for name, words in (("plain", "Inference"), ("words", "It follows")):
        changed = prompt.replace("name: default", f"name: {name}").replace("Inference", words)
        (folder / "prompts" / "mine" / f"{name}.yaml").write_text(changed)
    study_text = file.read_text().replace("task: pocket_nli, examples: 8", (
        "task: my_nli, examples: 8, variants: [words]"
    ))  # fmt: skip
    study_text = study_text.replace("tasks: [pocket_nli]", "tasks: [my_nli, 'lm-eval:arc_easy']")
    study_text = study_text.replace("prompts: default", "prompts: plain,words")
    file.write_text(
        study_text + "task_path: [tasks]\nprompt_path: [prompts]\ninclude_path: [theirs]\n"
    )
    return file


def test_a_study_brings_its_own_tasks_and_prompts(own: Path) -> None:
    spec = load_study(own)
    options = scoring_config(spec, StudyOptions(own, own.parent))
    assert options.grid.blocks == (("my_nli,lm-eval:arc_easy", "plain,words"),)
    assert options.grid.task_path == (own.parent / "tasks",)
    assert options.grid.prompt_path == (own.parent / "prompts",)
    assert options.grid.include_path == (own.parent / "theirs",)

    (job,) = plan_jobs(spec, own.parent).jobs
    assert (job.variants, job.held_out) == (("words",), ("my_nli",))
    job = pickle.loads(pickle.dumps(job))  # as a worker has it
    rows = build_training_set(job, load_tokenizer(Path(job.checkpoint.tokenizer)), 512)
    texts = [load_tokenizer(Path(job.checkpoint.tokenizer)).decode(p) for p in rows.prompts]
    assert len(texts) == 8
    assert all("It follows" in text for text in texts)
    (report,) = check_data([job]).values()
    assert report.rows == 8


def test_metrics_of_what_is_scored_are_known_before_anything_is_tuned(own: Path) -> None:
    task = next((own.parent / "tasks").glob("*.yaml"))
    task.write_text(task.read_text().replace("metrics: [acc", "metrics: [acuracy, acc"))
    with pytest.raises(InputError, match=r"acuracy.*task my_nli, key metrics"):
        as_given(load_study(own), StudyOptions(own, own.parent))


def test_rows_of_lm_evals_tasks_are_said_not_to_be_compared(own: Path) -> None:
    told: list[str] = []

    class Told(StudyProgress):
        def stage(self, name: str, what: str) -> None:
            told.append(what)

    with Told(quiet=True) as progress:
        plan_tuning(load_study(own), StudyOptions(own, own.parent), progress)
    assert any("lm-eval's tasks (arc_easy) are not looked for" in line for line in told)


def test_a_folder_that_is_not_there_is_named(own: Path) -> None:
    own.write_text(own.read_text().replace("[tasks]", "[task]"))
    with pytest.raises(InputError, match=r"task folder .*/task does not exist"):
        plan_jobs(load_study(own), own.parent)


def test_tuning_that_was_stopped_does_not_say_that_nothing_is_missing() -> None:
    stopped, done = (TuneSummary((), (), stopped, 1.0, 0) for stopped in (True, False))
    assert tuned_lines(stopped) == ["stopped: run the same command again to go on"]
    assert tuned_lines(done) == ["no adapter is missing"]


@pytest.mark.parametrize(
    ("gpus", "words", "refused"),
    [
        (1, ("--overlap",), "takes 1 GPUs, an engine 1, and there are 1"),
        (2, ("--overlap", "--tensor-parallel", "2"), "an engine 2, and there are 2"),
        (2, ("--overlap",), None),
        (0, ("--overlap",), None),
        (1, ("--overlap", "--device", "cpu"), None),
    ],
)
def test_no_gpu_trains_and_scores_at_once(
    file: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, words: tuple[str, ...],
    refused: str | None,
) -> None:  # fmt: skip
    import evalcore.app.overlap as module

    begun: dict[str, Any] = {}

    class Begun(Exception):
        pass

    class Thread:
        def __init__(self, plan: Any, options: Any, gpus: list[str], *_: Any) -> None:
            begun["tuning"] = gpus

        def start(self) -> None:
            raise Begun

    found: list[StudyOptions] = []

    def kept(study_file: Path, output: Path | None, **options: Any) -> None:
        found.append(_study_options(study_file, output or study_file.parent, options))

    text = file.read_text().replace("  device: cpu\n", "")
    file.write_text(text)
    command = click.Command("run", params=run.params, callback=kept)
    command.main([str(file), *words], standalone_mode=False)
    monkeypatch.setattr(module, "visible_gpus", lambda: [str(i) for i in range(gpus)])
    monkeypatch.setattr(module, "_TuningThread", Thread)
    progress: Any = StudyProgress()
    begin = partial(
        module.tune_and_score, load_study(file), found[0], progress,
        lambda: pytest.fail("nothing is scored"), StopSignals(),
    )  # fmt: skip
    if refused:
        with pytest.raises(InputError, match=refused):
            begin()
        assert not begun
    else:
        with pytest.raises(Begun):
            begin()
        assert begun["tuning"] == (["0"] if gpus == 2 else [])


def test_a_broken_checkpoint_is_named_and_the_rest_of_the_study_goes_on(
    file: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "step-9"
    shutil.copytree(tiny_checkpoint, broken)
    (broken / "config.json").write_text("{")
    text = file.read_text().replace("]}\ntunings", f", {broken}]}}\ntunings")
    file.write_text(text.replace("examples: 8", "examples: 8, checkpoints: [step-9]"))
    told: list[str] = []

    class Told(StudyProgress):
        def failure(self, label: str, message: str) -> None:
            told.append(f"{label}: {message}")

    with Told(quiet=True) as progress:
        summary = tune_missing(load_study(file), StudyOptions(file, tmp_path), progress)
    assert tuned_status(summary) == EXIT_CELLS_FAILED
    (line,) = (line for line in tuned_lines(summary) if line.startswith("not trained: "))
    assert line == f"not trained: {told[0]}"
    assert told[0].startswith(
        f"checkpoint step-9: checkpoint: {broken}/config.json is not readable"
    )
    assert told[0].endswith("; with it 1 models: step-9/nli")
