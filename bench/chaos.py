"""Runs of `evalcore score` that are killed at random and resumed end as an undisturbed one does.

    python -m bench.chaos [-o FOLDER] [--engine hf] [--trials 160] [--seed 0] [--minutes 60]
    python -m bench.chaos [-o FOLDER] --cost      one long run, one kill: what it costs

Each trial, drawn from its seed: strike a run (driver, worker, both; a worker stopped for a while;
SIGTERM, SIGINT once and twice, a time limit) some moments after a random number of commits, up to
three times, each time resumed with another number of workers, unit size and shard; then let it end.
Compared with the undisturbed run: the same keys, the same predictions, log-probabilities within
1e-5, nothing twice in the table, no process or temporary file left over.

Tokens are accounted for: those of all rows on disk, rows that stand there twice left out, are not
more than the undisturbed run's and one longest prompt per process that was started beyond its first
(a prefix shared with what is lost; with vllm only where all runs cut the same units, for prefixes
are shared within a unit). Rows are twice on disk only if a worker was killed between its commit and
the driver's hearing of it: at most a unit per kill. What was scored and never committed is counted.
A line for each trial is appended to FOLDER/chaos.jsonl; trials that are there are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

DEEDS = ("driver", "worker", "both", "pause", "SIGTERM", "SIGINT", "SIGINT twice", "time limit")
TOLERANCE = 1e-5
NEAR_TIE = 2e-5
END_S = 600.0
LOST = ("worker", "both")  # deeds that may cost a unit that is on disk already
COST_AT_MOST = 1.05
UNIT = 8  # examples a unit, where all runs of a trial cut alike


def command(
    grid: Path, out: Path, workers: int, unit: int, engine: str = "hf", limit: int = 12,
    commit_every: float = 0.0,
) -> list[str]:  # fmt: skip
    """A grid of several subjects, in many small units; events are told beside the results."""
    return [
        sys.executable, "-m", "evalcore", "score", str(grid / "adapters"), "-o", str(out),
        "-t", "pocket_nli", "-p", "default,io", "--limit", str(limit), "--engine", engine,
        "--threads", "1", "--workers", str(workers), "--unit-examples", str(unit),
        "--commit-every", str(commit_every), "--stop-grace", "20",
        "--log-json", str(events_of(out)),
    ]  # fmt: skip


def events_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.events.jsonl")


def events(out: Path) -> list[dict[str, Any]]:
    """What all runs into a folder told; a line that a kill cut short is left out."""
    found = []
    for line in events_of(out).read_text().splitlines() if events_of(out).exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def spent(told: list[dict[str, Any]], kind: str) -> int:
    """Tokens of units that were scored (``unit``) or committed."""
    return sum(e["computed_tokens"] + e["new_tokens"] for e in told if e["event"] == kind)


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


def disturbed(
    grid: Path, out: Path, draw: random.Random, engine: str, unit: int, deeds: tuple[str, ...]
) -> dict[str, Any]:
    """One run with its strike; what was done and how it ended."""
    workers, shard = draw.randint(1, 2), draw.choice([None, None, "0/2", "1/2"])
    deed = draw.choice(deeds)
    begin, wanted = segments(out), draw.randint(0, 8)
    limit = ["--time-limit", f"{draw.uniform(3.0, 20.0):.1f}"] if deed == "time limit" else []
    part = ["--shard", shard] if shard else []
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [*command(grid, out, workers, unit, engine), *limit, *part], stdout=quiet, stderr=quiet
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
        "deed": deed, "workers": workers, "unit": unit, "shard": shard, "struck": struck,
        "status": status, "orphans": orphans, "segments": segments(out),
    }  # fmt: skip


COLUMNS = ["cell", "doc_id", "prediction", "choice_logprobs", "text", "computed_tokens"]


def rows_of(out: Path) -> tuple[dict[tuple[str, str], dict[str, Any]], int]:
    """Examples by (cell, document), and rows in all segments, doubles counted."""
    from evalcore.store import ResultStore

    store = ResultStore(out, read_only=True)
    table = store.examples(COLUMNS)
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


def unaccounted(
    line: dict[str, Any], told: list[dict[str, Any]], expected: dict[Any, Any],
    found: dict[Any, Any], *, units_alike: bool,
) -> list[str]:  # fmt: skip
    """What was computed and should not have been; its figures go into the line."""
    undisturbed, on_disk = (
        sum(row["computed_tokens"] for row in rows.values()) for rows in (expected, found)
    )
    starts = sum(e["event"] == "worker" and e["state"] in ("starting", "restarted") for e in told)
    longest = max(row["computed_tokens"] for row in expected.values())
    line["tokens"] = {
        "undisturbed": undisturbed, "rows": on_disk, "longest": longest, "starts": starts,
        "scored": spent(told, "unit"), "reported": spent(told, "committed"),
    }  # fmt: skip
    wrong = []
    if units_alike and on_disk > undisturbed + longest * max(starts - 1, 0):
        wrong.append(f"{on_disk} tokens for {undisturbed}, with {starts} processes")
    most = sum(s["unit"] for s in line["strikes"] if s["struck"] and s["deed"] in LOST)
    if line["rows_again"] > most:
        wrong.append(f"{line['rows_again']} rows twice on disk; at most {most} could be")
    return wrong


def trial(
    grid: Path, folder: Path, seed: int, expected: dict[Any, Any], engine: str = "hf",
    deeds: tuple[str, ...] = DEEDS, most_strikes: int = 3,
) -> dict[str, Any]:  # fmt: skip
    """One trial; its line for the log."""
    draw = random.Random(seed)
    out = folder / f"trial-{engine}-{seed}"
    sizes, same = [2, 3, 5, 8, 24], draw.random() < 0.5
    units = [UNIT if same else draw.choice(sizes) for _ in range(draw.randint(1, most_strikes))]
    last_unit = UNIT if same else draw.choice([4, 16])
    begin = time.monotonic()
    strikes = [disturbed(grid, out, draw, engine, unit, deeds) for unit in units]
    last = subprocess.run(
        command(grid, out, draw.randint(1, 2), last_unit, engine),
        capture_output=True, text=True, timeout=END_S, check=False,
    )  # fmt: skip
    found, written = rows_of(out)
    line: dict[str, Any] = {
        "engine": engine,
        "seed": seed,
        "strikes": strikes,
        "status": last.returncode,
        "wrong": differences(expected, found)[:5],
        "rows": len(found),
        "rows_again": written - len(found),
        "orphans": sum(s["orphans"] for s in strikes),
    }
    line["wrong"] += unaccounted(
        line, events(out), expected, found, units_alike=same or engine == "hf"
    )
    line["seconds"] = round(time.monotonic() - begin, 1)
    return line


def cost(grid: Path, folder: Path) -> dict[str, Any]:
    """One run of twenty commit intervals or more whose worker is killed once; tokens computed."""
    asked = {"workers": 1, "unit": 4, "limit": 100, "commit_every": 0.2}
    told = {}
    for name in ("cost-undisturbed", "cost-struck"):
        out = folder / name
        if out.exists():
            shutil.rmtree(out)
            events_of(out).unlink(missing_ok=True)
        process = subprocess.Popen(command(grid, out, **asked), stdout=subprocess.DEVNULL)
        if name == "cost-struck":
            while process.poll() is None and segments(out) < 10:
                time.sleep(0.05)
            time.sleep(0.15)  # most of an interval
            strike(process, "worker", random.Random(0))
        assert process.wait(timeout=END_S) == 0
        told[name] = events(out)
    before, after = (spent(told[name], "unit") for name in ("cost-undisturbed", "cost-struck"))
    states = [e["state"] for e in told["cost-struck"] if e["event"] == "worker"]
    return {
        "intervals": segments(folder / "cost-undisturbed"), "restarts": states.count("restarted"),
        "undisturbed": before, "struck": after, "ratio": round(after / before, 4),
    }  # fmt: skip


def build_grid(grid: Path) -> None:
    """Two random tiny checkpoints with two adapters each."""
    from tests.conftest import write_adapter, write_checkpoint

    for step in (1, 2):
        base = write_checkpoint(grid / f"step-{step:05d}", seed=step)
        config = json.loads((base / "config.json").read_text())
        config |= {"num_attention_heads": 1, "num_key_value_heads": 1}  # vLLM wants heads of 32
        (base / "config.json").write_text(json.dumps(config))
        for k in (1, 2):
            write_adapter(grid / "adapters" / f"{step}-{k}", base, seed=10 * step + k)


def run(
    folder: Path, seeds: range, minutes: float, engine: str = "hf",
    deeds: tuple[str, ...] = DEEDS, most_strikes: int = 3,
) -> int:  # fmt: skip
    """Trials that are not in the log yet; number of bad ones in it."""
    folder.mkdir(parents=True, exist_ok=True)
    grid, log, ends = folder / "grid", folder / "chaos.jsonl", time.monotonic() + 60 * minutes
    if not (grid / "adapters").exists():
        build_grid(grid)
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = {line["seed"] for line in done if line["engine"] == engine}
    todo, expected = [seed for seed in seeds if seed not in known], {}
    if todo:
        calm = folder / f"undisturbed-{engine}"
        subprocess.run(command(grid, calm, 1, UNIT, engine), check=True, timeout=END_S,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        expected, _ = rows_of(calm)
    for seed in todo:
        if time.monotonic() > ends:
            break
        line = trial(grid, folder, seed, expected, engine, deeds, most_strikes)
        with log.open("a") as sink:
            sink.write(json.dumps(line) + "\n")
        done.append(line)
        struck = ", ".join(s["deed"] for s in line["strikes"])
        print(f"{engine} {seed}: {struck}: status {line['status']}, {line['rows']} rows, "
              f"{line['rows_again']} again, {len(line['wrong'])} wrong", flush=True)  # fmt: skip
    print(summary(done))
    return len(bad(done))


def bad(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials with anything wrong."""
    return [line for line in lines if line["wrong"] or line["orphans"] or line["status"]]


