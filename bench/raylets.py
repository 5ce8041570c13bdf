"""A Ray cluster of several raylets on this machine, in a process of its own.

    with Raylets(num_cpus=1) as cluster:
        cluster.add(num_cpus=1)
        subprocess.run([...], env=cluster.env)
        cluster.kill()              # the raylet added last, as a machine that goes dark
        cluster.join("node-b", home=folder, hidden=[other])   # as another machine would be

Not `ray stop`, which ends every Ray of a machine. Only who has the token may join.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TRIES = 3

_CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args=json.loads(sys.argv[1]))
print("address", cluster.address, flush=True)
added = []
for line in sys.stdin:
    order = json.loads(line)
    if order is None:
        cluster.remove_node(added.pop(), allow_graceful=False)
    else:
        added.append(cluster.add_node(**order))
        cluster.wait_for_nodes()
    print("done", flush=True)
cluster.shutdown()
"""


class Raylets:
    """A head, and raylets that come and go.

    Args:
        head: What the head lends (``num_cpus``, ``num_gpus``).
    """

    def __init__(self, **head: int) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "CUDA_"))}
        env |= {
            "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            # A node is given up after some two seconds without a word, not thirty.
            "RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "4",
            "RAY_health_check_initial_delay_ms": "2000",
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CLUSTER, json.dumps(head)], env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        address = self._answer("address")
        self.env = {**env, "RAY_ADDRESS": address}
        self.machines: dict[str, subprocess.Popen[str]] = {}

    def add(self, **lent: Any) -> None:
        """Adds a raylet."""
        self._order(lent)

    def kill(self) -> None:
        """Kills the raylet that was added last, and what runs below it, without a word."""
        self._order(None)

    def join(
        self, name: str, home: Path, hidden: Sequence[Path] = (), num_cpus: int = 1, **more: str
    ) -> None:
        """Lets something join that is a machine of its own, but for its network and its disk.

        It has its own host name, process ids (killing it kills all of them), home and working
        folder; by ``ray start --address``, as on machines of a cluster. Takes root.

        Args:
            name: Of the machine; its host name.
            home: Its home folder; processes work in ``work`` there.
            hidden: Folders that are empty there.
            num_cpus: What it lends.
            more: Further variables of its environment.
        """
        (home / "work").mkdir(parents=True, exist_ok=True)
        ray = [
            str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats",
            f"--address={self.env['RAY_ADDRESS']}", f"--num-cpus={num_cpus}",
        ]  # fmt: skip
        script = "; ".join(
            [
                "set -e",
                f"hostname {shlex.quote(name)}",
                *(f"mount -t tmpfs none {shlex.quote(str(folder))}" for folder in hidden),
                f"cd {shlex.quote(str(home / 'work'))}",
                f"exec {shlex.join(ray)}",
            ]
        )
        own = {k: v for k, v in self.env.items() if k not in ("HF_HOME", "EVALCORE_CACHE")}
        for _ in range(TRIES):  # Ray gives up after half a minute, which a busy machine may take
            with open(home / "ray.log", "w") as log:
                started = subprocess.Popen(
                    ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child",
                     "--mount-proc", "sh", "-c", script],
                    env={**own, "HOME": str(home), **more}, text=True, stdout=log, stderr=log,
                    stdin=subprocess.DEVNULL,
                )  # fmt: skip
            while started.poll() is None:
                if "Ray runtime started" in (home / "ray.log").read_text():
                    self.machines[name] = started
                    return
                time.sleep(0.1)
        raise RuntimeError(f"{name} did not join: {(home / 'ray.log').read_text()[-400:]}")

    def leave(self, name: str) -> None:
        """Kills a machine that joined, and what runs there, without a word."""
        machine = self.machines.pop(name)
        machine.kill()
        machine.wait(60)

    def close(self) -> None:
        """Ends all of it."""
        for name in list(self.machines):
            self.leave(name)
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def __enter__(self) -> Raylets:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _order(self, order: dict[str, Any] | None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        self._answer("done")

    def _answer(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            first, _, rest = line.strip().partition(" ")
            if first == word:
                return rest
        raise RuntimeError("the Ray cluster ended by itself")
