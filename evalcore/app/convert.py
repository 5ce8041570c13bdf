"""``evalcore convert``: adapters and checkpoints saved as .bin, written again as safetensors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from evalcore.errors import InputError
from evalcore.files import scratch_folder
from evalcore.identity.adapter import ADAPTER_CONFIG
from evalcore.reading import read_json

_WEIGHTS = re.compile(r"^(adapter_model|pytorch_model)(-\d+-of-\d+)?\.bin$")
_BESIDE = ("*.json", "*.jinja", "*.txt", "*.model", "*.md")
_INDEX, _NEW_INDEX = "pytorch_model.bin.index.json", "model.safetensors.index.json"


def convert(source: Path, output: Path) -> list[Path]:
    """Writes a folder with .bin weights again, its weights as safetensors.

    Args:
        source: Folder of an adapter or a checkpoint; it is not changed.
        output: A folder that does not exist yet.

    Returns:
        The files of weights that were written.

    Raises:
        InputError: There is nothing to convert, a file holds more than tensors, or ``output`` is
            there already.
    """
    if not source.is_dir():
        raise InputError(f"convert: {source} is not a directory")
    files = sorted(file for file in source.iterdir() if _WEIGHTS.match(file.name))
    kind = "adapter_model" if (source / ADAPTER_CONFIG).is_file() else "pytorch_model"
    files = [file for file in files if file.name.startswith(kind)]
    if not files:
        raise InputError(
            f"convert: {source} holds no {kind}*.bin; expected the folder of an adapter "
            f"({ADAPTER_CONFIG}) or of a checkpoint (config.json)"
        )
    if output.exists():
        raise InputError(f"convert: {output} exists already; give a new folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder("convert", output.parent) as place:
        made = place / "made"
        made.mkdir()
        for file in files:
            _convert_file(file, made / _renamed(file.name))
        for pattern in _BESIDE:
            for other in source.glob(pattern):
                if other.is_file() and other.name != _INDEX:
                    shutil.copyfile(other, made / other.name)
        if (source / _INDEX).is_file():
            _convert_index(source / _INDEX, made / _NEW_INDEX)
        os.replace(made, output)
    return sorted(output.glob("*.safetensors"))


def _renamed(name: str) -> str:
    return name.replace("pytorch_model", "model").removesuffix(".bin") + ".safetensors"


def _convert_file(source: Path, target: Path) -> None:
    command = [sys.executable, "-m", "evalcore.app.unpickle", str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"the process ended {done.returncode}"]
        raise InputError(
            f"convert: {source} is not read: {said[0]} (only tensors are read from a pickle, as "
            f"it can run code)"
        )


def _convert_index(source: Path, target: Path) -> None:
    index = read_json(source, "convert")
    places = index.get("weight_map")
    if not isinstance(places, dict):
        raise InputError(f"convert: {source}, key weight_map: expected an object")
    index["weight_map"] = {name: _renamed(str(file)) for name, file in places.items()}
    target.write_text(json.dumps(index, indent=2), "utf-8")
