"""What each command says of each fault of the hub: one line that names what and what to do."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evalcore.cli import main
from evalcore.errors import DataError, InputError
from evalcore.identity import HubRepository, open_checkpoint
from evalcore.tasks import load_documents, load_task
from tests.hub.conftest import forget
from tests.hub.loopback import Fault, LoopbackHub

STUDY = """
name: s
checkpoints: {hub: [{repo: org/base, revisions: [step10]}]}
tunings: [{name: rte, task: rte, examples: 6}]
method: {kind: lora, steps: 1, batch_size: 2, rank: 2, learning_rate: 1.0e-3}
evaluation: {tasks: [rte], prompts: default}
"""


@pytest.fixture
def base(hub: LoopbackHub, tmp_path: Path, make_checkpoint: Callable[..., Path]) -> Path:
    """A checkpoint, here and on the hub as org/base@step10."""
    folder = make_checkpoint(tmp_path / "base")
    files: dict[str, bytes | str] = {f.name: f.read_bytes() for f in folder.iterdir()}
    hub.repository("model", "org/base").commit(files, ref="step10")
    return folder


Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """(status, standard output, standard error) of a command, in this process."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["evalcore", *arguments])
        monkeypatch.chdir(tmp_path)
        (tmp_path / "study.yaml").write_text(STUDY)
        forget()
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run


def test_a_plan_asks_no_hub_and_doctor_neither(
    hub: LoopbackHub, glue: str, base: Path, say: Say, tmp_path: Path
) -> None:
    for command in (("run", "study.yaml", "-o", "out", "--dry-run"),
                    ("finetune", "study.yaml", "-o", "out", "--dry-run")):  # fmt: skip
        _, out, err = say(*command)
        assert "missing: base@step10: not at hand" in out, err
        if command[0] == "run":
            assert "base@step10 not in the local cache and a plan asks no hub; download" in out
    say("doctor")
    prompt = Path(__file__).resolve().parents[2] / "prompts/nli/default.yaml"
    status, out, _ = say("prompts", "check", str(prompt), "--data-root", str(tmp_path))
    assert (status, "(no rows here)" in out) == (0, True)
    assert hub.requests == []


def rows_line() -> str:
    with pytest.raises(DataError) as caught:
        load_documents(load_task("rte"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bytes_that_are_not_the_hubs_never_stay_in_the_cache(
    hub: LoopbackHub, glue: str, base: Path
) -> None:
    """The library checks their number alone."""
    hub.faults.append(Fault("rte/validation", 0, change=True, times=1, method="GET"))
    assert (
        "came with other bytes than the hub names (validation-00000-of-00001.jsonl" in rows_line()
    )
    forget()
    assert len(load_documents(load_task("rte"))) == 12
    hub.faults.append(Fault("/cdn/", 0, change=True, times=1, method="GET"))
    with pytest.raises(InputError, match=r"other bytes than the hub names .model.safetensors"):
        open_checkpoint("org/base@step10")
    assert open_checkpoint("org/base@step10").name == "base@step10"


@contextmanager
def room(bytes_left: int) -> Iterator[None]:
    """Files may not grow beyond so many bytes: as a full disk, but for this process alone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_while_it_downloads(hub: LoopbackHub, glue: str, base: Path) -> None:
    commit = hub.repository("model", "org/base").refs["step10"]
    with room(512), pytest.raises(InputError) as caught:
        HubRepository("model", "org/base").fetch(commit, ["*.safetensors"])
    assert "could not be written to the cache" in str(caught.value)
    assert "make room, or set HF_HOME to another disk" in str(caught.value)
    found = HubRepository("model", "org/base").fetch(commit, ["*.safetensors"])
    assert (found / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()


def test_a_host_without_an_address(
    hub: LoopbackHub, glue: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
    forget()
    assert "the hub (http://no-such-host.invalid) cannot be reached" in rows_line()
    with pytest.raises(InputError, match=r"hub .http://no-such-host.invalid. cannot be reached"):
        open_checkpoint("org/base@step10")
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    forget()
    elsewhere = {"Location": "http://no-such-host.invalid/x"}
    hub.faults.append(Fault("/cdn/", 302, headers=elsewhere, method="GET"))
    with pytest.raises(InputError, match="the connection broke off in 4 tries"):
        open_checkpoint("org/base@step10")
