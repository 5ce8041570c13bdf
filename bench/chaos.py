"""Runs of `evalcore score` that are killed at random and resumed end as an undisturbed one does.

    python -m bench.chaos [-o FOLDER] [--trials 160] [--seed 0] [--minutes 90]

Each trial, drawn from its seed: strike a run (driver, worker, both; a worker stopped for a while;
SIGTERM, SIGINT once and twice, a time limit) some moments after a random number of commits, up to
three times, each time resumed with another number of workers and another unit size; then let it
end. Compared with the undisturbed run: the same keys, the same predictions, log-probabilities
within 1e-5, nothing twice in the table, no process left over, rows computed a second time counted.
A line for each trial is appended to FOLDER/chaos.jsonl; trials that are there are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

DEEDS = ("driver", "worker", "both", "pause", "SIGTERM", "SIGINT", "SIGINT twice", "time limit")
TOLERANCE = 1e-5
NEAR_TIE = 2e-5
END_S = 600.0


def command(grid: Path, out: Path, workers: int, unit: int) -> list[str]:
    """A grid of several subjects, in many small units."""
    return [
        sys.executable, "-m", "evalcore", "score", str(grid / "adapters"), "-o", str(out),
        "-t", "pocket_nli", "-p", "default,io", "--limit", "12", "--engine", "hf", "--threads", "1",
        "--workers", str(workers), "--unit-examples", str(unit), "--commit-every", "0",
        "--stop-grace", "20",
    ]  # fmt: skip


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in task.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has reaped yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in "ZX"


def engine_process(pid: int) -> int | None:
    """The worker that has the most memory below a driver."""

    def pages(child: int) -> int:
        try:
            return int(Path(f"/proc/{child}/statm").read_text().split()[1])
        except OSError:
            return 0

    return max(descendants(pid), key=pages, default=None)


def strike(process: subprocess.Popen[bytes], deed: str, draw: random.Random) -> None:
    """Does it; where it leaves the driver alive, the driver is left to end by itself."""
    worker = engine_process(process.pid)
    with contextlib.suppress(ProcessLookupError):
        if deed in ("worker", "both") and worker is not None:
            os.kill(worker, signal.SIGKILL)
        if deed in ("driver", "both"):
            process.kill()
        if deed == "pause" and worker is not None:
            os.kill(worker, signal.SIGSTOP)
            time.sleep(draw.uniform(0.5, 5.0))
            os.kill(worker, signal.SIGCONT)
        if deed.startswith("SIG"):
            process.send_signal(getattr(signal, deed.split()[0]))
            if deed.endswith("twice"):
                time.sleep(draw.uniform(0.0, 1.0))
                process.send_signal(signal.SIGINT)


def segments(out: Path) -> int:
    """Commits so far."""
    return len(list((out / "segments").glob("[!.]*.arrow")))


def disturbed(grid: Path, out: Path, draw: random.Random) -> dict[str, Any]:
    """One run with its strike; what was done and how it ended."""
    workers, unit = draw.randint(1, 2), draw.choice([2, 3, 5, 8, 24])
    deed = draw.choice(DEEDS)
    begin, wanted = segments(out), draw.randint(0, 8)
    limit = ["--time-limit", f"{draw.uniform(3.0, 20.0):.1f}"] if deed == "time limit" else []
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [*command(grid, out, workers, unit), *limit], stdout=quiet, stderr=quiet
    )
    ends = time.monotonic() + END_S
    while process.poll() is None and segments(out) < begin + wanted:
        assert time.monotonic() < ends, "it neither commits nor ends"
        time.sleep(0.02)
    time.sleep(draw.uniform(0.0, 1.0))
    family = [process.pid, *descendants(process.pid)]
    struck = process.poll() is None
    if struck and deed != "time limit":
        strike(process, deed, draw)
    status = process.wait(timeout=END_S)
    left = time.monotonic() + 30.0
    while any(alive(pid) for pid in family) and time.monotonic() < left:
        time.sleep(0.1)
    orphans = sum(alive(pid) for pid in family)
    return {
        "deed": deed, "workers": workers, "unit": unit, "struck": struck, "status": status,
        "orphans": orphans, "segments": segments(out),
    }  # fmt: skip


def rows_of(out: Path) -> tuple[dict[tuple[str, str], dict[str, Any]], int]:
    """Examples by (cell, document), and rows in all segments, doubles counted."""
    from evalcore.store import ResultStore

    store = ResultStore(out, read_only=True)
    table = store.examples(["cell", "doc_id", "prediction", "choice_logprobs", "text"])
    rows = {(row["cell"], row["doc_id"]): row for row in table.to_pylist()}
    assert len(rows) == len(table), "something is twice in the table"
    return rows, sum(info.num_rows for info in store._infos())


def differences(expected: dict[Any, Any], found: dict[Any, Any]) -> list[str]:
    """What is not as in the undisturbed run; empty if all is."""
    wrong = [f"keys: {len(expected.keys() ^ found.keys())} differ"]
    wrong = wrong if expected.keys() != found.keys() else []
    for key in expected.keys() & found.keys():
        before, after = expected[key], found[key]
        a, b = (np.asarray(row["choice_logprobs"]) for row in (before, after))
        if np.abs(a - b).max(initial=0.0) > TOLERANCE or before["text"] != after["text"]:
            wrong.append(f"{key}: {a} is {b}")
        top = np.sort(a)[::-1]
        near = len(top) > 1 and top[0] - top[1] <= NEAR_TIE
        if before["prediction"] != after["prediction"] and not near:
            wrong.append(f"{key}: prediction {before['prediction']} is {after['prediction']}")
    return wrong


def trial(grid: Path, folder: Path, seed: int, expected: dict[Any, Any]) -> dict[str, Any]:
    """One trial; its line for the log."""
    draw = random.Random(seed)
    out = folder / f"trial-{seed}"
    begin = time.monotonic()
    strikes = [disturbed(grid, out, draw) for _ in range(draw.randint(1, 3))]
    last = subprocess.run(
        command(grid, out, draw.randint(1, 2), draw.choice([4, 16])),
        capture_output=True, text=True, timeout=END_S, check=False,
    )  # fmt: skip
    found, written = rows_of(out)
    return {
        "seed": seed,
        "strikes": strikes,
        "status": last.returncode,
        "wrong": differences(expected, found)[:5],
        "rows": len(found),
        "rows_again": written - len(found),
        "orphans": sum(s["orphans"] for s in strikes),
        "seconds": round(time.monotonic() - begin, 1),
    }


def build_grid(grid: Path) -> None:
    """Two random tiny checkpoints with two adapters each."""
    from tests.conftest import write_adapter, write_checkpoint

    for step in (1, 2):
        base = write_checkpoint(grid / f"step-{step:05d}", seed=step)
        for k in (1, 2):
            write_adapter(grid / "adapters" / f"{step}-{k}", base, seed=10 * step + k)


def run(folder: Path, seeds: range, minutes: float) -> int:
    """Trials that are not in the log yet; number of bad ones in it."""
    folder.mkdir(parents=True, exist_ok=True)
    grid, log, ends = folder / "grid", folder / "chaos.jsonl", time.monotonic() + 60 * minutes
    if not (grid / "adapters").exists():
        build_grid(grid)
    subprocess.run(command(grid, folder / "undisturbed", 1, 24), check=True, timeout=END_S,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    expected, _ = rows_of(folder / "undisturbed")
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    for seed in seeds:
        if any(line["seed"] == seed for line in done) or time.monotonic() > ends:
            continue
        line = trial(grid, folder, seed, expected)
        with log.open("a") as sink:
            sink.write(json.dumps(line) + "\n")
        done.append(line)
        deeds = ", ".join(s["deed"] for s in line["strikes"])
        print(f"{seed}: {deeds}: status {line['status']}, {line['rows']} rows, "
              f"{line['rows_again']} again, {len(line['wrong'])} wrong", flush=True)  # fmt: skip
    bad = [line for line in done if line["wrong"] or line["orphans"] or line["status"]]
    strikes = sum(s["struck"] for line in done for s in line["strikes"])
    again = sum(line["rows_again"] for line in done)
    print(f"{len(done)} trials, {strikes} strikes, {again} rows computed again, {len(bad)} bad")
    return len(bad)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("chaos"))
    parser.add_argument("--trials", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=90.0)
    given = parser.parse_args()
    first = given.seed
    sys.exit(bool(run(given.output, range(first, first + given.trials), given.minutes)))
