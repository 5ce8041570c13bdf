"""Results of a run, as a notebook wants them."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalcore.analysis.scores import By, known, model_names
from evalcore.api.frame import Frame
from evalcore.api.words import called_from_python, in_python
from evalcore.app.reduction import keep_estimates, read_book
from evalcore.app.report import MadeReport, export, open_results, report, scores
from evalcore.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    import pyarrow as pa

    from evalcore.app import ScoreOutcome
    from evalcore.app.labels import ModelLabels
    from evalcore.app.status import Status

_SHOWN_SCORES = (
    "model", "task", "way", "prompts", "n", "score", "stderr", "prompt_low", "prompt_high", "gain",
    "note",
)  # fmt: skip
_SHOWN_PROMPT_SCORES = ("model", "task", "prompt", "n", "score", "stderr", "gain", "note")
_GAIN_COLUMNS = (
    "model", "base", "tuned_on", "seed", "seeds", "control", "tuning_step", "task", "metric", "way",
    "prompts", "prompt", "gain_n", "base_score", "score", "gain", "gain_stderr", "gain_low95",
    "gain_high95", "gain_low99", "gain_high99", "gain_error_of", "gain_prompt_low",
    "gain_prompt_high", "prompts_turned", "gain_seed_sd", "gain_next_run_low95",
    "gain_next_run_high95", "gain_stderr_documents",
    "gain_low99_documents", "gain_high99_documents", "smallest_effect", "p", "p_holm", "p_bh",
    "note",
)  # fmt: skip
_SHOWN_GAINS = (
    "model",
    "task",
    "way",
    "prompt",
    "base_score",
    "score",
    "gain",
    "gain_low99",
    "gain_high99",
    "note",
)
_SHOWN_EXAMPLES = (
    "checkpoint", "adapter", "task", "variant", "doc_index", "gold", "prediction", "text",
)  # fmt: skip
_SHOWN_FLIPS = (
    "prompt", "doc_index", "change", "gold", "prediction_a", "prediction_b", "gold_prob_change",
)  # fmt: skip


class Results:
    """An existing results folder. Nothing of it is changed, but by :meth:`label`.

    Args:
        path: The folder that ``score`` wrote.

    Attributes:
        path: The folder.
        outcome: What the run did that gave these results (counts, times, costs, notes); None if
            they were opened.

    Raises:
        InputError: There are no results.
    """

    def __init__(self, path: str | os.PathLike[str], outcome: ScoreOutcome | None = None) -> None:
        self.path = Path(path)
        self.outcome = outcome
        self._store = open_results(self.path)

    # What there is ---------------------------------------------------------------------------

    def cells(self) -> Frame:
        """One row per cell: subject, task, prompt and every setting (docs/results.md)."""
        shown = ("checkpoint", "adapter", "task", "variant", "cell")
        return Frame(self._store.cells(), shown)

    @property
    def models(self) -> list[str]:
        """Names of the models that were scored, as every other method takes them."""
        return list(self._model_ids())

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks they were scored on."""
        return sorted(set(self._store.cells().column("task").to_pylist()))

    @property
    def problems(self) -> list[str]:
        """What could not be scored by the run that gave these results, one line each."""
        if self.outcome is None:
            return []
        return [in_python(f"{what}: {message}") for what, message in self.outcome.problems]

    def status(self) -> Status:
        """What runs on the folder do now, or how they ended; printed, the lines of the command."""
        from evalcore.app.status import status

        return status(self.path)

    # Numbers ---------------------------------------------------------------------------------

    def scores(self, by: By = "task") -> Frame:
        """Scores with their errors, and gains over each model's base.

        A row is a model on a task in one way of asking (shots, chat, listing, way of answering):
        the mean over its prompts, and over the training seeds of one tuning. ``error_of`` says
        what errors are about; ``stderr_documents`` is for these prompts and this run.

        Args:
            by: ``task``, or ``prompt`` for a row per prompt (a cell).
        """
        from evalcore.analysis import scores_table

        shown = _SHOWN_SCORES if by == "task" else _SHOWN_PROMPT_SCORES
        return Frame(scores_table(scores(self._store, _by(by)), by), shown)

    def gains(self, by: By = "task") -> Frame:
        """Gains of tuned models over their bases, paired by document, with intervals.

        Args:
            by: ``task``, or ``prompt`` for a row per prompt.
        """
        import pyarrow.compute as pc

        table = self.scores(by).to_arrow()
        table = table.filter(pc.is_valid(table.column("base")))
        names = [name for name in _GAIN_COLUMNS if name in table.column_names]
        shown = [n for n in _SHOWN_GAINS if n in names and not (by == "prompt" and n == "way")]
        return Frame(table.select(names), shown)

    def prompt_scores(self) -> Frame:
        """Scores over all prompts where a budget of pairs was scored: mean, quantiles, worst.

        A row is a model on a task in one way of asking; intervals are of 95 %; ``naive_mean`` is
        the mean of the scored pairs. Empty where everything was scored whole.
        """
        from evalcore.app.pairs import prompt_scores
        from evalcore.report import prompt_score_table

        shown = ("model", "task", "prompts", "mean", "q05", "q50", "q95", "worst", "naive_mean")
        table = prompt_score_table(prompt_scores(self._store))
        return Frame(table, [name for name in shown if name in table.column_names])

    def metrics(self) -> Frame:
        """Every metric of every cell, with its error and how that comes about."""
        from evalcore.analysis.scores import metric_table

        shown = ("checkpoint", "adapter", "task", "variant", "metric", "value", "stderr", "n")
        return Frame(metric_table(read_book(self._store)), shown)

    def findings(self, name: str) -> Frame:
        """A table of the study's findings, as the report's CSV file of that name has it.

        Args:
            name: ``sensitivity`` (spread over prompts, MaxP, AvgP, Sat, CPS, Fleiss' kappa),
                ``sensitivity_trends`` (its slope with pre-training), ``rank_stability`` (Kendall's
                W), ``gain_by_base`` (on held-out halves), ``methods`` (LoRA minus full tuning) or
                ``changes_by_metric`` (forgetting and transfer).

        Raises:
            UnknownNameError: There is no such table.
        """
        import pyarrow as pa

        from evalcore.analysis import analyse
        from evalcore.analysis.findings import FINDINGS

        if name not in FINDINGS:
            raise UnknownNameError("table of findings", name, FINDINGS)
        book = read_book(self._store)
        rows = FINDINGS[name](analyse(book))
        keep_estimates(self._store, book)
        names = list(dict.fromkeys(key for row in rows for key in row))
        columns = {key: [known(row.get(key)) for row in rows] for key in names}
        return Frame(pa.table(columns))

    # Documents -------------------------------------------------------------------------------

    def examples(
        self,
        *,
        task: str | None = None,
        model: str | None = None,
        checkpoint: str | None = None,
        adapter: str | None = None,
        prompt: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> Frame:
        """What the engine said, one row per cell and document, with the cell's columns.

        Args:
            task: Only this task.
            model: Only this model (see :attr:`models`).
            checkpoint: Only this checkpoint, with all its adapters.
            adapter: Only this adapter.
            prompt: Only this prompt variant.
            columns: These columns only; None: all.

        Raises:
            UnknownNameError: A name that is not in the results; the nearest are listed.
        """
        cells = self._cells(task=task, model=model, checkpoint=checkpoint, adapter=adapter,
                            variant=prompt)  # fmt: skip
        table = self._store.read(columns, cells=cells)
        return Frame(table, [n for n in _SHOWN_EXAMPLES if n in table.column_names] or None)

    def documents(self, task: str) -> Frame:
        """The documents of a task: fields (as JSON), choices, gold and reference texts.

        Args:
            task: The task.

        Raises:
            UnknownNameError: It is not in the results.
        """
        self._cells(task=task)
        shown = ("doc_index", "fields", "choices", "gold")
        return Frame(self._store.documents(task), shown)

    def flips(
        self, a: str, b: str, *, task: str, prompt: str | None = None, model: str | None = None
    ) -> Frame:
        """Documents of a task on which two models, or two prompts, came out differently.

        Args:
            a: A model (see :attr:`models`); with ``model`` given, one of its prompts.
            b: The other.
            task: The task.
            prompt: Compare two models under this prompt only.
            model: Compare two prompts of this model.

        Returns:
            One row per document that differs, the largest change of the right answer's
            probability first (``evalcore.analysis.flips.FLIP_SCHEMA``); ``doc_id`` joins with
            :meth:`documents`.

        Raises:
            UnknownNameError: A name that is not in the results.
        """
        import pyarrow as pa

        from evalcore.analysis.flips import FLIP_SCHEMA, flips

        pairs: list[tuple[str, str, str]] = []
        if model is not None:
            one, two = (self._by_prompt(task, model, name) for name in (a, b))
            pairs = [(f"{a} / {b}", one[a], two[b])]
        else:
            one, two = (self._by_prompt(task, name, prompt) for name in (a, b))
            pairs = [(name, one[name], two[name]) for name in sorted(one.keys() & two.keys())]
            if not pairs:
                raise InputError(f"{a} and {b} share no prompt on {task}")
        tables = [
            flips(self._store.read(cells=[left]), self._store.read(cells=[right]), name)
            for name, left, right in pairs
        ]
        table = pa.concat_tables([FLIP_SCHEMA.empty_table(), *tables])
        return Frame(table, _SHOWN_FLIPS)

    # Out -------------------------------------------------------------------------------------

    def report(
        self,
        output: str | os.PathLike[str] | None = None,
        *,
        title: str = "Scores and gains",
        beside: Sequence[str | os.PathLike[str]] = (),
    ) -> MadeReport:
        """Writes one HTML page, its pictures (PNG, SVG) and every table as CSV.

        Args:
            output: Folder; None: ``report`` inside the results.
            title: Heading of the page.
            beside: Further results folders to show in the same page, with the folder of each
                number; a cell that stands in several is taken from the first and flagged.

        Returns:
            The main table as text, and the page's path.
        """
        paths = [self.path, *map(Path, beside)]
        return report(paths, Path(output or self.path / "report"), title=title)

    def export(self, output: str | os.PathLike[str], format: str | None = None) -> int:
        """Writes results for other tools; gives the number of rows, or of files in a folder.

        Args:
            output: File, or folder for forms of several files.
            format: One of ``evalcore.exports.FORMATS`` (parquet, csv, jsonl, duckdb, lm-eval,
                hf-eval-results); None: by the ending of the file's name, parquet if it has none.
        """
        return export(self.path, Path(output), format).count

    def label(
        self,
        tuned_on: str | Sequence[str] = (),
        *,
        labels: str | os.PathLike[str] | None = None,
        name_pattern: str | None = None,
        parent_map: str | Sequence[str] = (),
    ) -> list[ModelLabels]:
        """Says or mends what models were tuned on; nothing is scored again.

        Args:
            tuned_on: ``GLOB=TASK[,seed=N,control=KIND,...]``, one or several.
            labels: A YAML or CSV file of the same.
            name_pattern: For example ``{tuning}-seed{seed}``.
            parent_map: ``GLOB=CHECKPOINT`` for fully tuned checkpoints.

        Returns:
            Every tuned model with its labels; without arguments nothing is changed.
        """
        from evalcore.app.labels import label

        with called_from_python():
            return label(
                self.path, tuned_on=_several(tuned_on), labels=Path(labels) if labels else None,
                name_pattern=name_pattern, parent_map=_several(parent_map),
            )  # fmt: skip

    # Parts -----------------------------------------------------------------------------------

    def _model_ids(self) -> dict[str, str]:
        from evalcore.analysis.subjects import subject_infos, subject_order

        infos = subject_infos(self._store.cells())
        names = model_names(infos.values())
        return {names[s.id]: s.id for s in sorted(infos.values(), key=subject_order)}

    def _by_prompt(self, task: str, model: str, prompt: str | None) -> dict[str, str]:
        """Prompt -> cell of a model on a task."""
        chosen = self._cells(task=task, model=model, variant=prompt)
        rows = self._store.cells().select(["cell", "variant"]).to_pylist()
        return {row["variant"]: row["cell"] for row in rows if row["cell"] in chosen}

    def _cells(self, model: str | None = None, **wanted: str | None) -> set[str]:
        """Cells whose columns have these values.

        Raises:
            UnknownNameError: No cell has such a value.
        """
        rows = self._store.cells().to_pylist()
        if model is not None:
            ids = self._model_ids()
            if model not in ids:
                raise UnknownNameError("model", model, ids)
            rows = [row for row in rows if row["subject"] == ids[model]]
        for column, value in wanted.items():
            if value is None:
                continue
            known = {row[column] for row in rows}
            if value not in known:
                kind = {"variant": "prompt"}.get(column, column)
                raise UnknownNameError(kind, value, {k for k in known if k is not None})
            rows = [row for row in rows if row[column] == value]
        return {row["cell"] for row in rows}

    def _counts(self) -> str:
        cells = self._store.cells()
        counts = [
            (len(set(cells.column(column).to_pylist())), name)
            for column, name in (("subject", "model"), ("task", "task"), ("variant", "prompt"))
        ]
        said = ", ".join(f"{n:,} {name}{'' if n == 1 else 's'}" for n, name in counts)
        return f"{said}, {cells.num_rows:,} cells"

    def __repr__(self) -> str:
        failed = f", {len(self.problems)} not scored" if self.problems else ""
        return f"Results({str(self.path)!r}: {self._counts()}{failed})"

    def _repr_html_(self) -> str:
        problems = "".join(f"<li>{html.escape(line)}</li>" for line in self.problems[:10])
        return (
            f"<p><b>{html.escape(str(self.path))}</b>: {self._counts()}</p>"
            + (f"<p>not scored:</p><ul>{problems}</ul>" if problems else "")
            + self.scores()._repr_html_()
        )


def _by(by: str) -> By:
    if by == "task":
        return "task"
    if by == "prompt":
        return "prompt"
    raise UnknownNameError("value of by", str(by), ("task", "prompt"))


def _several(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def frame_of(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> Frame:
    """A frame from rows."""
    import pyarrow as pa

    return Frame(pa.Table.from_pylist(list(rows), schema=schema))
