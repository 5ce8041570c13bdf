"""The report: one HTML file that needs nothing else, with pictures and CSV files beside it."""

from __future__ import annotations

import base64
import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from evalcore.analysis import Analysis, Flag, ScoreBook, ScoreRow, analyse, score_rows
from evalcore.analysis.prompteval import PromptScoreRow
from evalcore.analysis.scores import metric_table, model_names
from evalcore.errors import InputError
from evalcore.report import lead
from evalcore.report.csvs import write_tables
from evalcore.report.documents import sample
from evalcore.report.figures import Figure, all_figures, cost_rows
from evalcore.report.losses import loss_rows
from evalcore.report.packing import pack
from evalcore.report.pictures import VEGA_LITE, write_pictures
from evalcore.report.prompteval import prompt_score_page
from evalcore.report.records import run_facts, versions
from evalcore.report.rows import FACETS, Row, score_data, tuning_name
from evalcore.report.scores import write_scores
from evalcore.report.sections import Table, cost_table, extra_tables
from evalcore.report.sources import Source, TableSource
from evalcore.report.tables import SERIOUS
from evalcore.report.words import metric_words, visible

REPORT_NAME = "report.html"
PARTS = ("data", "tables", "charts", "filters", "documents", "start")
"""Files of ``page/`` in the order in which they are put together."""
SHOWN_FLAGS = 6
FLAG_TITLES = {
    "missing": "Missing: a comparison lacks a side",
    "doubled": "Several entries for one key (never averaged)",
    "overflow": "Prompts that did not fit and were not scored",
    "unscored": "Rows without a value",
    "untrained": "Adapters that change nothing",
    "shots_dropped": "Prompts that lost shots to fit",
    "control": "Format-only controls",
    "group": "Tasks in no group, or in several, of the table per checkpoint",
    "ratio": "Base score too small for a ratio",
    "prompts": "Different prompts",
    "documents": "Different numbers of documents",
    "metric": "Primary metric without a value per document",
    "tuning": "Adapters whose tuning is not known (say it with `evalcore label`)",
    "task": "Tasks that changed between runs",
    "data": "What the checks of the data found",
}
_DERIVED = ("series", "line", "who", "weight", "score_text", "gain_text", "smallest", "gain_error",
            "turned", "numerics", "score_least", "score_most")  # fmt: skip
"""Columns that the page makes itself, as ``rows._row`` does, or does not show."""


