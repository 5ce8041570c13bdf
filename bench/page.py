"""The report's page at scale: its size, what making it costs, and how long a reader waits.

    python -m bench.page write OUT --cells 10000      # a seeded results folder of so many cells
    python -m bench.page make RESULTS                 # the report, in a process of its own
    python -m bench.page read RESULTS/report/report.html   # in Chromium: first picture, filters
    python -m bench.page grow RESULTS/report/report.html --times 10,10   # a larger page, see below
    python -m bench.page all OUT DEMO/report/report.html   # every figure of docs/report.md

``grow`` repeats a page's checkpoints and tasks under other names with other numbers: the page of
a grid that many times larger, not analysed (``report-CELLS.html`` beside it); documents stay.

A filter's answer is taken from the click to the first frame after all that is in view was drawn
anew, with several sections in view in turn; tables out of view follow when nothing else is to do.
Processor time is that of all of the browser's processes together, in steps of 10 ms. The layout's
shift is Chromium's cumulative one, over opening and scrolling.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.rows import cell_record, choice_rows, digest, subjects
from evalcore.report.packing import pack, unpack
from evalcore.store import ResultStore

SHAPES = {
    1_000: (5, 4, 10, 20), 1_200: (30, 4, 2, 2_500),
    10_000: (25, 8, 10, 20), 100_000: (50, 20, 20, 20),
}  # fmt: skip
"""Cells -> checkpoints (each with four tunings), tasks, prompts, documents of a task."""


def write(out: Path, cells: int) -> None:
    """Writes a results folder of one of ``SHAPES``."""
    checkpoints, tasks, prompts, documents = SHAPES[cells]
    names = ("nli", "paraphrase", "facts", "reading", *(f"task_{i:02d}" for i in range(4, tasks)))
    docs = {
        t: pa.array([digest("document", t, i) for i in range(documents)], pa.large_string())
        for t in names
    }
    store = ResultStore(out)
    writer = store.open_writer("bench")
    records = []
    for number, subject in zip(range(5 * checkpoints), subjects(), strict=False):
        for place, task in enumerate(names[:tasks]):
            parts = []
            for order in range(prompts):
                record = cell_record(subject, task, f"prompt-{order:02d}", False)
                accuracy = 0.4 + 0.3 * (subject["tuning"] == task) + 0.01 * order
                parts.append(choice_rows(record["cell"], docs[task], accuracy,
                                         [number, place, order]))  # fmt: skip
                records.append(record)
            writer.add(pa.concat_tables(parts).unify_dictionaries())
        writer.flush()
    store.write_cells(records)


def make(results: Path) -> dict[str, Any]:
    """One report, timed in this process."""
    from evalcore.app import report

    start = time.perf_counter()
    page = report(results, results / "report", title="a page at scale").page
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "page_mb": round(page.stat().st_size / 1e6, 2),
    }


def grow(page: Path, checkpoints: int, tasks: int) -> Path:
    """Writes a page with so many times the checkpoints and tasks."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r'id="data">(.*?)</script>', text)
    assert found is not None
    head, data = unpack(found[1])
    rng = np.random.default_rng(0)
    copies = [(c, t) for c in range(checkpoints) for t in range(tasks)]
    steps, subjects = len({r["checkpoint"] for r in data["scores"]}), len(head["subjects"])
    rows: list[dict[str, Any]] = []
    for c, t in copies:
        first = len(rows)
        for row in data["scores"]:
            own = {k: _other(v, rng) if k.startswith(("score", "gain")) else v
                   for k, v in row.items()}  # fmt: skip
            place = int(row["place"]) + c * steps
            name = f"step-{(place + 1) * 1000:07d}"
            if row["parent"] >= 0:
                own["parent"] = int(row["parent"]) + first
            if row["cell"] is not None:
                own["cell"] = f"{int(rng.integers(16**10)):010x}"
            rows.append({
                **own, "place": place, "checkpoint": name, "at": f"{place + 1}k",
                "task": _named(row["task"], t), "subject": int(row["subject"]) + c * subjects,
            })  # fmt: skip
    levels = ("mean", "prompt", "seed")  # as score_data orders them
    order = sorted(range(len(rows)), key=lambda n: levels.index(rows[n]["level"]))
    where = {old: new for new, old in enumerate(order)}
    rows = [{**rows[n], "parent": where.get(rows[n]["parent"], -1)} for n in order]
    head["subjects"] = [
        {**s, "name": f"{s['name']} {c}", "base": None if s["base"] is None else
         s["base"] + c * subjects} for c in range(checkpoints) for s in head["subjects"]
    ]  # fmt: skip
    figures = []
    for figure in head["figures"]:
        own = figure["where"].get("task")
        for t in range(tasks if own else 1):
            other = {"task": [_named(own[0], t)]} if own else {}
            title = _named(figure["title"], t)
            figures.append({**figure, "id": _named(figure["id"], t), "title": title,
                            "where": {**figure["where"], **other}})  # fmt: skip
    head["figures"] = figures
    for table in head["tables"]:
        table["rows"] = table["rows"] * len(copies)
        table["facets"] = table["facets"] * len(copies)
    cells = sum(row["level"] == "prompt" for row in rows)
    out = page.with_name(f"report-{cells}.html")
    packed = pack(head, {**data, "scores": rows})
    out.write_text(text[: found.start(1)] + packed + text[found.end(1) :], encoding="utf-8")
    plain = json.dumps([head, rows], separators=(",", ":"))
    print(json.dumps({"cells": cells, "page_mb": round(out.stat().st_size / 1e6, 2),
                      "as_json_mb": round(len(plain) / 1e6, 1)}))  # fmt: skip
    return out


