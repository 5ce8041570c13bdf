"""Checkpoints, adapters' bases, tokenizers and whole commands against the loopback hub."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evalcore.app.grid import build_grid
from evalcore.config import GridConfig
from evalcore.errors import InputError
from evalcore.identity import (
    NumericsClass,
    answers,
    open_checkpoint,
    read_provenance,
    resolve_subjects,
)
from evalcore.prompting import load_tokenizer
from evalcore.store import ResultStore
from finetune import check_data, load_study, plan_jobs
from finetune.data import build_training_set
from tests.hub.conftest import forget
from tests.hub.loopback import Fault, LoopbackHub

Make = Callable[..., Path]
STUDY = """
name: from-the-hub
checkpoints: {hub: [{repo: org/base, revisions: [step10, step20]}]}
tunings: [{name: rte, task: rte, examples: 6, variants: [default]}]
method: {kind: lora, steps: 2, batch_size: 2, rank: 2, learning_rate: 1.0e-3}
evaluation: {tasks: [rte], prompts: default}
"""


def files_of(folder: Path) -> dict[str, bytes | str]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Make) -> list[Path]:
    folder = tmp_path_factory.mktemp("two")
    return [make_checkpoint(folder / f"step{10 * n}", seed=n) for n in (1, 2)]


@pytest.fixture
def commits(hub: LoopbackHub, two: list[Path]) -> list[str]:
    """org/base with a branch for each of two checkpoints; main is the second."""
    repository = hub.repository("model", "org/base")
    found = [repository.commit(files_of(folder), ref=folder.name) for folder in two]
    repository.refs["main"] = found[1]
    return found


def line(source: str) -> str:
    with pytest.raises(InputError) as caught:
        open_checkpoint(source, what="--checkpoint")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_revision_is_the_checkpoint_of_that_commit(
    hub: LoopbackHub, commits: list[str], two: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for revision, commit, folder in zip(("step10", "step20"), commits, two, strict=True):
        found = open_checkpoint(f"org/base@{revision}")
        assert (found.revision, found.name) == (commit, f"base@{revision}")
        assert found.fingerprint == open_checkpoint(str(folder)).fingerprint
        assert load_tokenizer(found.path)("who", add_special_tokens=False)["input_ids"]
    assert open_checkpoint(f"org/base@{commits[0]}").revision == commits[0]
    forget()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert open_checkpoint("org/base@step10").revision == commits[0]
    assert "org/base@main not in the local cache and HF_HUB_OFFLINE is set" in line("org/base@main")


def test_weights_in_a_second_layout_are_not_fetched(hub: LoopbackHub, two: list[Path]) -> None:
    twice = {"original/consolidated.00.safetensors": b"x", "consolidated.safetensors": b"x"}
    hub.repository("model", "org/twice").commit({**files_of(two[0]), **twice})
    folder = Path(open_checkpoint("org/twice@main").path)
    assert [file.name for file in folder.rglob("*.safetensors")] == ["model.safetensors"]


def test_an_adapters_base_comes_from_the_hub_at_its_revision(
    hub: LoopbackHub, commits: list[str], tmp_path: Path, make_adapter: Make
) -> None:
    make_adapter(tmp_path / "one", "org/base", revision="step10", seed=1)
    make_adapter(tmp_path / "two", "org/base", revision=commits[1], seed=2)
    found = resolve_subjects([tmp_path / "one", tmp_path / "two"]).subjects
    assert [s.checkpoint.revision for s in found if s.adapter] == commits
    hub.repository("model", "org/base").gated = True
    make_adapter(tmp_path / "three", "org/base", revision="step30", seed=3)
    both = resolve_subjects([tmp_path / "one", tmp_path / "three"])
    assert "org/base@step30 has no such revision" in both.problems[0].message
    assert len(both.subjects) == 2  # the other goes on, from the cache


def test_a_branch_that_moved_between_two_runs_is_said(
    hub: LoopbackHub, commits: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert open_checkpoint("org/base@main").revision == commits[1]
    assert not caplog.records
    hub.repository("model", "org/base").refs["main"] = commits[0]
    assert open_checkpoint("org/base@main").revision == commits[0]
    assert f"org/base: main moved: it was {commits[1]}, it is {commits[0]}" in caplog.text


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("org/base", 429, headers={"Retry-After": "0"}), "the hub answered 429 to 4 tries"),
        (Fault("org/base", 429, headers={"Retry-After": "300"}), "run again in 300 s, or log in"),
        (Fault("org/base", 502), "the hub answered 502 to 4 tries"),
        (Fault("tokenizer_config.json", 0, method="GET"), "the connection broke off in 4 tries"),
    ],
    ids=["429", "429 for long", "502", "cut short"],
)
def test_faults_of_checkpoints(
    hub: LoopbackHub, commits: list[str], fault: Fault, words: str
) -> None:
    hub.faults.append(fault)
    said = line("org/base@step10")
    assert said.startswith("--checkpoint: org/base@step10 ")
    assert words in said
    hub.faults.clear()
    hub.faults.append(Fault(fault.path, fault.status, 2, {"Retry-After": "0"}))
    assert open_checkpoint("org/base@step10").revision == commits[0]


def test_a_checkpoint_that_may_not_be_had(hub: LoopbackHub, commits: list[str]) -> None:
    assert "has no such revision (nearest: step20, step10)" in line("org/base@step30")
    assert "org/nobody@main is not on the hub" in line("org/nobody@main")
    hub.repository("model", "org/base").gated = True
    said = line("org/base@step10")
    assert f"is gated: accept its terms at {hub.endpoint}/org/base and log in" in said
    hub.stop()
    forget()
    assert f"the hub ({hub.endpoint}) cannot be reached" in line("org/base@step20")


Run = Callable[..., subprocess.CompletedProcess]


def test_what_people_read_on_the_command_line(
    hub: LoopbackHub, glue: str, commits: list[str], evalcore_cli: Run, tmp_path: Path
) -> None:
    done = evalcore_cli("tasks", "check", "rte")
    assert done.stdout.startswith("rte: 12 documents"), done.stderr
    hub.repositories[("dataset", "nyu-mll/glue")].gated = True
    for command in (("tasks", "check", "boolq"), ("score", "--checkpoint", "org/base@step30",
                     "-t", "rte", "-o", str(tmp_path / "r"))):  # fmt: skip
        done = evalcore_cli(*command)
        assert done.returncode == 2
        slow = ("loading libraries", "scoring: ")  # told where the machine is busy
        (said,) = (line for line in done.stderr.splitlines() if not line.startswith(slow))
        assert "is not on the hub" in said or "has no such revision" in said


def test_a_study_is_planned_and_its_rows_encoded(
    hub: LoopbackHub, glue: str, commits: list[str], tmp_path: Path
) -> None:
    """Everything that a study reads before it trains and scores."""
    (tmp_path / "study.yaml").write_text(STUDY)
    study = load_study(tmp_path / "study.yaml")
    (missing, _) = plan_jobs(study, tmp_path, at_hand_only=True).missing
    assert missing.name == "base@step10"
    assert "hf download org/base" in missing.message
    jobs = plan_jobs(study, tmp_path).jobs
    assert [job.checkpoint.revision for job in jobs] == commits
    assert all(report.rows == 6 for report in check_data(jobs).values())
    rows = build_training_set(jobs[0], load_tokenizer(jobs[0].checkpoint.path), 512)
    assert len(rows) == 6
    subjects = resolve_subjects([], ["org/base@step10"]).subjects
    numerics = NumericsClass("hf", "float32", "float32", "cpu")
    grid = build_grid(subjects, GridConfig((("rte", "default"),)), numerics, tmp_path / "cache")
    assert [len(cell.doc_ids) for cell in grid.cells] == [12]
    assert grid.rows.to_pylist()[0]["revision"] == commits[0]


@pytest.mark.proof
def test_a_study_from_the_hub_alone(
    hub: LoopbackHub, glue: str, commits: list[str], evalcore_cli: Run, tmp_path: Path
) -> None:
    """Checkpoints, tokenizers, rows to tune on and rows to score; offline the second time."""
    (tmp_path / "study.yaml").write_text(STUDY)
    dry = evalcore_cli("finetune", "study.yaml", "-o", "out", "--dry-run")
    assert "missing: base@step10: not at hand" in dry.stdout, dry.stderr
    command = ("run", "study.yaml", "-o", "out", "--engine", "hf", "--threads", "1")
    done = evalcore_cli(*command)
    assert done.returncode == 0, done.stderr + done.stdout
    (record, _) = (read_provenance(p.parent) for p in tmp_path.glob("out/adapters/*/*/prov*.json"))
    assert record is not None
    assert record.base.revision in commits
    assert record.model_dump()["data"]["parts"][0]["revision"] == glue
    cells = ResultStore(tmp_path / "out/results").cells().to_pylist()
    assert sorted({cell["revision"] for cell in cells}) == sorted(commits)
    hub.stop()
    again = evalcore_cli(*command, HF_HUB_OFFLINE="1")
    assert again.returncode == 0, again.stderr + again.stdout
    assert "no adapter is missing" in again.stdout


@pytest.mark.parametrize("what", ["/cdn/", "/resolve/", "/api/"])
def test_a_hub_that_trickles_is_given_up(
    hub: LoopbackHub, commits: list[str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte ends a wait, so that no time limit between two bytes ever ends it."""
    monkeypatch.setattr(answers, "WINDOW_S", 0.5)
    hub.faults.append(Fault(what, 0, method="GET", trickle_s=0.05))
    begin = time.monotonic()
    said = line("org/base@step10")
    assert "could not be fetched: the hub sends too slowly" in said
    assert "at least 1,000 bytes/s" in said
    assert time.monotonic() - begin < 20
    hub.faults.clear()
    forget()
    assert open_checkpoint("org/base@step10").step == 10


def test_what_comes_fast_enough_is_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "WINDOW_S", 0.05)

    def parts(size: int) -> Iterator[bytes]:
        for i in range(10):
            time.sleep(0.02)
            yield bytes([i]) * size

    assert b"".join(answers.metered(parts(200))) == b"".join(bytes([i]) * 200 for i in range(10))
    with pytest.raises(answers.TooSlowError, match=r"\d+ bytes in"):
        list(answers.metered(parts(2)))

    def slow_reader() -> Iterator[bytes]:
        yield from (b"x", b"y", b"z")

    for _ in answers.metered(slow_reader()):
        time.sleep(0.06)  # a slow disk is nobody's fault
