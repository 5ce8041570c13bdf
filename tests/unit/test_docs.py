"""Pages that name tests name such as there are."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from evalcore.cli import cli
from evalcore.report.scores import foot_lines
from tests.toys.named_tests import missing_tests, named_tests, rows_without_tests

PAGES = ["cases.md", "faults.md", "study.md"]
"""Pages whose tables end in the tests of each line."""


@pytest.mark.parametrize("page", PAGES)
def test_every_line_names_tests_that_exist(page: str) -> None:
    assert len(named_tests(page)) > 20
    assert missing_tests(page) == []
    assert rows_without_tests(page) == []


def test_the_readme_leads_to_every_page() -> None:
    root = Path(__file__).resolve().parents[2]
    readme = (root / "README.md").read_text("utf-8")
    pages = [page.name for page in sorted((root / "docs").glob("*.md"))]
    assert [name for name in pages if f"](docs/{name})" not in readme] == []


def test_the_readme_counts_no_built_in_tasks() -> None:
    """There are more with time; `evalcore tasks list` counts them."""
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
    assert "`evalcore tasks list` shows" in readme
    assert re.search(r"`evalcore tasks list` shows (about )?\d", readme) is None


def test_the_scores_footnote_is_a_command_that_the_readme_shows_too() -> None:
    row = SimpleNamespace(
        score=SimpleNamespace(claim="", degenerate=False),
        gain=SimpleNamespace(claim="other prompts", turned=False),
        task=SimpleNamespace(metric="acc"),
    )
    lines = foot_lines([row])  # type: ignore[list-item]
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
    assert "".join(f"    {line}\n" for line in lines) in readme
    (command,) = re.findall(r"`evalcore (.*)`", lines[-1])
    name, *words = command.split()
    known = cli.get_command(click.Context(cli), name)
    assert known is not None
    with known.make_context(name, words) as context:
        assert str(context.params["output"]) == "scores.csv"
