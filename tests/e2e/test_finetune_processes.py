"""Jobs in real processes: shared by two, and killed while they train."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from pydantic import TypeAdapter
from safetensors.numpy import load_file

from evalcore.errors import TrainingError
from evalcore.identity import open_checkpoint, read_provenance
from finetune import TuneConfig, TuneJob, TuneWorker
from finetune.jobs import MixPart
from finetune.method import MethodSpec
from finetune.provenance import working_folder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
METHOD = {"steps": 6, "batch_size": 4, "rank": 4, "learning_rate": 1e-3, "gradient_accumulation": 2}
TRAINER = """
import sys
from pathlib import Path
from pydantic import TypeAdapter
from finetune import TuneConfig, TuneJob, TuneWorker
if __name__ == "__main__":
    job = TypeAdapter(TuneJob).validate_json(Path(sys.argv[1]).read_text())
    TuneWorker(TuneConfig(threads=1, device="cpu")).run(job)
"""


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]
) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("processes") / "step-00005", seed=5)


def make_job(checkpoint: Path, directory: Path, **method: object) -> TuneJob:
    return TuneJob(
        checkpoint=open_checkpoint(str(checkpoint)),
        tuning="nli",
        tasks=(MixPart("pocket_nli", 40),),
        variants=("default",),
        data_seed=0,
        seed=0,
        control=None,
        method=MethodSpec.model_validate({**METHOD, **method}),
        held_out=(),
        directory=str(directory),
    )


def largest_difference(one: TuneJob, two: TuneJob) -> float:
    a, b = (load_file(Path(j.directory) / "adapter_model.safetensors") for j in (one, two))
    assert a.keys() == b.keys()
    return max(float(np.abs(a[key] - b[key]).max()) for key in a)


def start(job: TuneJob, folder: Path) -> subprocess.Popen[bytes]:
    """A process that trains a job."""
    script, request = folder / "trainer.py", folder / "job.json"
    script.write_text(TRAINER)
    request.write_bytes(TypeAdapter(TuneJob).dump_json(job, exclude_unset=True))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(script), str(request)], env=env)


def wait_for_checkpoint(job: TuneJob, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not list(working_folder(job.directory).glob("run/step-*")):
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline, "no training checkpoint within two minutes"
        time.sleep(0.002)


@pytest.mark.parametrize("packing", [False, True])
def test_two_processes_train_what_one_trains(
    checkpoint: Path, tmp_path: Path, packing: bool
) -> None:
    worker = TuneWorker(TuneConfig(threads=1, device="cpu"))
    alone = make_job(checkpoint, tmp_path / "alone", packing=packing)
    shared = make_job(checkpoint, tmp_path / "shared", packing=packing, devices=2)
    one, two = worker.run(alone), worker.run(shared)
    assert two.first_loss == pytest.approx(one.first_loss, rel=1e-6)
    assert two.final_loss == pytest.approx(one.final_loss, rel=1e-5)
    assert (two.steps, two.tokens, two.job_id) == (one.steps, one.tokens, "step-00005/shared")
    assert largest_difference(alone, shared) < 1e-5
    record = read_provenance(Path(shared.directory))
    assert record is not None
    assert record.training["devices"] == 2
    assert not list(tmp_path.glob(".*"))


def test_what_goes_wrong_in_one_of_two_processes_is_told(
    tmp_path: Path, make_checkpoint: Callable[..., Path]
) -> None:
    from safetensors.numpy import save_file

    path = make_checkpoint(tmp_path / "step-00001")
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"][3] = np.nan
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    job = make_job(path, tmp_path / "nli", devices=2)
    with pytest.raises(TrainingError, match="step-00001/nli: the loss is nan at step 1") as caught:
        TuneWorker(TuneConfig(threads=1, device="cpu")).run(job)
    assert "\n" not in str(caught.value)
    assert not Path(job.directory).exists()


def test_members_die_with_their_worker(checkpoint: Path, tmp_path: Path) -> None:
    job = make_job(checkpoint, tmp_path / "long", steps=100_000, devices=2, save_every=1)
    process = start(job, tmp_path)
    wait_for_checkpoint(job, process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3  # torchrun and two members
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(family, timeout=20)
    assert not left


def test_a_killed_process_is_gone_on_from(checkpoint: Path, tmp_path: Path) -> None:
    steps = {"steps": 40, "dropout": 0.2, "gradient_accumulation": 1}
    whole = make_job(checkpoint, tmp_path / "whole", **steps)
    job = make_job(checkpoint, tmp_path / "parts", **steps, save_every=3)
    worker = TuneWorker(TuneConfig(threads=1, device="cpu"))
    worker.run(whole)
    process = start(job, tmp_path)
    wait_for_checkpoint(job, process)
    process.kill()
    process.wait()
    assert not Path(job.directory).exists()
    result = worker.run(job)
    (resumed,) = result.resumed_at
    assert 3 <= resumed < 40
    assert largest_difference(whole, job) <= 1e-6
    assert not list(tmp_path.glob(".*"))
    # The device number is part of no other setting: one process goes on where two stopped.
    assert replace(job, method=job.method.merged({"devices": 2})).settings() == job.settings()
