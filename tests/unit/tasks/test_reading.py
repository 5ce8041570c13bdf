"""Task and data files that would take for ever, or would become something else than they say."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalcore.errors import DefinitionError, EvalcoreError
from evalcore.tasks import read_yaml
from evalcore.tasks.faults import DataFault, TaskDataError, TaskError
from evalcore.tasks.reading import MAX_NODES, load_yaml, parse_yaml
from evalcore.tasks.rows import read_rows
from finetune.reading import parse_study


def bomb(levels: int, how: str) -> str:
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        names = ", ".join(f"*a{level - 1}" for _ in range(10))
        inner = f"<<: [{names}]" if how == "merge" else f"x: [{names}]"
        lines.append(f"a{level}: &a{level} {{{inner}}}")
    return "\n".join(lines)


YAML: dict[str, tuple[str, str]] = {
    "merges": (bomb(12, "merge"), "stands for more than"),
    "lists": (bomb(12, "list"), "stands for more than"),
    "wide": ("a: &a {x: 1}\nb: [" + "*a," * (MAX_NODES // 2) + "]", "stands for more than"),
    "itself": ("a: &a [*a]", "an alias stands within what it names"),
    "deep": ("a: " + "[" * 5000, "nested too deeply|broken YAML"),
    "digits": ("a: " + "9" * 5000, "broken YAML"),
    "date": ("a: 2026-13-45", "broken YAML"),
    "a number of 23 digits": ("version: 99999999999999999999999", "too large: expected 64 bits"),
    "a long number": ("version: 0x" + "f" * 100_000, "more than 100 characters"),
    "a long number of base 60": ("version: " + "1:" * 3000 + "1", "more than 100 characters"),
    "a long float of base 60": ("version: " + "1:" * 3000 + "1.5", "more than 100 characters"),
    "unhashable": ("? [1, 2]\n: 3", "broken YAML"),
}


@pytest.mark.parametrize("case", YAML)
def test_yaml_that_grows_is_refused_at_once(tmp_path: Path, case: str) -> None:
    text, reason = YAML[case]
    (tmp_path / "task.yaml").write_text(text)
    begin = time.monotonic()
    with pytest.raises(DefinitionError, match=reason) as caught:
        read_yaml(tmp_path / "task.yaml", "task file")
    with pytest.raises(DefinitionError):
        parse_study(text, tmp_path / "study.yaml")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begin < 20


def test_ordinary_aliases_and_merges_are_read() -> None:
    read = load_yaml("x: &x {a: 1, c: [1]}\ny: {<<: *x, a: 2}\nz: [*x, *x]")
    assert read["y"] == {"a": 2, "c": [1]}
    assert load_yaml("") is None


def test_yaml_files_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text("#" * 1_000_001)
    (tmp_path / "device.yaml").symlink_to("/dev/zero")
    for name, reason in {"large": "too large", "device": "is a device"}.items():
        with pytest.raises(DefinitionError, match=reason):
            read_yaml(tmp_path / f"{name}.yaml", "task file")


def test_cells_of_csv_are_text_as_written(tmp_path: Path) -> None:
    file = tmp_path / "test.csv"
    file.write_text(
        '\ufeffchoice,label,when,zip,empty,quoted,"a,b"\n'
        '1.50,true,2020-01-02,00701,,"","x\ny"\n1e5,NA,null,nan, ,NaN,z\n',
        encoding="utf-8",
    )
    assert read_rows(file) == [
        {"choice": "1.50", "label": "true", "when": "2020-01-02", "zip": "00701", "empty": None,
         "quoted": "", "a,b": "x\ny"},
        {"choice": "1e5", "label": "NA", "when": "null", "zip": "nan", "empty": " ",
         "quoted": "NaN", "a,b": "z"},
    ]  # fmt: skip


DATA: dict[str, tuple[bytes, str]] = {
    "a.jsonl": (b'{"q": "x"}\n{"q": "\\ud800"}\n', "line 2: half of a surrogate pair"),
    "b.jsonl": (b'{"q": ' + b"[" * 100_000, "line 1|nested too deeply"),
    "c.json": (b"[" * 100_000, "nested too deeply"),
    "d.json": (b"[" + b'{"a":' * 300 + b"1" + b"}" * 300 + b"]", "nested too deeply"),
    "e.json": (b'{"a": 1}', "one JSON object per row"),
    "f.jsonl": (b"[1]\n", "one JSON object per row"),
    "g.jsonl.gz": (b"no gzip", "broken"),
    "h.jsonl.gz": (gzip.compress(b'{"q": 1}\n' * 99)[:-12], "broken"),
    "i.csv": (b"a,a\n1,2\n", "'a' is given twice"),
    "j.csv": (b"a,b\n1,2,3\n", "broken"),
    "k.csv": (b"\xff\xfe,b\n1,2\n", "broken"),
    "l.csv": (b"", "broken"),
    "m.csv": (b'"' + b"x" * 300_000 + b'"\n', "broken"),
    "n.parquet": (b"PAR1" + b"\0" * 50 + b"PAR1", "broken"),
    "o.arrow": (b"ARROW1\0\0" + b"\xff" * 100, "broken"),
    "p.jsonl": (b'{"q": "\xff"}\n', "broken"),
}


@pytest.mark.parametrize("name", DATA)
def test_a_broken_data_file_is_one_line(tmp_path: Path, name: str) -> None:
    content, reason = DATA[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskDataError, match=reason) as caught:
        read_rows(tmp_path / name)
    assert caught.value.fault == DataFault.BROKEN_FILE
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_of_parquet_that_is_none_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(pa.table({"q": ["plain", "text"]}), file, **options)
    data = file.read_bytes()
    assert data.count(b"plain") == 1
    file.write_bytes(data.replace(b"plain", b"\xa6lain"))
    with pytest.raises(TaskDataError, match=r"broken: .*UTF8"):
        read_rows(file)


def test_flipped_bits_of_arrow_data_never_crash_the_reader(tmp_path: Path) -> None:
    table = pa.table({"q": [f"text {i}" for i in range(50)], "n": list(range(50))})
    file = tmp_path / "test.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    whole = file.read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[at] ^= 1 << (at % 8)
        file.write_bytes(changed)
        try:
            read_rows(file)
        except EvalcoreError:
            refused += 1
    assert refused > 5


def test_numbers_that_are_none_are_missing_values(tmp_path: Path) -> None:
    from evalcore.tasks import load_documents_counted
    from tests.toys.task_files import read, rows_of

    task: Any = read(tmp_path)
    rows: list[Any] = [{"sentence": "x", "label": 0}, {"sentence": float("nan"), "label": 0}]
    rows += [{"sentence": "y", "label": float("nan")}, {"sentence": "z", "label": 1}]
    rows_of(tmp_path, *rows)
    assert "NaN" in (tmp_path / "toy/test.jsonl").read_text()
    documents, counts = load_documents_counted(task, "score", data_root=tmp_path)
    assert [d.fields["text"] for d in documents] == ["x", "z"]
    assert (counts.unusable, counts.unusable_rows) == (2, (1, 2))
    above: Any = read(tmp_path, gold={"column": "label", "above": 0.5})
    documents, counts = load_documents_counted(above, "score", data_root=tmp_path)
    assert [d.gold for d in documents] == [0, 1]
    assert json.dumps(counts.unusable) == "2"


def test_an_error_without_a_line_has_one_colon() -> None:
    deep = "[" * 3000 + "]" * 3000
    with pytest.raises(TaskError) as caught:
        parse_yaml(deep, Path("x.yaml"), "task file")
    assert str(caught.value).startswith("task file x.yaml: broken YAML (")
