"""A run takes the cores it may use, in the process that scores too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# In the worker alone: each batch says with how many threads, and on which cores, it is scored.
_TOLD = """
import sys
if any("evalcore.cluster.child" in word for word in sys.orig_argv):
    import json, os
    import torch
    import evalcore.engines.hf as hf

    score = hf.HFEngine.score

    def told(self, batch):
        made = score(self, batch)
        with open(os.environ["EVALCORE_TOLD"], "a") as file:
            seen = {"torch": torch.get_num_threads(), "omp": os.environ.get("OMP_NUM_THREADS"),
                    "cores": len(os.sched_getaffinity(0)), "asked": self._spec.threads}
            file.write(json.dumps(seen) + "\\n")
        return made

    hf.HFEngine.score = told
"""


@pytest.mark.skipif(shutil.which("taskset") is None, reason="no taskset")
def test_a_run_bound_to_one_core_scores_with_one_thread(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    base, told = make_checkpoint(tmp_path / "models" / "step-00100"), tmp_path / "told.jsonl"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_TOLD)
    root = str(Path(__file__).parents[2])
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    env |= {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), root]),
        "EVALCORE_TOLD": str(told),
    }
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-m", "evalcore"]
    command += ["score", "-m", str(base), "-t", "pocket_nli", "--limit", "4", "--engine", "hf"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "results")], env=env, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = [json.loads(line) for line in told.read_text().splitlines()]
    assert seen
    assert all(one == {"torch": 1, "omp": "1", "cores": 1, "asked": 1} for one in seen), seen
