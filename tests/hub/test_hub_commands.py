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
from evalcore.identity import HubRepository, answers, open_checkpoint
from evalcore.tasks import load_documents, load_task
from tests.hub.conftest import forget
from tests.hub.loopback import Fault, LoopbackHub

GLUE = "nyu-mll/glue"
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


def gated(hub: LoopbackHub, repo: str) -> None:
    for (_, name), repository in hub.repositories.items():
        repository.gated |= name == repo


def private(hub: LoopbackHub, repo: str) -> None:
    for (_, name), repository in hub.repositories.items():
        repository.private |= name == repo


def without(hub: LoopbackHub, repo: str) -> None:
    for (_, name), repository in hub.repositories.items():
        if name == repo:
            repository.commits.clear()
            repository.refs.clear()


def answering(status: int, **headers: str) -> Callable[[LoopbackHub, str], None]:
    return lambda hub, repo: hub.faults.append(Fault(repo, status, headers=headers))


def in_circles(hub: LoopbackHub, repo: str) -> None:
    place = f"{hub.endpoint}/api/models/{repo}/revision/round"
    hub.faults.append(Fault(repo, 302, headers={"Location": place}))


def silent(hub: LoopbackHub, repo: str) -> None:
    hub.faults.append(Fault(repo, 0, silent_s=30))


def away(hub: LoopbackHub, repo: str) -> None:
    hub.stop()


FAULTS: dict[str, tuple[Callable[[LoopbackHub, str], None], str]] = {
    "gated": (gated, "is gated: accept its terms at"),
    "private": (private, "is not on the hub"),
    "no revision": (without, "has no such revision"),
    "429": (answering(429, **{"Retry-After": "0"}), "the hub answered 429 to 4 tries"),
    "503": (answering(503), "the hub answered 503 to 4 tries"),
    "redirects": (in_circles, "redirects without end; check HF_ENDPOINT and the proxy"),
    "silence": (silent, "no answer to"),
    "away": (away, "cannot be reached"),
}
"""Name -> (what befalls a repository, what people read)."""

CHECKPOINT: dict[str, tuple[str, ...]] = {
    "score": ("score", "--checkpoint", "org/base@step10", "-t", "rte", "-o", "r"),
    "run": ("run", "study.yaml", "-o", "out"),
    "finetune": ("finetune", "study.yaml", "-o", "out"),
}
ROWS: dict[str, tuple[str, ...]] = {
    "score": ("score", "--checkpoint", "{base}", "-t", "rte", "-o", "r", "--engine", "hf"),
    "tasks check": ("tasks", "check", "rte"),
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a second for every answer."""
    from huggingface_hub import constants

    monkeypatch.setattr(answers, "ANSWER_S", 0.1)
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.1)


def one_line(status: int, err: str, words: str) -> None:
    *before, last = err.strip().splitlines()
    assert status == 2
    assert last.startswith("evalcore: ")
    assert words in last, err
    assert not any("Traceback" in line or line.startswith("evalcore:") for line in before), err


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_is_not_to_be_had(
    hub: LoopbackHub, glue: str, base: Path, say: Say, fault: str
) -> None:
    befalls, words = FAULTS[fault]
    befalls(hub, "org/base")
    for command in CHECKPOINT.values():
        status, _, err = say(*command)
        one_line(status, err, words)
        assert "org/base@step10" in err


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("fault", FAULTS)
def test_rows_that_are_not_to_be_had(
    hub: LoopbackHub, glue: str, base: Path, say: Say, fault: str
) -> None:
    befalls, words = FAULTS[fault]
    befalls(hub, GLUE)
    for name, command in ROWS.items():
        status, out, err = say(*(part.format(base=base) for part in command))
        if name == "score":
            one_line(status, err, words)
            assert "or put its rows at <data-root>/nyu-mll/glue/rte/" in err
        else:
            assert status == 2
            assert words in out + err
            assert "Traceback" not in out + err


def test_a_plan_asks_no_hub_and_doctor_neither(
    hub: LoopbackHub, glue: str, base: Path, say: Say
) -> None:
    for command in (("run", "study.yaml", "-o", "out", "--dry-run"),
                    ("finetune", "study.yaml", "-o", "out", "--dry-run")):  # fmt: skip
        _, out, err = say(*command)
        assert "missing: base@step10: not at hand" in out, err
    say("doctor")
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
