"""Packed rows: the loss of each is what it is alone, and models that mix rows up are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evalcore.errors import IncompatibleError
from finetune import TuneConfig, TuneWorker
from finetune.loop import completion_loss
from finetune.packing import (
    IGNORED,
    Row,
    check_packing,
    choose_collate,
    collate,
    collate_flat,
    collate_packed,
    fill_bins,
    make_row,
    sequence_losses,
)
from tests.toys.finetune import largest_difference, make_job


def rows_of(lengths: list[tuple[int, int]], seed: int = 0) -> list[Row]:
    """Random rows of (prompt, completion) lengths."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(3, 300, p + c).tolist() for p, c in lengths]
    return [make_row(i[:p], i[p:]) for i, (p, _) in zip(ids, lengths, strict=True)]


LENGTHS = [(20, 3), (4, 2), (7, 1), (1, 5), (12, 4), (3, 3), (9, 1)]


def load(path: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options).eval()


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, make_checkpoint: Callable[..., Path]
) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("packing") / "step-00003", seed=3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("lay_out", [collate_packed, collate_flat])
def test_each_row_has_its_own_loss(
    checkpoint: Path, attention: str, lay_out: Callable[..., Any]
) -> None:
    model = load(checkpoint, attn_implementation=attention)
    rows = rows_of(LENGTHS)
    batch = lay_out(rows)
    assert batch["input_ids"].shape[0] < len(rows)
    with torch.no_grad():
        logits = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits
        for row in rows:
            # Where the row lies in the batch: its ids are random, so only in one place.
            n, ids = len(row["input_ids"]), torch.tensor(row["input_ids"])
            places = [
                (i, j)
                for i, line in enumerate(batch["input_ids"])
                for j in range(len(line) - n + 1)
                if torch.equal(line[j : j + n], ids)
            ]
            ((i, j),) = places
            alone = model(input_ids=ids[None]).logits[0]
            assert (logits[i, j : j + n] - alone).abs().max() < 1e-5
        packed = float(completion_loss(model, batch, takes_columns=True))
        padded = float(completion_loss(model, collate(rows), takes_columns=True))
    assert packed == pytest.approx(padded, rel=1e-6)


def test_without_positions_rows_would_see_one_another(checkpoint: Path) -> None:
    """The check can fail: the same layout with running positions is another loss."""
    model = load(checkpoint)
    batch = collate_packed(rows_of(LENGTHS))
    with torch.no_grad():
        right = sequence_losses(model, batch)
        mixed = sequence_losses(model, {k: v for k, v in batch.items() if k != "position_ids"})
    assert (right - mixed).abs().max() > 1e-2


def test_a_model_that_mixes_rows_up_is_refused(checkpoint: Path) -> None:
    class Forgetful(torch.nn.Module):
        """Drops the positions, as a model of another design would."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model, self.config = model, model.config

        def forward(self, input_ids: torch.Tensor, **others: Any) -> Any:
            return self.model(input_ids=input_ids, use_cache=False)

    model = load(checkpoint)
    check_packing(model, rows_of(LENGTHS))
    with pytest.raises(IncompatibleError, match="not kept apart by llama") as caught:
        check_packing(Forgetful(model), rows_of(LENGTHS))
    assert "\n" not in str(caught.value)
    model.config._attn_implementation = "paged_attention"
    with pytest.raises(IncompatibleError, match="cannot keep packed rows apart"):
        choose_collate(model, True)
    assert choose_collate(model, False) is collate


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=12))
def test_bins_hold_every_row_once(lengths: list[tuple[int, int]]) -> None:
    rows = rows_of(lengths)
    capacity = max(p + c for p, c in lengths)
    bins = fill_bins(rows, capacity)
    assert sorted(map(id, (row for rows in bins for row in rows))) == sorted(map(id, rows))
    assert all(sum(len(row["input_ids"]) for row in rows) <= capacity for rows in bins)
    batch = collate_packed(rows)
    assert batch["input_ids"].shape[1] <= capacity
    # The first token of a row is predicted by nothing of its own: it has no loss.
    assert int((batch["labels"] != IGNORED).sum()) == sum(c for _, c in lengths)
    starts = batch["position_ids"] == 0
    assert bool((batch["labels"][starts] == IGNORED).all())


@pytest.mark.slow
def test_packing_changes_speed_not_the_adapter(checkpoint: Path, tmp_path: Path) -> None:
    worker = TuneWorker(TuneConfig(threads=1, device="cpu"))
    padded = make_job(checkpoint, tmp_path / "padded", method={"steps": 8})
    packed = make_job(checkpoint, tmp_path / "packed", method={"steps": 8, "packing": True})
    a, b = worker.run(padded), worker.run(packed)
    assert b.first_loss == pytest.approx(a.first_loss, rel=1e-6)
    assert b.final_loss == pytest.approx(a.final_loss, rel=1e-4)
    assert largest_difference(padded, packed) < 1e-4
