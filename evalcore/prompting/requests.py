"""Requests of a (task, variant): token ids in an Arrow table, cached in a file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from evalcore.checked import (
    ARROW_SUFFIX,
    DamagedFile,
    is_checked,
    name_metadata,
    read_named_table,
    write_batches,
)
from evalcore.errors import InputError, NodeError, ResultsError
from evalcore.identity import load_tokenizer, text_fingerprint, tokenizer_facts
from evalcore.identity.cache import locked
from evalcore.prompting.encoding import Encoder
from evalcore.prompting.fitting import Asked, RequestText, encode_texts, first_tokens, fit
from evalcore.prompting.guarding import holds
from evalcore.prompting.rendering import check_variant, render, shots_text
from evalcore.prompting.shots import draw_shots
from evalcore.types import (
    Document,
    EncodingSettings,
    GenerationSettings,
    Task,
    Variant,
    generation_of,
)

log = logging.getLogger("evalcore")

REQUESTS_VERSION = 4
FLAG_SHOTS_DROPPED = "shots_dropped"
FLAG_TRUNCATED = "truncated"
FLAG_OVERFLOW = "overflow"
FLAG_NO_TOKENS = "no_tokens"
FLAG_BORDER = "border_merged"

_IDS = pa.list_(pa.list_(pa.int32()))
REQUEST_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string()),
        pa.field("doc_index", pa.int32()),
        pa.field("gold", pa.int32()),
        pa.field("golds", pa.list_(pa.int32())),
        pa.field("contexts", _IDS),
        pa.field("continuations", _IDS),
        pa.field("unconditional_context", pa.list_(pa.int32())),
        pa.field("unconditional", _IDS),
        pa.field("prompt", pa.list_(pa.int32())),
        pa.field("choice_chars", pa.list_(pa.int32())),
        pa.field("choice_bytes", pa.list_(pa.int32())),
        pa.field("choices", pa.list_(pa.string())),
        pa.field("choice_owners", pa.list_(pa.int32())),
        pa.field("references", pa.list_(pa.string())),
        pa.field("shots", pa.int32()),
        pa.field("shots_dropped", pa.int32()),
        pa.field("truncated_tokens", pa.int32()),
        pa.field("flags", pa.list_(pa.string())),
    ]
)
"""One row per document.

