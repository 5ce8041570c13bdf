"""Batches of rows: padded, or packed so that rows share sequences without seeing one another.

Packing changes how the rows of a batch lie in memory, not which rows a step learns: several rows
stand one after the other in a sequence, each with positions from 0. transformers reads the
boundaries off the positions and masks attention (sdpa, eager, flex: a block-diagonal mask; flash
attention: varlen kernels). Whether that holds for a model is not believed but tried, on its own
rows, before anything is trained (:func:`check_packing`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from evalcore.errors import IncompatibleError

IGNORED = -100
MASKED_BACKENDS = ("sdpa", "eager", "flex_attention")
VARLEN_BACKENDS = ("flash_attention_2", "flash_attention_3")
CHECKED_ROWS = 4
FLOAT32_TOLERANCE = 1e-4  # nats per token
BFLOAT16_TOLERANCE = 0.1

Row = dict[str, list[int]]
Batch = dict[str, torch.Tensor]
Collate = Callable[[Sequence[Row]], Batch]


def make_row(prompt: Sequence[int], completion: Sequence[int], borders: Sequence[int] = ()) -> Row:
    """Ids and labels of a row; labels are not shifted.

    Those of the prompt are ignored, and of the completion those between each two ``borders``.
    """
    labels = [IGNORED] * len(prompt) + [*completion]
    for start, stop in zip(borders[::2], borders[1::2], strict=True):
        labels[len(prompt) + start : len(prompt) + stop] = [IGNORED] * (stop - start)
    return {"input_ids": [*prompt, *completion], "labels": labels}


def collate(rows: Sequence[Row]) -> Batch:
    """Pads on the right: ``input_ids`` and ``labels`` int64 [B, T]; labels are not shifted."""
    return _lay_out([[row] for row in rows])


def collate_packed(rows: Sequence[Row]) -> Batch:
    """Lays rows into as few sequences as the longest row allows: [S, T], S <= B.

    ``position_ids`` int64 [S, T] begin anew with every row; padding at the end counts as a row.
    The first label of a row is ignored: nothing before it belongs to it.
    """
    capacity = max(len(row["input_ids"]) for row in rows)
    return _with_positions(fill_bins(rows, capacity))


def collate_flat(rows: Sequence[Row]) -> Batch:
    """All rows in one sequence [1, T] with positions from 0 for each: for varlen kernels."""
    return _with_positions([list(rows)])


def fill_bins(rows: Sequence[Row], capacity: int) -> list[list[Row]]:
    """Rows dealt into bins of at most ``capacity`` tokens: longest first, each where it fits."""
    order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]["input_ids"]), i))
    bins: list[list[Row]] = []
    space: list[int] = []
    for i in order:
        length = len(rows[i]["input_ids"])
        home = next((b for b, left in enumerate(space) if left >= length), None)
        if home is None:
            bins.append([])
            space.append(capacity)
            home = len(bins) - 1
        bins[home].append(rows[i])
        space[home] -= length
    return bins


def choose_collate(model: Any, packing: bool) -> Collate:
    """How batches of this model are laid out.

    Raises:
        IncompatibleError: If packing is asked for with an attention that cannot keep rows apart.
    """
    if not packing:
        return collate
    backend = getattr(model.config, "_attn_implementation", None)
    if backend in VARLEN_BACKENDS:
        return collate_flat
    if backend in MASKED_BACKENDS:
        return collate_packed
    raise IncompatibleError(
        f"method.packing: attention {backend!r} of {model.config.model_type} cannot keep packed "
        f"rows apart (those that can: {', '.join(MASKED_BACKENDS + VARLEN_BACKENDS)}); "
        f"set packing to false"
    )


def check_packing(model: Any, rows: Sequence[Row]) -> None:
    """Tries packing: each token's loss has to be what it is when its row stands alone.

    Args:
        model: As it will be trained; put into evaluation mode meanwhile.
        rows: Rows to try; the shortest few are taken and share one sequence.

    Raises:
        IncompatibleError: If some token's loss changes by more than rounding.
    """
    few = sorted(rows, key=lambda row: len(row["input_ids"]))[:CHECKED_ROWS]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            packed = sequence_losses(model, collate_flat(few))
            alone = torch.cat([sequence_losses(model, collate([row])) for row in few])
    finally:
        model.train(training)
    exact = next(model.parameters()).dtype == torch.float32
    difference = float((packed - alone).abs().max())
    if not difference <= (FLOAT32_TOLERANCE if exact else BFLOAT16_TOLERANCE):
        raise IncompatibleError(
            f"method.packing: rows are not kept apart by {model.config.model_type} with attention "
            f"{model.config._attn_implementation!r} (a token's loss changes by {difference:.2g} "
            f"nats when its row is packed); set packing to false"
        )


def sequence_losses(model: Any, batch: Batch) -> torch.Tensor:
    """Negative log-likelihood (nats, float32 [N]) of each labelled token, in reading order."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    labels = batch.pop("labels")
    logits = model(**batch, use_cache=False).logits[:, :-1]
    targets = labels[:, 1:]
    wanted = targets != IGNORED
    return cross_entropy(logits[wanted].float(), targets[wanted], reduction="none")


def _lay_out(bins: Sequence[Sequence[Row]]) -> Batch:
    width = max(sum(len(row["input_ids"]) for row in rows) for rows in bins)
    input_ids = torch.zeros(len(bins), width, dtype=torch.long)
    labels = torch.full((len(bins), width), IGNORED, dtype=torch.long)
    for i, rows in enumerate(bins):
        ids = [token for row in rows for token in row["input_ids"]]
        own = [label for row in rows for label in (IGNORED, *row["labels"][1:])]
        input_ids[i, : len(ids)] = torch.tensor(ids)
        labels[i, : len(own)] = torch.tensor(own)
    return {"input_ids": input_ids, "labels": labels}


def _with_positions(bins: Sequence[Sequence[Row]]) -> Batch:
    batch = _lay_out(bins)
    width = batch["input_ids"].shape[1]
    positions = torch.zeros_like(batch["input_ids"])
    for i, rows in enumerate(bins):
        lengths = [len(row["input_ids"]) for row in rows]
        lengths.append(width - sum(lengths))
        positions[i] = torch.cat([torch.arange(length) for length in lengths])
    return {**batch, "position_ids": positions}
