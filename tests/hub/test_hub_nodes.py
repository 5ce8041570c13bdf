"""Checkpoints that pass through the disks of two machines, with what goes wrong on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.raylets import Raylets
from bench.strikes import descendants
from tests.hub.conftest import DATA, ROOT
from tests.hub.loopback import Fault, LoopbackHub
from tests.hub.revisions import fetched, largest, publish, rows, weights

REVISIONS, ROOM = 30, 4
NODES = ("node-a", "node-b")


def wait_until(condition: Callable[[], object], timeout_s: float = 300) -> None:
    ends = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends, "waited too long"
        time.sleep(0.02)


def actors(machine: subprocess.Popen[str]) -> list[int]:
    """Processes of evalcore's workers on a machine."""
    found = []
    for pid in descendants(machine.pid):
        try:
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::RayWorker"):
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.mark.proof  # the cluster alone takes ten seconds
def test_revisions_pass_through_the_disks_of_two_machines(hub: LoopbackHub, tmp_path: Path) -> None:
    """Neither sees the driver's home; the hub fails now and then, and a worker is killed."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    size = publish(hub, tmp_path / "made", REVISIONS)
    budget = int((ROOM + 0.2) * size)
    hub.faults += [
        Fault("/cdn/", 503, times=3, headers={"Retry-After": "0"}, method="GET"),
        Fault("/resolve/", 0, times=2, method="GET"),
    ]
    homes = {name: tmp_path / name for name in ("driver", *NODES)}
    for home in homes.values():
        home.mkdir()
    out = tmp_path / "results"
    with Raylets(num_cpus=0) as cluster:
        for name in NODES:
            hidden = [homes["driver"], tmp_path / "made"]
            cluster.join(name, homes[name], hidden, HF_HUB_USER_AGENT_ORIGIN=name)
        gone = ("EVALCORE_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        env = {k: v for k, v in cluster.env.items() if k not in gone}
        env |= {"HOME": str(homes["driver"]), "HF_ENDPOINT": hub.endpoint, "STUB_CONTEXT_S": "0.5",
                "PYTHONPATH": str(ROOT), "HF_HUB_USER_AGENT_ORIGIN": "driver"}  # fmt: skip
        command = [
            sys.executable, "-m", "bench.stub", "score", "-m", f"@{tmp_path / 'made' / 'list.txt'}",
            "-t", "rte", "--limit", "2", "--data-root", str(DATA), "--engine", "hf", "-o", str(out),
            "--cluster", "ray", "--ray-address", cluster.env["RAY_ADDRESS"], "--workers", "2",
            "--threads", "1", "--commit-every", "0", "--disk-budget", str(budget),
        ]  # fmt: skip
        said = tmp_path / "said"
        caches = [homes[name] / ".cache" / "evalcore" for name in NODES]
        with said.open("wb") as sink, largest(*caches) as most:
            run = subprocess.Popen(command, env=env, stdout=sink, stderr=sink, cwd=homes["driver"])
            # Each disk has given up what passed through it, however soon its worker was there.
            passed = lambda: min(len(fetched(hub, name)) for name in NODES) > ROOM + 1  # noqa: E731
            wait_until(lambda: passed() or run.poll() is not None)
            for pid in actors(cluster.machines["node-a"])[:1]:
                os.kill(pid, signal.SIGKILL)
            status = run.wait(600)
    text = said.read_text()
    assert status == 0, text
    distinct, written = rows(out)
    assert distinct == 2 * REVISIONS
    # What the killed worker had just written, and had not yet told of, is done again: one unit.
    assert written - distinct in (0, 2), "nothing is scored twice"
    every, nodes = weights(hub), [fetched(hub, name) for name in NODES]
    assert not fetched(hub, "driver")
    assert nodes[0].keys() | nodes[1].keys() == every.keys()
    for node in nodes:
        assert len(node) > ROOM, text
        assert all(node[name] == every[name] for name in node), "each file once a node"
    assert all(size < held <= budget for held in most), (most, size, budget)
    assert "on node-a" in text, "the summary names whose worker was lost"