``contexts`` has one entry if all continuations share it, else one per continuation.
``continuations``: one per choice (``first_token``: its first token), one per window of a rolling
log-likelihood; for other tasks the first reference, so that its log-likelihood can be scored.
``unconditional``: the choices again, after ``unconditional_context`` (mutual information only).
``choice_owners``: the choice each continuation is a text of, ascending; null where each choice has
one text. ``prompt``: what is generated from, null if nothing is; it keeps white space at the
context's end, which the split rule gives to the continuations. ``choices``, ``choice_chars`` and
``choice_bytes`` are of the texts without delimiter (rolling: the whole text's in the first entry).
Rows flagged ``overflow`` do not fit even without shots and are not scored."""

_ROWS_PER_BATCH = 2000


def encode_task(
    task: Task,
    variant: Variant,
    documents: Sequence[Document],
    shots_pool: Sequence[Document],
    tokenizer: Any,
    settings: EncodingSettings,
    *,
    unconditional: bool = False,
) -> pa.Table:
    """Requests of all documents, as a table with :data:`REQUEST_SCHEMA`.

    Documents that are too long lose whole shots, the last ones first (so that the others stay a
    shared prefix); each loss is counted and flagged. Nothing is cut inside a text, unless the
    settings say ``truncate_left``: then contexts lose their beginning, counted and flagged too.

    Args:
        unconditional: Whether choices are scored after an empty context as well.

    Raises:
        DefinitionError: If a template is wrong.
        DataError: If there are too few shots.
        InputError: If the tokenizer lacks what the variant needs, or the variant's way of
            answering does not suit the task.
    """
    batches = _batches(
        task, variant, documents, shots_pool, tokenizer, settings, unconditional=unconditional
    )
    return pa.Table.from_batches(batches, REQUEST_SCHEMA)


def cached_requests(
    cache_dir: str | Path,
    task: Task,
    variant: Variant,
    documents: Sequence[Document],
    shots_pool: Sequence[Document],
    tokenizer_path: str | Path,
    settings: EncodingSettings,
    *,
    drawn: Sequence[Document] | None = None,
    unconditional: bool = False,
) -> Path:
    """Like :func:`encode_task`, kept as an Arrow IPC file named by a hash of all its inputs.

    The file is written beside its place and renamed; of several processes that ask at once one
    encodes, and the others wait for it.

    Args:
        drawn: The shots that :func:`draw_shots` draws from the pool, if they are at hand.
        unconditional: Whether choices are scored after an empty context as well.

    Returns:
        Path of the file; memory-map it to read.

    Raises:
        ResultsError: The file cannot be written (no room, no permission).
    """
    generation = generation_of(task, variant)
    facts = tokenizer_facts(tokenizer_path)
    key = text_fingerprint(
        {
            "requests": REQUESTS_VERSION,
            "task": [task.name, task.version, task.output_type, task.choices, task.words],
            "max_tokens": generation.max_tokens if generation is not None else None,
            "unconditional": unconditional,
            "prebuilt": text_fingerprint([_prebuilt_parts(doc) for doc in documents]),
            "variant": variant.fingerprint,
            "documents": [doc.id for doc in documents],
            "rows": text_fingerprint([doc.index for doc in documents]),
            "pool": [doc.id for doc in shots_pool] if variant.shots else [],
            "tokenizer": facts.fingerprint,
            "template": facts.template if variant.chat else "",
            "date": variant.chat_date if variant.chat and facts.dated else "",
            "settings": [settings.max_length, settings.add_bos, settings.overflow],
        }
    )
    path = Path(cache_dir) / f"requests-{key}{ARROW_SUFFIX}"
    if _is_sound(path):
        return path
    with locked(path):
        if _is_sound(path, tell=True):  # by another part of the same array job
            return path
        tokenizer = load_tokenizer(tokenizer_path)
        batches = _batches(
            task, variant, documents, shots_pool, tokenizer, settings, drawn,
            unconditional=unconditional,
        )  # fmt: skip
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            about = name_metadata(path)
            write_batches(path, REQUEST_SCHEMA, batches, metadata=about, compression=None)
        except OSError as error:
            raise ResultsError(
                f"cannot write requests to {path.parent}: {error.strerror or error}; make room, "
                "or give another folder"
            ) from error
    return path


def read_requests(path: str | Path) -> pa.Table:
    """Reads a request file; its bytes are checked first.

    Raises:
        NodeError: This machine sees other bytes than were written, or another file's.
    """
    path = Path(path)
    try:
        if is_checked(path):
            return read_named_table(path)[0]
        with pa.OSFile(str(path)) as source:
            return pa.ipc.open_file(source).read_all()
    except (DamagedFile, OSError, pa.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise NodeError(f"requests {path} cannot be read here: {reason}; run again") from error


def _is_sound(path: Path, *, tell: bool = False) -> bool:
    """Whether the file is there, as written and named; ``tell``: a damaged one is warned of."""
    try:
        if not read_named_table(path)[1]:
            raise DamagedFile("it does not state whose prompts it holds (an earlier evalcore)")
    except FileNotFoundError:
        return False
    except (DamagedFile, OSError, pa.ArrowException) as error:
        log.log(logging.WARNING if tell else logging.DEBUG, "%s: %s; made again", path, error)
        return False
    return True


def same_requests(one: str | Path, other: str | Path) -> bool:
    """Whether two request files ask for the same token ids of the same documents."""
    result: bool = read_requests(one).equals(read_requests(other))
    return result


def request_costs(table: pa.Table) -> npt.NDArray[np.int64]:
    """int64 [rows]: prompt tokens of each document, every piece counted once."""
    total = np.zeros(len(table), dtype=np.int64)
    for name in ("contexts", "continuations", "unconditional") if len(table) else ():
        lists = table[name].combine_chunks()
        sizes = pc.list_value_length(pc.list_flatten(lists)).to_numpy(zero_copy_only=False)
        owners = pc.list_parent_indices(lists).to_numpy()
        total += np.bincount(owners, weights=sizes, minlength=len(table)).astype(np.int64)
    return total


def _prebuilt_parts(document: Document) -> list[Any] | None:
    ready = document.prebuilt
    if ready is None:
        return None
    return [ready.contexts, ready.continuations, ready.targets, ready.unconditional]


@dataclass(frozen=True)
class _Job:
    """What is the same for all documents of a (task, variant)."""

    task: Task
    variant: Variant
    tokenizer: Any
    encoder: Encoder
    settings: EncodingSettings
    generation: GenerationSettings | None
    unconditional: bool

    @property
    def where(self) -> str:
        return f"task {self.task.name}, prompt {self.variant.name}"

    @property
    def choice(self) -> bool:
        return self.task.output_type == "multiple_choice"

    @property
    def rolling(self) -> bool:
        return self.task.output_type == "loglikelihood_rolling"

    def names_bos(self, *documents: Document) -> bool:
        """Whether the text of some document names the beginning-of-text token."""
        if self.encoder.bos is None or not self.variant.chat:
            return False
        pattern = re.compile(re.escape(str(self.tokenizer.bos_token)))
        return any(holds(document, pattern) for document in documents)

    def ready(self, document: Document) -> RequestText | None:
        """Text that needs no template: made elsewhere, or a whole text to be rolled over."""
        made = document.prebuilt
        if self.rolling:
            texts = made.continuations if made is not None else ()
            text = (*texts, *document.references)[:1] or ("",)
            return RequestText((), text, text)
        if made is None:
            return None
        return RequestText(
            made.contexts,
            made.continuations,
            made.targets,
            made.unconditional,
            self.variant.shots,
        )

    def render(self, documents: Sequence[Document], shots: Sequence[Document]) -> list[RequestText]:
        """Text of documents after the same shots."""
        task, variant = self.task, self.variant
        # Written once: the same shots stand before every document.
        turns = variant.chat and variant.chat_shots == "turns"
        prefix = None if turns else shots_text(task, variant, shots)
        texts = []
        for document in documents:
            own = render(task, variant, document, shots, self.tokenizer, shots_prefix=prefix)
            some = slice(None) if self.choice else slice(1)
            texts.append(
                RequestText(
                    (own.context,),
                    own.continuations[some],
                    own.targets[some],
                    own.continuations if self.unconditional else (),
                    own.shots,
                    own.owners,
                )
            )
        return texts

    def encode(self, documents: Sequence[Document], texts: Sequence[RequestText]) -> list[Asked]:
        """Ids of documents, cut to length and way of answering."""
        first_token = self.choice and self.variant.answer == "first_token"
        asked = encode_texts(
            self.encoder,
            texts,
            rolling=self.settings.max_length if self.rolling else None,
            prompts=self.generation is not None or first_token,
        )
        constrained = self.choice and self.variant.answer == "constrained"
        for i, (document, text) in enumerate(zip(documents, texts, strict=True)):
            if first_token:
                asked[i] = first_tokens(
                    asked[i], text, self.task, self.variant, document, self.tokenizer
                )
            if constrained and len(text.contexts) > 1:
                raise InputError(
                    f"{self.where}: answer=constrained needs one context for all choices, "
                    f"document {document.index} has {len(text.contexts)}; use answer=choices"
                )
            asked[i] = fit(
                asked[i],
                self.settings,
                self.generation,
                rolling=self.rolling,
                together=constrained,
            )
        return asked


def _batches(
    task: Task,
    variant: Variant,
    documents: Sequence[Document],
    shots_pool: Sequence[Document],
    tokenizer: Any,
    settings: EncodingSettings,
    drawn: Sequence[Document] | None = None,
    *,
    unconditional: bool,
) -> Iterator[pa.RecordBatch]:
    job = _Job(
        task,
        variant,
        tokenizer,
        Encoder(tokenizer, settings),
        settings,
        generation_of(task, variant),
        unconditional and task.output_type == "multiple_choice",
    )
    shots: Sequence[Document] = ()
    if any(job.ready(doc) is None for doc in documents):
        check_variant(task, variant)
        if drawn is None:
            ids = {doc.id for doc in documents}
            drawn = draw_shots(task, variant, shots_pool, ids, scored=documents)
        shots = drawn
    for start in range(0, len(documents), _ROWS_PER_BATCH):
        rows = _rows(job, documents[start : start + _ROWS_PER_BATCH], shots)
        yield pa.RecordBatch.from_pylist(rows, REQUEST_SCHEMA)


def _rows(
    job: _Job, documents: Sequence[Document], shots: Sequence[Document]
) -> list[dict[str, Any]]:
    """Rows of some documents: all at full shots, then again with fewer those that do not fit."""
    rows: dict[int, dict[str, Any]] = {}
    ready = {i: text for i, doc in enumerate(documents) if (text := job.ready(doc)) is not None}
    own = [documents[i] for i in ready]
    for i, text, asked in zip(
        ready, ready.values(), job.encode(own, list(ready.values())), strict=True
    ):
        rows[i] = _row(job, documents[i], text, asked, 0)
    waiting = [i for i in range(len(documents)) if i not in ready]
    least = len(shots) if job.settings.overflow == "truncate_left" else 0
    for kept in range(len(shots), least - 1, -1):
        if not waiting:
            break
        own = [documents[i] for i in waiting]
        texts = job.render(own, shots[:kept])
        too_long = []
        for i, text, asked in zip(waiting, texts, job.encode(own, texts), strict=True):
            if not asked.fits and kept > least:
                too_long.append(i)
                continue
            named = job.names_bos(documents[i], *shots[:kept])  # then a second one is the data's
            if job.variant.chat and not asked.truncated and not named:
                begin = asked.pairs[0][0] if asked.pairs else asked.prompt
                job.encoder.check_one_bos(begin or [], job.where)
            rows[i] = _row(job, documents[i], text, asked, len(shots) - kept)
        waiting = too_long
    return [rows[i] for i in range(len(documents))]


def _row(
    job: _Job, document: Document, text: RequestText, asked: Asked, dropped: int
) -> dict[str, Any]:
    flags = [FLAG_SHOTS_DROPPED] if dropped else []
    if asked.truncated:
        flags.append(FLAG_TRUNCATED)
    if not asked.complete:
        flags.append(FLAG_NO_TOKENS)
    if _merged(job, text):
        flags.append(FLAG_BORDER)
    if not (asked.fits and asked.complete):  # left out the same visible way
        flags.append(FLAG_OVERFLOW)
    contexts = [context for context, _ in asked.pairs] or [asked.prompt or []]
    shared = all(context == contexts[0] for context in contexts[1:])
    beyond = [0] * (len(asked.pairs) - 1) if job.rolling else []
    return {
        "doc_id": document.id,
        "doc_index": document.index,
        "gold": document.gold,
        "golds": list(document.golds),
        "contexts": contexts[:1] if shared else contexts,
        "continuations": [continuation for _, continuation in asked.pairs],
        "unconditional_context": asked.unconditional[0][0] if asked.unconditional else [],
        "unconditional": [continuation for _, continuation in asked.unconditional],
        "prompt": asked.prompt if job.generation is not None else None,
        "choice_chars": [len(target) for target in text.targets] + beyond,
        "choice_bytes": [_bytes(target) for target in text.targets] + beyond,
        "choices": list(text.targets) if job.choice else [],
        "choice_owners": list(asked.owners) or None,
        "references": list(document.references) or (list(text.targets) if job.rolling else []),
        "shots": text.shots,
        "shots_dropped": dropped,
        "truncated_tokens": asked.truncated,
        "flags": flags,
    }


def _merged(job: _Job, text: RequestText) -> bool:
    """Whether an answer of a document shares a token with the end of its prompt."""
    if job.rolling or not text.contexts:
        return False
    several = len(text.contexts) == len(text.continuations)
    contexts = text.contexts if several else text.contexts[:1] * len(text.continuations)
    return any(map(job.encoder.merges, contexts, text.continuations))


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
