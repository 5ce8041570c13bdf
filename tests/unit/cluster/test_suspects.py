"""Verdicts over what failed: who has been where, and what says nothing against the input."""

from __future__ import annotations

from evalcore.cluster.protocol import Job
from evalcore.cluster.suspects import Case, Suspects, Witness
from evalcore.errors import EngineError, InputError, NodeError

JOB = Job("a", group="g")
KEY = ("group", "g")


class Court:
    """Suspects of workers on named machines."""

    def __init__(self, *places: str) -> None:
        self.places = list(places)
        self.suspects = Suspects(lambda index: self.places[index])

    def witness(self, index: int, process: int = 0) -> Witness:
        return Witness(index, True, process)

    def says(self, index: int, error: Exception, process: int = 0) -> Case:
        known = self.suspects.cases.get(KEY)
        if known is not None:
            known.jobs.clear()  # the worker had it
        return self.suspects.accuse(KEY, JOB, self.witness(index, process), error)  # type: ignore[arg-type]

    def guilty(self, case: Case) -> bool:
        return self.suspects.guilty(case, [self.witness(i) for i in range(len(self.places))])


def test_two_machines_that_say_so_are_enough() -> None:
    court = Court("one", "two", "three")
    assert not court.guilty(court.says(0, InputError("no")))
    assert court.guilty(court.says(1, InputError("no")))


def test_a_machine_that_does_not_see_it_is_no_opinion_against_it() -> None:
    court = Court("one", "blind", "three")
    court.says(1, NodeError("not seen"))
    case = court.says(0, EngineError("died"))
    assert not court.guilty(case), "one opinion, and the third machine has not been asked"
    assert court.guilty(court.says(2, EngineError("died")))


def test_what_no_machine_sees_is_given_up() -> None:
    court = Court("one", "two")
    court.says(0, NodeError("not seen"))
    assert court.guilty(court.says(1, NodeError("not seen")))


def test_a_worker_that_has_moved_has_not_been_where_it_is_now() -> None:
    court = Court("one", "two")
    court.says(0, EngineError("died"))
    court.places[0] = "later"
    case = court.says(1, NodeError("not seen"))
    assert not court.guilty(case)
    moved = court.witness(0, 1)
    assert court.suspects.for_worker(moved, [moved, court.witness(1)], eager=True) is case
    court.places[0] = "one"
    assert court.guilty(case), "it came back to where it was: everybody has tried"
