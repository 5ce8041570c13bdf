"""Rows taken by number are the rows of the file, whatever its format."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalcore.tasks import TaskDataError
from evalcore.tasks.rows import JoinedRows, ListRows, RangeRows, open_files
from evalcore.tasks.sources import load_rows, open_rows

ROWS: list[dict[str, Any]] = [
    {"text": f"row {i} ü\u2028x", "turns": [{"role": "user", "content": f"c{i}"}]}
    for i in range(57)
]


def write(folder: Path, kind: str) -> None:
    folder.mkdir(parents=True)
    table = pa.Table.from_pylist(ROWS)
    if kind == "parquet":
        pq.write_table(table, folder / "train.parquet", row_group_size=10)
    elif kind == "shards":
        for part in range(3):
            file = folder / f"train-{part:05d}-of-00003.parquet"
            pq.write_table(table.slice(20 * part, 20), file, row_group_size=7)
    elif kind == "jsonl":
        lines = [json.dumps(row, ensure_ascii=i % 2 == 0) for i, row in enumerate(ROWS)]
        text = "\n".join([*lines[:5], "", "  ", *lines[5:]])  # no line end at the end
        (folder / "train.jsonl").write_text(text, "utf-8")
    elif kind == "json":
        (folder / "train.json").write_text(json.dumps(ROWS))
    else:
        with pa.OSFile(str(folder / "train.arrow"), "wb") as sink:
            opened = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
            with opened(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=9)


@pytest.mark.parametrize("kind", ["parquet", "shards", "jsonl", "json", "arrow", "stream"])
def test_rows_by_number_are_those_of_the_whole_file(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "set", kind)
    source = {"path": str(tmp_path / "set")}
    assert load_rows(source, "train") == ROWS
    rows = open_rows(source, "train")
    assert len(rows) == len(ROWS)
    rng = np.random.default_rng(0)
    for count in (0, 1, 20, 57):
        numbers = [int(n) for n in rng.permutation(57)[:count]]
        assert rows.take(numbers) == [ROWS[n] for n in numbers]
    assert rows.take([3, 3, 56]) == [ROWS[3], ROWS[3], ROWS[56]]
    cut = open_rows(source, "train[50:99]")
    assert (len(cut), cut.take([0, 6])) == (7, [ROWS[50], ROWS[56]])
    assert load_rows(source, "train[:2]") == ROWS[:2]


def test_cuts_and_joins_of_nothing() -> None:
    rows = ListRows(ROWS)
    assert len(RangeRows(rows, 90, None)) == 0
    assert len(RangeRows(rows, 10, 5)) == 0
    joined = JoinedRows([0, 57, 0], [ListRows([]), rows, ListRows([])].__getitem__)
    assert joined.take([0, 56]) == [ROWS[0], ROWS[56]]
    assert len(JoinedRows([], [].__getitem__)) == 0


def test_a_file_that_was_cut_short_is_seen_though_its_end_is_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    file.write_text(text[:-20])
    with pytest.raises(TaskDataError, match=r"train.jsonl is broken: line 57: "):
        open_files([file])
    file.write_text('{"a": 1}\n[1]\n{"a": 2}\n')
    with pytest.raises(TaskDataError, match="line 2: expected one JSON object"):
        open_files([file]).take([1])
    whole = tmp_path / "train.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), whole)
    whole.write_bytes(whole.read_bytes()[:-30])
    with pytest.raises(TaskDataError, match=r"train.parquet is broken"):
        open_files([whole])


_LARGE = """
import resource, sys
from pathlib import Path
from finetune.jobs import MixPart
from finetune.rows import choose_rows
chosen = choose_rows(MixPart("tulu_v2", 6000), 42, (), Path(sys.argv[1]))
print(len(chosen.documents), chosen.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.proof
def test_six_thousand_of_326_000_conversations_take_under_a_gigabyte(tmp_path: Path) -> None:
    """As many rows and as much text as TULU v2 has; all of them as objects took 3.9 GB."""
    folder = tmp_path / "allenai/tulu-v2-sft-mixture"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(20_000)])
    texts = [" ".join(rng.choice(words, int(rng.integers(40, 400)))) for _ in range(2000)]
    kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    schema = pa.schema([("messages", kind)])
    with pq.ParquetWriter(folder / "train.parquet", schema) as writer:
        for start in range(0, 326_000, 1000):
            rows = [
                [
                    {"role": "user", "content": f"{start + i} {texts[int(a)]}"},
                    {"role": "assistant", "content": texts[int(b)]},
                ]
                for i, (a, b) in enumerate(rng.integers(0, 2000, (1000, 2)))
            ]
            writer.write_table(pa.table({"messages": pa.array(rows, kind)}, schema=schema))
    done = subprocess.run(
        [sys.executable, "-c", _LARGE, str(tmp_path)],
        capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    chosen, rows_there, peak_kib = map(int, done.stdout.split())
    assert (chosen, rows_there) == (6000, 326_000)
    assert peak_kib < 1_000_000
