"""Architectures, adapters, strategies and ways of applying, each against transformers + PEFT.

    python -m bench.matrix [-o matrix] [--minutes 45] [--jobs 2] [--fresh] [--only adapters ...]

Every cell ends as a number (the largest difference of log-probabilities to the model that was
saved: float32, eager attention, one plain forward a row) or as the line of a refusal:

- ``family/NAME/...``: each architecture's first checkpoint, the second in the same engine, an
  adapter merged, one beside the weights, and the same by engine hf;
- ``adapter/CASE@BASE/...``: each case of ``tests/agreement/wild_cases.py`` on an untied, a tied
  base and a mixture of experts, by hf, merged and beside the weights of vLLM;
- ``strategy/NAME``: each strategy, cold, hot and shuffled, on three architectures;
- ``ranks/NAME/...``: two tensor-parallel ranks, as two processes, on two architectures.

Groups with many cells come first, those of one size in an order drawn from ``--seed``, ``--jobs``
of them at once. Each group's lines are appended to ``matrix.jsonl``; what is there of the same code
and the same libraries is not run again. A crash costs its own cell.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.metadata
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.agreement.engine_processes import Child, import_peft, import_vllm
from tests.agreement.families import FAMILIES
from tests.agreement.families import main as make_family
from tests.agreement.wild_cases import CASES
from tests.agreement.wild_making import main as make_cases
from tests.agreement.wild_visits import CELLS, Found, visit_cases, visit_family

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-4
LIBRARIES = ("vllm", "torch", "transformers", "peft")
WAYS = ("unmerged", "merged", "batched")
NAMES = {"unmerged": "hf", "merged": "vllm merged", "batched": "vllm batched"}
# A case's base stands for its family: untied, tied, experts, in so far as there are such.
BASES = {
    "llama": ("llama", "llama-tied", "mixtral"),
    "qwen": ("qwen", "qwen-tied", "qwen2moe"),
    "gpt2": ("gpt2-untied", "gpt2"),
    "mixtral": ("mixtral", "mixtral-tied"),
    "olmoe": ("olmoe", "olmoe-tied"),
}
RANKS = ("llama-tied", "qwen3")
STRATEGIES = ("llama-tied", "olmo-tied", "mistral-sliding")
AT_ONCE = 15  # cases of one call, which has a time limit
LOST = (BrokenProcessPool, FutureTimeoutError)


@dataclass(frozen=True)
class Line:
    """What became of a cell.

    Attributes:
        cell: Its name.
        error: Largest difference in nats; None if it was refused.
        said: The refusal's line, or what else is to be said.
        when: ``planning`` or ``loading`` (a refusal), ``scored``, ``crash``.
        bad: Why this is not as it should be; empty if it is.
        code: Of what it was seen with.
        seconds: Of its group, shared among its cells.
        cpu_s: Of its group's processes, shared likewise.
    """

    cell: str
    error: float | None
    said: str
    when: str
    bad: str
    code: str
    seconds: float
    cpu_s: float = 0.0


def code_of_tree() -> str:
    """Hash of everything that decides a number: sources, cases, versions of libraries."""
    hasher = hashlib.blake2b(digest_size=8)
    files = [*(ROOT / "evalcore").rglob("*.py"), *(ROOT / "tests/agreement").glob("*.py")]
    for file in sorted([*files, Path(__file__)]):
        hasher.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    for name in LIBRARIES:
        hasher.update(f"{name} {_version(name)}".encode())
    return hasher.hexdigest()


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "-"


# -- groups of cells -------------------------------------------------------------------------------


class Processes:
    """A process for transformers and one for vLLM, replaced after a crash.

    Attributes:
        spent: CPU seconds of processes that have ended.
    """

    def __init__(self) -> None:
        self._children: dict[str, Child] = {}
        self.spent = 0.0

    def call(self, way: str, function: Callable[..., Any], *args: Any) -> Any:
        """What a function returns in the process of ``unmerged`` or of vLLM's ways.

        Raises:
            BrokenProcessPool: The process was lost (the next call has a new one).
        """
        kind = "hf" if way == "unmerged" else "vllm"
        if kind not in self._children:
            self._children[kind] = Child(import_peft if kind == "hf" else import_vllm)
        try:
            return self._children[kind].call(function, *args)
        except LOST:
            lost = self._children.pop(kind)
            self.spent += _cpu_s(lost.pids())
            lost.kill()
            raise

    def cpu_s(self) -> float:
        """CPU seconds of all processes so far, and of all that ran below them."""
        return self.spent + sum(_cpu_s(child.pids()) for child in self._children.values())

    def close(self) -> None:
        for child in self._children.values():
            child.close()


def _cpu_s(pids: list[int]) -> float:
    """CPU seconds of processes, of those they waited for, and of all that run below them."""
    spent = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            top = psutil.Process(pid)
            for process in (top, *top.children(recursive=True)):
                times = process.cpu_times()
                spent += times.user + times.system + times.children_user + times.children_system
    return spent


@dataclass(frozen=True)
class Group:
    """Cells that are made and scored together.

    Attributes:
        name: For messages.
        cells: Their names.
        run: Gives what was found for each.
    """

    name: str
    cells: tuple[str, ...]
    run: Callable[[Processes], dict[str, Found]]


def groups() -> list[Group]:
    return [
        *_adapter_groups(),
        *map(_family_group, FAMILIES),
        *(_family_group(family, "ranks", ("ranks",)) for family in RANKS),
        *_strategy_groups(),
    ]


def _adapter_groups() -> Iterator[Group]:
    """A base with all cases of its kind, on every way."""
    for kind, bases in BASES.items():
        cases = [name for name, case in CASES.items() if case.base.split("-")[0] == kind]
        for base in bases:
            yield _adapter_group(base, tuple(f"{name}@{base}" for name in cases))


def _adapter_group(base: str, names: tuple[str, ...]) -> Group:
    def run(processes: Processes) -> dict[str, Found]:
        found: dict[str, Found] = {}
        with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
            parts = [names[i : i + AT_ONCE] for i in range(0, len(names), AT_ONCE)]
            for i, part in enumerate(parts):
                processes.call("unmerged", make_cases, Path(folder) / str(i), list(part))
            for way in WAYS:
                for i, part in enumerate(parts):
                    mine = _together(processes, way, Path(folder) / str(i), part)
                    found |= {f"adapter/{name}/{NAMES[way]}": one for name, one in mine.items()}
        return found

    cells = tuple(f"adapter/{name}/{NAMES[way]}" for name in names for way in WAYS)
    return Group(f"adapters on {base}", cells, run)


def _together(
    processes: Processes, way: str, folder: Path, names: tuple[str, ...]
) -> dict[str, Found]:
    """All cases in one process; if that is lost, each in its turn."""
    try:
        return dict(processes.call(way, visit_cases, folder, way, names))
    except LOST:
        found: dict[str, Found] = {}
    for name in names:
        try:
            found |= processes.call(way, visit_cases, folder, way, (name,))
        except LOST as error:
            found[name] = Found(None, f"the process was lost ({type(error).__name__})", "crash")
    return found


def _family_group(family: str, kind: str = "family", ways: tuple[str, ...] = WAYS) -> Group:
    names = {cell: f"{kind}/{family}/{cell}" for way in ways for cell in CELLS[way]}

    def run(processes: Processes) -> dict[str, Found]:
        found: dict[str, Found] = {}
        with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
            try:
                processes.call("unmerged", make_family, Path(folder), family)
            except LOST:
                raise
            except Exception as error:  # whatever the library of a model raises
                last = (f"{type(error).__name__}: {error}".strip().splitlines())[-1]
                unmade = Found(None, f"transformers or PEFT cannot make it: {last}", "unmade")
                return dict.fromkeys(names.values(), unmade)
            for way in ways:
                try:
                    found |= processes.call(way, visit_family, folder, way)
                except LOST as error:
                    lost = f"the process was lost ({type(error).__name__})"
                    found |= dict.fromkeys(CELLS[way], Found(None, lost, "crash"))
        return {names[cell]: one for cell, one in found.items()}

    return Group(f"{kind} {family}", tuple(names.values()), run)


def _strategy_groups() -> Iterator[Group]:
    for kind in STRATEGIES:
        test = f"tests/agreement/test_engines_matrix.py::test_matrix[{kind}]"
        yield _test_group(f"strategy/{kind}", test)


def _test_group(cell: str, test: str) -> Group:
    """A cell that a test of its own decides: what it prints is its number."""

    def run(processes: Processes) -> dict[str, Found]:
        command = [sys.executable, "-m", "pytest", "-q", "-s", "-m", "", test]
        with tempfile.TemporaryFile("w+") as told:
            process = subprocess.Popen(command, stdout=told, stderr=told, cwd=ROOT)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            told.seek(0)
            lines = told.read().splitlines()
        processes.spent += usage.ru_utime + usage.ru_stime
        numbers = [line for line in lines if line.startswith("largest ")]
        if process.returncode == 0 and numbers:
            return {cell: Found(float(numbers[-1].split()[1]), numbers[-1], "scored")}
        last = [line for line in lines if line.startswith(("E  ", "FAILED"))]
        return {cell: Found(None, (last or ["it did not run"])[0], "crash")}

    return Group(cell, (cell,), run)


# -- judging and telling ---------------------------------------------------------------------------


def judge(cell: str, found: Found) -> str:
    """Why a cell is not as it should be; empty if it is."""
    kind, name, way = [*cell.split("/"), ""][:3]
    plain, _, base = name.partition("@")
    wanted = ""
    if kind == "adapter" and base == CASES[plain].base:
        wanted = CASES[plain].hf if way == "hf" else CASES[plain].vllm
    if found.when == "crash":
        return "a crash"
    if found.error is not None:
        if not found.error <= TOLERANCE:
            return f"off by {found.error:.1e}"
        return "" if wanted in ("", "scores") else f"scored, expected {wanted!r}"
    if "\n" in found.said or not found.said:
        return "not one line"
    if wanted == "scores" or (wanted and wanted not in found.said):
        return f"refused, expected {wanted!r}"
    return "" if found.when in ("planning", "unmade") else f"refused while {found.when}"


def run(
    folder: Path, minutes: float, seed: int, jobs: int, *, fresh: bool, only: list[str]
) -> list[Line]:
    """Runs what the log does not have; gives all lines of this code."""
    folder.mkdir(parents=True, exist_ok=True)
    log, code = folder / "matrix.jsonl", code_of_tree()
    if fresh:
        log.unlink(missing_ok=True)
    texts = log.read_text().splitlines() if log.exists() else []
    known = [Line(**json.loads(text)) for text in texts]
    lines = {line.cell: line for line in known if line.code == code}
    todo = [group for group in groups() if not only or group.cells[0].startswith(tuple(only))]
    todo = [group for group in todo if not all(cell in lines for cell in group.cells)]
    random.Random(seed).shuffle(todo)
    todo.sort(key=lambda group: -len(group.cells))  # what takes longest first
    ends, writing = time.monotonic() + 60 * minutes, threading.Lock()

    def work() -> None:
        processes = Processes()
        try:
            while True:
                with writing:
                    if not todo:
                        return
                    group = todo.pop(0)
                if time.monotonic() > ends:
                    print(f"no time left for {group.name}; run again to go on", flush=True)
                    continue
                mine = _lines(group, processes, code)
                with writing:
                    lines.update((line.cell, line) for line in mine)
                    _write(log, group, mine)
        finally:
            processes.close()

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(work) for _ in range(jobs)]:
            done.result()
    return sorted(lines.values(), key=lambda line: line.cell)


def _lines(group: Group, processes: Processes, code: str) -> list[Line]:
    """Runs a group."""
    begin, cpu = time.monotonic(), processes.cpu_s()
    try:
        found = group.run(processes)
    except LOST as error:
        lost = Found(None, f"the process was lost ({type(error).__name__})", "crash")
        found = dict.fromkeys(group.cells, lost)
    spent = time.monotonic() - begin, max(0.0, processes.cpu_s() - cpu)
    seconds, each = (round(one / max(len(found), 1), 2) for one in spent)
    return [
        Line(cell, one.error, one.said, one.when, judge(cell, one), code, seconds, each)
        for cell, one in found.items()
    ]


def _write(log: Path, group: Group, mine: list[Line]) -> None:
    """Appends a group's lines to the log and tells of it."""
    with log.open("a") as sink:
        sink.writelines(json.dumps(asdict(line)) + "\n" for line in mine)
    bad = [line for line in mine if line.bad]
    print(f"{group.name}: {len(mine)} cells, {len(bad)} bad, {sum(m.seconds for m in mine):.0f} s, "
          f"{sum(m.cpu_s for m in mine):.0f} s of CPU", flush=True)  # fmt: skip
    for line in bad:
        print(f"  {line.cell}: {line.bad}: {line.said}", flush=True)


