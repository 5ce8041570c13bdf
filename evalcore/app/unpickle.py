"""Reads a pickled file of tensors and writes it as safetensors; run as a process of its own.

``python -m evalcore.app.unpickle SOURCE TARGET``. A pickle can run code when it is read: torch
reads it with ``weights_only`` (tensors and plain containers, nothing else), and what goes wrong or
takes too much memory ends this process, not the one that asked.
"""

from __future__ import annotations

import sys
from typing import Any


def unpickle(source: str, target: str) -> None:
    """Writes the tensors of a .bin file as safetensors, their names kept.

    Raises:
        ValueError: The file holds something else than named tensors.
    """
    import torch
    from safetensors.torch import save_file

    held: Any = torch.load(source, map_location="cpu", weights_only=True)
    if not isinstance(held, dict):
        raise ValueError(f"it holds a {type(held).__name__}, not named tensors")
    if isinstance(held.get("state_dict"), dict):
        held = held["state_dict"]
    odd = [str(name) for name, tensor in held.items() if not isinstance(tensor, torch.Tensor)]
    if odd:
        raise ValueError(f"{odd[0]} is no tensor")
    # Cloned: tied tensors share memory, which safetensors does not write.
    tensors = {str(name): tensor.detach().clone().contiguous() for name, tensor in held.items()}
    save_file(tensors, target, metadata={"format": "pt"})


if __name__ == "__main__":
    try:
        unpickle(sys.argv[1], sys.argv[2])
    except Exception as error:  # one line for the process that asked
        lines = str(error).strip().splitlines() or [type(error).__name__]
        sys.exit(lines[0])
