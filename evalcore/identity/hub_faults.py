"""Faults of the hub and of the way to it: which may pass by themselves, and when to try again."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger("evalcore")

TRIES = 4
WAIT_S = 1.0
"""Before the second try; doubled for each further one. The hub's own Retry-After goes before."""
LONGEST_S = 90.0
"""All tries of one request together; the library tries a few times by itself in each."""
SILENCE_S = 20.0
"""No further try after so long without any answer: the library has tried five times by then."""
_SILENCE = {"ReadTimeout", "ConnectTimeout", "PoolTimeout", "WriteTimeout"}
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that may be others at the next try."""


def is_silence(error: BaseException) -> bool:
    """Whether nothing answered at all."""
    return type(error).__name__ in _SILENCE


def real_fault(error: BaseException) -> BaseException:
    """What went wrong, under the library's "not in the cache either"."""
    cause = error.__cause__
    if type(error).__name__ == "LocalEntryNotFoundError" and cause is not None:
        return cause
    return error


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status of an answer, if there was one."""
    return getattr(getattr(error, "response", None), "status_code", None)


def retry_after(error: BaseException | None) -> float | None:
    """Seconds that the hub itself asks to wait."""
    headers: Any = getattr(getattr(error, "response", None), "headers", None) or {}
    try:
        return max(0.0, float(headers.get("Retry-After")))
    except (TypeError, ValueError):
        return None


def may_pass(error: BaseException) -> bool:
    """Whether a fault may pass: the connection, a body cut short."""
    if type(error).__name__ == "TooManyRedirects":
        return False
    if type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "requests"):
        return True
    return isinstance(error, OSError) and "Consistency check failed" in str(error)


def wait_before(error: BaseException, number: int) -> float | None:
    """Seconds until the next try; None if there is no point in one."""
    if status_of(error) in PASSING:
        told = retry_after(error)
        return told if told is not None else WAIT_S * 2 ** (number - 1)
    return WAIT_S * 2 ** (number - 1) if may_pass(error) else None


def xet_failed(error: BaseException) -> bool:
    """Whether Xet storage failed (a mirror without it, a blocked host); plain HTTP is next then.

    huggingface_hub takes plain HTTP only where hf_xet is not installed.
    """
    from huggingface_hub import constants

    trace, seen = error.__traceback__, False
    while trace is not None and not seen:
        seen = trace.tb_frame.f_code.co_name == "xet_get"
        trace = trace.tb_next
    if not seen or constants.HF_HUB_DISABLE_XET:
        return False
    logger.info("Xet storage failed (%s): plain HTTP from here on", shortly(error))
    constants.HF_HUB_DISABLE_XET = True
    return True


def shortly(error: BaseException | None) -> str:
    """A fault in a few words."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:160]}"
