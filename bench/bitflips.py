"""Single flipped bits in results: each is found or without effect, none is a crash or a hang.

    python -m bench.bitflips [--flips 400,300,300] [--seed 0]

For every flip (in segments, in cell tables, in all other files) a process of its own opens the
folder and goes through resume (what would be planned), report (analysis of the joined table) and
export. What it says must be the undamaged folder's answer, or name the file; and `evalcore verify`
must name it in any case.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

HANG_S = 120.0
_VIEWS = (
    "resume", "read", "records", "documents", "requests", "makers", "report", "export",
)  # fmt: skip
CLASSES = ("segments", "cells", "other")


def build(folder: Path, rows: int = 2_400, cells: int = 900) -> None:
    """A folder of at least 5 MB: segments, many cell records, makers, documents, requests, runs."""
    import pyarrow as pa

    from evalcore.store import ResultStore

    rng = np.random.default_rng(0)
    store = ResultStore(folder)
    names = [f"{i:032x}" for i in range(cells)]
    scored = names[:40]
    store.write_cells([_cell(name, number) for number, name in enumerate(names)])
    maker = store.write_maker({"engine": "hf", "versions": {"torch": "2"}})
    documents = [hashlib.md5(str(i).encode()).hexdigest() for i in range(rows // len(scored))]
    store.write_documents(
        "toy", "data",
        [{"doc_id": d, "doc_index": i, "fields": rng.bytes(2000).hex(), "choices": ["a", "b"]}
         for i, d in enumerate(documents)],
    )  # fmt: skip
    store.write_requests("requests-toy", pa.table({"doc_id": documents}))
    for part in range(4):
        with store.open_writer("w") as writer:
            for cell in scored:
                writer.add([
                    _row(cell, doc, maker, rng) for doc in documents[part::4]
                ])  # fmt: skip
    for number in range(3):
        store.runs.append({"number": number, "notes": rng.bytes(2000).hex()})


def _cell(name: str, number: int) -> dict[str, Any]:
    return {
        "cell": name, "checkpoint": "step-1", "step": number, "subject": f"s{number}",
        "adapter": f"runs/{name}", "adapter_fingerprint": name[::-1], "base": "base",
        "tuning": "toy", "task": "toy", "task_fingerprint": "t", "group": "toy", "domain": "in",
        "output_type": "multiple_choice", "primary_metric": "acc", "metrics": ["acc"],
        "baseline": 0.5, "variant": "default", "variant_fingerprint": "v", "answer": "choices",
        "max_length": 512, "numerics": "n", "template": _noise(number).hex(),
        "findings": [], "requests": "requests-toy",
    }  # fmt: skip


def _noise(number: int) -> bytes:
    return np.random.default_rng(number).bytes(600)


def _row(cell: str, doc: str, maker: str, rng: np.random.Generator) -> dict[str, Any]:
    scores = rng.normal(size=4).tolist()
    return {
        "cell": cell, "doc_id": doc, "doc_index": 1, "gold": int(rng.integers(4)),
        "prediction": int(np.argmax(scores)), "choice_logprobs": scores,
        "choice_tokens": [1] * 4, "choice_bytes": [1] * 4, "choice_chars": [1] * 4,
        "is_greedy": [False] * 4, "text": rng.bytes(1900).hex(), "prompt_tokens": 9, "flags": [],
        "made_by": maker, "shots": 0, "shots_dropped": 0, "truncated_tokens": 0,
    }  # fmt: skip


def look(folder: Path) -> dict[str, Any]:
    """What resume, report and export make of a folder; errors of evalcore are answers."""
    from evalcore.analysis import ScoreBook
    from evalcore.errors import EvalcoreError
    from evalcore.exports.tables import to_parquet
    from evalcore.store import ResultStore, verify_folder

    answer: dict[str, Any] = {"said": []}
    try:
        store = ResultStore(folder)
        coverage = store.coverage()
        answer["resume"] = coverage.num_examples
        table = store.read()
        answer["read"] = _digest(table)
        answer["records"] = _text(store.runs.list()) + _digest(store.cells())
        answer["documents"] = _digest(store.documents())
        answer["requests"] = store.requests(f"{0:032x}").num_rows
        answer["makers"] = _text(store.makers())
        book = ScoreBook.from_table(table)
        answer["report"] = _text(sorted(map(repr, book.flags))) if len(book.cells) else ""
        to_parquet(store, folder.parent / "x.parquet")
        answer["export"] = hashlib.md5((folder.parent / "x.parquet").read_bytes()).hexdigest()
        answer["said"] += [*store.damage, *store.left_out()]
    except EvalcoreError as error:
        answer["said"].append(str(error))
    report = verify_folder(folder, set_aside=False)
    return answer | {"verify": [damage.file for damage in report.damaged]}


def _digest(table: Any) -> str:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    table = table.combine_chunks()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return hashlib.md5(sink.getvalue()).hexdigest()


def _text(value: Any) -> str:
    return hashlib.md5(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _child(folder: Path, logged: Path, out: Path) -> None:
    import logging

    logging.basicConfig(filename=logged, level=logging.WARNING, force=True)
    out.write_text(json.dumps(look(folder)))


def judge(folder: Path, path: Path, bit: int, good: dict[str, Any]) -> str:
    """``found``, ``no effect``, or what went wrong."""
    data = path.read_bytes()
    broken = bytearray(data)
    broken[bit // 8] ^= 1 << bit % 8
    path.write_bytes(broken)
    logged, out = folder.parent / "log", folder.parent / "answer"
    for old in (logged, out):
        old.unlink(missing_ok=True)
    try:
        child = multiprocessing.get_context("fork").Process(
            target=_child, args=(folder, logged, out)
        )
        child.start()
        child.join(HANG_S)
        if child.is_alive():
            child.kill()
            return "HANG"
        if child.exitcode or not out.exists():
            return f"CRASH (exit code {child.exitcode})"
        answer = json.loads(out.read_text())
        if not any(name.endswith(path.name) for name in answer["verify"]):
            return "UNVERIFIED"
        text = " ".join(answer["said"]) + (logged.read_text() if logged.exists() else "")
        if path.name in text:
            return "found"
        same = all(answer.get(key) == value for key, value in good.items() if key in _VIEWS)
        return "no effect" if same else "SILENT"
    finally:
        path.write_bytes(data)


def pools(folder: Path) -> dict[str, list[Path]]:
    """Files of each class."""
    files = [
        p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix in (".arrow", ".json")
    ]
    of = {name: [p for p in files if p.parent.name == name] for name in CLASSES[:2]}
    return of | {"other": [p for p in files if not any(p in own for own in of.values())]}


def run(flips: tuple[int, ...], seed: int, folder: Path) -> dict[str, Counter[str]]:
    """Flips bits and counts what became of them, by class of file."""
    build(folder)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(f"{size / 1e6:.1f} MB of results", flush=True)
    (folder.parent / "copy").mkdir()
    good = look(Path(shutil.copytree(folder, folder.parent / "copy" / "results")))
    assert not good["said"], good
    rng = random.Random(seed)
    counts: dict[str, Counter[str]] = {}
    for name, number in zip(CLASSES, flips, strict=True):
        files = pools(folder)[name]
        weights = [path.stat().st_size for path in files]
        if name == "other":
            weights = [1] * len(files)  # small files too
        own = counts[name] = Counter()
        for _ in range(number):
            (path,) = rng.choices(files, weights)
            bit = rng.randrange(8 * path.stat().st_size)
            verdict = judge(folder, path, bit, good)
            own[verdict] += 1
            if verdict not in ("found", "no effect"):
                print(f"{verdict}: {path.relative_to(folder)}, bit {bit}", flush=True)
        print(f"{number} flips in {name}: {dict(own)}", flush=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--flips", default="400,300,300", help="In segments, cells, all else.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    flips = tuple(int(n) for n in options.flips.split(","))
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        counts = run(flips, options.seed, Path(temporary) / "results")
    bad = sum(
        n for own in counts.values() for k, n in own.items() if k not in ("found", "no effect")
    )
    print(
        f"{sum(flips)} flips in {time.perf_counter() - begin:.0f} s: {bad} silent, crashed or hung"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
