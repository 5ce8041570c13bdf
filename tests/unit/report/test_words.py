"""How names are shown where there is little room."""

from __future__ import annotations

from evalcore.report.words import short_names


def test_names_of_revisions_stay_apart() -> None:
    """All were `OLMo-1B-hf@…`."""
    names = ["OLMo-1B-hf@step1000-tokens4B", "OLMo-1B-hf@step18000-tokens75B", "OLMo-1B-hf@main"]
    assert short_names(names, 12) == {
        names[0]: "…step1000-t…", names[1]: "…step18000-…", names[2]: "…main",
    }  # fmt: skip
    assert short_names(["step-00100", "step-00200"], 12) == {
        "step-00100": "step-00100", "step-00200": "step-00200",
    }  # fmt: skip
    alike = ["a-very-long-name-1", "a-very-long-name-2"]
    assert sorted(short_names(alike, 6).values()) == ["…1", "…2"]
    assert short_names(["averylongname1", "averylongname2"], 6) == {
        "averylongname1": "…name1", "averylongname2": "…name2",
    }  # fmt: skip
    assert short_names(["one-long-name"], 6) == {"one-long-name": "one-l…"}
