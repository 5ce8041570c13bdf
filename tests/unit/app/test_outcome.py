"""What came of a run, in short."""

from __future__ import annotations

from pathlib import Path

from evalcore.app.outcome import ScoreOutcome
from evalcore.scoring import RunSummary


def test_an_outcome_is_shown_in_a_line_of_counts_and_times() -> None:
    summary = RunSummary(planned=1200, covered=30, examples=1100, failed_examples=100, wall_s=2.5)
    cells = frozenset(str(i) for i in range(1000))
    outcome = ScoreOutcome(Path("out"), summary=summary, cells=cells, problems=[("a", "why")])
    assert repr(outcome) == (
        "ScoreOutcome('out': 1,100 of 1,200 examples scored, 100 failed, 30 were there already, "
        "1,000 cells, 2.5 s, status 1, 1 problems)"
    )
    assert "dry run, 0 of 0" in repr(ScoreOutcome(Path("out"), dry_run=True))
