"""The page, its pictures and tables, from a pocket study with known effects."""

from __future__ import annotations

import csv
import html
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalcore import report
from evalcore.analysis import Analysis, analyse, score_rows
from evalcore.analysis.subjects import names_apart
from evalcore.app.document import document_lines
from evalcore.app.report import Part
from evalcore.app.report import report as app_report
from evalcore.errors import InputError, UnknownNameError
from evalcore.metrics import CELL_SCORE_SCHEMA
from evalcore.report import study_rows, write_report
from evalcore.report.charts import BASE_COLOUR, PALETTE
from evalcore.report.csvs import write_tables
from evalcore.report.documents import sample
from evalcore.report.packing import unpack
from evalcore.report.rows import short_step
from evalcore.report.sections import extra_tables
from evalcore.report.sources import TableSource
from evalcore.report.words import both_errors, plain, signed, visible
from evalcore.store import CELL_SCHEMA, EXAMPLE_SCHEMA, ResultStore
from tests.toys.tables import (
    cell_rows,
    study_table,
    subject_columns,
    task_columns,
    to_table,
)

RUN = {"started": "2026-01-02T03:04:05Z", "examples_per_s": 412.5, "computed_tokens": 1203320,
       "computed_over_limit": 1.09, "plan": {"cells": 374}, "note": "<b>not bold</b>"}  # fmt: skip


class Page(HTMLParser):
    """Collects what a page would load, its text, and whether its elements close."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []
        self.scripts = 0
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loads += [v for k in ("src", "href") if (v := values.get(k))]
        if values.get("id"):
            self.ids.add(str(values["id"]))
        self.scripts += tag == "script"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data


def data_of(page: Path) -> dict[str, Any]:
    """What the page's script reads; data sets as rows."""
    found = re.search(r'<script type="application/gzip" id="data">(.*?)</script>', page.read_text())
    assert found is not None
    head, rows = unpack(found[1])
    return {**head, **rows}


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return analyse(study_table(documents=20))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, analysis: Analysis) -> Path:
    out = tmp_path_factory.mktemp("report")
    return write_report(
        study_table(documents=20), out, title="Pocket & study", run_records=[RUN],
        analysis=analysis,
    )  # fmt: skip


def test_page_needs_nothing_else(page: Path) -> None:
    text = page.read_text()
    parsed = Page(text)
    assert parsed.open == []
    inside = [link for link in parsed.loads if link.startswith("#")]
    assert {link[1:] for link in inside} <= parsed.ids
    assert [link for link in parsed.loads if link not in inside] == []
    assert parsed.scripts == 3, "data, Vega and the page's own"
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    rules = html.unescape(policy[1])
    assert rules.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in rules
    assert "http" not in rules
    assert 'name="viewport"' in text
    assert len(text) < 5_000_000


def test_every_figure_lies_beside_the_page_as_png_and_svg(page: Path) -> None:
    figures = [figure["id"] for figure in data_of(page)["figures"]]
    for kind in ("png", "svg"):
        assert sorted(p.stem for p in page.parent.glob(f"*.{kind}")) == sorted(figures)
    for kind, count in (("curve", 5), ("gain", 4), ("prompts", 5), ("transfer", 3), ("cost", 1)):
        assert sum(name.split("_")[0] == kind for name in figures) == count
    svg = (page.parent / "curve_pocket_nli.svg").read_text()
    assert "stroke-dasharray" in svg, "the base is dashed"
    assert svg.count("mark-area") >= 1, "bands"


def test_rows_of_the_page_are_those_of_the_analysis(page: Path, analysis: Analysis) -> None:
    """Means, single prompts and gains, value for value; every single prompt knows its mean."""
    packed = data_of(page)["scores"]

    def column(name: str) -> list[Any]:
        return [row[name] for row in packed]

    levels = column("level")
    for level, by in (("mean", "task"), ("prompt", "prompt")):
        rows = score_rows(analysis.book, by)  # type: ignore[arg-type]
        mine = [n for n, name in enumerate(levels) if name == level]
        assert [column("task")[n] for n in mine] == [r.task.name for r in rows]
        for name, values in (
            ("score", [r.score.value for r in rows]), ("score_low", [r.score.low95 for r in rows]),
            ("gain", [r.gain.value for r in rows]), ("gain_high", [r.gain.high95 for r in rows]),
        ):  # fmt: skip
            shown = [np.nan if column(name)[n] is None else column(name)[n] for n in mine]
            np.testing.assert_allclose(shown, values, atol=1e-4)
    parents = [int(n) for n in column("parent")]
    singles = [n for n, name in enumerate(levels) if name == "prompt"]
    for n in singles:
        assert levels[parents[n]] == "mean"
        assert column("task")[parents[n]] == column("task")[n]
        assert set(column("prompts")[n]) <= set(column("prompts")[parents[n]])
    changed = next(n for n in singles if column("gain")[n])
    difference = (column("better")[changed] - column("worse")[changed]) / column("n")[changed]
    assert difference == pytest.approx(column("gain")[changed], abs=1e-4)