def write_report(
    read_table_or_path: pa.Table | str | Path | None,
    out_dir: str | Path,
    *,
    title: str,
    description: str = "",
    run_records: Sequence[Mapping[str, Any]] | None = None,
    analysis: Analysis | None = None,
    losses: pa.Table | None = None,
    source: Source | None = None,
    command: str = "evalcore report RESULTS",
    numerics: str | None = None,
    allow_mixed: bool = False,
    estimated: Sequence[PromptScoreRow] = (),
) -> Path:
    """Writes ``report.html`` (self-contained), its pictures (PNG, SVG) and every table as CSV.

    Args:
        read_table_or_path: What ``ResultStore.read()`` gives, or a results folder; None where
            ``analysis`` is of a book with scores.
        out_dir: Created if need be; files of an earlier report there are replaced.
        title, description: Heading of the page.
        run_records: Run records as the store keeps them (any keys); None: those of the results
            folder, if one is given.
        analysis: The analysis of the same table, if it is at hand.
        losses: Training losses with the columns ``losses.LOSS_COLUMNS``, if there are any.
        source: Where rows, questions and prompts are; None: the table or folder that is given.
        command: What makes the report again, for the page to say.
        numerics: Use only this numerics class.
        allow_mixed: Allow differences across numerics classes.
        estimated: Scores over prompts of which a part of the pairs was scored.

    Returns:
        Path of the page.

    Raises:
        InputError: No rows, or the folder cannot be written.
        IncompatibleError: A difference would mix numerics classes.
    """
    scored = analysis.book if analysis is not None else None
    if isinstance(read_table_or_path, pa.Table):
        scored = ScoreBook.from_table(read_table_or_path, numerics=numerics, scores=True)
        source = source or TableSource(read_table_or_path)
    elif read_table_or_path is not None:
        from evalcore.store import ResultStore  # only readers of a folder need the store

        store = ResultStore(read_table_or_path, read_only=True)
        scored = ScoreBook.from_table(store.read(), numerics=numerics, scores=True)
        run_records = store.runs.list() if run_records is None else run_records
        source = source or store
    assert scored is not None, "rows, or an analysis of them"
    if analysis is None:
        analysis = analyse(scored, allow_mixed=allow_mixed)
    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = write_tables(analysis, metric_table(scored), out)
        by_task, by_prompt = (score_rows(analysis.book, by) for by in ("task", "prompt"))
        files += write_scores(by_task, by_prompt, out)
        datasets, figures, tables = _drawn(analysis, losses, by_task, by_prompt)
        if estimated:
            tables = [prompt_score_page(estimated), *tables]
        drawn = {path.stem for path in write_pictures(figures, datasets, out)}
        data = _data(analysis, datasets, figures, tables, sample(analysis, source))
        for figure in data["figures"]:
            figure["picture"] = figure["id"] in drawn
        packed = _packed(analysis, datasets)
        page = render(analysis, data, packed, title, description, run_records or (), command,
                      [f.name for f in files])  # fmt: skip
        path = out / REPORT_NAME
        partial = path.with_suffix(".html.partial")
        partial.write_text(page, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(
            f"report folder {out}: cannot write ({error.strerror or error}); give another folder"
        ) from error
    return path


def _drawn(
    analysis: Analysis, losses: pa.Table | None, by_task: Sequence[ScoreRow],
    by_prompt: Sequence[ScoreRow],
) -> tuple[dict[str, list[Row]], list[Figure], list[Table]]:  # fmt: skip
    """Rows of charts by data set, the charts, and the tables."""
    scores, trained = score_data(analysis, by_task, by_prompt), loss_rows(losses)
    cost = cost_table(analysis.book)
    tables = [*extra_tables(analysis), *([cost] if cost.rows else [])]
    datasets = {"scores": scores, "losses": trained, "cost": cost_rows(cost)}
    figures = all_figures(analysis, scores, trained)
    return datasets, [f for f in figures if f.dataset != "cost" or datasets["cost"]], tables


def _packed(analysis: Analysis, datasets: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Rows as the page's script takes them: without what it makes itself, subjects by place."""
    place = {s.id: number for number, s in enumerate(analysis.book.ordered_subjects())}
    scores = [
        {**{k: v for k, v in row.items() if k not in _DERIVED}, "subject": place[row["subject"]]}
        for row in datasets["scores"]
    ]
    return {**datasets, "scores": scores}


def _data(
    analysis: Analysis, datasets: dict[str, list[Row]], figures: Sequence[Figure],
    tables: Sequence[Table], documents: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Everything else the page shows and filters."""
    subjects = analysis.book.ordered_subjects()
    place = {s.id: number for number, s in enumerate(subjects)}
    documents = {  # a copy: what was sampled is kept as it is
        name: {**task, "metric": metric_words(task.get("metric", "")), "documents": [
            {**entry, "answers": [[place[a[0]], *a[1:]] for a in entry["answers"]]}
            for entry in task["documents"]
        ]}
        for name, task in documents.items()
    }  # fmt: skip
    hero = lead.best_task(analysis)
    first = next((f.id for f in figures if hero and f.where.get("task") == [visible(hero)]), None)
    names = model_names(subjects)
    facets, tables = _with_folders(datasets["scores"], tables)
    known: list[dict[tuple[str, ...], int]] = [{} for _ in facets]
    shown = [t.as_json(known) for t in tables]
    return {
        "facets": facets, "lists": [list(lists) for lists in known],
        "subjects": [
            {"name": visible(names[s.id]), "base": place.get(s.base or ""),
             "checkpoint": visible(s.checkpoint), "tuning": tuning_name(s)}
            for s in subjects
        ],
        "figures": [f.as_json() for f in figures],
        "tables": shown, "documents": documents, "first": first,
        "words": {t.metric: metric_words(t.metric) for t in analysis.book.tasks.values()},
    }  # fmt: skip


def _with_folders(
    scores: Sequence[Row], tables: Sequence[Table]
) -> tuple[tuple[str, ...], Sequence[Table]]:
    """Facets, and tables whose rows know the folders they are of, if there are several."""
    if not any("folders" in row for row in scores):
        return FACETS, tables
    lie: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for row in scores:
        lie[row["checkpoint"], row["tuning"], row["task"]].update(row["folders"])

    def folders(facets: Sequence[list[str] | None]) -> list[str]:
        wanted = (facets[0], facets[1], facets[3])
        fits = (
            own for key, own in lie.items()
            if all(names is None or name in names for names, name in zip(wanted, key, strict=True))
        )  # fmt: skip
        return sorted(set().union(*fits))

    found = [
        replace(table, facets=[[*facets, folders(facets)] for facets in table.facets])
        for table in tables
    ]
    return (*FACETS, "folder"), found


def render(
    analysis: Analysis, data: dict[str, Any], datasets: dict[str, list[Row]], title: str,
    description: str, run_records: Sequence[Mapping[str, Any]], command: str, files: Sequence[str],
) -> str:  # fmt: skip
    """The page as text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # only reports need it
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("evalcore.report", "."),
        autoescape=True, undefined=StrictUndefined,
    )  # fmt: skip
    here = Path(__file__).parent
    style = (here / "style.css").read_text(encoding="utf-8")
    scripts = [vega_script(), page_script()]
    warned, others = lead.warnings(analysis.flags)
    return environment.get_template("template.html.j2").render(
        title=visible(title),
        description=visible(description),
        policy=_policy(style, scripts),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        data=Markup(pack(data, datasets)),
        asked=lead.asked(analysis),
        lead=lead.sentences(analysis),
        warned=warned,
        others=others,
        tuned=any(s.base is not None for s in analysis.book.subjects.values()),
        sections=_sections(data),
        flags=_flag_groups(analysis.flags),
        runs=[run_facts(number, record) for number, record in enumerate(run_records)],
        versions=versions(analysis),
        command=visible(command),
        files=files,
        scored=_scored(analysis),
    )  # fmt: skip


def page_script() -> str:
    """The page's own script: its parts in the order in which they use one another."""
    here = Path(__file__).parent / "page"
    parts = [(here / f"{name}.js").read_text(encoding="utf-8") for name in PARTS]
    return '(async () => {\n"use strict";\n' + "\n".join(parts) + "})();\n"


@lru_cache(maxsize=1)
def vega_script() -> str:
    """Vega, Vega-Lite, Vega-Embed and the interpreter that needs no ``eval``, as one script."""
    import vl_convert  # only reports need it

    snippet = "window.vegaEmbed = vegaEmbed;"
    return str(vl_convert.javascript_bundle(snippet=snippet, vl_version=VEGA_LITE))


def _policy(style: str, scripts: Sequence[str]) -> str:
    """Content security policy: nothing is loaded, and only these scripts and styles count."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")

    hashes = " ".join(f"'sha256-{digest(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'sha256-{digest(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _sections(data: dict[str, Any]) -> set[str]:
    return {item["section"] for kind in ("figures", "tables") for item in data[kind]}


def _scored(analysis: Analysis) -> str:
    """The day of the newest cell."""
    newest = max((str(cell.about.get("recorded") or "") for cell in analysis.book.read), default="")
    return f"{newest[:4]}-{newest[4:6]}-{newest[6:8]}" if newest[:8].isdigit() else ""


def _flag_groups(flags: Sequence[Flag]) -> list[dict[str, Any]]:
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for flag in flags:
        groups[flag.kind].append((visible(flag.where), visible(flag.text)))
    order = sorted(groups, key=lambda kind: (kind not in SERIOUS, kind))
    return [
        {
            "title": FLAG_TITLES.get(kind, kind), "total": len(groups[kind]),
            "shown": groups[kind][:SHOWN_FLAGS], "rest": groups[kind][SHOWN_FLAGS:],
        }
        for kind in order
    ]  # fmt: skip