def _named(name: str, copy: int) -> str:
    return name if copy == 0 else f"{name}-{copy}"


def _other(value: Any, rng: np.random.Generator) -> Any:
    return None if value is None else round(float(value + rng.normal(0, 0.05)), 4)


SHIFT = """() => { window.shifted = 0; new PerformanceObserver(list => {
    for (const e of list.getEntries()) if (!e.hadRecentInput) window.shifted += e.value;
}).observe({type: 'layout-shift', buffered: true}); }"""
FILTER = """async ([facet, place]) => {
    const box = document.querySelectorAll(`#filters details[data-facet="${facet}"] input`)[place];
    const start = performance.now();
    box.click();
    await window.evalcoreReport.settled();
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    return performance.now() - start; }"""
PLACES = ("first", "scores", "prompts", "transfer")
"""Sections a reader may be looking at while a filter is set."""
DRAWN = "#hero figure[data-drawn]:not([hidden])"


def cpu_s() -> float:
    """Processor time of every process of the browser so far, in seconds."""
    import psutil

    spent = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            if "chrom" in process.name():
                spent += sum(process.cpu_times()[:2])
        except psutil.NoSuchProcess:
            continue
    return spent


def opened(running: Any, page: Path) -> tuple[Any, list[float], list[float]]:
    """A tab with the page; seconds to its first picture, by the clock and of processors."""
    clock, spent = [], []
    for _ in range(3):
        tab = running.new_page(viewport={"width": 1280, "height": 900})
        tab.add_init_script(f"({SHIFT})()")
        start, before = time.perf_counter(), cpu_s()
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector(DRAWN)
        clock.append(round(time.perf_counter() - start, 2))
        spent.append(round(cpu_s() - before, 2))
    return tab, clock, spent


def filtered(tab: Any, place: str) -> tuple[list[int], list[int]]:
    """Milliseconds of each filter's answer while a section is in view: clock, processors."""
    clock, spent = [], []
    tab.evaluate(f"document.getElementById('{place}')?.scrollIntoView()")
    for facet in ("checkpoint", "tuning", "task", "prompt"):
        boxes = tab.locator(f'#filters details[data-facet="{facet}"] input').count()
        for box in sorted({0, boxes - 1}) if boxes else ():
            for _ in range(2):  # on, and off again
                tab.wait_for_timeout(600)  # what waits is drawn
                before = cpu_s()
                clock.append(round(tab.evaluate(FILTER, [facet, box])))
                spent.append(round(1000 * (cpu_s() - before)))
                tab.evaluate(f"document.getElementById('{place}')?.scrollIntoView()")
    return clock, spent


