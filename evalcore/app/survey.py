"""What has to be settled over a whole grid, from a few subjects that stand for all.

Adapters of a checkpoint that bring the same tokenizer, or none, are asked the same: one of them is
asked here for all of them, with every bare checkpoint, since on those it hangs who is asked how.
Fingerprints of adapters are looked at by nobody here, so that nothing is worked out for each cell.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evalcore.app.cells import Grid, Question
from evalcore.app.grid import GridMaker, require_cells
from evalcore.identity import NumericsClass
from evalcore.types import Subject

Kind = tuple[str, str]
"""Checkpoint's id, id of the adapter's own way of being asked (``""``: none)."""


@dataclass(frozen=True)
class Form:
    """A way in which subjects of a kind are asked some of the questions.

    Attributes:
        own: By the adapter's own tokenizer.
        tokens: Prompt tokens asked.
        examples: Documents asked.
        cells: Questions.
    """

    own: bool
    tokens: int
    examples: int
    cells: int


class Survey:
    """All subjects of a run, and how much each is asked.

    Args:
        maker: Of the run's grid.
        subjects: All of them.
        numerics: The class of the scores, as far as it is settled.
        apart: Fingerprint of a checkpoint -> class of its scores, where it is another.

    Attributes:
        subjects: As given.
        grid: Of those that stand for all, in outline.

    Raises:
        InputError: Not one cell can be asked, or something that is asked cannot be asked at all.
    """

    def __init__(
        self,
        maker: GridMaker,
        subjects: Sequence[Subject],
        numerics: NumericsClass,
        apart: Mapping[str, NumericsClass] | None = None,
    ) -> None:
        self.subjects = subjects
        self._chosen = chosen(subjects)
        maker.require(self._chosen)
        self.grid: Grid = maker.outline(self._chosen, numerics, apart)
        require_cells(self.grid)

    @cached_property
    def forms(self) -> dict[Kind, list[Form]]:
        """How subjects of each kind are asked; bare checkpoints are kinds of their own."""
        cells, asked = self.grid.cells, self.grid.asked
        each = np.array([_size(question) for question in asked.questions], np.int64).reshape(-1, 2)
        kinds = {id(s.adapter): kind_of(s) for s in self._chosen if s.adapter is not None}
        ways = {id(s.own): s.own for s in self._chosen if s.adapter is not None and s.own}
        found: dict[Kind, list[Form]] = {}
        for number, subject in enumerate(asked.subjects):
            questions = cells.question[cells.subject == number]
            if not len(questions):
                continue
            tokens, examples = each[questions].sum(axis=0).tolist()
            own = subject.adapter is not None and id(subject.checkpoint) in ways
            kind = kinds[id(subject.adapter)] if subject.adapter else bare(subject)
            found.setdefault(kind, []).append(Form(own, tokens, examples, len(questions)))
        return found

    def asked(self, left_out: Collection[str] = ()) -> Iterator[tuple[Subject, Form]]:
        """Every subject as it is asked, those of some checkpoints (by fingerprint) left out."""
        for subject in self._everyone():
            if subject.checkpoint.fingerprint in left_out:
                continue
            for form in self._forms(subject):
                own = subject.own if form.own else None
                yield subject if own is None else Subject(own, subject.adapter), form

    def subjects_asked(self, left_out: Collection[str] = ()) -> list[Subject]:
        """Every subject as it is asked, each once."""
        return list({subject.id: subject for subject, _ in self.asked(left_out)}.values())

    def tokens_of(self, subjects: Collection[str]) -> int:
        """Prompt tokens asked of subjects, by their ids."""
        return sum(form.tokens for subject, form in self.asked() if subject.id in subjects)

    def questions(self) -> list[Question]:
        """What is asked of anyone, each once."""
        return self.grid.cells.questions()

    def cells_of(self, subject: Subject) -> int:
        """Cells of a subject as it was found, but for its base's under its own tokenizer."""
        return sum(form.cells for form in self._forms(subject))

    def cost_of(self, subject: Subject) -> int:
        """Its work, as units count it (:func:`evalcore.planning.sharding.unit_cost`)."""
        return sum(form.tokens + form.examples for form in self._forms(subject))

    def _forms(self, subject: Subject) -> list[Form]:
        kind = kind_of(subject) if subject.adapter is not None else bare(subject)
        return self.forms.get(kind, [])

    def _everyone(self) -> Iterator[Subject]:
        """Subjects, and bases as adapters' own tokenizers ask them."""
        yield from self.subjects
        known = {subject.id for subject in self.subjects}
        for subject in self.grid.asked.subjects:
            if subject.adapter is None and subject.id not in known:
                yield subject


def chosen(subjects: Sequence[Subject]) -> list[Subject]:
    """The subjects that stand for all: every bare one, and an adapter of each kind."""
    known: set[Kind] = set()
    found = []
    for subject in subjects:
        if subject.adapter is None or kind_of(subject) not in known:
            found.append(subject)
            if subject.adapter is not None:
                known.add(kind_of(subject))
    return found


def kind_of(subject: Subject) -> Kind:
    """Adapters with equal kinds are asked the same."""
    return subject.checkpoint.id, subject.own.id if subject.own is not None else ""


def bare(subject: Subject) -> Kind:
    """The kind of a checkpoint alone."""
    return subject.checkpoint.id, "bare"


def _size(question: Question) -> tuple[int, int]:
    """(prompt tokens, documents) of a question."""
    return int(question.file.costs.sum()), len(question.file.doc_ids)
