"""Numbers and notes as they are written in tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from os.path import commonprefix
from string import ascii_letters
from string import digits as figures
from unicodedata import category

from evalcore.analysis import Estimate, SubjectInfo
from evalcore.metrics import higher_is_better
from evalcore.shown import listed


def by_prompt(estimate: Estimate, digits: int = 3) -> str:
    """``-0.355 to +0.670`` under single prompts; nothing for one prompt."""
    if not estimate.n or estimate.prompts < 2:
        return ""
    return f"{signed(estimate.low_prompt, digits)} to {signed(estimate.high_prompt, digits)}"


def both_errors(estimate: Estimate) -> str:
    """``+0.380 ±0.046 [-0.21, +0.97]``: error over documents, 95 % interval of the widest claim."""
    if math.isnan(estimate.value):
        return "–"
    error, low, high = estimate.over_documents.stderr, estimate.low95, estimate.high95
    text = signed(estimate.value)
    text += f" ±{plain(error)}" if error > 1e-12 else ""
    return text + ("" if math.isnan(low) else f" [{signed(low, 2)}, {signed(high, 2)}]")


def mark(number: int) -> str:
    """The mark of a note: ``(a)``, ``(b)`` ..."""
    return f"({chr(ord('a') + number)})" if number < 26 else f"({number})"


def note_lines(notes: Sequence[str], most: int = 6) -> list[str]:
    """The notes below a table, the first of them."""
    lines = [f"{mark(i)} {note}" for i, note in enumerate(notes[:most])]
    return lines + [f"... {len(notes) - most} more notes: see the report"] * (len(notes) > most)


def adapter_lines(named: Iterable[tuple[str, SubjectInfo]], most: int = 6) -> list[str]:
    """Which adapters stand behind names of a table that are not theirs, a line for each name.

    Args:
        named: (what the table calls it, model) for each row.
        most: Lines at most.
    """
    told: dict[str, list[str]] = {}
    for name, subject in named:
        own = told.setdefault(name, [])
        own += [each for each in subject.run_adapters if each not in own]
    lines = [
        f"{name}: {'adapter' if len(own) == 1 else 'adapters'} {listed(own, 8)}"
        for name, own in told.items()
        if own and not (len(own) == 1 and own[0] in name)
    ]
    if len(lines) > most:
        rest = f"... adapters of {len(lines) - most:,} more names: column adapters of scores.csv"
        lines = [*lines[:most], rest]
    return lines


def fit(text: str, width: int, right: bool) -> str:
    """``text`` in ``width`` columns, cut with a sign where it is longer."""
    if len(text) > width:
        text = text[: width - 1] + "…"
    return text.rjust(width) if right else text.ljust(width)


def short_names(names: Iterable[str], width: int) -> dict[str, str]:
    """Names that fit into ``width`` columns and still differ, by the names they stand for.

    Where one is too long, what all have in common at their beginning goes (revisions of one
    repository); what is still too long loses its end, or its beginning where ends tell them apart.
    """
    known = list(dict.fromkeys(names))
    if all(len(name) <= width for name in known):
        return {name: name for name in known}
    shared = commonprefix(known) if len(known) > 1 else ""  # noqa: RUF071  # by letters, indeed
    shared = shared.rstrip(ascii_letters + figures)
    bare = [f"…{name[len(shared) :]}" if len(shared) > 1 else name for name in known]
    short = [fit(name, width, right=False).rstrip() for name in bare]
    if len(set(short)) < len(set(bare)):
        short = [name if len(name) <= width else f"…{name[1 - width :]}" for name in bare]
    return dict(zip(known, short, strict=True))


def plain(value: float, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign, or a dash where there is none."""
    if math.isnan(value):
        return "–"
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def interval(estimate: Estimate) -> str:
    """``+0.466 [+0.380, +0.552]``: a difference with its 95 % interval."""
    if math.isnan(estimate.value):
        return "–"
    if math.isnan(estimate.low95):
        return signed(estimate.value)
    return f"{signed(estimate.value)} [{signed(estimate.low95)}, {signed(estimate.high95)}]"


_SHOWN_BREAKS = "\n\t"
_UNSEEN = ("Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp")


def visible(text: str, most: int | None = None) -> str:
    """Text in which no character can hide or turn others round: those are written ``⟨U+202E⟩``.

    Line ends and tabs stay. ``most``: longer texts are cut there, which is said.
    """
    rest = "" if most is None or len(text) <= most else f" ⟨{len(text) - most:,} more characters⟩"
    text = text if most is None else text[:most]
    if text.isascii() and text.isprintable():
        return text + rest
    return (
        "".join(
            f"⟨U+{ord(c):04X}⟩" if c not in _SHOWN_BREAKS and category(c) in _UNSEEN else c
            for c in text
        )
        + rest
    )


def metric_words(metric: str) -> str:
    """A metric's name for people; of losses with what is better."""
    found = {
        "acc": "accuracy",
        "acc_norm": "accuracy (per character)",
        "acc_bytes": "accuracy (per byte)",
        "rouge_l": "ROUGE-L",
        "rouge_1": "ROUGE-1",
        "rouge_2": "ROUGE-2",
        "gold_prob": "probability of the right choice",
        "gold_bits_per_byte": "bits per byte of the reference",
    }.get(metric, metric)
    return found if higher_is_better(metric) else f"{found} (less is better)"
