"""Loading tokenizers."""

from __future__ import annotations

import atexit
import gc
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from evalcore.errors import InputError
from evalcore.identity import tokenizer_fingerprint


def load_tokenizer(path: str | Path) -> Any:
    """The fast tokenizer of a local checkpoint directory (cached by content).

    Raises:
        InputError: If there is none, or it cannot be read.
    """
    return _load(str(path), tokenizer_fingerprint(path))


@lru_cache(maxsize=16)
def _load(path: str, fingerprint: str) -> Any:
    first = "transformers" not in sys.modules
    from transformers import AutoTokenizer  # seconds to import: only where tokens are needed

    if first:
        # The library brings hundreds of thousands of objects that live as long as the process. Seen
        # as old, they are not walked through each time many documents are made.
        gc.freeze()
        atexit.register(gc.unfreeze)  # or libraries report their own objects as leaked at the end
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except Exception as error:  # the library raises many kinds for a broken tokenizer
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"tokenizer in {path} cannot be loaded: {reason}") from None
    return tokenizer
