"""What is odd about the cells behind a number, in words, for the place where the number stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np

from evalcore.analysis.book import ScoreBook
from evalcore.analysis.cells import CellValues
from evalcore.analysis.gains import Contrast, Gain
from evalcore.analysis.making import apart
from evalcore.analysis.scores import cell_notes, notes_of
from evalcore.analysis.subjects import SubjectInfo, TaskInfo
from evalcore.analysis.ways import Way


def score_notes(
    book: ScoreBook, subject: SubjectInfo, task: TaskInfo, way: Way, prompts: Collection[str]
) -> list[str]:
    """Of a score of one model under some prompts."""
    notes: list[str] = []
    for stratum in book.strata(subject, task.name):
        if stratum[0] == way:
            notes += notes_of(book, subject, task, stratum, prompts)
    return list(dict.fromkeys(notes))


def gain_notes(book: ScoreBook, gain: Gain, prompts: Collection[str] | None = None) -> list[str]:
    """Of either side of a gain; ``prompts``: under these alone."""
    notes = list(gain.notes)
    wanted = gain.by_variant.keys() if prompts is None else prompts
    for who, model in (("", gain.subject), ("base: ", gain.reference)):
        stratum = (gain.way, gain.numerics)
        notes += [who + note for note in notes_of(book, model, gain.task, stratum, wanted)]
    if gain.missing_rows and prompts is None:
        notes.append(f"{gain.missing_rows} answers on one side only")
    return notes


def contrast_notes(book: ScoreBook, contrast: Contrast) -> list[str]:
    """Of both gains of a contrast."""
    runs = max(len(g.subject.run_ids) for g in (contrast.later, contrast.earlier))
    both = contrast.difference.seeds
    seeds = [f"seeds that both checkpoints have: {both} of {runs}"] if both < runs else []
    sides = (("later: ", contrast.later), ("earlier: ", contrast.earlier))
    how = apart(contrast.later.made, contrast.earlier.made)
    made = [f"the two gains were made by {how}"] if how else []
    return seeds + made + [when + note for when, gain in sides for note in gain_notes(book, gain)]


def notes_by_task(book: ScoreBook, gains: Iterable[Gain]) -> list[str]:
    """Of gains behind a mean over tasks, task by task."""
    return [f"{g.task.name}: {note}" for g in gains for note in gain_notes(book, g)]


def counted(notes: Sequence[Sequence[str]], of: str) -> list[str]:
    """Notes of several things behind one number, each with how many have it."""
    found = Counter(note for own in notes for note in dict.fromkeys(own))
    return [f"{note} ({count} of {len(notes)} {of})" for note, count in found.items()]


def pair_notes(subject: SubjectInfo, task: TaskInfo, cells: Sequence[CellValues]) -> list[str]:
    """Of drawn (prompt, document) pairs, all taken as one cell: a prompt has too few to judge."""
    facts = [cell.facts for cell in cells]
    arrays = [cell.load() for cell in cells]
    n = sum(f.n for f in facts)
    answers = np.concatenate([a.answers for a in arrays])
    golds = np.concatenate([a.golds for a in arrays])
    known, right = answers[answers >= 0], golds[golds >= 0]
    summed = ("doubled", "overflow", "valueless", "dropped", "truncated", "empty", "generated",
              "unproven", "unmade")  # fmt: skip
    whole = replace(
        facts[0],
        n=len(np.unique(np.concatenate([a.docs for a in arrays]))),
        mean=sum(f.mean * f.n for f in facts if f.n) / n if n else float("nan"),
        held_shots=min(f.held_shots for f in facts),
        modal_share=float(np.bincount(known).max() / len(known)) if len(known) else float("nan"),
        one_class=len(right) > 1 and len(np.unique(right)) == 1,
        **{name: sum(getattr(f, name) for f in facts) for name in summed},
    )
    made = tuple(sorted({making for cell in cells for making in cell.made}))
    return cell_notes(subject, task, {"": {0: replace(cells[0], facts=whole, made=made)}})
