"""Lines about what is not asked."""

from __future__ import annotations

from collections.abc import Mapping


def unasked_lines(unasked: Mapping[tuple[str, str], int]) -> list[tuple[str, str]]:
    """(what, why) of cells left out (see ``Grid.unasked``), one line for each kind of reason."""
    kinds: dict[str, dict[str, int]] = {}
    for (reason, label), count in unasked.items():
        kinds.setdefault(reason, {})[label] = count
    lines = []
    for reason, cells in kinds.items():
        first = next(iter(cells))
        more = f" and {len(cells) - 1:,} more" if len(cells) > 1 else ""
        count = sum(cells.values())
        lines.append((f"{first}{more} ({count:,} cell{'s' if count > 1 else ''})", reason))
    return lines
