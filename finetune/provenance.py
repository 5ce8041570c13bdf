"""Turns what was trained into a directory that is either complete or not there.

Everything is written below a hidden temporary name with a file ``unfinished`` in it; the record
comes last; then the marker goes and one rename makes the directory appear. A directory under its
final name therefore always has its ``provenance.json``.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa

import evalcore
from evalcore.errors import InputError
from evalcore.identity import (
    UNFINISHED_FILE,
    adapter_fingerprint,
    checkpoint_fingerprint,
    read_provenance,
    text_fingerprint,
    write_provenance,
)
from evalcore.tasks import data_resolution
from finetune.data import TrainingSet
from finetune.jobs import TuneJob, known_task
from finetune.method import MethodSpec
from finetune.search import Search
from finetune.tuners import Tuner

LOSS_FILE = "loss.arrow"
_PICKLES = (".bin", ".pt", ".pth", ".pkl")
LOSS_SCHEMA = pa.schema(
    [
        pa.field("step", pa.int32(), nullable=False),
        pa.field("loss", pa.float64(), nullable=False),
        pa.field("learning_rate", pa.float64(), nullable=False),
        pa.field("completion_tokens", pa.int32(), nullable=False),
    ],
    metadata={"what": "mean negative log-likelihood (nats) per completion token of each step"},
)
_VERSIONED = ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True)
class TrainingReport:
    """What happened while a job was trained.

    Attributes:
        losses: float [steps], nats per completion token.
        learning_rates: float [steps].
        completion_tokens: int [steps], tokens the loss is on.
        tokens: All tokens run through the model, without padding.
        wall_s: Seconds of the job up to the end of training, earlier tries included; choosing a
            learning rate left out.
        device: ``cpu`` or the GPU's name.
        threads: CPU threads of torch.
        dtype: What was computed in.
        method: Hyper-parameters as trained, the chosen learning rate included.
        resumed_at: Steps at which training went on after an interruption.
        selection: Record of the choice of a learning rate, if there was one.
    """

    losses: tuple[float, ...]
    learning_rates: tuple[float, ...]
    completion_tokens: tuple[int, ...]
    tokens: int
    wall_s: float
    device: str
    threads: int
    dtype: str
    method: MethodSpec
    resumed_at: tuple[int, ...] = ()
    selection: dict[str, Any] | None = None

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.wall_s if self.wall_s > 0 else 0.0


def commit(
    job: TuneJob, tuner: Tuner, model: Any, rows: TrainingSet, report: TrainingReport
) -> dict[str, Any]:
    """Writes, records and publishes what was trained; one with other settings is replaced.

    Args:
        job: What was to be trained.
        tuner: Writes the model's files.
        model: The trained model.
        rows: What was learned.
        report: How it went.

    Returns:
        The record, with ``untrained`` and ``moved_share`` in its ``training`` part.

    Raises:
        InputError: If the folder cannot be written.
    """
    final = Path(job.directory)
    building = _temporary(final)
    try:
        clean_leftovers(final)
        building.mkdir(parents=True)
        (building / UNFINISHED_FILE).touch()
        tuner.save(model, building)
        _check_no_pickles(building)
        if job.method.kind == "lora":
            _finish_config(building / "adapter_config.json", job)
        _write_losses(building / LOSS_FILE, report)
        for file in building.iterdir():
            sync(file)
        moved = tuner.moved(model, building)
        record = provenance_record(job, rows, report, building, moved)
        write_provenance(building, record)
        (building / UNFINISHED_FILE).unlink()
        sync(building)
        _publish(building, final, record["settings"]["fingerprint"])
    except OSError as error:
        raise InputError(f"{final}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return record


def _table_group(job: TuneJob) -> str | None:
    """``tuned_by`` of what is learned: decides which evaluations are this tuning's own."""
    groups = {known_task(part.task, job.search).tuned_by for part in job.tasks}
    return groups.pop() if len(groups) == 1 else None


