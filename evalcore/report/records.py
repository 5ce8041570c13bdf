"""Records of runs and versions of libraries as the page lists them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from evalcore.analysis import Analysis
from evalcore.metrics import METRICS_VERSION
from evalcore.report.words import visible

MAIN_FIGURES = (
    "examples", "per_s", "wall", "elapsed", "computed", "limit", "ratio", "swap", "model_load",
    "cells", "failed", "tokens", "restart", "fallback", "workers", "engine", "device",
)  # fmt: skip


def run_facts(number: int, record: Mapping[str, Any]) -> dict[str, Any]:
    """Heading, main figures and other figures of a run record (any keys)."""
    rows = _flatten(record)
    main = [(k, v) for k, v in rows if any(word in k for word in MAIN_FIGURES)][:16]
    names = {k for k, _ in main}
    started = next((v for k, v in rows if k in ("started", "time", "utc", "id", "run_id")), "")
    return {
        "title": f"Run {number + 1}" + (f", {started}" if started else ""),
        "main": [(k.replace("_", " "), v) for k, v in main],
        "rest": [(k.replace("_", " "), v) for k, v in rows if k not in names],
    }


def _flatten(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        name = visible(f"{prefix}{key}")
        if isinstance(item, Mapping):
            rows.extend(_flatten(item, f"{name} / "))
        elif isinstance(item, bool) or item is None:
            rows.append((name, {True: "yes", False: "no", None: "–"}[item]))
        elif isinstance(item, int):
            rows.append((name, f"{item:,}"))
        elif isinstance(item, float):
            rows.append((name, f"{item:,.4g}" if abs(item) < 1000 else f"{item:,.0f}"))
        else:
            text = item if isinstance(item, str) else json.dumps(item, default=str)
            rows.append((name, visible(text, 300)))
    return rows


def versions(analysis: Analysis) -> list[tuple[str, str]]:
    """What made the results."""
    records = [cell.about for cell in analysis.book.read]

    def distinct(name: str) -> str:
        return ", ".join(sorted({visible(str(r[name])) for r in records if name in r})) or "–"

    rows = [
        ("evalcore", distinct("evalcore_version")), ("metrics version", str(METRICS_VERSION)),
        ("numerics", distinct("numerics")),
    ]  # fmt: skip
    found: dict[str, set[str]] = defaultdict(set)
    for text in {r.get("versions") for r in records}:
        try:
            for key, value in _flatten(json.loads(text or "{}")):
                found[key].add(value)
        except (ValueError, AttributeError):
            found["versions"].add(visible(str(text)))
    return rows + [(key, ", ".join(sorted(values))) for key, values in sorted(found.items())]
