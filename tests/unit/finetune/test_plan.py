"""From a study to jobs: hub checkpoints by name, full and LoRA, mixes, selections, controls."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from evalcore.errors import InputError
from evalcore.identity import text_fingerprint
from evalcore.tasks import load_documents, load_task
from finetune import (
    MixPart,
    Selection,
    StudyError,
    StudyFault,
    check_data,
    load_study,
    parse_study,
    plan_jobs,
)
from finetune.plan import TunePlan

ROOT = Path(__file__).resolve().parents[3]
STUDY = """
name: small
checkpoints: {paths: ["step-*"]}
method: {steps: 5}
tunings:
  - {name: nli, task: pocket_nli, examples: 30}
evaluation: {tasks: [pocket_nli]}
"""
NLI = "{name: nli, task: pocket_nli, examples: 30}"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("study")
    make_checkpoint(folder / "step-00002", seed=2)
    return folder


def plan(out: Path, tuning: str = NLI, text: str = STUDY, **options: object) -> TunePlan:
    study = parse_study(text.replace(NLI, tuning), out / "s.yaml")
    return plan_jobs(study, out, **options)  # type: ignore[arg-type]


def test_adapters_and_tuned_checkpoints_have_folders_of_their_own(out: Path) -> None:
    tuning = f"{NLI}\n  - {{name: nli+full, task: pocket_nli, examples: 30, seeds: [0, 3],\n" \
        "     method: {kind: full, learning_rate: 1.0e-5}}"  # fmt: skip
    controls = "controls: [{kind: shuffled_labels, of: [nli+full]}]\nevaluation:"
    jobs = plan(out, tuning, STUDY.replace("evaluation:", controls)).jobs
    root = out.resolve()
    assert [str(Path(job.directory).relative_to(root)) for job in jobs] == [
        "adapters/step-00002/nli",
        "checkpoints-tuned/step-00002/nli+full",
        "checkpoints-tuned/step-00002/nli+full-seed3",
        "checkpoints-tuned/step-00002/nli+full-shuffled_labels",
    ]
    assert [job.method.kind for job in jobs] == ["lora", "full", "full", "full"]
    assert [job.tuning for job in jobs] == ["nli", "nli+full", "nli+full", "nli+full"]
    assert jobs[1].id == "step-00002/nli+full"
    assert pickle.loads(pickle.dumps(jobs[1])) == jobs[1]


def test_a_mix_is_one_job_of_several_parts(out: Path) -> None:
    mix = "[{task: pocket_nli, weight: 2}, {task: pocket_describe}]"
    (job,) = plan(out, f"{{name: both, mix: {mix}, examples: 30}}").jobs
    assert job.tasks == (MixPart("pocket_nli", 20, 2.0), MixPart("pocket_describe", 10, 1.0))
    assert (job.label, job.examples) == ("pocket_nli+pocket_describe", 30)
    values = job.settings()
    assert [part["task"] for part in values["tasks"]] == ["pocket_nli", "pocket_describe"]
    assert json.loads(json.dumps(values)) == values
    (alone,) = plan(out, "{name: both, task: pocket_nli, examples: null}").jobs
    assert alone.examples is None
    assert text_fingerprint(alone.settings()) != text_fingerprint(values)


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("seeds: [0, 1]", "{name: nli-seed1, task: pocket_paraphrase, examples: 30}", "nli-seed1"),
        ("seeds: [0]", "{name: nli-shuffled_labels, task: pocket_nli}", "nli-shuffled_labels"),
        ("seeds: [0]", "{name: NLI, task: pocket_nli, examples: 20}", "NLI"),
        (
            "seeds: [0, 1]",
            "{name: nli-seed1, task: pocket_nli, method: {kind: full, learning_rate: 1.0e-5}}",
            "nli-seed1",
        ),
    ],
)
def test_two_models_never_share_a_folder(out: Path, first: str, second: str, name: str) -> None:
    controls = "controls: [{kind: shuffled_labels, of: [nli]}]\nevaluation:"
    tunings = NLI.replace("}", f", {first}}}") + f"\n  - {second}"
    with pytest.raises(StudyError) as caught:
        plan(out, tunings, STUDY.replace("evaluation:", controls))
    assert caught.value.codes == (StudyFault.NAME_TWICE,)
    said = str(caught.value)
    assert "\n" not in said
    assert "two models would be named step-00002/" in said
    assert "tuning nli (seed" in said
    assert f"tuning {name} (seed 0) of step-00002" in said


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        (
            "{kind: format_only, of: [nli]}, {kind: format_only, of: [nli], examples: 10}",
            "controls.1: format_only of tuning nli, seed 0, is asked for twice at step-00002",
        ),
        (
            "{kind: shuffled_labels, of: [nli], seeds: [0, 7]}",
            "controls.0.seeds: tuning nli has no seed 7 at step-00002; it has 0",
        ),
    ],
)
def test_controls_that_make_no_sense(out: Path, controls: str, said: str) -> None:
    with pytest.raises(StudyError) as caught:
        plan(out, text=STUDY.replace("evaluation:", f"controls: [{controls}]\nevaluation:"))
    assert caught.value.codes == (StudyFault.WRONG_VALUE,)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("share", "total", "rows"), [(0.29, 100, 29), (0.57, 100, 57), (0.05, 19, 1), (1e-9, 10, 1)]
)
def test_a_share_is_the_decimal_it_is_written_as(share: float, total: int, rows: int) -> None:
    assert MixPart("t", None, share=share).rows_of(total) == rows


@pytest.mark.parametrize(
    ("held_out", "expected", "rows"),
    [
        ("0.1", Selection((1e-3, 1e-4), held_out_fraction=0.1), 3),
        ("7", Selection((1e-3, 1e-4), held_out_rows=7), 7),
    ],
)
def test_a_selection_travels_with_its_job(
    out: Path, held_out: str, expected: Selection, rows: int
) -> None:
    select = f"select: {{learning_rate: [1e-3, 1e-4], held_out: {held_out}}}"
    (job,) = plan(out, NLI.replace("}", f", {select}}}")).jobs
    assert job.selection == expected
    assert expected.rows_of(30) == rows
    assert job.method.learning_rate == 1e-3
    assert job.settings()["selection"]["learning_rates"] == [1e-3, 1e-4]
    with pytest.raises(InputError, match="leave none to train on"):
        expected.rows_of(1)


def test_a_control_of_a_grid_is_of_each_of_its_points(out: Path) -> None:
    grid = NLI.replace("}", ", grid: {rank: [2, 4]}}")
    for of, controls in (("[nli]", 2), ("[nli+rank4]", 1)):
        text = STUDY.replace(
            "evaluation:", f"controls: [{{kind: shuffled_labels, of: {of}}}]\nevaluation:"
        )
        jobs = plan(out, grid, text).jobs
        assert [job.method.rank for job in jobs if job.control is None] == [2, 4]
        assert sum(job.control == "shuffled_labels" for job in jobs) == controls


@pytest.mark.parametrize(
    ("code", "old", "new"),
    [
        (StudyFault.UNKNOWN_TASK, "task: pocket_nli", "task: pocket_nil"),
        (StudyFault.UNKNOWN_TASK, "tasks: [pocket_nli]", "tasks: [pocket_nil]"),
        (StudyFault.UNKNOWN_VARIANT, "examples: 30", "variants: [defualt]"),
        (StudyFault.UNKNOWN_VARIANT, "tasks: [pocket_nli]", "tasks: [pocket_nli], prompts: oi"),
        (StudyFault.NO_TRAIN_SPLIT, "task: pocket_nli", "task: gpt3nli"),
        (StudyFault.UNKNOWN_CHECKPOINT, "examples: 30", "checkpoints: [step-3]"),
    ],
)
def test_names_that_are_not_there(out: Path, code: StudyFault, old: str, new: str) -> None:
    with pytest.raises(StudyError) as caught:
        plan(out, text=STUDY.replace(old, new, 1))
    assert caught.value.codes == (code,)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_hub_checkpoints_that_are_not_at_hand_are_planned_by_name(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    hub = 'checkpoints: {paths: ["step-*"], hub: [{repo: a/m, steps: [30, 4], revisions: [main]}]}'
    text = STUDY.replace('checkpoints: {paths: ["step-*"]}', hub)
    found = plan(out, text=text, at_hand_only=True)
    assert [job.id for job in found.jobs] == [
        "step-00002/nli", "m@step4/nli", "m@step30/nli", "m@main/nli",
    ]  # fmt: skip
    assert [m.name for m in found.missing] == ["m@step30", "m@step4", "m@main"]
    assert "hf download a/m --revision step4" in found.missing[1].message
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = plan(out, text=text)
    assert [job.id for job in found.jobs] == ["step-00002/nli"]
    assert "a/m@step30 not in the local cache" in found.missing[0].message
    assert len(found.missing) == len(found.lost) == 3


def test_finished_without_its_base_at_hand(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    text = STUDY.replace('{paths: ["step-*"]}', "{hub: [{repo: a/m, revisions: [main]}]}")
    (job,) = plan(tmp_path, text=text, at_hand_only=True).jobs
    values = {**job.settings(), "base": "b" * 32, "tokenizer": "c" * 32}
    record = {
        "schema": 1,
        "base": {"fingerprint": "b" * 32},
        "tuning": {"name": "nli"},
        "settings": {"fingerprint": text_fingerprint(values), "values": values},
    }
    Path(job.directory).mkdir(parents=True)
    (Path(job.directory) / "provenance.json").write_text(json.dumps(record))
    assert plan(tmp_path, text=text, at_hand_only=True).finished == (Path(job.directory),)
    with pytest.raises(InputError, match=r"other settings \(method.steps\)"):
        plan(tmp_path, text=text.replace("steps: 5", "steps: 6"), at_hand_only=True)


def test_checkpoints_still_to_be_pretrained_are_planned_by_name(tmp_path: Path) -> None:
    found = plan_jobs(load_study(ROOT / "studies" / "pocket.yaml"), tmp_path, at_hand_only=True)
    assert len(found.jobs) == 24
    last = [job for job in found.jobs if job.checkpoint.name == "step-00700"]
    assert sorted(job.seed for job in last if job.control is None) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert {job.seed for job in found.jobs if job not in last} == {0}
    assert [m.name for m in found.missing][:2] == ["step-00030", "step-00100"]


def test_the_papers_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 checkpoints x 5 tunings x 3 seeds, full and LoRA, with the paper's settings."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    study = load_study(ROOT / "studies" / "amuro-char-olmo1b.yaml")
    found = plan_jobs(study, tmp_path, at_hand_only=True)
    plain = [job for job in found.jobs if job.control is None]
    full = [job for job in plain if job.method.kind == "full"]
    assert len(plain) == 2 * len(full) == 2 * 8 * 5 * 3
    assert {job.seed for job in plain} == {42, 43, 44}
    assert {job.data_seed for job in plain} == {42}
    wanted = {job.tuning: job.tasks[0].wanted for job in full}
    assert wanted.pop("tulu_v2") == "5 % of all"
    assert set(wanted.values()) == {"6,000"}
    rates = {job.tuning: (job.method.learning_rate, job.method.epochs) for job in full}
    assert rates == {
        "xsum": (2e-7, 3), "socialiqa_qg_answers": (2e-6, 3), "mnli": (2e-6, 3),
        "paws": (2e-6, 3), "tulu_v2": (2e-6, 5),
    }  # fmt: skip
    method = full[0].method
    assert (method.batch_size, method.schedule, method.warmup_ratio) == (8, "linear", 0.03)
    assert (method.weight_decay, method.max_length, method.dtype) == (0.0, 2048, "bfloat16")
    steps = [1000, 18000, 342000, 424000, 505000, 592000, 738000, None]
    assert [c.step for c in found.checkpoints] == steps
    assert found.checkpoints[2].source == "allenai/OLMo-1B-hf@step342000-tokens1433B"
    by_group = {part.task for job in full for part in job.tasks}
    assert by_group == {"xsum", "socialiqa_qg_answers", "mnli_matched", "paws", "tulu_v2"}
    lora = {job.tuning.removesuffix("+lora"): job for job in plain if job.method.kind == "lora"}
    assert lora.keys() == rates.keys()
    assert all(job.method.epochs == rates[name][1] for name, job in lora.items())


CONTROLS = """
name: small
checkpoints: {paths: [step-00001]}
tunings:
  - {name: nli, task: pocket_nli, examples: 100, seeds: [1, 2, 3], method: {steps: 40}}
  - {name: nli+full, task: pocket_nli, examples: 30, seeds: [1],
     method: {kind: full, learning_rate: 1.0e-4}}
  - {name: both, mix: [{task: pocket_nli, examples: 90}, {task: pocket_describe, examples: 10}]}