def test_documents_are_a_stated_sample(page: Path, analysis: Analysis) -> None:
    documents = data_of(page)["documents"]
    assert set(documents) == set(analysis.book.tasks)
    nli = documents["pocket_nli"]
    assert (nli["total"], len(nli["documents"]), nli["cells"]) == (20, 20, nli["of"])
    small = sample(analysis, TableSource(study_table(documents=20)), most_bytes=30_000)
    assert 0 < len(json.dumps(small)) < 60_000
    assert all(len(task["documents"]) < 20 for task in small.values())


def test_page_says_title_run_and_warnings_in_words(page: Path) -> None:
    text = " ".join(Page(page.read_text()).text.split())
    assert "Pocket & study" in text
    assert "1,203,320" in text
    assert "<b>not bold</b>" in text, "run records are text, never markup"
    assert "13 tuned models have no format-only control" in text
    assert "+0.283 [" in text
    assert "it could be chance for other prompts; a gain for these prompts, this run, [" in text
    tables = json.dumps(data_of(page)["tables"])
    assert "Does tuning give more at a later checkpoint?" in tables
    assert "learned in pre-training" in tables
    assert "vllm/float32" in text
    assert "0.32.0" in text


def test_tables_agree_with_the_analysis(page: Path, analysis: Analysis) -> None:
    def read(name: str) -> list[dict[str, str]]:
        with (page.parent / f"{name}.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))

    gains = read("gains")
    assert len(gains) == len(analysis.gains)
    for row, gain in zip(gains, analysis.gains, strict=True):
        assert float(row["gain"]) == gain.pooled.value
        assert float(row["gain_low99"]) == gain.pooled.low99
    assert len(read("study")) == len(study_rows(analysis)) == 15
    cells = read("cells")
    assert {row["task"] for row in cells} == {t.name for t in analysis.book.tasks.values()}
    assert all(row["checkpoint"].startswith("step-") for row in cells)
    for name in ("controls", "forgetting", "forgetting_means", "out_of_domain", "prompt_spread",
                 "best_of_prompts", "curves", "summary", "flags", "gains_by_prompt"):  # fmt: skip
        assert read(name), name


def test_study_table_fits_a_terminal(analysis: Analysis) -> None:
    text = report.study_table(analysis)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 118
    last = analysis.own_gains()[-1]
    assert both_errors(last.pooled) in text
    rows = [line for line in lines if "pocket_" in line]
    assert len(rows) == 15
    assert sum(line.startswith("step-") for line in rows) == 5


def test_study_table_keeps_its_width_with_long_names_and_seeds() -> None:
    step = {"checkpoint": "a-very-long-checkpoint-name-at-step-0000123456"}
    rows = []
    tuning = "a_tuning_with_a_long_name"
    task = task_columns("a_task_with_a_long_name", tuned_by=tuning, domain="in")
    for seed in (0, 1):
        subject = subject_columns(5, tuning, seed=seed)
        rows += cell_rows({**subject, **step}, task, "default", np.arange(9) % 2)
    rows += cell_rows({**subject_columns(5), **step}, task, "default", np.arange(9) % 3 == 0)
    text = report.study_table(analyse(to_table(rows)))
    assert max(map(len, text.splitlines())) <= 118
    assert "(2 seeds)" in text
    assert "these prompts, other seeds" in text


def test_adapters_of_one_tuning_are_told_apart() -> None:
    task = task_columns("mine", tuned_by="mine", domain="in")
    rows = cell_rows(subject_columns(5), task, "default", np.arange(9) % 3 == 0)
    for i, name in enumerate(("lr-1e-4", "lr-2e-5")):
        subject = {**subject_columns(5, "mine", seed=None), "adapter": name}
        subject |= {"subject": f"{subject['subject']}{i}", "seed": None}
        rows += cell_rows(subject, task, "default", np.arange(9) % 2)
    analysis = analyse(to_table(rows))
    text = report.study_table(analysis)
    assert "lr-1e-4" in text
    assert "lr-2e-5" in text
    assert set(names_apart(analysis.book.models).values()) == {"lr-1e-4", "lr-2e-5"}
    alone = [m for m in analysis.book.models if m.adapter != "lr-2e-5"]
    assert names_apart(alone) == {}
    ways = ("", "lora", "dora")
    methods = [replace(m, method=w) for m, w in zip(analysis.book.models, ways, strict=True)]
    assert set(names_apart(methods).values()) == {"lora", "dora"}


def test_bases_alone_make_a_report(tmp_path: Path) -> None:
    task = task_columns("pocket_facts")
    rows = [
        row for step in (1, 2)
        for row in cell_rows(subject_columns(step), task, "default", np.arange(8) % 2)
    ]  # fmt: skip
    page = write_report(to_table(rows), tmp_path, title="Bases")
    text = Page(page.read_text()).text
    assert "No tuned model" in text
    text = report.report_table(analyse(to_table(rows)))
    assert "step-00001" in text
    assert "0.500 ± 0.189" in text


def test_models_of_unknown_tuning_have_scores_and_gains_per_prompt(tmp_path: Path) -> None:
    tuned = subject_columns(1, "mine") | {"tuning": None, "tuned_on": None}
    task = task_columns("own_task")
    rows = [
        row for subject, share in ((subject_columns(1), 4), (tuned, 2)) for prompt in ("a", "b")
        for row in cell_rows(subject, task, prompt, np.arange(8) % share == 0)
    ]  # fmt: skip
    text = report.report_table(analyse(to_table(rows)))
    assert "step-00001 + mine" in text
    assert "+0.250 [" in text
    page = write_report(to_table(rows), tmp_path, title="Mine")
    shown = Page(page.read_text()).text
    assert "Scores and gains" in shown
    assert "evalcore label" in shown
    levels = [row["level"] for row in data_of(page)["scores"]]
    assert levels == ["mean"] * 2 + ["prompt"] * 4
    with (tmp_path / "scores_by_prompt.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [(r["model"], r["prompt"], float(r["score"])) for r in read] == [
        ("step-00001", "a", 0.25), ("step-00001", "b", 0.25),
        ("step-00001 + mine", "a", 0.5), ("step-00001 + mine", "b", 0.5),
    ]  # fmt: skip


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    task = task_columns("../<script>alert(1)</script>", tuned_by="t", domain="in")
    rows = [
        row for subject in (subject_columns(1), subject_columns(1, "t"))
        for row in cell_rows(subject, task, "$de_fa^{ult$", np.arange(8) % 2)
    ]  # fmt: skip
    page = write_report(to_table(rows), tmp_path / "out", title="<i>x</i>")
    text = page.read_text()
    assert "<script>alert" not in text
    assert Page(text).scripts == 3
    assert "&lt;i&gt;x" in text
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_names_that_look_alike_on_disk_keep_their_own_pictures(tmp_path: Path) -> None:
    rows = [
        row for name in ("a/b", "a_b", "a b")
        for row in cell_rows(subject_columns(1), task_columns(name), "default", np.arange(8) % 2)
    ]  # fmt: skip
    write_report(to_table(rows), tmp_path, title="x")
    assert len(list(tmp_path.glob("curve_*.png"))) == 3


def test_characters_that_hide_are_shown() -> None:
    assert visible("plain ümläut\n\ttext") == "plain ümläut\n\ttext"
    assert visible("a\u202eb\u200bc\x00\ud800") == "a⟨U+202E⟩b⟨U+200B⟩c⟨U+0000⟩⟨U+D800⟩"
    assert visible("x" * 50, 20) == "x" * 20 + " ⟨30 more characters⟩"


def test_report_from_a_results_folder(tmp_path: Path) -> None:
    table = study_table(documents=4)
    store = ResultStore(tmp_path / "results")
    cells: dict[str, dict] = {}
    for row in table.to_pylist():
        known = {k: row[k] for k in CELL_SCHEMA.names if k in row}
        cells[row["cell"]] = {**known, "shots": row["cell_shots"]}
    store.write_cells(list(cells.values()))
    writer = store.open_writer("one")
    writer.add(table.select(EXAMPLE_SCHEMA.names))
    writer.flush()
    store.runs.append(RUN)
    read = ResultStore(tmp_path / "results", read_only=True).read()
    stored, direct = analyse(read), analyse(table)
    assert [g.pooled.value for g in stored.gains] == pytest.approx(
        [g.pooled.value for g in direct.gains]
    )
    assert [s.way for s in stored.spreads] == [s.way for s in direct.spreads]
    part = Part(tasks=("pocket_nli*",), tunings=("pocket_nli",), checkpoints=("step-01600",))
    made = app_report(tmp_path / "results", tmp_path / "report", title="Stored", part=part)
    assert "1,203,320" in made.page.read_text()
    assert "A part of the results: tasks pocket_nli*; checkpoints" in made.page.read_text()
    assert "--tasks &#39;pocket_nli*&#39;" in made.page.read_text(), "the command makes it again"
    data = data_of(made.page)
    assert {s["tuning"] for s in data["subjects"]} == {
        "untuned", "pocket_nli", "pocket_nli (control)",
    }  # fmt: skip
    assert set(data["documents"]) == {"pocket_nli", "pocket_nli_far"}
    with pytest.raises(UnknownNameError, match="pocket_nlx"):
        Part(tasks=("pocket_nlx",)).cells(store.cells().to_pylist())
    cell = data["scores"][-1]["cell"]
    lines = "\n".join(document_lines(tmp_path / "results", cell, "2"))
    row = next(r for r in table.to_pylist() if r["cell"].startswith(cell) and r["doc_index"] == 2)
    assert f"{row['choice_logprobs'][row['gold']]:.4f}" in lines
    assert row["doc_id"] in lines
    for wrong in ((cell, "77"), ("", "2"), ("zz", "2")):
        with pytest.raises(InputError):
            document_lines(tmp_path / "results", *wrong)


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rows = cell_rows(subject_columns(1), task_columns("t"), "default", np.arange(4) % 2)
    with pytest.raises(InputError, match="cannot write"):
        write_report(to_table(rows), tmp_path / "file", title="x")


def test_numbers_as_people_write_them() -> None:
    assert plain(0.12345) == "0.123"
    assert plain(float("nan")) == "–"
    assert signed(0.5) == "+0.500"
    assert signed(-0.25, 2) == "−0.25"
    assert signed(-0.0001) == signed(0.0) == "0.000"
    assert [short_step(s) for s in (5, 400, 1600, 342_000, 3_100_000)] == [
        "5", "400", "1.6k", "342k", "3.1M",
    ]  # fmt: skip


def test_importing_needs_no_heavy_library() -> None:
    code = (
        "import sys, evalcore.report, evalcore.analysis, evalcore.metrics;"
        "print(*[m for m in ('altair', 'vl_convert', 'scipy', 'torch', 'pandas', 'nltk', 'jinja2') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def light(colour: str) -> float:
    """Relative luminance (WCAG)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, two: str) -> float:
    bright, dark = sorted((light(one), light(two)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_colours_can_be_read_on_a_white_and_on_a_dark_page() -> None:
    """Text: contrast of 4.5 or more (WCAG AA); marks of charts: 3 or more."""
    style = (Path(report.__file__).parent / "style.css").read_text()
    themes = [dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))
              for block in re.findall(r":root \{(.*?)\}", style, re.S)[:2]]  # fmt: skip
    for theme in themes:
        for ground in ("page", "wash", "warn"):
            for name in ("ink", "soft", "accent", "right", "wrong"):
                assert contrast(theme[name], theme[ground]) >= 4.5, (name, ground, theme)
        for colour in (*PALETTE, BASE_COLOUR):
            assert contrast(colour, theme["page"]) >= 3, (colour, theme["page"])


def test_what_is_odd_about_cells_stands_in_every_table(tmp_path: Path) -> None:
    """A base that gives one answer to every document, under two prompts."""
    task = task_columns("nli", tuned_by="nli", domain="in", choices=2)
    far = task_columns("facts", choices=2)
    near = task_columns("nli_far", tuned_by="nli", domain="out", choices=2)
    golds = np.array([np.random.default_rng([i, 7]).integers(2) for i in range(40)])
    flat, rows = (golds == 0).astype(int), []
    for step in (100, 200, 400):
        for of in (task, far, near):
            for variant in ("default", "io"):
                rows += cell_rows(subject_columns(step), of, variant, flat)
                tuned = subject_columns(step, "nli") | {"method": "lora"}
                rows += cell_rows(tuned, of, variant, 1 - flat // 2)
                whole = subject_columns(step, "nli", seed=3) | {"method": "full"}
                rows += cell_rows(whole, of, variant, flat)
                control = subject_columns(step, "nli", "shuffled_labels") | {"method": "lora"}
                rows += cell_rows(control, of, variant, flat)
    analysis = analyse(to_table(rows))
    empty = CELL_SCORE_SCHEMA.empty_table()
    files = write_tables(analysis, empty, tmp_path)
    tables = {path.stem: list(csv.DictReader(path.open())) for path in files}
    elsewhere = {"flags", "cells"}  # the warnings themselves; a column of their own
    for name in tables.keys() - elsewhere:
        found = [r["notes"] for r in tables[name]]
        assert found, f"{name} has no rows: nothing is shown"
        assert any("one answer for nearly all documents" in n for n in found), name
    for table in extra_tables(analysis):
        place = [c.title for c in table.columns].index("note")
        assert any("one answer for" in row[place] for row in table.rows), table.id
