"""Pages that name tests name such as there are."""

from __future__ import annotations

import pytest

from tests.toys.named_tests import missing_tests, named_tests, rows_without_tests

PAGES = ["cases.md", "faults.md", "study.md"]
"""Pages whose tables end in the tests of each line."""


@pytest.mark.parametrize("page", PAGES)
def test_every_line_names_tests_that_exist(page: str) -> None:
    assert len(named_tests(page)) > 20
    assert missing_tests(page) == []
    assert rows_without_tests(page) == []
