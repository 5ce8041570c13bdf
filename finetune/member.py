"""Program of the processes that train one job together: ``python -m finetune.member``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from evalcore import errors
from evalcore.cluster.runner import die_with_parent
from evalcore.errors import EvalcoreError
from finetune.distributed import rank
from finetune.jobs import TuneJob
from finetune.results import TuneConfig
from finetune.train import TuneWorker


def launch(parent: str, devices: str, request: str, answer: str) -> int:
    """torchrun on this machine, ending with the process that asked for it."""
    from torch.distributed.run import main as torchrun

    die_with_parent(int(parent))
    torchrun(
        ["--standalone", f"--nproc-per-node={devices}",
         "--log-dir", str(Path(request).parent / "logs"),  # not a folder of its own that stays
         "-m", "finetune.member", "member", request, answer]
    )  # fmt: skip
    return 0


def member(request: str, answer: str) -> int:
    """One of the processes; the first writes the answer."""
    die_with_parent(os.getppid())
    asked = json.loads(Path(request).read_text("utf-8"))
    job = TypeAdapter(TuneJob).validate_python(asked["job"])
    reply: dict[str, Any]
    status = 0
    try:
        worker = TuneWorker(TuneConfig(**asked["config"]))
        reply = {"result": TypeAdapter(Any).dump_python(worker.run(job), mode="json")}
    except EvalcoreError as error:
        known = (c.__name__ for c in type(error).__mro__ if c.__module__ == errors.__name__)
        reply = {"error": {"type": next(known), "message": str(error)}}
        status = error.exit_status
    if rank() == 0:
        temporary = Path(f"{answer}.part")
        temporary.write_text(json.dumps(reply), "utf-8")
        os.replace(temporary, answer)
    return status


if __name__ == "__main__":
    if sys.argv[1] == "launch":
        sys.exit(launch(*sys.argv[2:]))
    sys.exit(member(*sys.argv[2:]))
