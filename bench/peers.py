"""evalcore against lm-evaluation-harness: the same grid, the same texts, the same machine.

    make peers-env
    python -m bench.peers -o results-bench/peers --docs 50,200 --hf-subjects 2 --vllm-subjects 1
    python -m bench.peers -o /tmp/quick --quick          # a few minutes: does everything work?

Systems: ``evalcore`` (one job over the grid), ``lm-eval-hf`` and ``lm-eval-vllm`` (one start per
subject with all tasks and variants in it; vllm on merged folders, which are made beforehand and not
counted: LoRA with log-probabilities crashes there on CPUs). Before anything is timed, a sample is
scored by all systems and must agree: token ids, accuracies, and log-probabilities within 1e-4;
every timed run's tokens and accuracies are compared again.

Every run is appended to ``runs.jsonl`` and the table is written anew; started again, the script
goes on where it stopped. A start of a peer costs the same for each subject of a kind, so peers may
be measured on a few subjects (``--hf-subjects``, ``--vllm-subjects``) and a few variants
(``--peer-variants``); the table says so and extrapolates.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bench.peers_grid import GridSize, merge_seconds, write_models, write_peer_tasks, write_tasks
from bench.peers_runs import Setting, check_agreement, run_evalcore, run_peer, try_batches
from bench.peers_table import SYSTEMS, not_the_same, write_summary
from evalcore.app.versions import installed_versions
from evalcore.benchmark.models import BUILTIN_CONFIGS
from evalcore.benchmark.worker import device_name
from evalcore.machine import cores


class Turn(NamedTuple):
    """One run that is to be done: of a peer on its ``subject``-th subject, or of evalcore."""

    system: str
    round: int
    subject: int | None


def schedule(peer_subjects: Mapping[str, int], rounds: int, our_rounds: int) -> list[Turn]:
    """Peers take turns subject by subject, another first in every round; evalcore's runs stand at
    even distances between, from the very first to the very last.

    Args:
        peer_subjects: System -> subjects it is measured on.
        rounds: How often each peer's subject is run.
        our_rounds: Runs of evalcore; 0 where it is not measured.
    """
    peers: list[Turn] = []
    systems = list(peer_subjects)
    for round_ in range(rounds):
        first = round_ % max(len(systems), 1)
        for subject in range(max(peer_subjects.values(), default=0)):
            for system in systems[first:] + systems[:first]:
                if subject < peer_subjects[system]:
                    peers.append(Turn(system, round_, subject))
    turns: list[Turn] = []
    for round_ in range(our_rounds):
        until = round(len(peers) * round_ / max(our_rounds - 1, 1))
        turns += peers[len(turns) - round_ : until]
        turns.append(Turn("evalcore", round_, None))
    return turns + peers[len(turns) - our_rounds :]


class RunLog:
    """``runs.jsonl``: what was measured; a run that is in it is not done again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        self.rows = [json.loads(line) for line in lines]

    def has(self, **key: Any) -> bool:
        return any(all(row.get(k) == v for k, v in key.items()) for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{row['system']:<16} {row['documents']:>5} docs, round {row['round']}, "
            f"{row['subject'] or 'whole grid'}, {row['variants']} variants: {row['wall_s']:.1f} s",
            flush=True,
        )


