"""A reader's test of the report's page: ten questions, clicks and seconds to each answer.

    python -m bench.reader demo/report/report.html                      # of `evalcore demo demo`
    python -m bench.reader demo/report/report.html --pictures docs/images

Each question is asked of a page that was just opened; the seconds count opening it. ``--pictures``
makes the pictures of docs/ and README from it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASK, TUNING, LAST = "pocket_nli", "pocket_nli", "step-00700"
DRAWN = "#hero figure[data-drawn]:not([hidden])"


class Hand:
    """Clicks on a page, and counts them."""

    def __init__(self, page: Any) -> None:
        self.page, self.clicks = page, 0

    def click(self, selector: str, text: str | None = None) -> None:
        found = self.page.locator(selector, **({"has_text": text} if text else {})).first
        found.click()
        self.clicks += 1

    def choose(self, facet: str, value: str) -> None:
        self.click(f'#filters details[data-facet="{facet}"] summary')
        self.click(f'#filters details[data-facet="{facet}"] input[value="{value}"]')

    def select(self, place: int, **what: Any) -> None:
        self.page.locator("#documents .choose select").nth(place).select_option(**what)
        self.clicks += 1

    def read(self, selector: str, text: str | None = None) -> str:
        found = self.page.locator(selector, **({"has_text": text} if text else {})).first
        return " ".join(str(found.inner_text()).split())

    def row(self, selector: str) -> str:
        """The cells of a row, the first ones."""
        cells = self.page.locator(selector).locator("td").all_inner_texts()
        return " | ".join(" ".join(c.split()) for c in cells[:8] if c.strip())


def loses(hand: Hand) -> str:
    for facet, value in (("checkpoint", LAST), ("task", TASK), ("tuning", TUNING)):
        hand.choose(facet, value)
    hand.click("#scores .opener")
    return hand.row("#scores tbody tr.part >> nth=0")


def flipped(hand: Hand) -> str:
    hand.choose("task", TASK)
    hand.choose("tuning", TUNING)
    hand.click(f"#scores tbody tr:has-text('{LAST}') button[title='documents behind it'] >> nth=1")
    hand.click("#documents details.doc[data-kind='wrong to right'] summary")
    return hand.read("#documents details.doc[data-kind='wrong to right'] summary")


def sent(hand: Hand) -> str:
    flipped(hand)
    return hand.read("#documents details.doc[open] pre")


def elsewhere(hand: Hand) -> str:
    hand.choose("checkpoint", LAST)
    hand.choose("tuning", TUNING)
    hand.click("nav a", "Other tasks")
    hand.page.locator("#table-forgetting tbody tr").first.wait_for()
    return hand.row("#table-forgetting tbody tr >> nth=0")


def matters(hand: Hand) -> str:
    hand.click("nav a", "Prompts")
    hand.page.locator("#prompts figure[data-drawn]").first.wait_for()
    return hand.read("#prompts figure figcaption")


def as_latex(hand: Hand) -> str:
    hand.choose("task", TASK)
    hand.click("#scores .tools button[aria-label$='as LaTeX']")
    hand.page.locator("#said", has_text="copied").wait_for(state="attached")
    return str(hand.page.evaluate("navigator.clipboard.readText()")).splitlines()[0]


def two_prompts(hand: Hand) -> str:
    hand.click("nav a", "Documents")
    hand.select(0, value=TASK)
    hand.select(3, label=LAST)
    hand.select(4, value="io")
    return hand.read("#documents details.doc summary")


QUESTIONS: tuple[tuple[str, Callable[[Hand], str]], ...] = (
    ("Which models, tasks and metric?", lambda hand: hand.read("#first .asked")),
    ("Which checkpoint gains first?", lambda hand: hand.read(".lead li", "First credible gain")),
    (f"Under which prompt does `{TUNING}` do worst at the last checkpoint?", loses),
    ("Show me a document that went from wrong to right.", flipped),
    ("What was sent to the model there?", sent),
    (f"What does tuning on `{TUNING}` cost elsewhere?", elsewhere),
    (f"Does the prompt matter for `{TASK}`?", matters),
    ("Is the gain more than the form of an answer?",
     lambda hand: hand.read(".lead li", f"Tuned on {TUNING}")),
    (f"The table of `{TASK}` as LaTeX, please.", as_latex),
    ("Where do two prompts of the untuned last checkpoint disagree?", two_prompts),
)  # fmt: skip


def asked(running: Any, page: Path) -> list[str]:
    """A line of a Markdown table for each question."""
    lines = ["| question | answer on the page | clicks | s |", "|---|---|---:|---:|"]
    for question, answer in QUESTIONS:
        context = running.new_context(viewport={"width": 1400, "height": 900})
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        tab, start = context.new_page(), time.perf_counter()
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector(DRAWN)
        hand = Hand(tab)
        text = answer(hand).replace("|", "·")[:200]
        lines.append(f"| {question} | {text} | {hand.clicks} | {time.perf_counter() - start:.1f} |")
        context.close()
    return lines


def pictures(running: Any, page: Path, out: Path) -> None:
    """The first screen, a phone beside a document in the dark, and two curves of the report."""
    from io import BytesIO

    from PIL import Image

    tab = running.new_page(viewport={"width": 1280, "height": 860})
    tab.goto(page.resolve().as_uri())
    tab.wait_for_selector(DRAWN)
    tab.screenshot(path=str(out / "report.png"))
    views = []
    for width, scheme in ((390, "light"), (860, "dark")):
        context = running.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
        tab = context.new_page()
        tab.goto(f"{page.resolve().as_uri()}#dtask={TASK}" if width > 400 else
                 page.resolve().as_uri())  # fmt: skip
        tab.wait_for_selector(DRAWN)
        if width > 400:
            tab.locator("#documents details.doc summary").first.click()
            tab.locator("#documents .choose").evaluate("n => n.scrollIntoView()")
            tab.wait_for_timeout(500)
        views.append(Image.open(BytesIO(tab.screenshot())))
        context.close()
    both = Image.new("RGB", (sum(v.width for v in views) + 20, views[0].height), "#808080")
    both.paste(views[0], (0, 0))
    both.paste(views[1], (views[0].width + 20, 0))
    both.save(out / "report-views.png")
    for task in ("nli_ood", "facts"):
        name = f"pocket-{task.replace('_', '-')}.png"
        shutil.copy(page.parent / f"curve_pocket_{task}.png", out / name)
    for name in ("report", "report-views", "pocket-nli-ood", "pocket-facts"):
        Image.open(out / f"{name}.png").convert("RGB").save(out / f"{name}.png", optimize=True)


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--pictures", type=Path, metavar="OUT")
    given = parser.parse_args()
    browser = os.environ.get("EVALCORE_BROWSER") or shutil.which("chromium")
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        if given.pictures:
            pictures(running, given.page, given.pictures)
        else:
            print("\n".join(asked(running, given.page)))
        running.close()


if __name__ == "__main__":
    main()
