"""The report's page in a browser: what a reader does with it, and what hostile text does to it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evalcore.app.report import report as make_report
from evalcore.report import html, write_report
from evalcore.store import CELL_SCHEMA, EXAMPLE_SCHEMA, ResultStore
from tests.toys.odd_studies import ODD, write
from tests.toys.tables import cell_rows, digest, subject_columns, task_columns, to_table

BROWSER = os.environ.get("EVALCORE_BROWSER") or shutil.which("chromium")
if not BROWSER and not os.environ.get("EVALCORE_REQUIRE_BROWSER"):
    pytest.skip(
        "no chromium (set EVALCORE_BROWSER): the page is not tried", allow_module_level=True
    )
pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api")

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>"
    "<svg onload=window.hacked=3> \u202egnp.exe\u200b\x00 & \u2028"
)
DOCUMENTS = 24
TITLE = 'A "study" <b>of</b> two seeds'


def grid() -> list[dict[str, Any]]:
    """Three checkpoints, two seeds and a control, two tasks, two prompts; the second one flips."""
    rows = []
    nli = task_columns("nli", tuned_by="nli", domain="in")
    tales = task_columns("tales", output_type="generate_until")
    rng = np.random.default_rng(0)
    for number, step in enumerate((100, 200, 400)):
        subjects = [subject_columns(step)]
        subjects += [subject_columns(step, "nli", seed=seed) for seed in (0, 1)]
        subjects += [subject_columns(step, "nli", "shuffled_labels")] if number == 2 else []
        for subject in subjects:
            tuned = subject["tuning"] is not None and subject["control"] is None
            for prompt, shift in (("plain", 0.35), ("other", -0.15)):
                share = 0.4 + (0.15 * number + shift if tuned else 0.0)
                rows += cell_rows(subject, nli, prompt, rng.random(DOCUMENTS) < share)
                rows += cell_rows(subject, tales, prompt, rng.random(DOCUMENTS))
    for row in rows:
        if row["task"] == "tales" and row["doc_index"] == 0:
            row["text"] = HOSTILE + "x" * 1_000_000
    return rows


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    table = to_table(grid())
    store = ResultStore(folder / "results")
    cells = {}
    for row in table.to_pylist():
        known = {k: row[k] for k in CELL_SCHEMA.names if k in row}
        template = "{{ premise }} so {{ hypothesis }}"
        cells[row["cell"]] = {**known, "shots": row["cell_shots"], "template": template}
    store.write_cells(list(cells.values()))
    writer = store.open_writer("one")
    writer.add(table.select(EXAMPLE_SCHEMA.names))
    writer.flush()
    for task in ("nli", "tales"):
        store.write_documents(task, "data", [
            {"doc_id": digest("document", task, i), "doc_index": i, "gold": 0, "golds": [],
             "fields": json.dumps({"premise": HOSTILE, "hypothesis": "needle" * (i == 3)}),
             "choices": [HOSTILE, "two", "three"] if task == "nli" else [], "references": ["one"]}
            for i in range(DOCUMENTS)
        ])  # fmt: skip
    return write_report(folder / "results", folder / "report", title=TITLE,
                        description="What <i>tuning</i> gives")  # fmt: skip


class Reader:
    """A browser on the page; what it asks of the network and complains of is kept."""

    def __init__(self, page: Any, path: Path) -> None:
        self.page, self.url = page, path.as_uri()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda line: self.complaints.append(line.text)
                if line.type == "error" else None)  # fmt: skip

    def open(self, fragment: str = "") -> Any:
        self.page.goto("about:blank")
        self.page.goto(self.url + fragment)
        self.page.wait_for_selector("html[data-ready]")
        self.page.wait_for_selector("#hero figure[data-drawn]:not([hidden])")
        return self.page

    def column(self, title: str, table: str = "#scores") -> list[str]:
        heads = [h.strip() for h in self.page.locator(f"{table} thead th").all_inner_texts()]
        at = heads.index(title) + 1
        return self.page.locator(f"{table} tbody td:nth-child({at})").all_inner_texts()

    def said(self) -> str:
        return self.page.locator("#scores caption").inner_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not BROWSER:
        pytest.fail("EVALCORE_REQUIRE_BROWSER is set, and there is no chromium")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def reader(browser: Any, report: Path) -> Iterator[Reader]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    found = Reader(context.new_page(), report)
    yield found
    assert found.complaints == [], "the policy or the page's script complained"
    assert {url.split("#")[0] for url in found.requests} == {found.url}
    assert found.page.evaluate("window.hacked") is None
    context.close()


def test_the_first_screen_says_and_shows_it(reader: Reader) -> None:
    page = reader.open()
    assert page.title() == TITLE
    assert page.locator("h1").inner_text() == TITLE
    assert page.locator(".description").inner_text() == "What <i>tuning</i> gives"
    words = page.locator("#first").inner_text()
    assert "3 checkpoints (step-00100 to step-00400)" in words
    assert "with 2 training seeds" in words
    assert re.search(r"Tuned on nli \(2 seeds\), step-00400 goes from 0\.\d+ to", words)
    assert 3 <= page.locator(".lead li").count() <= 5
    box = page.locator("#hero figure").bounding_box()
    assert box["y"] + box["height"] < 900, "the picture is on the first screen"
    strokes = page.locator("#hero svg path[stroke-dasharray]").evaluate_all(
        "nodes => nodes.map(n => n.getAttribute('stroke-dasharray'))"
    )
    assert "6,4" in strokes, "the base is dashed"
    thin = page.locator("#hero svg .mark-line path").evaluate_all(
        "nodes => nodes.filter(n => Number(n.getAttribute('stroke-width')) < 1).length"
    )
    assert thin == 2, "a thin line per seed"


def test_a_filter_acts_on_tables_and_pictures_and_lives_in_the_address(reader: Reader) -> None:
    page = reader.open()
    assert set(reader.column("prompt")) == {"mean over 2"}
    page.locator("#filters details[data-facet=prompt] summary").click()
    page.get_by_label("plain", exact=True).check()
    assert set(reader.column("prompt")) == {"plain"}, (
        "a mean is not computed anew: its rows are shown"
    )
    assert {"0", "1"} < set(reader.column("seed")), "nor is one over seeds"
    assert "prompt=plain" in page.url
    assert "hidden by the filter" in page.locator("#table-study").text_content()
    page.locator("#gains figure").first.scroll_into_view_if_needed()
    page.wait_for_selector("#gains figure[data-drawn]")
    reader.open("#checkpoint=step-00400&task=nli")
    assert set(reader.column("checkpoint")) == {"step-00400"}
    assert set(reader.column("task")) == {"nli"}
    assert set(reader.column("prompt")) == {"mean over 2"}, "whole means stay"
    marks = "#hero .mark-symbol.role-mark path"
    assert page.locator(marks).count() == 5, "three means, two single seeds"
    reader.open("#task=tales")
    assert page.locator("#hero figure:visible h3").inner_text() == "tales", "the picture follows"
    page.get_by_role("button", name="clear").click()
    assert page.locator("#hero figure:visible h3").inner_text() == "nli"
    assert reader.said() == "14 rows"
    seconds = page.evaluate("""() => {
        const box = document.querySelector('#filters input[value=nli]');
        const start = performance.now(); box.click(); const took = performance.now() - start;
        box.click(); return took / 1000; }""")
    assert seconds < 5


def test_tables_are_sorted_and_copied(reader: Reader) -> None:
    page = reader.open("#task=nli&rows=every")
    head = page.locator("#scores thead th", has_text="gain [95 %]")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"

    def numbers() -> list[float]:
        texts = [t.split()[0].replace("−", "-") for t in reader.column("gain [95 %]")]
        return [float(t) for t in texts if t != "–"]

    assert numbers() == sorted(numbers(), reverse=True)
    assert len(numbers()) > 8
    head.locator("button").click()
    assert numbers() == sorted(numbers())
    copied = {}
    for kind in ("TSV", "Markdown", "LaTeX"):
        page.get_by_role("button", name=f"copy Scores and gains as {kind}").click()
        page.locator("#said", has_text="copied").wait_for(state="attached")
        copied[kind] = page.evaluate("navigator.clipboard.readText()").splitlines()
        page.evaluate("document.getElementById('said').textContent = ''")
    rows = int(reader.said().split()[0])
    assert len(copied["TSV"]) == rows + 1
    assert copied["TSV"][0].startswith("checkpoint\ttuned on\tseed")
    assert copied["Markdown"][1].startswith("| --- |")
    assert copied["LaTeX"][0].startswith(r"\begin{tabular}{")
    assert r"gain [95 \%]" in copied["LaTeX"][2]


def test_a_mark_says_its_value_when_pointed_at(reader: Reader) -> None:
    page = reader.open("#task=nli")
    page.locator("#hero .mark-symbol.role-mark path").last.hover(force=True)
    said = page.locator("#tip").inner_text()
    for name in ("checkpoint", "score [95 %]", "documents", "prompt"):
        assert name in said
    assert re.search(r"0\.\d{3} \[0\.\d{3}, [01]\.\d{3}\]", said)


def test_three_clicks_from_a_number_to_a_document_that_flipped(reader: Reader) -> None:
    page = reader.open("#checkpoint=step-00400&task=nli&tuning=nli")
    page.locator("#scores tbody button[title='documents behind it']").first.click()
    assert (
        page.locator("#documents select").nth(1).locator("option:checked").inner_text()
        == "step-00400"
    )
    heads = page.locator("#documents h3").all_inner_texts()
    assert heads[0] in ("Right to wrong", "Wrong to right")
    first = page.locator("#documents details.doc[data-kind='wrong to right']").first
    first.locator("summary").click()
    first.locator("table").wait_for()
    shown = first.inner_text()
    assert "right" in shown
    assert "wrong" in shown
    assert "log-probability of each choice" in shown
    assert "</script><script>window.hacked=1</script>" in shown, "choices are text"
    changes = [float(a) - float(b) for b, a in re.findall(
        r"wrong to right, .* (\d\.\d+) → (\d\.\d+)",
        "\n".join(page.locator("#documents summary").all_inner_texts()))]  # fmt: skip
    assert changes == sorted(changes, key=abs, reverse=True)
    page.locator("#documents input[type=search]").fill("needle")
    assert page.locator("#documents details.doc").count() == 1
    assert "q=needle" in page.url
    again = page.url.split("#")[1]
    reader.open("#" + again)
    assert page.locator("#documents details.doc").count() == 1, "the address leads back"


def test_numbers_lead_to_documents_and_figures_have_their_tables(reader: Reader) -> None:
    page = reader.open("#checkpoint=step-00400&task=nli&tuning=nli")
    heads = [h.strip() for h in page.locator("#scores thead th").all_inner_texts()]
    row = page.locator("#scores tbody tr").first
    for title in ("score [95 %]", "gain [95 %]", "base", "documents", "better", "worse"):
        row.locator(f"td:nth-child({heads.index(title) + 1}) button").click()
        shown = page.locator("#documents .choose select").nth(5).input_value()
        assert shown == {"better": "wrong to right", "worse": "right to wrong"}.get(title, "")
    picks = page.locator("#documents .choose select")
    picks.nth(3).select_option(picks.nth(1).input_value())
    picks.nth(4).select_option("plain")
    picks.nth(2).select_option("other")
    page.locator("#documents details.doc summary").first.click()
    sides = page.locator("#documents details.doc[open] h4")
    sides.nth(1).wait_for()
    assert sides.all_inner_texts() == ["Prompt other", "Prompt plain"], "two prompts of one model"
    reader.open()
    for section in ("curves", "gains", "prompts", "transfer"):
        figure = page.locator(f"#{section} figure").first
        figure.scroll_into_view_if_needed()
        assert len(figure.locator("figcaption").text_content()) > 40
        figure.locator("summary").click()
        figure.locator("tbody tr").first.wait_for()
        assert "made again by evalcore report" in figure.inner_text()


def test_hostile_text_is_text(reader: Reader, report: Path) -> None:
    page = reader.open("#dtask=tales")
    document = page.locator("#documents details.doc", has_text="document 0:")
    if document.count() == 0:
        page.locator("#documents button", has_text="more").click()
    document.locator("summary").click()
    document.locator("pre").first.wait_for()
    shown = document.inner_text()
    assert "<img src=x onerror='window.hacked=2'>" in shown
    assert "⟨U+202E⟩gnp.exe⟨U+200B⟩⟨U+0000⟩" in shown
    assert re.search(r"⟨99\d,\d{3} more characters⟩", shown), (
        "a text of a megabyte is cut, and says so"
    )
    assert report.stat().st_size < 3_000_000
    assert page.locator("img, main svg [onload]").count() == 0
    assert page.evaluate("window.hacked") is None


def test_it_is_walked_by_keyboard(reader: Reader) -> None:
    page = reader.open()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "to the scores"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "scores"
    page.locator("#filters details[data-facet=task] summary").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert len(set(reader.column("task"))) == 1
    page.keyboard.press("Escape")
    assert page.locator("#filters details[open]").count() == 0
    page.locator("#scores tbody button[title='documents behind it']").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "Documents"


def test_dark_phone_and_paper(browser: Any, report: Path, tmp_path: Path) -> None:
    dark = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    reader = Reader(dark.new_page(), report)
    page = reader.open()
    page.evaluate("window.evalcoreReport.drawAll()")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(22, 22, 22)"
    label = page.locator("#hero .role-axis-label text").first
    assert label.evaluate("n => getComputedStyle(n).fill") == "rgb(232, 232, 230)"
    page.emulate_media(media="print", color_scheme="light")
    wide = page.evaluate("""() => { document.body.style.width = '273mm';
        const boxes = [...document.querySelectorAll('.scroll')];
        return boxes.map(n => n.scrollWidth - n.clientWidth); }""")
    assert max(wide) <= 1, "no table is cut on paper"
    assert page.locator("#scores tbody tr").count() == 14
    assert len(page.pdf(format="A4")) > 20_000
    assert reader.complaints == []
    dark.close()


def test_a_mean_opens_its_prompts(reader: Reader) -> None:
    page = reader.open("#task=nli&tuning=nli")
    assert set(reader.column("prompt")) == {"mean over 2"}
    page.locator("#scores .opener").last.click()
    parts = list(zip(reader.column("prompt"), reader.column("seed"), strict=True))[-4:]
    assert set(parts) == {(p, s) for p in ("plain", "other") for s in "01"}
    gains = [float(t.split()[0].replace("−", "-")) for t in reader.column("gain [95 %]")[-4:]]
    assert gains == sorted(gains), "the lowest gain first"
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    page.keyboard.press("Enter")
    assert set(reader.column("prompt")) == {"mean over 2"}


def test_the_layout_does_not_jump(browser: Any, report: Path) -> None:
    """Chromium's cumulative layout shift over opening and reading to the end."""
    shifts = []
    for width in (1280, 390):
        context = browser.new_context(viewport={"width": width, "height": 900})
        tab = context.new_page()
        tab.add_init_script(
            "window.shifted = 0; new PerformanceObserver(list => { for (const e of "
            "list.getEntries()) if (!e.hadRecentInput) window.shifted += e.value; })"
            ".observe({type: 'layout-shift', buffered: true});"
        )
        page = Reader(tab, report).open()
        height = page.evaluate("document.documentElement.scrollHeight")
        for y in range(0, height, 500):
            page.evaluate(f"scrollTo(0, {y})")
            page.evaluate("window.evalcoreReport.settled()")
            page.wait_for_timeout(30)
        assert page.locator("figure[data-drawn]").count() > 5
        shifts.append(page.evaluate("window.shifted"))
        context.close()
    assert max(shifts) <= 0.1, shifts


