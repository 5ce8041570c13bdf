"""Pages that name tests name such as there are."""

from __future__ import annotations

from pathlib import Path

import pytest

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
