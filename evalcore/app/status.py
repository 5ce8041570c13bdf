"""``status()``: what runs on a results folder do, or how they ended, from anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalcore.errors import EvalcoreError, InputError
from evalcore.reading import is_there
from evalcore.store import ResultStore, Seen, aside_lines, read_progress

SHOWN_ENDED = 3
SHOWN_GROUPS = 40


@dataclass
class Status:
    """What is known of a results folder and the runs on it.

    Attributes:
        results: The folder.
        examples: Rows committed, of all runs; None where they cannot be counted now.
        runs: Runs that left a progress file, oldest first.
        damaged: Progress files that cannot be read -> why.
        note: Why rows could not be counted.
        aside: What was damaged and set aside.
    """

    results: Path
    examples: int | None = None
    runs: list[Seen] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    note: str = ""
    aside: list[str] = field(default_factory=list)

    @property
    def under_way(self) -> list[Seen]:
        """Runs that have not ended, dead ones left out."""
        return [run for run in self.runs if run.life in ("running", "silent")]

    def as_record(self, *, every: bool = False) -> dict[str, Any]:
        """Plain values, as ``--json`` prints them."""
        return {
            "results": str(self.results),
            "examples": self.examples,
            "runs": [
                {"life": seen.life, "age_s": round(seen.age_s, 1), "judged_by": seen.judged_by,
                 **seen.record}
                for seen in self._shown(every)
            ],
            "damaged": self.damaged,
            "set_aside": self.aside,
        }  # fmt: skip

    def lines(self, *, every: bool = False) -> list[str]:
        """For a person: runs under way, then the last that are over (``every``: all of them)."""
        count = self.note or f"{self.examples:,} examples committed"
        running = len(self.under_way)
        lines = [f"{self.results}: {count}; {running} run{'s' * (running != 1)} under way"]
        shown = self._shown(every)
        for seen in shown:
            lines += ["", *_run_lines(seen)]
        if len(shown) < len(self.runs):
            lines += ["", f"{len(self.runs) - len(shown)} earlier runs: --all"]
        if not self.runs:
            lines.append("no run has left word here within a week")
        lines += [f"{name}: {why}; left out" for name, why in self.damaged.items()]
        lines += self.aside
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _shown(self, every: bool) -> list[Seen]:
        over = [run for run in self.runs if run.life in ("dead", "ended")]
        return [*self.under_way, *(over if every else over[-SHOWN_ENDED:])]


def status(results: Path) -> Status:
    """Looks at a results folder; changes nothing, and needs no run of this machine.

    Raises:
        InputError: There are no results.
    """
    if not is_there(results / "store.json") and not (results / "progress").is_dir():
        raise InputError(f"{results}: no results there; give the folder of `evalcore score -o`")
    found = read_progress(results)
    told = Status(results, runs=found.runs, damaged=found.damaged, aside=aside_lines(results))
    try:
        told.examples = ResultStore(results, read_only=True).coverage().num_examples
    except (EvalcoreError, OSError) as error:
        told.note = f"its rows cannot be counted ({error})"
    return told


def _run_lines(seen: Seen) -> list[str]:
    """One run. What stands in its file is shown as far as it is what it should be."""
    record = seen.record
    shard = f", shard {record['shard']}" if record.get("shard") else ""
    lines = [
        f"run of {_moment(record.get('started'))} on {record.get('host')} "
        f"(process {record.get('pid')}{shard}): {_life(seen)}"
    ]
    try:
        lines += [f"  {line}" for line in _body(seen)]
    except (TypeError, ValueError, KeyError, AttributeError):
        lines.append("  written by another version of evalcore; see --json")
    return lines


def _body(seen: Seen) -> list[str]:
    record = seen.record
    planned, committed, failed = (int(record[k]) for k in ("planned", "committed", "failed"))
    lines = []
    if record["phase"] == "preparing":
        return [f"preparing for {_span(record['running_s'])}"]
    share = f" ({100 * committed / planned:.0f} %)" if planned else ""
    covered, whole = int(record["covered"]), record.get("whole", True)
    if not planned and whole:
        return [f"nothing to do: all {covered:,} examples were there already"]
    if not planned and seen.life in ("ended", "dead"):
        return ["nothing was planned"]
    least = "" if whole else "at least "  # its preparation goes on
    lost = f", {failed:,} cannot be scored" if failed else ""
    lines.append(
        f"{committed:,} of {least}{planned:,} examples committed{share}{lost}; "
        f"{covered:,} were there already"
    )
    if seen.life in ("running", "silent"):
        left_s = record.get("left_s")
        left = "unknown" if left_s is None else f"{least}{_span(max(float(left_s), 0.0))}"
        lines.append(f"{float(record['examples_per_s']):,.1f} examples/s, time left: {left}")
        if record.get("stopping"):
            lines.append(f"stopping ({record['stopping']})")
        lines += [_worker_line(worker) for worker in record["workers"]]
    for title, groups in (("task", record["tasks"]), ("checkpoint", record["checkpoints"])):
        lines += _group_lines(title, groups)
    lines += [f"{who} gets no more work: {why}" for who, why in record["given_up"].items()]
    failures = record["failures"]
    lines += [f"not scored: {f['label']} ({f['examples']:,}): {f['message']}" for f in failures]
    more = int(record.get("failures_in_all", 0)) - len(failures)
    return [*lines, f"not scored: {more:,} more reasons"] if more > 0 else lines


def _worker_line(worker: Mapping[str, Any]) -> str:
    node = f" on {worker['node']}" if worker.get("node") else ""
    doing = f"{worker['state']} {worker['doing']}".strip()
    return (
        f"worker {worker['worker']}{node}: {doing or 'not started'}, for "
        f"{_span(float(worker['since_s']))}; {int(worker['examples']):,} examples in "
        f"{int(worker['units']):,} units so far"
    )


def _group_lines(title: str, groups: Mapping[str, Mapping[str, int]]) -> list[str]:
    lines = []
    for name, of in list(groups.items())[:SHOWN_GROUPS]:
        failed = f", {of['failed']:,} failed" if of["failed"] else ""
        lines.append(f"{title} {name}: {of['committed']:,} of {of['planned']:,}{failed}")
    if len(groups) > SHOWN_GROUPS:
        lines.append(f"{len(groups) - SHOWN_GROUPS:,} more {title}s: --json")
    return lines


def _life(seen: Seen) -> str:
    ago = f"last word {_span(seen.age_s)} ago"
    if seen.life == "ended":
        ended = seen.record["ended"]
        status, how = (ended.get("status"), ended.get("how")) if isinstance(ended, dict) else (
            "?", str(ended))  # fmt: skip
        return f"ended {_span(seen.age_s)} ago with status {status}: {how}"
    if seen.life == "dead":
        return f"dead without a last word, {ago} ({seen.judged_by}); run it again to go on"
    if seen.life == "silent":
        return f"silent, perhaps dead, {ago} ({seen.judged_by})"
    return f"under way, {ago} ({seen.judged_by})"


def _span(seconds: float) -> str:
    seconds = max(float(seconds), 0.0)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _moment(stamp: Any) -> str:
    """``20260131T235959.123456Z`` as ``2026-01-31 23:59:59 UTC``."""
    found = re.fullmatch(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)\.\d+Z", str(stamp))
    if found is None:
        return str(stamp)
    year, month, day, hour, minute, second = found.groups()
    return f"{year}-{month}-{day} {hour}:{minute}:{second} UTC"
