"""Compares two results folders example by example: the same grid scored by two engines.

    python -m bench.agreement RESULTS_VLLM RESULTS_HF

Prints the largest log-probability difference, predictions that differ although the margin between
the two best choices exceeds ``MARGIN`` (there must be none), those that differ within it, and
generated texts that differ. Exit status 1 when the engines do not agree.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from evalcore.store import ResultStore

TOLERANCE = 1e-4
MARGIN = 2e-4
KEY = ("subject", "task", "variant", "doc_id")


@dataclass
class Agreement:
    """What a comparison found; lists hold the keys of examples."""

    examples: int = 0
    continuations: int = 0
    largest_difference: float = 0.0
    only_left: list[tuple] = field(default_factory=list)
    only_right: list[tuple] = field(default_factory=list)
    flips_beyond_margin: list[tuple] = field(default_factory=list)
    flips_within_margin: list[tuple] = field(default_factory=list)
    different_texts: list[tuple] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        return (
            self.examples > 0
            and self.largest_difference <= TOLERANCE
            and not (self.flips_beyond_margin or self.only_left or self.only_right)
        )


def _examples(results: Path) -> dict[tuple, dict]:
    columns = [*KEY, "prediction", "choice_logprobs", "text"]
    rows = ResultStore(results).read().select(columns).to_pylist()
    return {tuple(row[name] for name in KEY): row for row in rows}


def margin(logprobs: list[float]) -> float:
    """Distance between the two best choices in nats; infinite with fewer than two."""
    if len(logprobs) < 2:
        return float("inf")
    best, second = sorted(logprobs, reverse=True)[:2]
    return best - second


def compare(left: Path, right: Path) -> Agreement:
    """Compares every example both folders have, and lists what only one has."""
    a, b = _examples(left), _examples(right)
    found = Agreement(only_left=sorted(a.keys() - b.keys()), only_right=sorted(b.keys() - a.keys()))
    for key in sorted(a.keys() & b.keys()):
        one, two = a[key], b[key]
        found.examples += 1
        pairs = list(zip(one["choice_logprobs"], two["choice_logprobs"], strict=True))
        found.continuations += len(pairs)
        apart = max((abs(x - y) for x, y in pairs), default=0.0)
        found.largest_difference = max(found.largest_difference, apart)
        if one["prediction"] != two["prediction"]:
            close = min(margin(one["choice_logprobs"]), margin(two["choice_logprobs"])) <= MARGIN
            (found.flips_within_margin if close else found.flips_beyond_margin).append(key)
        if one["text"] != two["text"]:
            found.different_texts.append(key)
    return found


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__)
        return 2
    found = compare(Path(sys.argv[1]), Path(sys.argv[2]))
    print(
        f"{found.examples:,} examples, {found.continuations:,} log-probabilities: "
        f"largest difference {found.largest_difference:.2e} (allowed {TOLERANCE:.0e})"
    )
    print(f"predictions that differ: {len(found.flips_beyond_margin)} with margin > {MARGIN:.0e}, "
          f"{len(found.flips_within_margin)} within it")  # fmt: skip
    for key in found.flips_within_margin:
        print(f"  near-tie: {key}")
    print(f"generated texts that differ: {len(found.different_texts)}")
    print(f"only in the first: {len(found.only_left)}, only in the second: {len(found.only_right)}")
    print("agree" if found.holds else "DO NOT AGREE")
    return 0 if found.holds else 1


if __name__ == "__main__":
    sys.exit(main())
