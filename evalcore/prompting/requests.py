"""Requests of a (task, variant): token ids in an Arrow table, cached in a file."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from evalcore.errors import InputError
from evalcore.identity import text_fingerprint, tokenizer_fingerprint
from evalcore.prompting.encoding import Encoder, Pair
from evalcore.prompting.rendering import Rendered, check_variant, render, shots_text
from evalcore.prompting.shots import draw_shots
from evalcore.prompting.tokenizers import load_tokenizer
from evalcore.types import Document, EncodingSettings, Task, Variant

REQUESTS_VERSION = 1
FLAG_SHOTS_DROPPED = "shots_dropped"
FLAG_OVERFLOW = "overflow"
FLAG_NO_TOKENS = "no_tokens"

_IDS = pa.list_(pa.list_(pa.int32()))
REQUEST_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string()),
        pa.field("doc_index", pa.int32()),
        pa.field("gold", pa.int32()),
        pa.field("contexts", _IDS),
        pa.field("continuations", _IDS),
        pa.field("choice_chars", pa.list_(pa.int32())),
        pa.field("choice_bytes", pa.list_(pa.int32())),
        pa.field("choices", pa.list_(pa.string())),
        pa.field("references", pa.list_(pa.string())),
        pa.field("shots", pa.int32()),
        pa.field("shots_dropped", pa.int32()),
        pa.field("flags", pa.list_(pa.string())),
    ]
)
"""One row per document. ``contexts`` has one entry if all continuations share it, else one per
continuation. ``continuations``: one per choice; for other tasks the first reference, so that its
log-likelihood can be scored. ``choices``, ``choice_chars`` and ``choice_bytes`` are of the text
without delimiter. Rows flagged ``overflow`` do not fit even without shots and are not scored."""

_ROWS_PER_BATCH = 2000


def encode_task(
    task: Task,
    variant: Variant,
    documents: Sequence[Document],
    shots_pool: Sequence[Document],
    tokenizer: Any,
    settings: EncodingSettings,
) -> pa.Table:
    """Requests of all documents, as a table with :data:`REQUEST_SCHEMA`.

    Documents that are too long lose whole shots, the last ones first (so that the others stay a
    shared prefix); each loss is counted and flagged. Nothing is cut inside a text.

    Raises:
        DefinitionError: If a template is wrong.
        DataError: If there are too few shots.
        InputError: If the tokenizer lacks what the variant needs.
    """
    batches = _batches(task, variant, documents, shots_pool, tokenizer, settings)
    return pa.Table.from_batches(batches, REQUEST_SCHEMA)


def cached_requests(
    cache_dir: str | Path,
    task: Task,
    variant: Variant,
    documents: Sequence[Document],
    shots_pool: Sequence[Document],
    tokenizer_path: str | Path,
    settings: EncodingSettings,
) -> Path:
    """Like :func:`encode_task`, kept as an Arrow IPC file named by a hash of all its inputs.

    The file is written beside its place and renamed, so that several processes may ask at once.

    Returns:
        Path of the file; memory-map it to read.
    """
    key = text_fingerprint(
        {
            "requests": REQUESTS_VERSION,
            "task": [task.name, task.version, task.output_type, task.choices],
            "max_tokens": task.generation.max_tokens,
            "variant": variant.fingerprint,
            "documents": [doc.id for doc in documents],
            "rows": text_fingerprint([doc.index for doc in documents]),
            "pool": [doc.id for doc in shots_pool] if variant.shots else [],
            "tokenizer": tokenizer_fingerprint(tokenizer_path),
            "settings": [settings.max_length, settings.add_bos, settings.overflow],
        }
    )
    path = Path(cache_dir) / f"requests-{key}.arrow"
    if path.is_file():
        return path
    tokenizer = load_tokenizer(tokenizer_path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, REQUEST_SCHEMA) as out:
            for batch in _batches(task, variant, documents, shots_pool, tokenizer, settings):
                out.write_batch(batch)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write requests to {path.parent}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def read_requests(path: str | Path) -> pa.Table:
    """Memory-maps a request file."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _batches(
    task: Task,
    variant: Variant,
    documents: Sequence[Document],
    shots_pool: Sequence[Document],
    tokenizer: Any,
    settings: EncodingSettings,
) -> Iterator[pa.RecordBatch]:
    check_variant(task, variant)
    shots = draw_shots(task, variant, shots_pool, {doc.id for doc in documents}, scored=documents)
    encoder = Encoder(tokenizer, settings)
    for start in range(0, len(documents), _ROWS_PER_BATCH):
        part = documents[start : start + _ROWS_PER_BATCH]
        rows = _rows(task, variant, part, shots, tokenizer, encoder, settings)
        yield pa.RecordBatch.from_pylist(rows, REQUEST_SCHEMA)


