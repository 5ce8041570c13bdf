"""How much is scored in one run, how it ends, and where the results lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from evalcore.config.option import check_part, option
from evalcore.errors import InputError


def _part(value: Any) -> None:
    whole = isinstance(value, tuple | list) and [type(v) for v in value] == [int, int]
    if not whole or not 0 <= value[0] < value[1]:
        said = "/".join(map(str, value)) if whole else repr(value)
        pair = "" if whole else ", from Python as a pair (I, N)"
        raise InputError(f"--shard {said}: expected I/N with 0 <= I < N{pair}")


@dataclass(frozen=True)
class RunConfig:
    """How much is scored in one run, how it ends, and where the results lie.

    Nothing of it changes a number.
    """

    SECTION: ClassVar[str] = "The run"

    output: Path = option(
        Path("results"), "Results folder; what it already covers is not scored again.",
        "-o", "--output", metavar="RESULTS",
    )  # fmt: skip
    dry_run: bool = option(False, "Print the plan and score nothing.", "--dry-run")
    log_json: Path | None = option(
        None, "Append a JSON line per event of scoring (unit, commit, failure, worker ...) to "
        "FILE.", "--log-json", metavar="FILE", path_must=("not be a folder",),
    )  # fmt: skip
    shard: tuple[int, int] | None = option(
        None, "Do part I (from 0) of N.", "--shard", metavar="I/N", read="shard", check=_part
    )
    time_limit: float | None = option(
        None, "After this long (90m, 1:30:00) finish the units at hand, commit and exit 75.",
        "--time-limit", metavar="DURATION", read="duration", low=0,
    )  # fmt: skip
    stop_grace: float = option(
        60.0, "After a signal to stop, units that have not ended in so long are killed (after the "
        "time limit: 15 at most).", "--stop-grace", metavar="SECONDS", low=0,
        high=86_400,
    )  # fmt: skip
    commit_every: float = option(
        60.0, "Most work a crash may cost; committing more often makes more files.",
        "--commit-every", metavar="SECONDS", low=0, high=86400,
    )  # fmt: skip
    unit_examples: int = option(
        4096, "Examples handed to an engine at once, at most.", "--unit-examples",
        low=1, high=10_000_000,
    )  # fmt: skip
    certify: float = option(
        0.0, "Share of each cell's examples that are scored a second time, cold, in another order "
        "and batch size; 0: none.", read="share", low=0, high=1, study="certify",
    )  # fmt: skip
    documents: bool = option(
        True, "Keep no questions, choices, golds and prompts in the results.", "--no-documents",
        takes_away=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_part(self)