def provenance_record(
    job: TuneJob, rows: TrainingSet, report: TrainingReport, directory: Path, moved: float
) -> dict[str, Any]:
    """The record of what is in ``directory``, as JSON values."""
    base, settings = job.checkpoint, job.settings()
    fingerprint = (
        {"adapter_fingerprint": adapter_fingerprint(directory)}
        if job.method.kind == "lora"
        else {"checkpoint_fingerprint": checkpoint_fingerprint(directory)}
    )
    return {
        "schema": 1,
        "kind": job.method.kind,
        "base": {
            "name": base.name,
            "path": base.path,
            "path_relative": os.path.relpath(base.path, job.directory),
            "source": base.source,
            "revision": base.revision,
            "fingerprint": base.fingerprint,
            "step": base.step,
        },
        "tuning": {
            "name": job.tuning,
            "task": job.label,
            "group": _table_group(job),
            "variant": ",".join(job.variants),
            "control": job.control,
            "seed": job.seed,
            "examples": len(rows),
        },
        "method": report.method.model_dump(mode="json"),
        "selection": report.selection,
        "data": {
            "fingerprint": rows.fingerprint,
            "row_ids": list(rows.row_ids),
            "row_keys": list(rows.row_keys),
            "parts": [
                {"task": task, "rows": count, "revision": _data_revision(task, job.search)}
                for task, count in rows.parts
            ],
            "left_out": rows.counts,
            "held_out_tasks": list(job.held_out),
            "compared": list(rows.compared),
        },
        "training": {
            "wall_s": round(report.wall_s, 3),
            "tokens": report.tokens,
            "tokens_per_s": round(report.tokens_per_s, 1),
            "first_loss": report.losses[0],
            "final_loss": sum(report.losses[-10:]) / len(report.losses[-10:]),
            "steps": len(report.losses),
            "resumed_at": list(report.resumed_at),
            "threads": report.threads,
            "devices": job.method.devices,
            "dtype": report.dtype,
            "untrained": moved == 0,
            "moved_share": moved,
        },
        "settings": {"fingerprint": text_fingerprint(settings), "values": settings},
        "versions": {
            "evalcore": evalcore.__version__,
            **{name: metadata.version(name) for name in _VERSIONED},
        },
        "device": report.device,
        **fingerprint,
    }


def _data_revision(task: str, search: Search) -> str | None:
    """The commit that rows of a task were read from in this process; None for other sources."""
    found = data_resolution(known_task(task, search))
    return found.commit if found is not None else None


def working_folder(directory: str | Path) -> Path:
    """Where training checkpoints of a job are while it is not finished: beside its final place."""
    final = Path(directory)
    return final.parent / f".{final.name}.training"


def clean_leftovers(final: Path) -> None:
    """Removes what killed processes of this host left of earlier tries at ``final``."""
    for left in final.parent.glob(f".{final.name}.*.unfinished"):
        host, _, pid = (
            left.name.removesuffix(".unfinished").removeprefix(f".{final.name}.").rpartition("-")
        )
        if host == socket.gethostname() and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _temporary(final: Path) -> Path:
    return final.parent / f".{final.name}.{socket.gethostname()}-{os.getpid()}.unfinished"


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # a try of our own that failed
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _check_no_pickles(directory: Path) -> None:
    found = [item.name for item in directory.iterdir() if item.suffix in _PICKLES]
    if found:
        raise InputError(f"{directory}: {found[0]} would be a pickle; such files are not handed on")


def _finish_config(file: Path, job: TuneJob) -> None:
    """Says which base it was, with its commit, and puts sets into a fixed order."""
    config = json.loads(file.read_text("utf-8"))
    base = job.checkpoint
    from_hub = base.revision is not None
    config["base_model_name_or_path"] = base.source.partition("@")[0] if from_hub else base.path
    config["revision"] = base.revision
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def _write_losses(file: Path, report: TrainingReport) -> None:
    steps = range(1, len(report.losses) + 1)
    columns = [list(steps), report.losses, report.learning_rates, report.completion_tokens]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, LOSS_SCHEMA, strict=True)]
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, LOSS_SCHEMA) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=LOSS_SCHEMA))


def _publish(building: Path, final: Path, settings: str) -> None:
    """Renames into place; a finished adapter of other settings makes room first."""
    if final.exists():
        there = read_provenance(final)
        if there is None:
            raise InputError(f"{final} appeared meanwhile and is not an adapter of ours; move it")
        if ((there.model_extra or {}).get("settings") or {}).get("fingerprint") == settings:
            return  # another process made the same one first
        old = final.parent / f".{final.name}.replaced-{os.getpid()}"
        os.rename(final, old)
        os.rename(building, final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(building, final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Waits until a file's bytes, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
