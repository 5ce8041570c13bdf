"""Limits of the hub's answers: how long one is waited for, and how slowly it may come.

A server that sends a byte now and then never runs into a time limit between two bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

ANSWER_S = 10.0
"""For the hub's answer to one question about a repository."""
WINDOW_S = 60.0
"""How long an answer is waited for before its rate is judged, and judged again."""
LEAST_BYTES_PER_S = 1_000
"""Of an answer that is not at its end; writing to a slow disk does not count."""


class TooSlowError(OSError):
    """An answer comes too slowly to be waited for."""


@lru_cache(maxsize=1)
def bound_answers() -> None:
    """Questions that the library asks without a time limit get one, in all of this process.

    It has none of its own (``timeout=None``, explicitly, for lists of files): a hub that takes
    connections and never answers would hold up a command for ever. So would one whose answer
    never ends (:func:`bound_rate`).
    """
    try:
        from huggingface_hub import set_client_factory
        from huggingface_hub.utils._http import default_client_factory
    except ImportError:  # a library before 1.0 has limits
        return

    def limited(request: Any) -> None:
        limits = request.extensions.get("timeout") or {}
        request.extensions["timeout"] = {
            kind: ANSWER_S if limits.get(kind) is None else limits[kind]
            for kind in ("connect", "read", "write", "pool")
        }

    def client() -> Any:
        made = default_client_factory()
        hooks = made.event_hooks
        made.event_hooks = {
            "request": [*hooks.get("request", []), limited],
            "response": [*hooks.get("response", []), bound_rate],
        }
        return made

    set_client_factory(client)


def bound_rate(response: Any) -> None:
    """Lets the body of a response end with :class:`TooSlowError` if it trickles.

    Args:
        response: Of httpx or httpx2; nobody has read its body yet.
    """
    base = next((c for c in type(response.stream).__mro__ if c.__name__ == "SyncByteStream"), None)
    if base is not None:
        response.stream = _metered(base)(response.stream)


@lru_cache(maxsize=2)
def _metered(base: type) -> type:
    """A stream of the library's own kind, which it asks for."""

    def begin(self: Any, stream: Any) -> None:
        self.stream = stream

    return type(
        "MeteredStream",
        (base,),
        {
            "__init__": begin,
            "__iter__": lambda self: metered(iter(self.stream)),
            "close": lambda self: self.stream.close(),
        },
    )


def metered(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The parts as they come.

    Raises:
        TooSlowError: In a whole window fewer bytes came than have to.
    """
    waited_s, size = 0.0, 0
    while True:
        begin = time.monotonic()
        try:
            part = next(parts)
        except StopIteration:
            return
        waited_s, size = waited_s + time.monotonic() - begin, size + len(part)
        yield part
        if waited_s >= WINDOW_S:
            if size < LEAST_BYTES_PER_S * waited_s:
                raise TooSlowError(f"{size:,} bytes in {waited_s:.0f} s")
            waited_s, size = 0.0, 0
