"""The cells of a grid that lm-eval's tasks ask for (see :mod:`evalcore.lm_eval`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evalcore.app.asking import asked_of
from evalcore.app.cells import NO_TEMPLATE, Grid, Question, RequestFile
from evalcore.app.lengths import Lengths
from evalcore.config import GridConfig
from evalcore.identity import data_fingerprint
from evalcore.lm_eval import VERSION, Built, LoadedTask, load
from evalcore.lm_eval.asking import ask as theirs
from evalcore.lm_eval.outcomes import LmEvalWork
from evalcore.tasks import Finding
from evalcore.types import Checkpoint, EncodingSettings, Subject


class LmEvalAsking:
    """What lm-eval's tasks ask, one variant per task; their data are loaded once.

    Attributes:
        findings: What the checks of the data have found so far.

    Raises:
        InputError: lm-eval is missing, a name is unknown, or a file names code that may not run.
        DataError: A data set is not to be had.
    """

    def __init__(
        self, names: Sequence[str], options: GridConfig, cache: Path, versions: str
    ) -> None:
        self._options = options
        self._loaded = load(
            names,
            options.include_path,
            allow_code=options.allow_code,
            data_root=options.data_root,
        )
        self._versions = json.dumps({**json.loads(versions), "lm_eval": VERSION})
        self.findings: list[Finding] = []
        lengths = Lengths(options.max_length)
        self._tasks = [
            (task, _Files(task, options, self.findings, cache, lengths))
            for task in self._loaded.tasks.values()
        ]

    def ask(self, grid: Grid, subjects: Sequence[Subject]) -> LmEvalWork:
        """Adds what is asked of some subjects to their grid."""
        chat = self._options.chat
        for task, files in self._tasks:
            questions: dict[tuple[int, int], int] = {}
            for subject in asked_of(
                subjects,
                chat=chat,
                generates=str(task.own.OUTPUT_TYPE) == "generate_until",
                encode=files.path,
            ):
                if chat and not subject.checkpoint.template_fingerprint:
                    grid.leave_out(NO_TEMPLATE, subject)
                    continue
                settings, built, baseline, file = files.of(subject.checkpoint)
                at = (id(file), id(built))
                if at not in questions:
                    # lm-eval's definition is code: its words and the rows it made of them.
                    data = data_fingerprint(built.task)
                    grid.documents[built.task.name, data] = built.documents
                    questions[at] = grid.asked.ask(
                        Question(
                            built.task,
                            built.variant,
                            settings,
                            file,
                            baseline,
                            built.documents,
                            data,
                            self._versions,
                            keeps_answers=False,
                            built=built,
                        )
                    )  # fmt: skip
                grid.asked.add(subject, questions[at])
        return LmEvalWork(self._loaded)


@dataclass
class _Files:
    """A task's texts and request files, one for each way the subjects are asked."""

    task: LoadedTask
    options: GridConfig
    findings: list[Finding]
    cache: Path
    lengths: Lengths
    texts: dict[str, tuple[Built, float]] = field(default_factory=dict)
    files: dict[tuple[str, str, int], RequestFile] = field(default_factory=dict)

    def path(self, checkpoint: Checkpoint) -> Path:
        """The file of requests for a checkpoint."""
        return self.of(checkpoint)[3].path

    def of(self, checkpoint: Checkpoint) -> tuple[EncodingSettings, Built, float, RequestFile]:
        """(settings, the task as built, its trivial baseline, requests) for a checkpoint."""
        # Only a chat's text depends on the model: on its tokenizer.
        chat = ""
        if self.options.chat:
            chat = checkpoint.tokenizer_fingerprint + checkpoint.template_fingerprint
        if chat not in self.texts:
            built, baseline, found = theirs(self.task, self.options, checkpoint.tokenizer)
            self.texts[chat] = built, baseline
            self.findings += found
        built, baseline = self.texts[chat]
        length = self.lengths.of(checkpoint).max_length
        settings = EncodingSettings(max_length=length, overflow="truncate_left")
        at = (checkpoint.tokenizer_fingerprint, chat, length)
        if at not in self.files:
            self.files[at] = RequestFile.of(
                self.cache, built.task, built.variant, built.documents, (), checkpoint, settings
            )
        return settings, built, baseline, self.files[at]
