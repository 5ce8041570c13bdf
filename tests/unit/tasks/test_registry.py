"""Tasks by name and by path."""

from __future__ import annotations

from pathlib import Path

import pytest

from evalcore.app.blocks import prompt_blocks
from evalcore.tasks import TaskError, TaskFault, select_tasks
from evalcore.tasks.registry import DEFINITIONS

SHIPPED = (DEFINITIONS / "rte.yaml").read_text("utf-8")


def _file(folder: Path, old: str = "", new: str = "") -> str:
    folder.mkdir(exist_ok=True)
    text = SHIPPED.replace(old, new, 1) if old else SHIPPED
    assert old == "" or text != SHIPPED
    (folder / "rte.yaml").write_text(text, "utf-8")
    return str(folder / "rte.yaml")


@pytest.mark.parametrize("selection", ["{}", "rte,{}", "{},rte", "all,{}"])
def test_a_file_that_takes_a_known_name_is_refused(tmp_path: Path, selection: str) -> None:
    other = _file(tmp_path, "version: 2", "version: 7")
    with pytest.raises(TaskError, match=r"task rte is defined twice: .*rte\.yaml") as caught:
        select_tasks(selection.format(other))
    assert caught.value.fault is TaskFault.DEFINED_TWICE


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    one = _file(tmp_path / "a", "name: rte", "name: ours")
    two = _file(tmp_path / "b", "name: rte", "name: ours")
    (tmp_path / "b/rte.yaml").write_text(
        Path(two).read_text().replace("r: premise", "r: hypothesis")
    )
    assert [task.name for task in select_tasks(f"{one},{one}")] == ["ours"]
    with pytest.raises(TaskError, match="ours is defined twice"):
        select_tasks(f"{one},{two}")
    with pytest.raises(TaskError, match="ours is defined twice"):
        prompt_blocks(f"{one},{two}", ["ours=default"])


def test_the_same_definition_may_be_given_by_its_path(tmp_path: Path) -> None:
    same = _file(tmp_path)
    for selection in (same, f"rte,{same}", f"{same},rte", str(DEFINITIONS / "rte.yaml")):
        assert [task.name for task in select_tasks(selection)] == ["rte"]