def _rows(
    task: Task,
    variant: Variant,
    documents: Sequence[Document],
    shots: Sequence[Document],
    tokenizer: Any,
    encoder: Encoder,
    settings: EncodingSettings,
) -> list[dict[str, Any]]:
    """Rows of some documents: all at full shots, then again with fewer those that do not fit."""
    rows: dict[int, dict[str, Any]] = {}
    waiting = list(range(len(documents)))
    for kept in range(len(shots), -1, -1):
        # Written once: the same shots stand before every document.
        prefix = None if variant.chat else shots_text(task, variant, shots[:kept])
        rendered = [
            render(task, variant, documents[i], shots[:kept], tokenizer, shots_prefix=prefix)
            for i in waiting
        ]
        pairs = encoder.encode_pairs(
            [(text.context, _scored(task, text.continuations)) for text in rendered]
        )
        too_long = []
        for i, text, own in zip(waiting, rendered, pairs, strict=True):
            fits = _length(task, own) <= settings.max_length
            if not fits and kept > 0:
                too_long.append(i)
                continue
            if variant.chat:
                where = f"task {task.name}, prompt {variant.name}"
                encoder.check_one_bos(own[0][0], where)
            rows[i] = _row(task, documents[i], text, own, len(shots) - kept, fits)
        waiting = too_long
    return [rows[i] for i in range(len(documents))]


def _scored(task: Task, texts: Sequence[str]) -> Sequence[str]:
    return texts if task.output_type == "multiple_choice" else texts[:1]


def _length(task: Task, pairs: Sequence[Pair]) -> int:
    """Tokens needed at most: context + longest continuation (or the longest generation)."""
    new = max((len(continuation) for _, continuation in pairs), default=0)
    if task.output_type == "generate_until":
        new = max(new, task.generation.max_tokens)
    return len(pairs[0][0]) + new


def _row(
    task: Task,
    document: Document,
    text: Rendered,
    pairs: Sequence[Pair],
    dropped: int,
    fits: bool,
) -> dict[str, Any]:
    flags = [FLAG_SHOTS_DROPPED] if dropped else []
    if any(not continuation for _, continuation in pairs):
        flags.append(FLAG_NO_TOKENS)
        fits = False  # nothing to score: left out the same visible way
    if not fits:
        flags.append(FLAG_OVERFLOW)
    targets = _scored(task, text.targets)
    contexts = [context for context, _ in pairs]
    shared = all(context == contexts[0] for context in contexts[1:])
    return {
        "doc_id": document.id,
        "doc_index": document.index,
        "gold": document.gold,
        "contexts": contexts[:1] if shared else contexts,
        "continuations": [continuation for _, continuation in pairs],
        "choice_chars": [len(target) for target in targets],
        "choice_bytes": [len(target.encode("utf-8", "surrogatepass")) for target in targets],
        "choices": list(targets) if task.output_type == "multiple_choice" else [],
        "references": list(document.references),
        "shots": text.shots,
        "shots_dropped": dropped,
        "flags": flags,
    }
