"""Work that asks no hub, because its user says so or because it only plans."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = ("1", "TRUE", "YES", "ON")

_plans: list[bool] = []


def is_offline() -> bool:
    """Whether the hub may not be asked; by the environment as it is now."""
    return any(os.environ.get(name, "").upper() in _TRUE for name in OFFLINE)


def why_offline() -> str:
    """Why not, in words for the middle of a line."""
    return "a plan asks no hub" if any(_plans) else "HF_HUB_OFFLINE is set"


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    """A plan: local caches alone, for hub models and data sets, here and in processes it starts.

    Where the environment says so already, that stays the reason.
    """
    names = OFFLINE[:2]
    before = {name: os.environ.get(name) for name in names}
    _plans.append(not is_offline())
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        _plans.pop()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