def summary(lines: list[dict[str, Any]]) -> str:
    """The log in a few lines."""
    told = []
    for engine in sorted({line["engine"] for line in lines}):
        mine = [line for line in lines if line["engine"] == engine]
        strikes = Counter(s["deed"] for line in mine for s in line["strikes"] if s["struck"])
        again = sum(line["rows_again"] for line in mine)
        lost = sum(line["tokens"]["scored"] - line["tokens"]["reported"] for line in mine)
        total = sum(line["tokens"]["undisturbed"] for line in mine)
        deeds = ", ".join(f"{deed} {n}" for deed, n in sorted(strikes.items()))
        told.append(
            f"{engine}: {len(mine)} trials, {strikes.total()} strikes ({deeds}); {again} rows "
            f"twice on disk; {lost} tokens scored and not reported as committed, of {total}; "
            f"{len(bad(mine))} bad"
        )
    return "\n".join(told)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("chaos"))
    parser.add_argument("--engine", choices=["hf", "vllm"], default="hf")
    parser.add_argument("--trials", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--cost", action="store_true")
    given = parser.parse_args()
    if given.cost:
        if not (given.output / "grid" / "adapters").exists():
            build_grid(given.output / "grid")
        found = cost(given.output / "grid", given.output)
        print(json.dumps(found))
        sys.exit(found["intervals"] < 20 or not found["restarts"] or found["ratio"] > COST_AT_MOST)
    seeds = range(given.seed, given.seed + given.trials)
    sys.exit(bool(run(given.output, seeds, given.minutes, given.engine)))
