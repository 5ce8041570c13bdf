"""A Ray cluster of several raylets on this machine, in a process of its own.

    with Raylets(num_cpus=1) as cluster:
        cluster.add(num_cpus=1)
        subprocess.run([...], env=cluster.env)
        cluster.kill()              # the raylet added last, as a machine that goes dark

Not `ray stop`, which ends every Ray of a machine. Only who has the token may join.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from typing import Any

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

    def add(self, **lent: int) -> None:
        """Adds a raylet."""
        self._order(lent)

    def kill(self) -> None:
        """Kills the raylet that was added last, and what runs below it, without a word."""
        self._order(None)

    def close(self) -> None:
        """Ends all of it."""
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
