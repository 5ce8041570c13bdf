"""Worked examples: balance, order, and what identifies them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.errors import DataError, InputError
from evalcore.prompting import draw_shots, load_variants, shots_fingerprint, with_options
from evalcore.prompting.shots import reorder
from evalcore.tasks import load_documents, load_task
from evalcore.types import Document, Variant

TASK = load_task("pocket_nli")
WRITER = load_task("pocket_describe")
PLAIN = with_options(Variant("default", "pocket_nli", "{{ premise }}"))


def made(number: int, gold: int) -> Document:
    fields = {"premise": f"The mill {number}.", "hypothesis": f"The dog {number}."}
    return Document(f"{number:032x}", number, fields, TASK.choices, gold)


# Nine in ten are of one label, as in skewed data.
POOL = [made(i, 0 if i % 10 else 1 + (i // 10) % 2) for i in range(60)]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(0, 6), seed=st.integers(0, 5), pool=st.permutations(POOL))
def test_labels_take_turns(count: int, seed: int, pool: Sequence[Document]) -> None:
    variant = with_options(PLAIN, shots=count, shots_seed=seed, shots_balance=True)
    shots = draw_shots(TASK, variant, pool)
    assert shots == draw_shots(TASK, variant, POOL)  # whatever the order of the rows
    counts = Counter(shot.gold for shot in shots)
    assert len(shots) == count
    assert max(counts.values(), default=0) - min([*counts.values(), 9]) <= 1
    assert len(counts) == min(count, 3)
    for start in range(0, count - 2, 3):
        assert len({shot.gold for shot in shots[start : start + 3]}) == 3
    if count:
        fewer = with_options(variant, shots=count - 1, shots_seed=seed, shots_balance=True)
        assert draw_shots(TASK, fewer, POOL) == shots[:-1]


def test_balance_takes_the_same_documents_of_a_label_in_their_order() -> None:
    """Within a label, balance keeps the order of the seed: a slow twin."""
    whole = draw_shots(TASK, with_options(PLAIN, shots=60), POOL)
    order = list(dict.fromkeys(shot.gold for shot in whole))
    queues = [[shot for shot in whole if shot.gold == gold] for gold in order]
    wanted = [shot for turn in itertools.zip_longest(*queues) for shot in turn][:6]
    assert draw_shots(TASK, with_options(PLAIN, shots=6, shots_balance=True), POOL) == wanted


def test_balance_says_what_is_missing() -> None:
    with pytest.raises(DataError, match=r"has 10 usable of 60 .* taking turns"):
        draw_shots(TASK, with_options(PLAIN, shots=12, shots_balance=True), POOL)
    (variant,) = load_variants("pocket_describe", "default:shots=2,balance=1")
    pool = load_documents(WRITER, "shots")
    with pytest.raises(InputError, match="balance=1 lets labels take turns, this task has no lab"):
        draw_shots(WRITER, variant, pool)
    hidden = [replace(document, gold=-1) for document in POOL]
    with pytest.raises(DataError, match="has 0 usable"):
        draw_shots(TASK, with_options(PLAIN, shots=1, shots_balance=True), hidden)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5])
def test_orders_are_all_orders(count: int) -> None:
    shots = POOL[:count]
    total = len(list(itertools.permutations(shots)))
    found = {tuple(shot.id for shot in reorder(shots, order)) for order in range(total)}
    assert found == {tuple(shot.id for shot in order) for order in itertools.permutations(shots)}
    assert reorder(shots, 0) == shots
    with pytest.raises(InputError, match=f"{count} shots have {total} orders"):
        reorder(shots, total)


def test_order_permutes_what_was_drawn() -> None:
    drawn = draw_shots(TASK, with_options(PLAIN, shots=4), POOL)
    others = [draw_shots(TASK, with_options(PLAIN, shots=4, shots_order=i), POOL) for i in (1, 2)]
    for other in others:
        assert sorted(shot.id for shot in other) == sorted(shot.id for shot in drawn)
    fingerprints = {shots_fingerprint(shots) for shots in (drawn, *others, drawn[:3], [])}
    assert len(fingerprints) == 5
    assert all(len(each) == 32 for each in fingerprints)
    assert shots_fingerprint([]) == "5c10c30b7e7fcdfe402b35cde42daef3"
    assert len(reorder(POOL, 10**9)) == len(POOL)


def test_texts_that_are_scored_are_never_drawn() -> None:
    scored = [
        replace(
            document,
            id="f" * 32,
            fields={name: f"  {text.upper()} " for name, text in document.fields.items()},
        )
        for document in POOL[:50]
    ]
    for balance in (False, True):
        variant = with_options(PLAIN, shots=2, shots_balance=balance)
        shots = draw_shots(TASK, variant, POOL, scored=scored)
        assert {shot.index for shot in shots} <= set(range(50, 60))
        shots = draw_shots(TASK, variant, POOL, {document.id for document in POOL[:50]})
        assert {shot.index for shot in shots} <= set(range(50, 60))
