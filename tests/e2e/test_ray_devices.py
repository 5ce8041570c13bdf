"""A Ray whose head has no GPU: its nodes decide, and the driver touches no accelerator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.raylets import Raylets

pytestmark = pytest.mark.slow

# In Ray's workers alone: an engine that says where it is and scores -1.
_STUB = """
import sys
if any(word.endswith("default_worker.py") for word in sys.orig_argv):
    import json, os
    import numpy as np
    import evalcore.scoring.worker as worker
    from evalcore.engines.protocol import LoadReport, OneByOne
    from evalcore.types import ScoreResult

    class Stub(OneByOne):
        def __init__(self, spec):
            names = ("CUDA_VISIBLE_DEVICES", "HF_HOME", "OMP_NUM_THREADS")
            seen = {name: os.environ.get(name) for name in names}
            seen |= {"device": spec.device, "dtype": spec.dtype, "threads": spec.threads}
            with open(os.environ["EVALCORE_STUB"], "w") as file:
                json.dump(seen, file)

        def load(self, subject):
            return LoadReport("none", 0.0, 0.0, True)

        def score(self, batch):
            n, k = batch.num_contexts, len(batch.continuation_tokens)
            zeros = np.zeros(n, np.int64)
            return ScoreResult(np.full(k, -1.0), np.zeros(batch.num_continuations, bool),
                               zeros + 1, zeros)

        def forget(self): ...
        def close(self): ...

    worker.create_engine = lambda spec, first=None: Stub(spec)
"""
# The program as it is started, and what its process has imported at the end.
_DRIVER = """
import sys
from evalcore.cli import program
try:
    program()
finally:
    print("loaded:", sorted({"ray", "torch", "transformers", "vllm"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a driver of a running cluster, RAY_ADDRESS included."""
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("stub")
    (folder / "sitecustomize.py").write_text(_STUB)
    with Raylets(num_cpus=1, num_gpus=0) as nodes:
        nodes.add(num_cpus=1, num_gpus=1, resources={"accelerator_type:H100": 1})
        root = str(Path(__file__).parents[2])
        paths = f"{folder}{os.pathsep}{root}"
        yield {**nodes.env, "PYTHONPATH": paths, "HF_HOME": "/somewhere/hub"}


def drive(env: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _DRIVER, *map(str, arguments)], env=env, capture_output=True,
        text=True, timeout=200, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def base(make_checkpoint: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = make_checkpoint(tmp_path_factory.mktemp("models") / "step-00100")
    return path


def left_in(env: dict[str, str]) -> list[str]:
    """What evalcore's drivers left in a Ray that lives on: their actors and placement groups."""
    ask = """
import json, time, ray
from ray.util import placement_group_table
ray.init(address="auto", log_to_driver=False)
from ray._private.state import actors
alive = []
for _ in range(100):  # an actor that was killed takes a moment
    alive = [a["ActorClassName"] for a in actors().values() if a["State"] != "DEAD"]
    if not alive and ray.available_resources().get("GPU") == ray.cluster_resources()["GPU"]:
        break
    time.sleep(0.1)
groups = [g["name"] for g in placement_group_table().values() if g["state"] != "REMOVED"]
known = [a for a in actors().values() if a["ActorClassName"] in ("RayWorker", "Mailbox")]
print(json.dumps(alive + groups if known else ["no actor was ever seen"]))
"""
    found = subprocess.run(
        [sys.executable, "-c", ask],
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    left: list[str] = json.loads(found.stdout.strip().splitlines()[-1])
    return left


def asked(base: Path, out: Path) -> tuple[Any, ...]:
    return ("score", "-m", base, "-t", "pocket_nli", "--limit", 4, "-o", out, "--cluster", "ray")


def test_the_node_with_a_gpu_scores_in_bfloat16(
    cluster: dict[str, str], base: Path, tmp_path: Path
) -> None:
    from evalcore.store import ResultStore

    out, seen = tmp_path / "results", tmp_path / "seen.json"
    kind = ("--gpu-kind", "h100")
    done = drive({**cluster, "EVALCORE_STUB": str(seen)}, *asked(base, out), *kind)
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.strip().splitlines()[-1] == "loaded: ['ray', 'transformers']"
    assert json.loads(seen.read_text()) == {
        "CUDA_VISIBLE_DEVICES": "0", "HF_HOME": "/somewhere/hub", "OMP_NUM_THREADS": "1",
        "device": "cuda", "dtype": "bfloat16", "threads": 1,
    }  # fmt: skip
    labels = set(ResultStore(out).cells()["numerics"].to_pylist())
    assert labels == {"vllm/bfloat16/head-float32/cuda/merged"}

    assert left_in(cluster) == [], "the Ray that was joined is left as it was found"

    # The same folder from a machine without GPUs is no slow run on CPUs.
    local = drive({**cluster, "PATH": "/bin"}, *asked(base, out)[:-2])
    assert local.returncode == 2
    assert "results were scored on GPUs, and this machine shows no GPUs" in local.stderr


def test_what_no_node_has_is_one_line_before_waiting(
    cluster: dict[str, str], base: Path, tmp_path: Path
) -> None:
    done = drive(cluster, *asked(base, tmp_path / "r"), "--device", "cpu", "--threads", 2)
    assert done.returncode == 2
    assert "a Ray worker asks for 2 CPUs and 0 GPUs, and no node has both" in done.stderr
    done = drive(cluster, *asked(base, tmp_path / "r"), "--tensor-parallel", 2)
    assert done.returncode == 2
    assert "--tensor-parallel 2: the Ray cluster shows 1 GPU, 1 at most on one" in done.stderr
    done = drive(cluster, *asked(base, tmp_path / "r"), "--gpu-kind", "L4")
    assert done.returncode == 2
    assert "--gpu-kind L4: no node of the Ray cluster has such GPUs" in done.stderr
    assert ": H100)" in done.stderr
