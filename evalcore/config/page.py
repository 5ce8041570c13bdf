"""docs/configuration.md: every field of a configuration, made from the definitions.

``python -m evalcore.config.page`` writes it anew; a test says when it is not current.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evalcore.config.option import Option, options_of
from evalcore.config.tree import PARTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
_HEAD = """# What can be said, where, and who wins

Made from the definitions (`evalcore/config/`) by `python -m evalcore.config.page`.

    ScoreConfig(subjects, grid, engine, cluster, run)

is everything a run is told. Each field is defined once; the options of the command line, the
keys of a study file's `evaluation` block, its JSON schema and the checks are made from that.
What is said on the command line (or given to `ec.score` and `ec.run`) goes before the study
file, and that before the default. A word that is said counts even where it is the default:
`--adapters auto` goes before a file's `adapters: merged`. The record of a run (`runs/` of the
results) keeps, as `config`, what was not at its default.

From Python the fields have the names of the first column: `ec.score(..., dtype="bfloat16")`,
`ScoreConfig.of(engine="hf", limit=100)`.
"""


def page() -> str:
    """The text of the page."""
    parts = [_HEAD]
    for name, part in PARTS.items():
        about = "\n".join(line.strip() for line in (part.__doc__ or "").strip().splitlines())
        about = about.replace("``", "`")
        parts.append(f"## {name}: `{part.__name__}`\n\n{about}\n\n{_table(part)}")
    return "\n".join(parts)


def _table(part: type) -> str:
    rows = ["| name | option | study file | default | |", "|---|---|---|---|---|"]
    for option in options_of(part).values():
        words = ", ".join(f"`{word}`" for word in option.words)
        key = f"`{option.study}`" if option.study else ""
        text = f"{option.help}{_values(option)}".replace("|", "\\|")
        text = f"The option: {text}" if option.takes_away else text
        cells = [f"`{option.name}`", words, key, _default(option.default), text]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _default(value: Any) -> str:
    if value is None or value == ():
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _values(option: Option) -> str:
    if option.choices:
        return " One of " + ", ".join(f"`{word}`" for word in option.choices) + "."
    low = option.low if option.above is None else option.above
    if low is None and option.high is None:
        return ""
    beyond = "More than " if option.above is not None else ""
    return f" {beyond}{low:,}" + (
        f" to {option.high:,}." if option.high is not None else " or more."
    )


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