controls:
  - {kind: shuffled_labels, of: [nli], seeds: all}
  - {kind: format_only, of: [nli, nli+full, both], examples: 40, seeds: all}
"""


def test_a_control_of_the_format_alone_learns_few_rows_once(
    tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    make_checkpoint(tmp_path / "step-00001")
    study = parse_study(CONTROLS, tmp_path / "s.yaml")
    jobs = {Path(job.directory).name: job for job in plan_jobs(study, tmp_path).jobs}
    assert [name for name in jobs if "shuffled" in name] == [
        f"nli-seed{seed}-shuffled_labels" for seed in (1, 2, 3)
    ]
    few = jobs["nli-seed2-format_only"]
    assert (few.examples, few.method.steps, few.method.epochs, few.seed) == (40, None, 1, 2)
    assert jobs["nli-seed2-shuffled_labels"].method == jobs["nli-seed2"].method
    full = jobs["nli+full-seed1-format_only"]
    assert (full.method.kind, full.examples) == ("full", 30)  # never more than there are
    assert [part.examples for part in jobs["both-format_only"].tasks] == [36, 4]


def test_a_share_of_the_rows(tmp_path: Path, make_checkpoint: Callable[..., Path]) -> None:
    make_checkpoint(tmp_path / "step-00001")
    text = CONTROLS.replace("examples: 100,", "share: 0.05,").partition("controls:")[0]
    (job, *_) = plan_jobs(parse_study(text, tmp_path / "s.yaml"), tmp_path).jobs
    (part,) = job.tasks
    assert part.rows_of(326_154) == 16_307  # as the published study draws TULU v2
    assert (part.examples, part.wanted, job.examples) == (None, "5 % of all", None)
    rows = len(load_documents(load_task("pocket_nli"), "train"))
    assert check_data([job])[job.id].rows == int(rows * 0.05)
    assert job.settings()["tasks"][0]["share"] == 0.05
    for wrong in ("share: 0.05, examples: 5,", "share: 1.5,", "share: 0,"):
        with pytest.raises(StudyError, match="share"):
            parse_study(text.replace("share: 0.05,", wrong), tmp_path / "s.yaml")


def test_each_seed_may_draw_its_own_rows(out: Path) -> None:
    tuning = NLI.replace("}", ", data_seed: per_seed, seeds: [3, 8]}")
    assert [(j.seed, j.data_seed) for j in plan(out, tuning).jobs] == [(3, 3), (8, 8)]
    same = plan(out, tuning.replace("per_seed", "5")).jobs
    assert [(j.seed, j.data_seed) for j in same] == [(3, 5), (8, 5)]


@pytest.mark.parametrize("how", ["no config", "bad size", "weights cut"])
def test_a_broken_checkpoint_costs_itself_and_keeps_its_place(
    tmp_path: Path, make_checkpoint: Callable[..., Path], how: str
) -> None:
    """A tuning of the last checkpoint is not moved to the one before where the last is broken."""
    folders = [make_checkpoint(tmp_path / f"step-0000{i}", seed=i) for i in (1, 2)]
    if how == "no config":
        (folders[1] / "config.json").unlink()
    elif how == "bad size":
        (folders[1] / "config.json").write_text('{"hidden_size": -1}')
    else:
        os.truncate(folders[1] / "model.safetensors", 900)
    tunings = f"{NLI}\n  - {{name: more, task: pocket_nli, examples: 20, checkpoints: last}}"
    found = plan(tmp_path, tunings)
    assert [job.id for job in found.jobs] == ["step-00001/nli"]
    assert [job.id for job in found.lost] == ["step-00002/nli", "step-00002/more"]
    (missing,) = found.missing
    assert missing.name == "step-00002"
    assert str(folders[1]) in missing.message
    shutil.rmtree(folders[0])
    with pytest.raises(InputError, match="step-00002"):
        plan(tmp_path, tunings)