def scrolled(tab: Any) -> None:
    """Reads to the end, of a long page the first 30,000 pixels."""
    height = tab.evaluate("document.documentElement.scrollHeight")
    for y in range(0, min(height, 30_000), 600):
        tab.evaluate(f"scrollTo(0, {y})")
        tab.wait_for_timeout(40)
    tab.evaluate("window.evalcoreReport.settled()")


def findings(running: Any, page: Path) -> dict[str, list[str]]:
    """Serious findings of axe-core, light and dark, wide and on a phone, once scrolled through."""
    import axe_playwright_python as axe

    script = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    found = {}
    for scheme in ("light", "dark"):
        for width in (1280, 390):
            size = {"width": width, "height": 900}
            context = running.new_context(viewport=size, color_scheme=scheme)
            tab = context.new_page()
            tab.goto(page.resolve().as_uri())
            tab.wait_for_selector(DRAWN)
            scrolled(tab)
            if tab.locator("#documents details.doc").count():
                tab.locator("#documents details.doc").first.evaluate(
                    "node => { node.open = true; }"
                )
            tab.evaluate(script)
            run = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
            found[f"{scheme} {width}"] = [
                f"{v['id']} ({len(v['nodes'])})" for v in run["violations"]
                if v["impact"] in ("serious", "critical")
            ]  # fmt: skip
            context.close()
    return found


def read(page: Path, *, check: bool = True) -> dict[str, Any]:
    """Opens the page from disk, filters it at several places and asks axe-core (``check``)."""
    from playwright.sync_api import sync_playwright

    browser = os.environ.get("EVALCORE_BROWSER") or shutil.which("chromium")
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        tab, clock, spent = opened(running, page)
        answers = {place: filtered(tab, place) for place in PLACES}
        scrolled(tab)
        shifted = tab.evaluate("window.shifted")
        tab.close()
        serious = findings(running, page) if check else None
        running.close()
    return {
        "page": page.name, "page_mb": round(page.stat().st_size / 1e6, 2),
        "first_picture_s": clock, "first_picture_cpu_s": spent,
        "filter_ms": {
            place: {"clock_median": statistics.median(ms), "clock_largest": max(ms),
                    "cpu_median": statistics.median(cpu), "cpu_largest": max(cpu)}
            for place, (ms, cpu) in answers.items()
        },
        "shift": round(shifted, 4), "axe_serious": serious,
    }  # fmt: skip


def everything(out: Path, pages: list[Path]) -> None:
    """All figures of docs/report.md: pages that are given (the demo's), and pages at scale."""
    small, wide = out / "cells", out / "documents"
    for results, cells in ((small, 1_000), (wide, 1_200)):
        if not results.exists():
            write(results, cells)
        made = subprocess.run(
            [sys.executable, "-m", "bench.page", "make", str(results)],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        print(json.dumps({"make": f"{cells} cells", **json.loads(made)}), flush=True)
    grown = [grow(small / "report/report.html", c, t) for c, t in ((10, 1), (10, 10), (1, 125))]
    few = [*pages, wide / "report/report.html", small / "report/report.html", grown[0]]
    for page in (*few, *grown[1:]):
        print(json.dumps(read(page, check=page in few)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["write", "make", "read", "grow", "all"])
    parser.add_argument("path", type=Path)
    parser.add_argument("pages", type=Path, nargs="*", help="for all: pages beside those it makes")
    parser.add_argument("--cells", type=int, default=10_000, choices=sorted(SHAPES))
    parser.add_argument("--times", default="5,2", metavar="CHECKPOINTS,TASKS")
    given = parser.parse_args()
    if given.what == "write":
        write(given.path, given.cells)
    elif given.what == "all":
        everything(given.path, given.pages)
    elif given.what == "grow":
        checkpoints, tasks = map(int, given.times.split(","))
        grow(given.path, checkpoints, tasks)
    else:
        print(json.dumps((make if given.what == "make" else read)(given.path)))


if __name__ == "__main__":
    main()
