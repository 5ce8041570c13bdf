"""Single flipped bits in results: each is found or without effect, none is a crash or a hang.

    python -m bench.bitflips [--flips 400,300,300] [--whole 42] [--seed 0]

For every flip (in segments, in cell tables, in all other files) a process of its own opens the
folder and goes through resume (what would be planned), report (analysis of the reduced cells, of
the joined table, and every record a page shows) and export. What it says must be the undamaged
folder's answer, or name the file; and `evalcore verify` must name it in any case.

The folder is made by the store's own functions and is as large as that takes (5 MB). ``--whole``
flips, the kinds of file in turn, are made in a folder that a run with the stub engine has left,
and go through the commands themselves: ``score --dry-run``, ``status``, ``report``, and ``export``
in every form; what they write must be what they wrote before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

HANG_S = 900.0  # by the clock: a busy machine may take minutes for what takes seconds
CLASSES = ("segments", "cells", "other")


def build(folder: Path, rows: int = 800, cells: int = 300) -> None:
    """A folder of at least 5 MB with every kind of file there is (but grids and cache)."""
    import pyarrow as pa

    from evalcore.store import ProgressFile, ResultStore

    rng = np.random.default_rng(0)
    store = ResultStore(folder)
    names = [f"{i:032x}" for i in range(cells)]
    scored = names[:10]
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
    store.write_clusters("toy", {d: f"c{i // 3}" for i, d in enumerate(documents)})
    store.drop_cells(names[-2:])
    store.mark_sampled({names[-3]: {"prompts": 9, "documents": 9, "budget": 0.1, "seed": 1}})
    ProgressFile(folder, "run").write({"ended": {"status": 0, "how": "done"}, "committed": rows})
    _read_reduced(store)


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
    return np.random.default_rng(number).bytes(1800)


def _row(cell: str, doc: str, maker: str, rng: np.random.Generator) -> dict[str, Any]:
    scores = rng.normal(size=4).tolist()
    return {
        "cell": cell, "doc_id": doc, "doc_index": 1, "gold": int(rng.integers(4)),
        "prediction": int(np.argmax(scores)), "choice_logprobs": scores,
        "choice_tokens": [1] * 4, "choice_bytes": [1] * 4, "choice_chars": [1] * 4,
        "is_greedy": [False] * 4, "text": rng.bytes(5700).hex(), "prompt_tokens": 9, "flags": [],
        "made_by": maker, "shots": 0, "shots_dropped": 0, "truncated_tokens": 0,
    }  # fmt: skip


def _read_reduced(store: Any) -> str:
    """What a report computes, with numbers that are kept beside the results."""
    from evalcore.analysis.scores import score_rows
    from evalcore.app.reduction import keep_estimates, read_book

    book = read_book(store)
    rows = score_rows(book)
    keep_estimates(store, book)
    return _text(sorted(map(repr, rows)))


def look(folder: Path) -> dict[str, Any]:
    """What resume, report and export make of a folder; errors of evalcore are answers."""
    from evalcore.analysis import ScoreBook
    from evalcore.errors import EvalcoreError
    from evalcore.exports.tables import to_parquet
    from evalcore.store import ResultStore, read_progress, verify_folder

    checked = verify_folder(folder, set_aside=False)  # first: views make some files again
    answer: dict[str, Any] = {"said": [], "verify": [damage.file for damage in checked.damaged]}
    try:
        store = ResultStore(folder)
        coverage = store.coverage()
        answer["resume"] = coverage.num_examples
        table = store.read()
        answer["read"] = _digest(table)
        answer["records"] = _text(store.runs.list()) + _digest(store.cells())
        answer["documents"] = _digest(store.documents())
        answer["states"] = _text(store.cell_states()) + _text(dict(store.sampled()))
        answer["clusters"] = _text(store.clusters())
        answer["reduced"] = _read_reduced(store)
        seen = read_progress(folder)
        answer["runs"] = _text([run.record for run in seen.runs])
        answer["said"] += seen.damaged
        answer["requests"] = store.requests(f"{0:032x}").num_rows
        answer["makers"] = _text(store.makers())
        book = ScoreBook.from_table(table)
        answer["report"] = _text(sorted(map(repr, book.flags))) if len(book.cells) else ""
        to_parquet(store, folder.parent / "x.parquet")
        answer["export"] = hashlib.md5((folder.parent / "x.parquet").read_bytes()).hexdigest()
        answer["said"] += [*store.damage, *store.left_out()]
    except EvalcoreError as error:
        answer["said"].append(str(error))
    return answer


def _digest(table: Any) -> str:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    table = table.combine_chunks()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return hashlib.md5(sink.getvalue()).hexdigest()


def _text(value: Any) -> str:
    return hashlib.md5(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def build_whole(folder: Path) -> Path:
    """Results of a real run of two subjects (stub engine); gives the grid. Every kind of file."""
    from evalcore.app.report import report
    from evalcore.store import ResultStore
    from tests.conftest import write_adapter, write_checkpoint

    grid = folder.parent / "grid"
    base = write_checkpoint(grid / "step-00001")
    write_adapter(grid / "adapters" / "a", base)
    command = [sys.executable, "-m", "bench.stub", *_score(grid, folder)]
    env = {**os.environ, "EVALCORE_GRID": "g", "STUB_CONTEXT_S": "0"}
    subprocess.run([*command, "--shard", "0/1"], env=env, check=True, stdout=subprocess.DEVNULL)
    store = ResultStore(folder)
    cells = store.cells()
    ids = store.documents()["doc_id"].to_pylist()
    store.write_clusters("pocket_nli", {d: f"c{i // 3}" for i, d in enumerate(ids)})
    store.drop_cells(cells["cell"].to_pylist()[-1:])
    report(folder, folder.parent / "report", title="t")  # leaves reductions
    return grid


def _score(grid: Path, out: Path) -> list[str]:
    return [
        "score", str(grid / "adapters"), "-o", str(out), "-t", "pocket_nli,pocket_describe",
        "-p", "default", "--limit", "6", "--engine", "hf", "--threads", "1",
    ]  # fmt: skip


def command_line(grid: Path, folder: Path) -> dict[str, Any]:
    """What the commands say and write, as :func:`look` does."""
    from click.testing import CliRunner

    from evalcore.cli import cli
    from evalcore.errors import EvalcoreError
    from evalcore.exports import FORMATS
    from evalcore.store import verify_folder

    made = folder.parent / "made"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    os.environ["EVALCORE_GRID"] = "g"
    commands = {
        "resume": [*_score(grid, folder), "--dry-run", "--shard", "0/1"],
        "status": ["status", str(folder), "--all", "--json"],
        "report": ["report", str(folder), "-o", str(made / "report")],
    }
    for kind in FORMATS:
        to = str(made / f"as-{kind}")
        commands[f"export {kind}"] = ["export", str(folder), "-o", to, "--format", kind]
    checked = verify_folder(folder, set_aside=False)  # first: a report makes some files again
    answer: dict[str, Any] = {"said": [], "verify": [damage.file for damage in checked.damaged]}
    for name, command in commands.items():
        done = CliRunner().invoke(cli, command)
        error = done.exception
        if error is not None and not isinstance(error, SystemExit | EvalcoreError):
            raise error
        answer["said"].append(f"{done.output} {error}")
        answer[name] = done.exit_code
    plan = answer["said"][0].replace(str(folder), "")
    answer["resume"] = [answer["resume"], _text(plan)]
    for path in sorted(made.rglob("*")):
        if path.is_file() and "duckdb" not in path.name:
            digest = hashlib.md5(path.read_bytes()).hexdigest()
            answer[f"file {re.sub(_STAMP, 'WHEN', str(path.relative_to(made)))}"] = digest
    return answer


_STAMP = re.compile(r"\d{4}-\d\d-\d\dT[0-9.:-]+")


def run_whole(flips: int, seed: int, folder: Path) -> Counter[str]:
    """Flips bits of a real folder, kinds of file in turn."""
    grid = build_whole(folder)
    looks = partial(command_line, grid)
    one, good = looks(folder), looks(folder)
    good = {key: value for key, value in good.items() if one.get(key) == value}  # no times of day
    assert not good["verify"], good
    kinds: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".arrow", ".json"):
            top = path.relative_to(folder).parts[0]
            kinds.setdefault(f"{top} {path.suffix}", []).append(path)
    rng = random.Random(seed)
    own: Counter[str] = Counter()
    for number in range(flips):
        kind = list(kinds)[number % len(kinds)]
        path = rng.choice(kinds[kind])
        bit = rng.randrange(8 * path.stat().st_size)
        verdict = judge(folder, path, bit, good, looks)
        own[verdict] += 1
        if verdict not in ("found", "no effect"):
            print(f"{verdict}: {path.relative_to(folder)}, bit {bit}", flush=True)
    print(f"{flips} flips of {len(kinds)} kinds ({', '.join(kinds)}) through the commands: "
          f"{dict(own)}", flush=True)  # fmt: skip
    return own


Look = Callable[[Path], dict[str, Any]]


def _child(folder: Path, logged: Path, out: Path, looks: Look) -> None:
    import logging

    logging.basicConfig(filename=logged, level=logging.WARNING, force=True)
    out.write_text(json.dumps(looks(folder)))


def judge(folder: Path, path: Path, bit: int, good: dict[str, Any], looks: Look = look) -> str:
    """``found``, ``no effect``, or what went wrong; the folder is as before afterwards."""
    before = {p for p in folder.rglob("*") if p.is_file()}
    data = path.read_bytes()
    broken = bytearray(data)
    broken[bit // 8] ^= 1 << bit % 8
    path.write_bytes(broken)
    logged, out = folder.parent / "log", folder.parent / "answer"
    for old in (logged, out):
        old.unlink(missing_ok=True)
    try:
        # A fork is quick; commands leave threads behind, whose locks a fork would wait for.
        how = multiprocessing.get_context("fork" if looks is look else "spawn")
        child = how.Process(target=_child, args=(folder, logged, out, looks))  # type: ignore[attr-defined]
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
        views = good.keys() - {"said", "verify"}
        return "no effect" if all(answer.get(v) == good[v] for v in views) else "SILENT"
    finally:
        path.write_bytes(data)
        for new in {p for p in folder.rglob("*") if p.is_file()} - before:
            new.unlink()  # made again instead of what was damaged


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
    assert not good["verify"], good
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
    parser.add_argument("--whole", type=int, default=0, help="Through the commands themselves.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    flips = tuple(int(n) for n in options.flips.split(","))
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        counts = run(flips, options.seed, Path(temporary) / "results") if sum(flips) else {}
        if options.whole:
            whole = Path(temporary) / "whole" / "results"
            counts["whole"] = run_whole(options.whole, options.seed, whole)
    bad = sum(
        n for own in counts.values() for k, n in own.items() if k not in ("found", "no effect")
    )
    print(
        f"{sum(flips) + options.whole} flips in {time.perf_counter() - begin:.0f} s: {bad} silent, "
        "crashed or hung"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
