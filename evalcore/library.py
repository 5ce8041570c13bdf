"""transformers, as tokenizers need it.

The library imports torch wherever it finds it, though no tokenizer does anything with it: seconds
that nobody needs. A process that runs no model says so (:func:`runs_no_model`), and transformers
finds no torch in it: tokenizers are the same to the last id, models cannot be built. Workers are
processes of their own and import what they need.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, cast

_SILENT = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
_no_model = False


def runs_no_model() -> None:
    """Says that no model is built or run in this process: transformers does without torch.

    For programs that are evalcore's own. In a process of somebody else's (a notebook, a test), who
    may want models later, it is never said, and transformers is imported as ever.
    """
    global _no_model
    _no_model = True


def library() -> Any:
    """The module ``transformers``: seconds to import, so only where tokens are needed."""
    if "transformers" not in sys.modules:
        with _without_torch() if _no_model else contextlib.nullcontext():
            import transformers
            from transformers.utils import is_torch_available

            transformers.AutoTokenizer, is_torch_available()  # asked once, remembered
        # The library brings hundreds of thousands of objects that live as long as the process. Seen
        # as old, they are not walked through each time many documents are made.
        gc.freeze()
        atexit.register(gc.unfreeze)  # or libraries report their own objects as leaked at the end
    return sys.modules["transformers"]


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Torch is not found, unless it is there already; afterwards it can be imported by others."""
    if "torch" in sys.modules:
        yield
        return
    told = os.environ.get(_SILENT)
    os.environ[_SILENT] = "1"  # that models are not available
    sys.modules["torch"] = cast("ModuleType", None)
    try:
        yield
    finally:
        del sys.modules["torch"]
        if told is None:
            del os.environ[_SILENT]
        else:
            os.environ[_SILENT] = told
