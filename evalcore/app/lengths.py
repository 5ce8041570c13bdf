"""The longest prompt that is asked of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from evalcore.errors import InputError
from evalcore.identity import numeric_config
from evalcore.types import Checkpoint, EncodingSettings

DEFAULT_MAX_LENGTH = 2048


class Lengths:
    """:func:`encoding_settings` of checkpoints, each asked once."""

    def __init__(self, max_length: int | None) -> None:
        self._max_length = max_length
        self._known: dict[str, EncodingSettings] = {}

    def of(self, checkpoint: Checkpoint) -> EncodingSettings:
        """The settings of a checkpoint."""
        if checkpoint.path not in self._known:
            self._known[checkpoint.path] = encoding_settings(checkpoint, self._max_length)
        return self._known[checkpoint.path]


def encoding_settings(checkpoint: Checkpoint, max_length: int | None) -> EncodingSettings:
    """The longest prompt a checkpoint takes: the option, else its config's (2,048 at most)."""
    config = numeric_config(Path(checkpoint.path))
    most = config.get("max_position_embeddings") or config.get("n_positions")
    if max_length and most and max_length > most:
        raise InputError(
            f"--max-length {max_length} is more than {checkpoint.name} can take ({most} positions)"
        )
    return EncodingSettings(max_length=max_length or min(most or DEFAULT_MAX_LENGTH, 2048))
