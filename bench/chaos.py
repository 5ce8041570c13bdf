"""Runs of `evalcore score` that are killed at random and resumed end as an undisturbed one does.

    python -m bench.chaos [-o FOLDER] [--engine stub|hf|vllm] [--trials N] [--seed 0] [--minutes 60]
    python -m bench.chaos [-o FOLDER] --cost      one long run, one kill: what it costs

Each trial, drawn from its seed: strike a run (driver, worker, both; a worker stopped for a while;
SIGTERM, SIGINT once and twice, a time limit) some moments after a random number of commits or of
units (what is compared with a witness first is committed late), up to three times, each time
resumed with another number of workers, unit size and shard; then let it end.
With the stub engine (:mod:`bench.stub`) also: driver or worker killed at something it does to a
file, and on a Ray cluster of two raylets a raylet, an actor or the driver killed. Deeds take turns.
Compared with the undisturbed run: the same keys, the same predictions, log-probabilities within
1e-5, nothing twice in the table, no process or temporary file left over.

Tokens are accounted for: those of all rows on disk, rows that stand there twice left out, are not
more than the undisturbed run's and one longest prompt per process that was started beyond its first
(a prefix shared with what is lost; with vllm only where all runs cut the same units, for prefixes
are shared within a unit). Rows are twice on disk only if a worker was killed between its commit and
the driver's hearing of it: at most a commit per kill. What was scored and never committed is
counted.
A line for each trial is appended to FOLDER/chaos.jsonl; trials that are there are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.raylets import Raylets
from bench.strikes import (
    END_S,
    ENGINES,
    LOSES,
    ON_RAY,
    Asked,
    disturbed,
    events_of,
    segments,
    strike,
)

TOLERANCE = 1e-5
NEAR_TIE = 2e-5
COST_AT_MOST = 1.05
UNIT = 8  # examples a unit, where all runs of a trial cut alike
LIMITS = {"vllm": 40}  # it is too quick to be struck in the middle of less
TASKS = {"stub": "pocket_nli,pocket_describe"}  # generating takes the real engines long


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


COLUMNS = ["cell", "doc_id", "prediction", "choice_logprobs", "text", "computed_tokens"]


def rows_of(out: Path) -> tuple[dict[tuple[str, str], dict[str, Any]], list[int]]:
    """Examples by (cell, document), and the rows of each segment, doubles counted."""
    from evalcore.store import ResultStore

    store = ResultStore(out, read_only=True)
    table = store.examples(COLUMNS)
    rows = {(row["cell"], row["doc_id"]): row for row in table.to_pylist()}
    assert len(rows) == len(table), "something is twice in the table"
    return rows, store._survey().num_rows.tolist()


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
    lost = sum(s["struck"] and s["deed"] in LOSES for s in line["strikes"])
    most = lost * line["longest_commit"]
    if line["rows_again"] > most:
        wrong.append(f"{line['rows_again']} rows twice on disk; at most {most} could be")
    return wrong


def trial(
    grid: Path, folder: Path, seed: int, expected: dict[Any, Any], engine: str,
    deeds: tuple[str, ...], most_strikes: int, cluster: Raylets | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One trial; its line for the log. Its first deed is that of its seed's turn."""
    draw = random.Random(seed)
    out = folder / f"trial-{engine}-{seed}"
    for old in (out, *out.parent.glob(f"{out.name}.*")):  # of a trial that was cut short
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    if draw.random() < 0.7:  # documents are encoded already; tokenizers take seconds to import
        calm = folder / f"undisturbed-{engine}"
        shutil.copytree(calm / "cache", out / "cache")
    tasks, limit = TASKS.get(engine, "pocket_nli"), LIMITS.get(engine, Asked.limit)
    sizes, same = [2, 3, 5, 8, 24], draw.random() < 0.5
    commit_every = draw.choice([0.0, 0.0, 0.5])
    begin, strikes = time.monotonic(), []
    for n in range(draw.randint(1, most_strikes)):
        deed = deeds[seed % len(deeds)] if n == 0 else draw.choice(deeds)
        asked = Asked(
            tasks=tasks,
            limit=limit,
            workers=2 if deed == "node" else draw.randint(1, 2),
            unit=UNIT if same else draw.choice(sizes),
            commit_every=commit_every,
            shard=draw.choice([None, None, "0/2", "1/2"]),
            time_limit=round(draw.uniform(3.0, 10.0), 1) if deed == "time limit" else None,
        )
        on = cluster if deed in ON_RAY else None
        strikes.append(disturbed(grid, out, asked, engine, deed, draw, on))
    last = Asked(
        draw.randint(1, 2), UNIT if same else draw.choice([4, 16]), limit=limit, tasks=tasks
    )
    with out.with_name(f"{out.name}.log").open("ab") as sink:
        done = subprocess.run(
            last.command(grid, out, engine), stdout=sink, stderr=sink, timeout=END_S, check=False
        )
    found, commits = rows_of(out)
    line: dict[str, Any] = {
        "engine": engine,
        "seed": seed,
        "strikes": strikes,
        "status": done.returncode,
        "wrong": differences(expected, found)[:5],
        "rows": len(found),
        "rows_again": sum(commits) - len(found),
        "longest_commit": max(commits),
        "orphans": sum(s["orphans"] for s in strikes),
        "files_left": sorted(str(path.relative_to(out)) for path in out.rglob(".*.tmp")),
    }
    line["wrong"] += unaccounted(
        line, events(out), expected, found, units_alike=same or engine != "vllm"
    )
    line["seconds"] = round(time.monotonic() - begin, 1)
    return line