def test_no_serious_finding_of_axe(reader: Reader) -> None:
    axe = pytest.importorskip("axe_playwright_python")
    page = reader.open("#task=nli")
    page.evaluate("window.evalcoreReport.drawAll()")
    page.locator("#documents summary").first.click()
    page.locator("#documents pre").first.wait_for()
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    serious = [
        (v["id"], v["nodes"][0]["html"][:200])
        for v in found["violations"] if v["impact"] in ("serious", "critical")
    ]  # fmt: skip
    assert serious == []


def many_tasks() -> list[dict[str, Any]]:
    tasks = [task_columns(f"task {n:03d}", tuned_by="nli" if n < 2 else None) for n in range(90)]
    return [row for model in (subject_columns(100), subject_columns(100, "nli")) for task in tasks
            for row in cell_rows(model, task, "plain", np.array([True, False]))]  # fmt: skip


@pytest.mark.parametrize(
    "rows",
    [
        ODD["one cell"],
        ODD["one document"],
        ODD["nothing scored"],
        ODD["names of tasks"],
        many_tasks,
    ],
)
def test_odd_studies_open_and_show_themselves(
    browser: Any, rows: Callable[[], list[dict[str, Any]]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(html, "write_pictures", lambda *_: [])
    made = make_report(write(tmp_path / "results", rows()).path, tmp_path / "report", title="odd")
    assert made.page.stat().st_size < 3_000_000
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    reader = Reader(page, made.page)
    page.goto(reader.url)
    page.wait_for_selector("html[data-ready]")
    assert page.locator("#scores tbody tr").count() > 0
    nothing = "No row has a value" in page.locator("#first").inner_text()
    assert nothing == page.locator("#hero").is_hidden()
    page.evaluate("window.evalcoreReport.drawAll()")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280, "nothing sticks out"
    if rows is many_tasks:
        many = page.locator("#transfer figure", has_text="40 of 90 rows")
        cells = "svg .mark-rect.role-mark path"
        assert many.locator(cells).count() == 40, "those that changed most"
        every = many.get_by_role("button", name="show all")
        every.click()
        every.wait_for(state="hidden")
        page.evaluate("window.evalcoreReport.settled()")
        assert many.locator(cells).count() == 90
    assert reader.complaints == []
    page.close()
