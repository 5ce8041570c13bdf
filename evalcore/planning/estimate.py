"""How long a plan will take, before anything is loaded."""

from __future__ import annotations

from evalcore.errors import InputError


def estimate_seconds(
    prompt_tokens: int,
    tokens_per_s: float,
    *,
    model_loads: int = 0,
    load_s: float = 0.0,
    workers: int = 1,
) -> float:
    """Time of a plan at a measured (or assumed) rate.

    Args:
        prompt_tokens: Tokens to compute (the token limit, where it is known, is the better figure).
        tokens_per_s: Rate of one worker.
        model_loads: Loads, swaps, merges.
        load_s: Seconds of one of them.
        workers: Workers that share both evenly.

    Raises:
        InputError: The rate or the number of workers is not positive.
    """
    if tokens_per_s <= 0 or workers < 1:
        raise InputError(
            f"an estimate needs a positive rate and a worker, got {tokens_per_s} tokens/s, "
            f"{workers} workers"
        )
    return (prompt_tokens / tokens_per_s + model_loads * load_s) / workers