def cost(grid: Path, folder: Path) -> dict[str, Any]:
    """One run of twenty commit intervals or more whose worker is killed once; tokens computed."""
    asked = Asked(workers=1, unit=4, limit=100, commit_every=0.2)
    told = {}
    for name in ("cost-undisturbed", "cost-struck"):
        out = folder / name
        if out.exists():
            shutil.rmtree(out)
            events_of(out).unlink(missing_ok=True)
        process = subprocess.Popen(asked.command(grid, out, "hf"), stdout=subprocess.DEVNULL)
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
    folder: Path, seeds: range, minutes: float, engine: str = "stub",
    deeds: tuple[str, ...] | None = None, most_strikes: int = 3,
) -> int:  # fmt: skip
    """Trials that are not in the log yet; number of bad ones in it."""
    folder.mkdir(parents=True, exist_ok=True)
    grid, log, ends = folder / "grid", folder / "chaos.jsonl", time.monotonic() + 60 * minutes
    deeds = deeds or ENGINES[engine]
    if not (grid / "adapters").exists():
        build_grid(grid)
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    known = {line["seed"] for line in done if line["engine"] == engine}
    todo, expected = [seed for seed in seeds if seed not in known], {}
    if todo:
        calm = folder / f"undisturbed-{engine}"
        own = LIMITS.get(engine, Asked.limit)
        asked = Asked(unit=UNIT, limit=own, tasks=TASKS.get(engine, "pocket_nli"))
        subprocess.run(asked.command(grid, calm, engine), check=True, timeout=END_S,
                       stdout=subprocess.DEVNULL)  # fmt: skip
        expected, _ = rows_of(calm)
    with _two_raylets(wanted=bool(todo) and bool(set(deeds) & set(ON_RAY))) as cluster:
        for seed in todo:
            if time.monotonic() > ends:
                break
            line = trial(grid, folder, seed, expected, engine, deeds, most_strikes, cluster)
            with log.open("a") as sink:
                sink.write(json.dumps(line) + "\n")
            done.append(line)
            struck = ", ".join(s["deed"] for s in line["strikes"])
            wrong = line["wrong"] or "nothing wrong"
            print(f"{engine} {seed}: {struck}: status {line['status']}, {line['rows']} rows, "
                  f"{line['rows_again']} again, {wrong}", flush=True)  # fmt: skip
            if line not in bad([line]):
                shutil.rmtree(folder / f"trial-{engine}-{seed}")
    print(summary(done))
    return len(bad(done))


@contextlib.contextmanager
def _two_raylets(*, wanted: bool) -> Iterator[Raylets | None]:
    """A cluster whose nodes hold one worker each."""
    if not wanted:
        yield None
        return
    with Raylets(num_cpus=1) as cluster:
        cluster.add(num_cpus=1)
        yield cluster


def bad(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trials with anything wrong."""
    return [
        line
        for line in lines
        if line["wrong"] or line["orphans"] or line["status"] or line["files_left"]
    ]


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
    parser.add_argument("--engine", choices=list(ENGINES), default="stub")
    parser.add_argument("--trials", type=int, default=130)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--strikes", type=int, default=3, help="of one trial, at most")
    parser.add_argument("--cost", action="store_true")
    given = parser.parse_args()
    # Started in the background of a shell it may be deaf to it, and so would be what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if given.cost:
        if not (given.output / "grid" / "adapters").exists():
            build_grid(given.output / "grid")
        found = cost(given.output / "grid", given.output)
        print(json.dumps(found))
        sys.exit(found["intervals"] < 20 or not found["restarts"] or found["ratio"] > COST_AT_MOST)
    seeds = range(given.seed, given.seed + given.trials)
    sys.exit(bool(run(given.output, seeds, given.minutes, given.engine, None, given.strikes)))
