"""docs/cluster.md, typed word by word on two machines that share a network and a disk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evalcore.store import ResultStore
from tests.conftest import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "cluster.md"
HEAD, WORKER, PLAN, SCORE, STOP, SLURM = range(6)

pytestmark = [pytest.mark.proof]


def blocks() -> list[str]:
    """What is typed, block by block."""
    return re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


class Machine:
    """A host name, processes and a home of its own; commands are typed in its shell."""

    def __init__(self, name: str, home: Path, shared: Path, hosts: Path, net: int | None) -> None:
        self.name, self.home = name, home
        home.mkdir()
        (home / "revisions.txt").write_text(
            "".join(f"/shared/{folder.name}\n" for folder in sorted(shared.glob("step*")))
        )
        script = (
            f"hostname {name}; ip link set lo up; mkdir -p /shared; mount --bind {shared} /shared; "
            f"mount --bind {hosts} /etc/hosts; echo up; exec sleep infinity"
        )
        enter = ["unshare", "--net"] if net is None else ["nsenter", f"--net=/proc/{net}/ns/net"]
        own = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._process = subprocess.Popen(
            [*enter, *own, "sh", "-c", script], text=True, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "up\n"
        pid = self._process.pid
        self.pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def types(self, text: str, timeout_s: float = 300, **more: str) -> str:
        """What a block of commands says; each has to end well."""
        env = {
            "HOME": str(self.home),
            "PATH": f"{self.home}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "LANG": "C.UTF-8", **more,
        }  # fmt: skip
        said = self.home / "said"
        with said.open("w") as sink:  # not a pipe: what runs on behind would keep it open
            done = subprocess.run(
                ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--pid", "--net",
                 f"--wdns={self.home}", "bash", "-e", "-c", text],
                env=env, stdout=sink, stderr=sink, timeout=timeout_s, check=False,
            )  # fmt: skip
        assert done.returncode == 0, f"{self.name}: {text}\n{said.read_text()}"
        return said.read_text()

    def off(self) -> None:
        self._process.kill()
        self._process.wait(60)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    """``head`` and ``second``."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root has machines of its own")
    shared, hosts = tmp_path / "shared", tmp_path / "hosts"
    shared.mkdir()
    hosts.write_text("127.0.0.1 localhost head second\n")
    for step in (1, 2, 3, 4):
        write_checkpoint(shared / f"step{step}", seed=step)
    head = Machine("head", tmp_path / "home-head", shared, hosts, None)
    second = Machine("second", tmp_path / "home-second", shared, hosts, head.pid)
    try:
        yield head, second
    finally:
        second.off()
        head.off()


def small(text: str) -> str:
    """A run of seconds: with the slow reference engine, of a few examples."""
    return text.replace("evalcore score", "python -m evalcore score --engine hf --limit 4").replace(
        "evalcore status", "python -m evalcore status"
    )


def test_plain_machines(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    head, second = machines
    typed = blocks()
    said = head.types(typed[HEAD])
    (second.home / ".ray").mkdir()
    shutil.copy(head.home / ".ray" / "auth_token", second.home / ".ray" / "auth_token")
    second.types(typed[WORKER])
    said = head.types(small(typed[PLAN]))
    assert "4 checkpoints" in said or "step4" in said, said
    said = head.types("export RAY_AUTH_MODE=token\n" + small(typed[SCORE]), 600)
    assert "100 %" in said or "done" in said, said
    store = ResultStore(tmp_path / "shared" / "results", read_only=True)
    assert len(store.examples(["cell", "doc_id"])) == 4 * 4
    second.types(typed[STOP])
    head.types(typed[STOP])


def test_slurm(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    """With stand-ins for ``srun`` and ``scontrol`` that know two machines."""
    head, second = machines
    (head.home / "scontrol").write_text("#!/bin/sh\nprintf 'head\\nsecond\\n'\n")
    (head.home / "srun").write_text(
        "#!/bin/bash\nwhere=second\n"
        'while [[ $1 == -* ]]; do [ "$1" = -w ] && { where=$2; shift; }; shift; done\n'
        '[ $where = head ] && exec "$@"\n'
        'echo "RAY_AUTH_MODE=$RAY_AUTH_MODE RAY_AUTH_TOKEN=$RAY_AUTH_TOKEN $*" > /shared/typed\n'
        "sleep infinity\n"
    )
    (tmp_path / "shared" / "listens").write_text(
        'until [ -s /shared/typed ]; do sleep 0.2; done; eval "$(cat /shared/typed)" &\n'
    )
    second.types("setsid nohup bash /shared/listens > /shared/ray.log 2>&1 &")
    for tool in ("scontrol", "srun"):
        (head.home / tool).chmod(0o755)
    script = small(blocks()[SLURM]).replace("--disk-budget", "--workers 2 --disk-budget")
    said = head.types(script, 600, SLURM_JOB_NODELIST="head,second", SLURM_JOB_NUM_NODES="2")
    store = ResultStore(tmp_path / "shared" / "results", read_only=True)
    assert len(store.examples(["cell", "doc_id"])) == 4 * 4, said
