"""By what the weights of a checkpoint or an adapter are known wherever they lie."""

from __future__ import annotations

from pathlib import Path

from evalcore.errors import InputError
from evalcore.identity.adapter import adapter_file, numeric_adapter_config
from evalcore.identity.away import away_at, files_state
from evalcore.identity.checkpoint import numeric_config
from evalcore.identity.weights import file_sha256, weight_files
from evalcore.types import Adapter, Checkpoint


def weights_state(made: Checkpoint | Adapter) -> str | None:
    """See ``files_state``; None where the hash of a file is not known (nothing is read for it)."""
    path, adapter = Path(made.path), isinstance(made, Adapter)
    try:
        config = numeric_adapter_config(path) if adapter else numeric_config(path)
        away = away_at(path)
        if away is not None:
            return files_state(config, away.files.values())
        files = [adapter_file(path)] if adapter else weight_files(path)
    except InputError:
        return None
    hashes = [sha256 for file in files if (sha256 := file_sha256(file)) is not None]
    return files_state(config, hashes) if hashes and len(hashes) == len(files) else None
