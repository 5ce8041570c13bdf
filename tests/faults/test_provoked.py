"""Faults of disks, clocks and files that really happen under a run; a stub engine, all else real.

Disks are mounted for it (full, read-only, failing), which takes root: skipped elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import stub
from bench.raylets import Raylets
from bench.strikes import Asked, segments
from evalcore.store import ResultStore
from tests.conftest import write_adapter, write_checkpoint

F_ADD_SEALS, F_SEAL_WRITE = 1033, 8
ROWS = 2 * 2 * 12  # base and adapter, two prompts, twelve documents
ASKED = Asked(unit=4, commit_every=0.0)


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """A checkpoint with an adapter."""
    base = write_checkpoint(tmp_path / "grid" / "step-00001")
    write_adapter(tmp_path / "grid" / "adapters" / "a", base)
    return tmp_path / "grid"


@pytest.fixture(autouse=True)
def stub_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalcore.scoring.run.JobPool", stub.StubPool)
    monkeypatch.setenv("STUB_CONTEXT_S", "0")


class Scored:
    """The command line in this process: its exit status, and what it said on stderr."""

    def __init__(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self._go, self._patch, self._capfd = place, monkeypatch, capfd

    def __call__(
        self, grid: Path, out: Path, fault: Callable[[], object] | None = None, at: int = 14
    ) -> tuple[int, str]:
        """Scores; before context ``at`` the engine waits until the fault has happened."""
        from evalcore.cli import main

        command = [*ASKED.command(grid, out, "hf")[2:], "--log-json", os.devnull]
        self._patch.setattr(sys, "argv", command)
        striker = None
        if fault is not None:
            self._patch.setenv("STUB_HOLD", f"{at}:{self._go}")
            striker = threading.Thread(target=strike, args=(self._go, fault))
            striker.start()
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        if striker:
            striker.join(300)
        said = self._capfd.readouterr().err.splitlines()
        return int(ended.value.code or 0), "\n".join(s for s in said if "prompt tokens/s" not in s)


def strike(go: Path, fault: Callable[[], object]) -> None:
    try:
        wait_until(go.with_name(f"{go.name}.held").exists)
        fault()
    finally:
        go.touch()


def wait_until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 300  # nothing is measured: a busy machine takes long to start
    while not condition():
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.005)


@pytest.fixture
def score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Scored:
    return Scored(tmp_path / "go", monkeypatch, capfd)


def rows(out: Path) -> int:
    """Rows that can be read; none is there twice."""
    table = ResultStore(out, read_only=True).examples(["cell", "doc_id"])
    assert len(set(zip(*table.to_pydict().values(), strict=True))) == len(table)
    return len(table)


def called(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def mounted(folder: Path, *options: object) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    folder.mkdir(exist_ok=True)
    called("mount", *options, folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_full_disk_then_room(grid: Path, tmp_path: Path, score: Scored) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=8m", "none") as disk:
        out, filler = disk / "results", disk / "filler"

        def fill() -> None:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as sink:
                while True:
                    sink.write(b"x" * 4096)

        status, said = score(grid, out, fill)
        assert status == 74, said
        assert "No space left on device" in said
        filler.unlink()
        assert 0 < rows(out) < ROWS
        assert not list(out.rglob(".*.tmp"))
        assert score(grid, out)[0] == 0
        assert rows(out) == ROWS


def test_a_disk_that_becomes_read_only(grid: Path, tmp_path: Path, score: Scored) -> None:
    out = tmp_path / "results"
    with contextlib.ExitStack() as mounts:

        def freeze() -> None:
            mounts.enter_context(mounted(out, "--bind", out))
            called("mount", "-o", "remount,ro,bind", out)

        status, said = score(grid, out, freeze)
        assert status == 74, said
        assert "Read-only file system" in said
        again, said = score(grid, out)
        assert again == 74
        assert len(said.splitlines()) == 1, said
    assert 0 < rows(out) < ROWS
    assert score(grid, out)[0] == 0
    assert rows(out) == ROWS


@contextlib.contextmanager
def failing_disk(folder: Path) -> Iterator[Callable[[], object]]:
    """An ext4 on memory that takes no more writes once the yielded function was called: EIO."""
    memory = os.memfd_create("disk", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.ftruncate(memory, 64 << 20)
    device = called("losetup", "-f", "--show", f"/proc/{os.getpid()}/fd/{memory}")
    try:
        called("mkfs.ext4", "-q", "-O", "^has_journal", device)
        with mounted(folder, device):
            yield lambda: fcntl.fcntl(memory, F_ADD_SEALS, F_SEAL_WRITE)
    finally:
        subprocess.run(["losetup", "-d", device], check=False)
        os.close(memory)


def test_a_disk_that_fails(grid: Path, tmp_path: Path, score: Scored) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    with failing_disk(tmp_path / "disk") as fail:
        out = tmp_path / "disk" / "results"
        status, said = score(grid, out, fail)
        assert status == 74, said
        assert "Input/output error" in said
        shutil.copytree(out, tmp_path / "saved")
    assert 0 < rows(tmp_path / "saved") < ROWS
    assert score(grid, tmp_path / "saved")[0] == 0
    assert rows(tmp_path / "saved") == ROWS


def test_the_results_folder_is_deleted(grid: Path, tmp_path: Path, score: Scored) -> None:
    out = tmp_path / "results"
    status, said = score(grid, out, lambda: shutil.rmtree(out, ignore_errors=True))
    assert status == 74, said
    assert f"{out}" in said
    assert not segments(out)
    assert score(grid, out)[0] == 0
    assert rows(out) == ROWS


def test_a_clock_that_runs_backwards(
    grid: Path, tmp_path: Path, score: Scored, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "results"
    monkeypatch.setenv("STUB_CLOCK", "1")
    monkeypatch.setattr(time, "time", time.time)  # put back at the end
    monkeypatch.setattr(time, "time_ns", time.time_ns)
    stub.turn_clock_back()
    assert score(grid, out)[0] == 0
    assert rows(out) == ROWS
    status, said = score(grid, out)
    assert status == 0
    assert not [line for line in said.splitlines() if "-" in line and " s left" in line]
    assert rows(out) == ROWS


def test_two_runs_on_one_folder_at_once(grid: Path, tmp_path: Path, score: Scored) -> None:
    out = tmp_path / "results"
    other: list[subprocess.Popen[bytes]] = []

    def begin() -> None:
        before, quiet = segments(out), subprocess.DEVNULL
        command = ASKED.command(grid, out, "stub")
        other.append(subprocess.Popen(command, stdout=quiet, stderr=quiet))
        wait_until(lambda: segments(out) > before)

    assert score(grid, out, begin, at=5)[0] == 0
    assert other[0].wait(300) == 0
    store = ResultStore(out, read_only=True)
    assert store.verify().sound
    assert rows(out) == ROWS


def test_a_checkpoint_and_an_adapter_are_written_to(
    grid: Path, tmp_path: Path, score: Scored
) -> None:
    """After planning: no row is stored under the name of what is not there any more."""
    write_adapter(grid / "adapters" / "b", grid / "step-00001", seed=7)
    second = write_checkpoint(grid / "step-00002", seed=2)
    write_adapter(grid / "adapters" / "c", second, seed=8)

    def change() -> None:
        write_adapter(grid / "adapters" / "b", grid / "step-00001", seed=9)
        write_checkpoint(second, seed=3)

    out = tmp_path / "results"
    status, said = score(grid, out, change, at=5)
    assert status == 1, said
    assert "holds other bytes" in said
    assert rows(out) == ROWS
    assert score(grid, out)[0] == 0
    assert rows(out) == 5 * ROWS // 2


@pytest.mark.proof  # the cluster alone takes ten seconds
def test_a_machine_of_a_cluster_is_lost(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_CONTEXT_S", "0.2")
    out, asked = tmp_path / "results", Asked(workers=2, unit=4)
    with Raylets(num_cpus=1) as cluster:
        cluster.add(num_cpus=1)
        ray = ("--cluster", "ray", "--ray-address", cluster.env["RAY_ADDRESS"])
        with (tmp_path / "said").open("wb") as sink:
            command = [*asked.command(grid, out, "stub"), *ray]
            run = subprocess.Popen(command, env=cluster.env, stdout=sink, stderr=sink)
        wait_until(lambda: segments(out) > 2)
        cluster.kill()
        status = run.wait(300)
    assert status == 0, (tmp_path / "said").read_text()
    assert rows(out) == ROWS


@pytest.mark.proof  # the cluster alone takes ten seconds
def test_a_machine_that_joins_later_gets_work(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_CONTEXT_S", "1.5")
    out, asked = tmp_path / "results", Asked(workers=2, unit=4)
    with Raylets(num_cpus=1) as cluster:
        ray = ("--cluster", "ray", "--ray-address", cluster.env["RAY_ADDRESS"])
        with (tmp_path / "said").open("wb") as sink:
            command = [*asked.command(grid, out, "stub"), *ray]
            run = subprocess.Popen(command, env=cluster.env, stdout=sink, stderr=sink)
        wait_until(lambda: segments(out) > 2)
        assert len(writers(out)) == 1, "there is room for one worker"
        cluster.add(num_cpus=1)
        wait_until(lambda: len(writers(out)) == 2 or run.poll() is not None)
        assert len(writers(out)) == 2
        status = run.wait(300)
    assert status == 0, (tmp_path / "said").read_text()
    assert rows(out) == ROWS


@pytest.mark.proof  # the cluster alone takes ten seconds
def test_machines_go_and_come_and_one_does_not_see_a_path(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that sees everything is lost, another one comes; the summary names what was met."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    monkeypatch.setenv("STUB_CONTEXT_S", "0.3")
    out, asked, elsewhere = tmp_path / "results", Asked(workers=2, unit=4), tmp_path / "elsewhere"
    more = [str(write_checkpoint(elsewhere / f"step-0000{i}", seed=i)) for i in (2, 3)]
    with Raylets(num_cpus=0) as cluster:
        cluster.join("sees", tmp_path / "one")
        cluster.join("blind", tmp_path / "two", hidden=[elsewhere])
        ray = ("--cluster", "ray", "--ray-address", cluster.env["RAY_ADDRESS"])
        command = [*asked.command(grid, out, "stub"), "-m", more[0], "-m", more[1], *ray]
        with (tmp_path / "said").open("wb") as sink:
            run = subprocess.Popen(command, env=cluster.env, stdout=sink, stderr=sink)
        wait_until(lambda: segments(out) > 2 or run.poll() is not None)
        cluster.leave("sees")
        cluster.join("later", tmp_path / "three")
        status = run.wait(300)
    said = (tmp_path / "said").read_text()
    assert status == 0, said
    assert rows(out) == 2 * ROWS
    met = [line for line in said.splitlines() if line.startswith("met: ")]
    assert any(" on sees: " in line and "lost" in line for line in met), said
    assert any(f"{elsewhere}" in line and "is not seen on blind" in line for line in met), said


def writers(results: Path) -> set[str]:
    """Workers that wrote segments."""
    found = (re.search(r"-(w\d{3})", path.name) for path in (results / "segments").glob("2*"))
    return {match[1] for match in found if match}