def table(lines: list[Line]) -> str:
    """All cells, one line each."""
    rows = ["| cell | difference | what was said | as it should be |", "|---|---|---|---|"]
    for line in lines:
        number = "–" if line.error is None else f"{line.error:.1e}"
        rows.append(f"| {line.cell} | {number} | {line.said} | {line.bad or 'yes'} |")
    return "\n".join(rows) + "\n"


def summary(lines: list[Line]) -> str:
    """Figures of each kind of cell."""
    told = []
    for kind in sorted({line.cell.split("/")[0] for line in lines}):
        mine = [line for line in lines if line.cell.startswith(f"{kind}/")]
        errors = [line.error for line in mine if line.error is not None]
        refused = sum(line.error is None and line.when in ("planning", "unmade") for line in mine)
        told.append(
            f"{kind}: {len(mine)} cells, {len(errors)} scored (largest difference "
            f"{np.max(errors, initial=0.0):.1e}), {refused} refused in one line, "
            f"{sum(bool(line.bad) for line in mine)} not as they should be; "
            f"{sum(line.cpu_s for line in mine):,.0f} s of CPU"
        )
    return "\n".join(told)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("matrix"))
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="groups at once, of two processes each")
    parser.add_argument("--fresh", action="store_true", help="run all of it again")
    parser.add_argument("--only", nargs="*", default=[], help="cells that begin so")
    given = parser.parse_args()
    # Models here are tiny: a second thread would wait for the first.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    lines = run(
        given.output, given.minutes, given.seed, given.jobs, fresh=given.fresh, only=given.only
    )
    (given.output / "matrix.md").write_text(table(lines), "utf-8")
    print(summary(lines))
    return int(any(line.bad for line in lines))


if __name__ == "__main__":
    sys.exit(main())
