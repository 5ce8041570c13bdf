"""One job on several devices: a process each, started by torchrun, put together by accelerate.

A worker starts ``python -m finetune.member launch``, which is torchrun, bound to the life of
the worker; torchrun starts ``... member`` once per device. Batches are dealt to the members in
turn, gradients averaged; the first one writes. Devices of one machine only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from pydantic import TypeAdapter

from evalcore import errors
from evalcore.errors import EngineError, EvalcoreError, InputError
from evalcore.files import scratch_folder
from finetune.jobs import TuneJob
from finetune.results import TuneConfig, TuneResult

_TAIL_LINES = 3
_MEMBER = "EVALCORE_TUNING_MEMBER"
_LAUNCHER_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


def is_member() -> bool:
    """Whether this is one of several processes that train together."""
    return os.environ.get(_MEMBER) == "1"


def rank() -> int:
    """Number of this process among those that train together; 0 where it is alone."""
    return int(os.environ["RANK"]) if is_member() else 0


def local_rank() -> int:
    """Number of the device this process is to use."""
    return int(os.environ["LOCAL_RANK"]) if is_member() else 0


def stay_alone() -> None:
    """Forgets what a launcher around the whole run left in the environment.

    The Trainer of a job that is alone would else wait for processes that never come.
    """
    if not is_member():
        for name in _LAUNCHER_VARIABLES:
            os.environ.pop(name, None)


def train(job: TuneJob, config: TuneConfig, result_type: type[TuneResult]) -> TuneResult:
    """Trains a job with ``job.method.devices`` processes on this machine.

    Raises:
        InputError: If there are fewer GPUs.
        EvalcoreError: What the first process raised.
        EngineError: If the processes ended without an answer.
    """
    import torch

    devices = job.method.devices
    on_gpus = config.device != "cpu" and torch.cuda.is_available()
    if on_gpus and torch.cuda.device_count() < devices:
        raise InputError(
            f"{job.id}: method.devices is {devices}, this worker sees "
            f"{torch.cuda.device_count()} GPUs; give it more, or lower devices"
        )
    with scratch_folder("tune") as folder:
        request, answer = folder / "request.json", folder / "answer.json"
        about = {"threads": config.threads, "device": config.device}
        body = TypeAdapter(TuneJob).dump_python(job, mode="json", exclude_unset=True)
        request.write_text(json.dumps({"job": body, "config": about}), "utf-8")
        command = [
            sys.executable, "-m", "finetune.member", "launch", str(os.getpid()),
            str(devices), str(request), str(answer),
        ]  # fmt: skip
        done = subprocess.run(command, env=_environment(config), capture_output=True, text=True)
        if not answer.is_file():
            tail = " | ".join(done.stderr.strip().splitlines()[-_TAIL_LINES:])
            raise EngineError(f"{job.id}: {devices} processes ended ({done.returncode}): {tail}")
        reply = json.loads(answer.read_text("utf-8"))
    if "error" in reply:
        raise _rebuilt(reply["error"], job.id)
    return TypeAdapter(result_type).validate_python(reply["result"])


def _environment(config: TuneConfig) -> dict[str, str]:
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    threads = str(config.threads or 1)
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": threads, _MEMBER: "1"}


def _rebuilt(about: dict[str, str], job_id: str) -> EvalcoreError:
    kind: type[EvalcoreError] = getattr(errors, about["type"])
    error = kind.__new__(kind)  # constructors take other arguments
    Exception.__init__(error, f"{job_id}: {about['message']}")
    return error
