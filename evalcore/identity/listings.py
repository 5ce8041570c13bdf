"""What a listing of the hub says of a checkpoint or an adapter: its files, sizes and headers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from evalcore.errors import InputError
from evalcore.identity.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from evalcore.identity.cache import known_fact, note_fact
from evalcore.identity.header import MAX_HEADER_BYTES, TensorInfo, parse_header
from evalcore.identity.hub import HubFile, HubRepository
from evalcore.identity.places import HubPlace

_SMALL = (".json", ".model", ".txt", ".jinja")
_TEMPLATES = "additional_chat_templates/"
_HEADER = "hub-header-1"
_AT_ONCE = 1 << 16  # bytes of a header that are asked for first
_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(I?)B?", re.I)

Header = tuple[dict[str, TensorInfo], int]


def own_files(listing: Mapping[str, HubFile], place: HubPlace) -> dict[str, HubFile]:
    """Files that lie in a folder of the hub itself, by their names in it."""
    below = place.below
    inside = {name[len(below) :]: file for name, file in listing.items() if name.startswith(below)}
    return {name: file for name, file in inside.items() if "/" not in name}


def weight_names_of(listing: Mapping[str, HubFile], place: HubPlace) -> set[str]:
    """Names of the weight files of a checkpoint, in its folder."""
    return {name for name in own_files(listing, place) if _is_weights(name)}


def files_of(listing: Mapping[str, HubFile], place: HubPlace) -> dict[str, HubFile]:
    """What whoever scores a place on the hub needs of it: names in the repository -> files.

    Of an adapter its configuration, weights and tokenizer; of a checkpoint the same.
    """
    own = own_files(listing, place)
    adapter = ADAPTER_CONFIG in own
    found = {
        place.below + name: file
        for name, file in own.items()
        if name.endswith(_SMALL) or (name == ADAPTER_WEIGHTS if adapter else _is_weights(name))
    }
    templates = place.below + _TEMPLATES
    return found | {name: file for name, file in listing.items() if name.startswith(templates)}


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and not name.startswith("consolidated")


def adapter_folders(listing: Mapping[str, HubFile], place: HubPlace) -> list[HubPlace]:
    """The adapters in a folder of the hub and below it."""
    found = []
    for name in sorted(listing):
        path = PurePosixPath(name)
        if path.name == ADAPTER_CONFIG and name.startswith(place.below):
            folder = "" if str(path.parent) == "." else str(path.parent)
            found.append(HubPlace(place.repo, place.revision, folder))
    return found


def total_bytes(files: Mapping[str, HubFile]) -> int:
    """Bytes of all of them."""
    return sum(file.size for file in files.values())


def check_budget(files: Mapping[str, HubFile], budget: int | None, what: str) -> None:
    """Refuses what a node can never hold.

    Raises:
        InputError: It is larger than the budget.
    """
    if budget is not None and (size := total_bytes(files)) > budget:
        raise InputError(
            f"{what} takes {size_text(size)}, more than --disk-budget {size_text(budget)}; give "
            f"at least that much (twice that much to fetch the next one meanwhile)"
        )


def remote_header(repository: HubRepository, place: HubPlace, name: str, file: HubFile) -> Header:
    """The header of a safetensors file that stays on the hub.

    Raises:
        HubError: It is not to be had.
        InputError: It is none.
    """
    state = str(file.sha256)
    found = known_fact(_HEADER, state) if file.sha256 is not None else None
    if found is None:
        path = Path(f"{place}/{name}")
        full, count = place.below + name, min(_AT_ONCE, file.size)
        data = repository.beginning(place.revision, full, count)
        length = int.from_bytes(data[:8], "little")
        if length > min(file.size - 8, MAX_HEADER_BYTES):
            raise InputError(f"{path} is not a whole safetensors file: its header is too long")
        if length + 8 > len(data):
            data = repository.beginning(place.revision, full, length + 8)
        tensors, start = parse_header(data[8 : 8 + length], file.size, path)
        if file.sha256 is not None:
            rows = {k: [i.dtype, i.shape, i.start, i.stop] for k, i in tensors.items()}
            note_fact(_HEADER, state, [rows, start])
        return tensors, start
    rows, start = found
    return {k: TensorInfo(d, tuple(shape), a, b) for k, (d, shape, a, b) in rows.items()}, start


def parse_size(text: str) -> int:
    """Bytes of ``200GB``, ``1.5 TiB``, ``500M``.

    Raises:
        InputError: It is no such size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{text[:40]!r}: expected a size such as 200GB, 1.5TiB or 500MB")
    unit = found[2].upper()
    size = float(found[1]) * (1024 ** "BKMGT".index(unit) if unit and found[3] else _UNITS[unit])
    if size < 1 or size >= 2**63:
        raise InputError(f"{text[:40]!r}: expected a size from 1 byte on")
    return int(size)


def size_text(count: int) -> str:
    """``13.5 GB``."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:,.1f} {units[0]}" if units[0] != "bytes" else f"{count:,} bytes"


def is_whole(folder: Path, files: Mapping[str, HubFile], place: HubPlace) -> bool:
    """Whether all files of a place are in a folder, with their sizes."""
    below = len(place.below)
    try:
        return all(os.stat(folder / n[below:]).st_size == f.size for n, f in files.items())
    except OSError:
        return False
