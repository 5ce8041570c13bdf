"""Encoded training sets, kept on disk: seeds, checkpoints of one tokenizer and methods share them.

A file is named after everything that decides its content: task definitions and the state of their
files, prompt variants, what is held out, tokenizer, lengths, versions. What is read from it is what
would be built.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

import evalcore
from evalcore.files import write_atomically
from evalcore.identity import cache_dir, text_fingerprint
from evalcore.tasks import KEY_VERSION, data_state
from finetune.data import TrainingSet, build_training_set
from finetune.jobs import TRAINING_VERSION, TuneJob, known_task, training_variants

FOLDER = "training"
_ABOUT = b"training_set"


def training_set(job: TuneJob, tokenizer: Any, max_length: int) -> TrainingSet:
    """The rows of a job, from the cache or built (and kept).

    Raises:
        DataError: As :func:`finetune.data.build_training_set`.
    """
    file = cache_dir() / FOLDER / f"{_key(job, max_length)}.arrow"
    kept = _read(file)
    if kept is not None:
        return kept
    rows = build_training_set(job, tokenizer, max_length)
    _write(file, rows)
    return rows


def _key(job: TuneJob, max_length: int) -> str:
    root = Path(job.data_root) if job.data_root else None
    learned = [known_task(part.task, job.search) for part in job.tasks]
    scored = [known_task(name, job.search) for name in job.held_out]
    return text_fingerprint(
        {
            "version": [TRAINING_VERSION, evalcore.__version__, KEY_VERSION],
            "libraries": [metadata.version(name) for name in ("tokenizers", "transformers")],
            "tasks": [[task.fingerprint, data_state(task, root)] for task in learned],
            "examples": [[part.examples, part.share] for part in job.tasks],
            "variants": [
                [
                    variant.fingerprint
                    for variant in training_variants(task, job.variants, job.search)
                ]
                for task in learned
            ],
            "held_out": [[task.fingerprint, data_state(task, root)] for task in scored],
            "data_seed": job.data_seed,
            "control": [job.control, job.seed] if job.control else None,
            "tokenizer": job.checkpoint.tokenizer_fingerprint,
            "overlong": job.method.overlong,
            "max_length": max_length,
        }
    )


def _write(file: Path, rows: TrainingSet) -> None:
    about = {
        "fingerprint": rows.fingerprint,
        "counts": rows.counts,
        "parts": rows.parts,
        "compared": rows.compared,
    }
    table = pa.table(
        {
            "row_id": pa.array(rows.row_ids, pa.string()),
            "row_key": pa.array(rows.row_keys, pa.string()),
            "prompt": pa.array(rows.prompts, pa.large_list(pa.int32())),
            "completion": pa.array(rows.completions, pa.large_list(pa.int32())),
            "borders": pa.array(rows.borders or [()] * len(rows), pa.list_(pa.int32())),
        }
    ).replace_schema_metadata({_ABOUT: json.dumps(about).encode()})

    def write(sink: IO[bytes]) -> None:
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, write)
    except OSError:
        pass  # a full or read-only cache costs time only


def _read(file: Path) -> TrainingSet | None:
    """What is kept; None where nothing is, or it is not whole."""
    if not file.is_file():
        return None
    try:
        with pa.OSFile(str(file)) as source:
            table = pa.ipc.open_file(source).read_all()
        about = json.loads(table.schema.metadata[_ABOUT])
        borders = [tuple(own) for own in table["borders"].to_pylist()]
        rows = TrainingSet(
            table["prompt"].to_pylist(),
            table["completion"].to_pylist(),
            tuple(table["row_id"].to_pylist()),
            about["fingerprint"],
            about["counts"],
            tuple((task, count) for task, count in about["parts"]),
            tuple(table["row_key"].to_pylist()),
            tuple(about["compared"]),
            borders if any(borders) else [],
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    return rows if rows.fingerprint == rows.content_fingerprint() else None
