"""Pictures and tables of a report that are files."""

from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from evalcore.report.charts import Tunings, curve, prompt_map
from evalcore.report.csvs import write_csv
from evalcore.report.figures import Figure
from evalcore.report.pictures import MOST_COLUMNS, MOST_PICTURES, chosen, picture
from evalcore.store import text_cell


def test_a_picture_has_a_bounded_number_of_checkpoints() -> None:
    figure = Figure("id", "curves", "nli", "", curve(Tunings((), ("untuned",)), "accuracy"),
                    "scores", {})  # fmt: skip
    assert "tooltip" in json.dumps(figure.spec)
    for count in (1, MOST_COLUMNS, MOST_COLUMNS + 1, 300):
        rows: list[dict[str, Any]] = [
            {"place": n, "at": f"{n}k", "score": n / 300} for n in range(count)
        ]
        spec = picture(figure, rows)
        shown = [row["place"] for row in spec["datasets"]["rows"]]
        assert len(shown) == min(count, MOST_COLUMNS)
        assert (shown[0], shown[-1]) == (0, count - 1)
        steps = {b - a for a, b in pairwise(shown)}
        assert max(steps, default=1) - min(steps, default=1) <= 1, "equal distances"
        assert spec["width"] <= 34 * MOST_COLUMNS
        said = f"({MOST_COLUMNS} of {count} checkpoints)" in spec["title"]["text"]
        assert said == (count > MOST_COLUMNS)
        assert "tooltip" not in json.dumps(spec), "nothing points at a picture"
    assert picture(figure, [])["width"] > 0


def test_a_heat_map_has_a_bounded_number_of_rows() -> None:
    figure = Figure("id", "prompts", "nli", "", prompt_map("accuracy"), "scores", {}, row="line")
    rows: list[dict[str, Any]] = [
        {"place": n, "at": str(n), "row": f"{m:03d}"} for n in range(100) for m in range(200)
    ]
    spec = picture(figure, rows)
    shown = spec["datasets"]["rows"]
    assert len(shown) == MOST_COLUMNS**2
    assert {"000", "199"} <= {row["row"] for row in shown}
    assert spec["title"]["text"] == "nli (60 of 100 checkpoints, 60 of 200 rows)"


def test_of_many_tasks_the_first_have_pictures() -> None:
    def figure(section: str, task: str | None) -> Figure:
        where = {"task": [task]} if task else {}
        return Figure(f"{section} {task}", section, "", "", {}, "scores", where)

    few = [figure(section, f"task {n}") for section in ("curves", "gains") for n in range(40)]
    assert chosen([*few, figure("cost", None)]) == [*few, figure("cost", None)]
    many = [figure(section, f"task {n}") for section in ("curves", "gains") for n in range(500)]
    found = chosen([*many, figure("cost", None)])
    assert MOST_PICTURES - 2 < len(found) <= MOST_PICTURES
    assert found[-1].section == "cost"
    tasks = [f.where["task"][0] for f in found[:-1]]
    half = len(tasks) // 2
    assert tasks[:half] == tasks[half:] == [f"task {n}" for n in range(half)], "whole tasks"


def test_rows_of_any_columns_as_csv(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"a": 1.5, "b": "=1+1", "c": None}, {"b": "two\nlines, “x”", "d": True, "a": float("nan")},
        {"a": 1e-9, "d": 0, "b": "'"}, {},
    ]  # fmt: skip
    write_csv(tmp_path / "fast.csv", iter(rows))
    with (tmp_path / "slow.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["a", "b", "c", "d"], restval="")
        writer.writeheader()
        for row in rows:
            empty = {k: "" for k, v in row.items() if v is None or v != v}
            texts = {k: text_cell(v) for k, v in row.items() if isinstance(v, str)}
            writer.writerow({**row, **texts, **empty})
    assert (tmp_path / "fast.csv").read_bytes() == (tmp_path / "slow.csv").read_bytes()
