"""What resolving adapters costs that each bring a tokenizer of 128,000 entries.

    python -m bench.scale_adapters -o results-bench/scale-adapters [--adapters 300]

One tiny base; every adapter has weights of its own and copies of the base's tokenizer files, as
trainers save them. CPU and wall time of ``resolve_subjects`` with nothing remembered and with
everything remembered, each in a process of its own, beside reading and hashing the same bytes once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.peers_grid import GridSize, write_models
from evalcore.benchmark.models import random_adapter
from evalcore.benchmark.tables import markdown
from evalcore.identity import load_tokenizer, resolve_subjects

ENTRIES = 128_000


def write_tokenizer(folder: Path, entries: int = ENTRIES) -> None:
    """A byte-level BPE of so many entries: pairs of bytes, then pairs and a byte."""
    from tokenizers import pre_tokenizers

    data = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = [token["content"] for token in data["added_tokens"]]
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    merges: list[list[str]] = []
    firsts = list(alphabet)
    for first in firsts:
        for second in alphabet:
            if len(vocabulary) == entries:
                break
            if first + second not in vocabulary:
                vocabulary[first + second] = len(vocabulary)
                merges.append([first, second])
                firsts.append(first + second)
    data["model"] |= {"vocab": vocabulary, "merges": merges}
    for token in data["added_tokens"]:
        token["id"] = vocabulary[token["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), "utf-8")


def write(root: Path, count: int) -> None:
    """The base and its adapters."""
    write_models(root, GridSize(1, 0, 1, 1), "pocket", 4)
    base = root / "models" / "step-00001"
    write_tokenizer(base)
    for number in range(count):
        folder = random_adapter(root / "runs" / f"a{number:05d}", base.resolve(), 4, seed=number)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if (base / name).is_file():
                shutil.copy(base / name, folder)
        for file in folder.iterdir():
            os.utime(file, (1e9, 1e9))  # settled: what is seen once may be remembered


def child(root: Path, what: str) -> dict[str, Any]:
    """Seconds of one way over all adapters."""
    base = root / "models" / "step-00001"
    if what != "read":
        load_tokenizer(base)  # its libraries take seconds to import
    wall, cpu = time.perf_counter(), time.process_time()
    if what == "read":
        for file in sorted(root.glob("runs/*/*")):
            hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
        count = len(list(root.glob("runs/*")))
    else:
        found = resolve_subjects([root / "runs"], applied="merged", assume_base=str(base))
        count = len(found.subjects) - 1
    return {
        "adapters": count,
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("results-bench/scale-adapters"))
    parser.add_argument("--adapters", type=int, default=300)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    root = args.output.resolve()
    if args.child is not None:
        print(json.dumps(child(root, args.child)))
        return
    if not (root / "runs").is_dir():
        write(root, args.adapters)
    shutil.rmtree(root / "cache", ignore_errors=True)
    own = {**os.environ, "EVALCORE_CACHE": str(root / "cache")}
    rows = []
    for what in ("read", "first", "again"):
        command = [sys.executable, "-m", "bench.scale_adapters", "-o", str(root), "--child", what]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=own)
        found = json.loads(done.stdout.splitlines()[-1])
        each = [f"{1e3 * found[name] / found['adapters']:.1f}" for name in ("cpu_s", "wall_s")]
        rows.append([what, str(found["adapters"]), *each])
        print(rows[-1], flush=True)
    print(markdown(["", "adapters", "CPU ms an adapter", "wall ms an adapter"], rows))


if __name__ == "__main__":
    main()
