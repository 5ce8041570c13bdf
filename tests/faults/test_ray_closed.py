"""A Ray that is started here listens on this machine only, and asks who calls."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# In a process of its own: Ray keeps its token and its addresses for as long as a process lives.
_PROBE = """
import os, sys
import psutil
from evalcore.cluster.ray_pool import RayTransport

transport = RayTransport(1, None, None, {})
transport._connect()
import ray

@ray.remote
def answer():
    return os.environ.get("RAY_AUTH_MODE")

print("mode", ray.get(answer.remote()))
own = [psutil.Process(), *psutil.Process().children(recursive=True)]
for process in own:
    for connection in process.net_connections("inet"):
        if connection.status == psutil.CONN_LISTEN:
            print("listens", connection.laddr.ip, process.name())
address = ray.get_runtime_context().gcs_address
import subprocess
code = "from ray._raylet import GcsClient; print(GcsClient(address=sys.argv[1]).cluster_id)"
others = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
wrong = {**others, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
done = subprocess.run(
    [sys.executable, "-c", "import sys; " + code, address], env=wrong, capture_output=True,
    text=True, timeout=60,
)
print("stranger", "refused" if "InvalidAuthToken" in done.stderr else done.stdout + done.stderr)
transport.close()
"""


def test_listens_on_loopback_and_asks_for_a_token(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert ["mode", "token"] in said
    listening = [(address, name) for word, address, *name in said if word == "listens"]
    assert len(listening) >= 4, done.stdout  # the store of addresses, the node's two, the worker
    open_to_all = [x for x in listening if x[0].removeprefix("::ffff:") not in ("127.0.0.1", "::1")]
    assert open_to_all == []
    assert ["stranger", "refused"] in said
    assert not (tmp_path / ".ray" / "auth_token").exists()  # the token was made for this run alone