def take(setting: Setting, log: RunLog, docs: int, turn: Turn, variants: int) -> None:
    """Does a run, unless the log has it."""
    key = {"system": turn.system, "documents": docs, "round": turn.round}
    if turn.subject is not None:
        subject = setting.subjects[turn.subject]
        key |= {"subject": subject.label, "variants": variants}
        if not log.has(**key):
            backend = turn.system.removeprefix("lm-eval-")
            log.add({**key, **run_peer(setting, backend, subject, docs, variants)})
        return
    # A start is the same whatever follows: one measurement a round serves all numbers of documents.
    one = replace(setting.size, checkpoints=1, adapters=0, tasks=1, variants=1)
    start = {"system": "evalcore-start", "documents": 1}
    for own, part in ((start, one), ({}, setting.size)):
        mine = {**key, **own, "subject": None, "variants": part.variants}
        if not log.has(**mine):
            limit = int(mine["documents"])  # type: ignore[call-overload]
            log.add({**mine, **run_evalcore(setting, limit, setting.root / "results", part)})


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--python", type=Path, default=Path(".venv-peers/bin/python"),
                        help="interpreter of the peers' environment (make peers-env)")  # fmt: skip
    numbers = {"checkpoints": 4, "adapters": 4, "tasks": 4, "variants": 6, "shots": 0}
    for name, default in {**numbers, "rounds": 1, "rank": 16, "check-docs": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--our-rounds", type=int, help="runs of evalcore (default: as --rounds)")
    parser.add_argument("--docs", default="50,200,1000", help="documents per task, by commas")
    parser.add_argument("--most-docs", type=int, default=1000, help="documents the tasks hold")
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    for backend in ("hf", "vllm"):
        parser.add_argument(f"--{backend}-subjects", type=int, metavar="N",
                            help=f"measure lm-eval {backend} on N subjects only")  # fmt: skip
    parser.add_argument("--peer-variants", type=int, metavar="N",
                        help="measure the peers on N variants only")  # fmt: skip
    parser.add_argument("--config", default="pocket", help=f"{', '.join(BUILTIN_CONFIGS)} or path")
    parser.add_argument(
        "--hf-batch",
        default="16,64,256",
        help="requests in a batch of the hf backend; of several the best is used",
    )
    parser.add_argument(
        "--vllm-batch",
        default="4096,16384",
        help="tokens in a step of the vllm backend; of several the best is used",
    )
    parser.add_argument("--try-docs", type=int, default=10, help="documents to try batches with")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--max-minutes", type=float, default=600.0, help="begin no run after that")
    parser.add_argument(
        "--only-prepare",
        action="store_true",
        help="write the grid, prove that all do the same work, time nothing",
    )
    parser.add_argument("--quick", action="store_true", help="a tiny grid: does it all work?")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        small = {"checkpoints": 2, "adapters": 1, "tasks": 2, "variants": 2, "rounds": 1,
                 "docs": "8", "most_docs": 8, "check_docs": 5, "hf_batch": "64",
                 "vllm_batch": "4096"}  # fmt: skip
        vars(arguments).update(small)
    unknown = [s for s in arguments.systems.split(",") if s not in SYSTEMS]
    if unknown:
        parser.error(f"unknown system {unknown[0]}; expected {', '.join(SYSTEMS)}")
    if not arguments.python.exists():
        parser.error(f"{arguments.python} is missing: make peers-env, or give --python")
    return arguments


def prepare(asked: argparse.Namespace, size: GridSize, root: Path) -> Setting:
    """Writes the grid, or finds it there.

    Raises:
        SystemExit: The folder holds another grid.
    """
    root.mkdir(parents=True, exist_ok=True)
    grid = json.dumps([vars(size), asked.config, asked.rank, asked.max_length])
    marker = root / "grid.json"
    if marker.is_file() and marker.read_text() != grid:
        raise SystemExit(f"{root} holds runs of another grid; give another --out")
    write_tasks(root, size)
    subjects = write_models(root, size, asked.config, asked.rank)
    names = write_peer_tasks(root, size)
    marker.write_text(grid)
    batches = {name: tried[0] for name, tried in asked_batches(asked).items()}
    return Setting(root, size, subjects, names, asked.python.absolute(), asked.threads,
                   batches, asked.max_length)  # fmt: skip


def asked_batches(asked: argparse.Namespace) -> dict[str, list[str]]:
    return {"hf": asked.hf_batch.split(","), "vllm": asked.vllm_batch.split(",")}


def with_best_batches(asked: argparse.Namespace, setting: Setting) -> Setting:
    """Tries the peers' batches, where several were asked for and ``batches.json`` is not there."""
    file = setting.root / "batches.json"
    tried = {
        backend: batches
        for backend, batches in asked_batches(asked).items()
        if len(batches) > 1 and f"lm-eval-{backend}" in asked.systems.split(",")
    }
    if tried and not file.is_file():
        file.write_text(json.dumps(try_batches(setting, tried, asked.try_docs), indent=1))
    found = json.loads(file.read_text()) if tried else {}
    best = {backend: min(own, key=own.get) for backend, own in found.items() if backend in tried}
    return replace(setting, batches={**setting.batches, **best})


def measure(asked: argparse.Namespace, setting: Setting, log: RunLog) -> bool:
    """All runs that were asked for, the table after each; False when time is up."""
    size, systems = setting.size, asked.systems.split(",")
    merges = merge_seconds(setting.root / "merged")
    facts = {"threads": asked.threads, "device": device_name("cpu"), "config": asked.config,
             **{f"{name} batch": batch for name, batch in setting.batches.items()},
             "seconds to merge a folder (not counted)":
             round(sum(merges) / len(merges), 2) if merges else None,
             **installed_versions()}  # fmt: skip
    counts = {
        system: getattr(asked, f"{system.removeprefix('lm-eval-')}_subjects") or size.subjects
        for system in systems
        if system != "evalcore"
    }
    ours = (asked.our_rounds or asked.rounds) if "evalcore" in systems else 0
    deadline = time.monotonic() + 60 * asked.max_minutes
    for docs in [int(n) for n in asked.docs.split(",")]:
        for turn in schedule(counts, asked.rounds, ours):
            if time.monotonic() > deadline:
                return False
            take(setting, log, docs, turn, asked.peer_variants or size.variants)
            write_summary(log.rows, size, setting.root, facts)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    asked = parse(argv)
    most = max(asked.most_docs, *(int(n) for n in asked.docs.split(",")))
    size = GridSize(asked.checkpoints, asked.adapters, asked.tasks, asked.variants, asked.shots,
                    most)  # fmt: skip
    root: Path = asked.out.resolve()
    setting = prepare(asked, size, root)
    checked = root / "agreement.json"
    if not checked.is_file():
        backends = [s.removeprefix("lm-eval-") for s in asked.systems.split(",") if s != "evalcore"]
        found = check_agreement(setting, backends, asked.check_docs)
        checked.write_text(json.dumps(found, indent=1))
    for row in json.loads(checked.read_text()):
        print("the same work:", row)
    if asked.only_prepare:
        return 0
    log = RunLog(root / "runs.jsonl")
    complete = measure(asked, with_best_batches(asked, setting), log)
    print("written:", root / "peers.md")
    wrong = not_the_same(log.rows, size)
    for line in wrong:
        print(f"not comparable: {line}", file=sys.stderr)
    if not complete:
        print("time is up: run again to go on", file=sys.stderr)
    return 1 if wrong else 0 if complete else 75


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped: run again to go on")
