"""Revisions of a tiny model on the loopback hub, what was fetched of them, and what came of it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from evalcore.store import ResultStore
from tests.conftest import write_checkpoint
from tests.hub.loopback import LoopbackHub


def files_of(folder: Path, below: str = "") -> dict[str, bytes | str]:
    return {f"{below}{file.name}": file.read_bytes() for file in folder.iterdir()}


def publish(hub: LoopbackHub, folder: Path, count: int) -> int:
    """Revisions step1, step2, ... of org/base, which differ in their weights; bytes of one."""
    shared = write_checkpoint(folder / "shared")
    repository = hub.repository("model", "org/base")
    for step in range(1, count + 1):
        own = write_checkpoint(folder / f"step{step}", seed=step, tokenizer=False)
        files = files_of(shared) | files_of(own)
        repository.commit(files, ref=f"step{step}")
    (folder / "list.txt").write_text(
        "# all of them\n\n" + "".join(f"org/base@step{step}\n" for step in range(1, count + 1))
    )
    return sum(len(content) for content in files.values())


def fetched(hub: LoopbackHub, agent: str = "") -> Counter[str]:
    """Large file -> bytes that were sent of it (to one who asks so), but for headers."""
    found: Counter[str] = Counter()
    for body in hub.bodies:
        if len(body.name) == 64 and not body.beginning and agent in body.agent:
            found[body.name] += body.count
    return found


def weights(hub: LoopbackHub) -> dict[str, int]:
    """sha256 -> bytes of all weights of org/base."""
    commits = hub.repository("model", "org/base").commits.values()
    every = [files["model.safetensors"] for files in commits]
    return {hashlib.sha256(content).hexdigest(): len(content) for content in every}


def rows(out: Path) -> tuple[int, int]:
    """(examples, rows of all segments)."""
    store = ResultStore(out, read_only=True)
    written = 0
    for file in store.segments_folder.glob("[!.]*.arrow"):
        with pa.OSFile(str(file)) as source:
            written += pa.ipc.open_file(source).read_all().num_rows
    return len(store.examples(["cell", "doc_id"])), written


@contextmanager
def largest(*caches: Path) -> Iterator[list[int]]:
    """The most bytes each node's cache held, looked at again and again."""
    most, ended = [0] * len(caches), threading.Event()

    def size(folder: Path) -> int:
        total = 0
        for root, _, names in os.walk(folder):
            for name in names:
                try:
                    about = os.lstat(os.path.join(root, name))
                except OSError:
                    continue
                total += about.st_size if "blobs" in root else 0
        return total

    def look() -> None:
        while not ended.is_set():
            for i, cache in enumerate(caches):
                most[i] = max(most[i], size(cache / "passing"))
            ended.wait(0.03)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()
