"""Checkpoints and adapters that pass through a node's disk: planned without their bytes, fetched
once where they are scored, given up for the next ones."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import stub
from evalcore.cli import main
from evalcore.identity import away as table
from evalcore.identity import open_checkpoint, resolve_subjects
from evalcore.identity.away import AwayRule
from evalcore.store import ResultStore
from tests.conftest import write_adapter, write_checkpoint
from tests.hub.conftest import DATA, forget
from tests.hub.loopback import Fault, LoopbackHub
from tests.hub.revisions import fetched, files_of, largest, publish, rows, weights

Say = Callable[..., tuple[int, str]]
REVISIONS = 6


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of this machine, empty."""
    monkeypatch.setenv("EVALCORE_CACHE", str(tmp_path / "facts"))
    monkeypatch.setattr(table, "_AWAY", {})
    return tmp_path / "facts"


@pytest.fixture
def say(
    hub: LoopbackHub,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Say:
    """(status, what was said) of `evalcore score` with a stub engine in child processes."""
    monkeypatch.setattr("evalcore.scoring.run.JobPool", stub.StubPool)
    monkeypatch.setenv("STUB_CONTEXT_S", "0")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        command = ["score", "-t", "rte", "--limit", "2", "-o", "r", "--engine", "hf",
                   "--data-root", str(DATA), "--commit-every", "0", *arguments]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["evalcore", *command])
        monkeypatch.setattr(table, "_AWAY", {})
        forget()
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out + shown.err

    return run


def test_revisions_pass_through_a_small_disk(
    hub: LoopbackHub, say: Say, cache: Path, tmp_path: Path
) -> None:
    size = publish(hub, tmp_path / "made", REVISIONS)
    budget = int(2.5 * size)
    hub.faults += [Fault("/cdn/", 503, times=1, headers={"Retry-After": "0"}), Fault("/cdn/", 0, 1)]
    hub.faults[0].method = hub.faults[1].method = "GET"
    status, said = say("-m", "@made/list.txt", "--disk-budget", str(budget), "--dry-run")
    assert status == 0, said
    assert not fetched(hub)
    with largest(cache) as most:
        status, said = say("-m", "@made/list.txt", "--disk-budget", str(budget))
    assert status == 0, said
    assert fetched(hub) == weights(hub)
    assert 2 * size * 0.9 < most[0] <= budget, "the next one comes while the present one scores"
    assert rows(tmp_path / "r") == (2 * REVISIONS, 2 * REVISIONS)
    hub.bodies.clear()
    status, said = say("-m", "@made/list.txt", "--disk-budget", str(budget))
    assert status == 0, said
    assert not fetched(hub)
    assert rows(tmp_path / "r") == (2 * REVISIONS, 2 * REVISIONS)


def test_scored_from_the_hub_then_from_a_disk(hub: LoopbackHub, say: Say, tmp_path: Path) -> None:
    """What was scored before anybody had read it is known by what was read meanwhile."""
    size = publish(hub, tmp_path / "made", 1)
    status, said = say("-m", "org/base@step1", "--disk-budget", str(size))
    assert status == 0, said
    whole = tmp_path / "whole"
    whole.mkdir()
    (commit,) = hub.repository("model", "org/base").commits.values()
    for name, content in commit.items():
        (whole / name).write_bytes(content)
    status, said = say("-m", str(whole))
    assert status == 0, said
    assert rows(tmp_path / "r") == (2, 2)
    (row,) = ResultStore(tmp_path / "r").weights().by_files.values()
    assert row.content == open_checkpoint(str(whole)).fingerprint != row.used


def test_adapters_scored_from_a_disk_are_known_on_the_hub(
    hub: LoopbackHub, say: Say, cache: Path, tmp_path: Path
) -> None:
    base = write_checkpoint(tmp_path / "base")
    adapters = [write_adapter(tmp_path / f"runs/checkpoint-{i}", base, seed=i) for i in (1, 2)]
    for file in [f for folder in (base, *adapters) for f in folder.iterdir()]:
        os.utime(file, (time.time() - 100,) * 2)
    status, said = say("runs", "--base-map", f"*={base}")
    assert status == 0, said
    files: dict[str, bytes | str] = {"README.md": "two steps of a run"}
    for folder in adapters:
        files |= files_of(folder, f"{folder.name}/")
    hub.repository("model", "org/tuned").commit(files)
    more = ("--base-map", f"*={base}")
    status, said = say("org/tuned@main", *more)  # both of them, without a budget
    assert status == 0, said
    assert not fetched(hub)
    assert rows(tmp_path / "r") == (6, 6)
    (tmp_path / "list.txt").write_text("hf:org/tuned@main#checkpoint-2  # the last one\n")
    status, said = say("@list.txt", *more, "-o", "other", "--disk-budget", "1MB", "--no-bases")
    assert status == 0, said
    assert len(fetched(hub)) == 1
    assert rows(tmp_path / "other") == (2, 2)
    status, said = say(str(adapters[1]), *more, "-o", "other", "--no-bases")
    assert status == 0, said
    assert rows(tmp_path / "other") == (2, 2)


def test_what_a_node_cannot_hold_is_one_line_before_planning(
    hub: LoopbackHub, say: Say, tmp_path: Path
) -> None:
    publish(hub, tmp_path / "made", 1)
    status, said = say("-m", "org/base@step1", "--disk-budget", "10kB")
    assert status == 2
    assert "--checkpoint: org/base@" in said
    assert "more than --disk-budget 10.0 kB; give at least that much" in said
    assert not fetched(hub)
    assert not list((tmp_path / "r" / "cells").glob("*.arrow"))


def test_other_bytes_than_the_hub_lists_are_not_scored(
    hub: LoopbackHub, say: Say, tmp_path: Path
) -> None:
    size = publish(hub, tmp_path / "made", 1)
    assert say("-m", "org/base@step1", "--disk-budget", str(size), "--dry-run")[0] == 0
    hub.faults.append(Fault("/cdn/", 0, change=True))
    status, said = say("-m", "org/base@step1", "--disk-budget", str(size))
    assert status == 1
    assert "came with other bytes than the hub names" in said
    assert rows(tmp_path / "r") == (0, 0)


def test_a_checkpoint_in_a_folder_of_its_repository(
    hub: LoopbackHub, cache: Path, tmp_path: Path
) -> None:
    whole = write_checkpoint(tmp_path / "whole")
    files = files_of(whole, "checkpoint-500/") | {"checkpoint-400/config.json": "{}"}
    commit = hub.repository("model", "org/base").commit(files)
    found = open_checkpoint("hf:org/base@main#checkpoint-500")
    assert found.fingerprint == open_checkpoint(str(whole)).fingerprint
    assert (found.step, found.name) == (500, "base@main/checkpoint-500")
    assert found.origin == f"org/base@{commit}#checkpoint-500"
    assert not (Path(found.path).parent / "checkpoint-400").exists()


def test_one_base_under_its_record_and_by_its_hashes(
    hub: LoopbackHub, cache: Path, tmp_path: Path
) -> None:
    """An adapter's record names the commit of its base; nobody has read that yet."""
    publish(hub, tmp_path / "made", 1)
    (commit,) = hub.repository("model", "org/base").commits
    adapter = write_adapter(tmp_path / "a", tmp_path / "made" / "step1")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "org/base", "revision": commit}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    rule = AwayRule(budget=10**9)
    found = resolve_subjects([adapter], ["org/base@step1"], rule=rule).subjects
    assert len(found) == 2
    assert len({subject.checkpoint.fingerprint for subject in found}) == 1
    assert not fetched(hub)
