"""Whose tokenizer, chat template and end tokens ask: cells of real checkpoints and adapters."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalcore.app import score
from evalcore.app.cells import Grid
from evalcore.app.grid import build_grid
from evalcore.config import GridConfig, ScoreConfig
from evalcore.errors import InputError
from evalcore.identity import (
    CELL_KEY_VERSION,
    NumericsClass,
    checkpoint_fingerprint,
    resolve_subjects,
    write_provenance,
)
from evalcore.scoring import CellWork
from evalcore.store import ResultStore
from evalcore.store.schema import cell_row
from evalcore.types import TEMPLATE_DATE

Make = Callable[..., Path]
OTHER = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}[reply]"
NUMERICS = NumericsClass("hf", "float32", "float32", "cpu")
TASKS = """
name: {name}
version: 1
group: mini
description: made for this test
output_type: {kind}
source: {{path: rows}}
splits: {{score: test}}
fields: {{q: q}}
{rest}
metrics: [{metric}]
primary: {metric}
"""
CHOICE = "choices: {labels: ['yes', 'no']}\ngold: {column: gold}"
TEXT = "references: {column: a}\ngeneration: {max_tokens: 4}"


@pytest.fixture
def house(tmp_path: Path, tiny_checkpoint: Path, make_adapter: Make) -> Path:
    """A base, an adapter with a copy of its tokenizer, and two small tasks."""
    base = Path(shutil.copytree(tiny_checkpoint, tmp_path / "step-1"))
    adapter = make_adapter(tmp_path / "runs" / "a1", base)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "pick.yaml").write_text(
        TASKS.format(name="pick", kind="multiple_choice", rest=CHOICE, metric="acc")
    )
    (tmp_path / "tasks" / "tell.yaml").write_text(
        TASKS.format(name="tell", kind="generate_until", rest=TEXT, metric="rouge_l")
    )
    (tmp_path / "prompts" / "mini").mkdir(parents=True)
    (tmp_path / "prompts" / "mini" / "default.yaml").write_text(
        'name: default\ngroup: mini\ntemplate: "{{ q }}"\n'
    )
    (tmp_path / "data" / "rows").mkdir(parents=True)
    rows = [{"q": f"is {i} the old mill?", "gold": i % 2, "a": "the mill"} for i in range(4)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data" / "rows" / "test.jsonl").write_text(lines)
    return tmp_path


def edit(file: Path, **changes: Any) -> None:
    data = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**data, **changes}))


def grid_of(house: Path, prompts: str, tokenizer: str = "adapter", *more: str) -> Grid:
    subjects = resolve_subjects([house / "runs"], more, tokenizer=tokenizer).subjects
    options = GridConfig(
        (("pick,tell", prompts),), data_root=house / "data", task_path=(house / "tasks",),
        prompt_path=(house / "prompts",),
    )  # fmt: skip
    return build_grid(subjects, options, NUMERICS, house / "cache")


def named(grid: Grid) -> set[tuple[str, bool, str, str]]:
    """(task, chat, checkpoint's name without its mark, adapter) of each cell; marks as ~."""
    found = set()
    for planned in grid.cells:
        cell = planned.cell
        checkpoint, mark, _ = cell.subject.checkpoint.name.partition("~")
        adapter = cell.subject.adapter.name if cell.subject.adapter else "-"
        found.add((cell.task.name, cell.variant.chat, checkpoint + mark, adapter))
    assert len(found) == len(grid.cells)
    keys = [planned.cell.key for planned in grid.cells]
    assert len(set(keys)) == len(keys)
    return found


def usual(chat: bool, *tasks: str) -> set[tuple[str, bool, str, str]]:
    return {(task, chat, "step-1", who) for task in tasks for who in ("-", "a1")}


def test_a_copy_of_the_tokenizer_changes_nothing(house: Path) -> None:
    resolved = resolve_subjects([house / "runs"])
    assert all(subject.own is None for subject in resolved.subjects)
    assert not any("tokenizer" in note for note in resolved.notes)
    edit(house / "runs" / "a1" / "tokenizer_config.json", padding_side="left", pad_token="</s>")
    assert named(grid_of(house, "default")) == usual(False, "pick", "tell")


def test_another_template_asks_chats_alone_and_the_base_too(house: Path) -> None:
    edit(house / "runs" / "a1" / "tokenizer_config.json", chat_template=OTHER)
    notes = resolve_subjects([house / "runs"]).notes
    assert any("brings its own chat template" in note for note in notes)
    grid = grid_of(house, "default,default:chat=1")
    own = {(task, True, "step-1~", who) for task in ("pick", "tell") for who in ("-", "a1")}
    bare = {(task, True, "step-1", "-") for task in ("pick", "tell")}
    assert named(grid) == usual(False, "pick", "tell") | own | bare
    for planned, row in zip(grid.cells, grid.rows.to_pylist(), strict=True):
        if planned.cell.subject.adapter is None:
            continue
        partner = [
            other
            for other in grid.rows.to_pylist()
            if other["subject"] == row["base"]
            and (other["task"], other["variant"]) == (row["task"], row["variant"])
        ]
        assert len(partner) == 1
    kept = usual(False, "pick", "tell") | usual(True, "pick", "tell")
    assert named(grid_of(house, "default,default:chat=1", "base")) == kept


def test_another_end_asks_what_is_generated_alone(house: Path) -> None:
    edit(house / "runs" / "a1" / "tokenizer_config.json", eos_token="<unk>")
    grid = grid_of(house, "default")
    own = {("tell", False, "step-1~", who) for who in ("-", "a1")}
    assert named(grid) == usual(False, "pick") | own | {("tell", False, "step-1", "-")}
    ends = {p.cell.subject.checkpoint.end_tokens for p in grid.cells if p.cell.task.name == "tell"}
    assert ends == {(1,), (1, 2)}


def test_a_padding_token_changes_nothing(house: Path) -> None:
    file = house / "runs" / "a1" / "tokenizer.json"
    data = json.loads(file.read_text())
    token = {**data["added_tokens"][0], "content": "<|PAD_TOKEN|>", "id": 400}
    edit(file, added_tokens=[*data["added_tokens"], token])
    edit(house / "runs" / "a1" / "tokenizer_config.json", pad_token="<|PAD_TOKEN|>")
    prompts = "default,default:chat=1"
    both = usual(False, "pick", "tell") | usual(True, "pick", "tell")
    assert named(grid_of(house, prompts)) == both


def test_tokens_without_weights_are_refused(house: Path) -> None:
    file = house / "runs" / "a1" / "tokenizer.json"
    data = json.loads(file.read_text())
    token = {**data["added_tokens"][0], "content": "<|turn|>", "id": 400}
    edit(file, added_tokens=[*data["added_tokens"], token])
    config = house / "runs" / "a1" / "tokenizer_config.json"
    edit(config, chat_template="<|turn|>{{ messages[0].content }}")
    found = resolve_subjects([house / "runs"], [str(house / "step-1")])
    (problem,) = found.problems
    assert "brings 1 tokens that there are no weights for: <|turn|>" in problem.message
    assert "--tokenizer base" in problem.message
    assert not resolve_subjects([house / "runs"], tokenizer="base").problems


def test_a_base_without_a_template_is_asked_through_its_adapters(house: Path) -> None:
    config = house / "step-1" / "tokenizer_config.json"
    data = json.loads(config.read_text())
    config.write_text(json.dumps({k: v for k, v in data.items() if k != "chat_template"}))
    grid = grid_of(house, "default:chat=1")
    own = {(task, True, "step-1~", who) for task in ("pick", "tell") for who in ("-", "a1")}
    assert named(grid) == own
    with pytest.raises(
        InputError, match=r"step-1 and 1 more \(4 cells\): a chat needs a tokenizer"
    ):
        grid_of(house, "default:chat=1", "base")


def test_a_chat_that_cannot_be_asked_costs_its_cells_only(house: Path) -> None:
    other = Path(shutil.copytree(house / "step-1", house / "step-2"))
    data = json.loads((other / "tokenizer_config.json").read_text())
    del data["chat_template"]
    (other / "tokenizer_config.json").write_text(json.dumps(data))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    grid = grid_of(house, "default,default:chat=1", "adapter", str(other))
    alone = {(task, False, "step-2", "-") for task in ("pick", "tell")}
    assert named(grid) == usual(False, "pick", "tell") | usual(True, "pick", "tell") | alone
    ((what, why),) = grid.problems()
    assert what == "step-2 (2 cells)"
    assert "--tokenizer PATH" in why


def test_a_template_without_a_vocabulary_is_said(house: Path) -> None:
    (house / "runs" / "a1" / "tokenizer.json").unlink()
    notes = resolve_subjects([house / "runs"]).notes
    assert any("but no vocabulary: its base's tokenizer is used" in note for note in notes)


def test_one_tokenizer_for_all(house: Path, make_tokenizer: Make) -> None:
    edit(house / "runs" / "a1" / "tokenizer_config.json", chat_template=OTHER)
    before = {p.cell.key for p in grid_of(house, "default:chat=1").cells}
    folder = make_tokenizer(house / "given")
    edit(folder / "tokenizer_config.json", chat_template="{{ messages[0].content }}:")
    grid = grid_of(house, "default:chat=1", str(folder))
    assert named(grid) == usual(True, "pick", "tell")
    assert not before & {planned.cell.key for planned in grid.cells}
    assert {p.cell.subject.checkpoint.tokenizer for p in grid.cells} == {str(folder)}


def test_a_wrong_tokenizer_is_one_line(house: Path) -> None:
    with pytest.raises(InputError, match="--tokenizer bases: expected adapter, base, or a folder"):
        resolve_subjects([house / "runs"], tokenizer="bases")


def test_checkpoints_that_differ_in_their_template_share_what_is_no_chat(house: Path) -> None:
    other = Path(shutil.copytree(house / "step-1", house / "step-1-chat"))
    edit(other / "tokenizer_config.json", chat_template=OTHER)
    grid = grid_of(house, "default,default:chat=1", "base", str(other))
    chats = {("pick", True, "step-1-chat", "-"), ("tell", True, "step-1-chat", "-")}
    cells = named(grid)
    assert {cell for cell in cells if cell[1]} == usual(True, "pick", "tell") | chats
    assert len({cell for cell in cells if not cell[1]}) == 4


def test_rows_that_name_control_tokens_are_counted_once(house: Path) -> None:
    file = house / "data" / "rows" / "test.jsonl"
    file.write_text(file.read_text().replace("is 2 the", "is </s> the"))
    grid = grid_of(house, "default,default:chat=1")
    found = [finding for finding in grid.findings if finding.code == "special_tokens"]
    assert sorted(finding.task for finding in found) == ["pick", "tell"]
    assert {(finding.count, finding.rows) for finding in found} == {(1, (2,))}


def test_a_tuned_checkpoint_asks_its_parent_as_itself(house: Path, make_checkpoint: Make) -> None:
    tuned = make_checkpoint(house / "runs" / "full", seed=9)
    edit(tuned / "tokenizer_config.json", chat_template=OTHER)
    base = house / "step-1"
    write_provenance(
        tuned,
        {
            "schema": 1,
            "kind": "full",
            "base": {
                "name": "step-1",
                "path": str(base),
                "fingerprint": checkpoint_fingerprint(base),
            },
            "tuning": {"name": "mini"},
            "checkpoint_fingerprint": checkpoint_fingerprint(tuned),
        },
    )
    grid = grid_of(house, "default,default:chat=1")
    rows = {(r["task"], r["variant"], r["subject"]): r for r in grid.rows.to_pylist()}
    assert len(rows) == len(grid.rows.to_pylist())
    own = [row for row in grid.rows.to_pylist() if row["checkpoint"] == "full"]
    assert len(own) == 4
    for row in own:
        partner = rows[row["task"], row["variant"], row["base"]]
        assert partner["chat_template"] == row["chat_template"]
        assert partner["checkpoint"].startswith("step-1")
        assert ("~" in partner["checkpoint"]) == row["chat"]


def test_how_a_cell_was_asked_is_recorded(house: Path) -> None:
    edit(house / "step-1" / "generation_config.json", eos_token_id=[1, 7])
    dated = "{{ strftime_now('%Y') }} {{ messages[0].content }}"
    edit(house / "step-1" / "tokenizer_config.json", chat_template=dated)
    grid = grid_of(house, "default,default:chat=1", "base")
    for row in grid.rows.to_pylist():
        assert row["key_version"] == CELL_KEY_VERSION
        assert row["end_tokens"] == ([1, 7] if row["task"] == "tell" else None)
        assert row["template_date"] == (TEMPLATE_DATE if row["chat"] else None)
        assert bool(row["chat_template"]) == row["chat"]
    assert {"template_date"} <= {finding.code for finding in grid.findings}


def test_keys_given_anew_are_those_of_a_grid_that_was_built_so(house: Path) -> None:
    """In 16-bit the way of adapters is part of the keys and is known after the costs."""
    grid, before = (grid_of(house, "default,default:chat=1") for _ in range(2))
    other = replace(NUMERICS, dtype="bfloat16", adapters="batched")
    grid.give_keys(other)
    subjects = resolve_subjects([house / "runs"], (), tokenizer="adapter").subjects
    options = GridConfig(
        (("pick,tell", "default,default:chat=1"),), data_root=house / "data",
        task_path=(house / "tasks",), prompt_path=(house / "prompts",),
    )  # fmt: skip
    built = build_grid(subjects, options, other, house / "cache")
    assert grid.rows.to_pylist() == built.rows.to_pylist()
    keys, old = ({c.cell.key for c in g.cells} for g in (grid, before))
    assert len(keys) == len(old) == len(grid.asked)
    assert not keys & old
    grid.give_keys(NUMERICS)
    assert grid.rows.to_pylist() == before.rows.to_pylist()


def test_cells_made_in_bulk_are_those_made_one_by_one(
    house: Path, make_adapter: Make, tiny_checkpoint: Path
) -> None:
    """Keys and rows of a grid with chats, other tokenizers and a class of numbers apart."""
    other = Path(shutil.copytree(tiny_checkpoint, house / "step-2"))
    edit(other / "config.json", rms_norm_eps=1e-5, eos_token_id=[1, 7])
    make_adapter(house / "runs" / "b1", other, seed=3)
    edit(house / "runs" / "a1" / "tokenizer_config.json", chat_template=OTHER)
    grid = grid_of(house, "default,default:chat=1")
    grid.apart = {checkpoint_fingerprint(other): replace(NUMERICS, engine="vllm")}
    for numerics in (NUMERICS, replace(NUMERICS, dtype="bfloat16", adapters="batched")):
        grid.give_keys(numerics)
        rows = grid.rows.to_pylist()
        assert len(rows) == len(grid.cells) >= 12
        assert len({row["checkpoint"] for row in rows}) > 2
        for i, planned in enumerate(grid.cells):
            cell, question = planned.cell, grid.asked.questions[grid.cells.question[i]]
            own = grid.apart.get(cell.subject.checkpoint.fingerprint, numerics)
            assert cell.key == question.key(cell.subject, own, question.data)
            facts = question.facts(cell, own, question.key(cell.subject, own))
            assert rows[i] == cell_row(facts)
            assert grid.cells[i].requests_path == str(question.file.path)
        some = grid.cells.chosen(lambda subject: subject.adapter is None)
        assert [c.cell for c in some] == [
            c.cell for c in grid.cells if c.cell.subject.adapter is None
        ]
        assert grid.cells.subjects() == list(dict.fromkeys(c.cell.subject for c in grid.cells))
        ids = {subject.id for subject in some.subjects()}
        assert grid.cells.tokens_of(ids) == sum(int(c.costs.sum()) for c in some)


def test_a_run_over_older_keys_says_so_in_one_line(house: Path) -> None:
    options = ScoreConfig.of(
        grid=(("pick", "default"),), data_root=house / "data", task_path=(house / "tasks",),
        prompt_path=(house / "prompts",), adapters=(str(house / "runs"),), engine="hf",
        output=house / "results", dry_run=True,
    )  # fmt: skip
    assert not [note for note in score(options).notes if "earlier evalcore" in note]
    rows = grid_of(house, "default").rows.to_pylist()
    old = [
        {**row, "cell": f"old{i}", "key_version": None}
        for i, row in enumerate(rows)
        if row["task"] == "pick"
    ]
    ResultStore(house / "results").write_cells(old)
    (line,) = [note for note in score(options).notes if "earlier evalcore" in note]
    assert line.startswith("2 cells of ")
    assert "docs/identity.md" in line


def test_thinking_templates_are_told_to_the_worker(house: Path) -> None:
    thinks = "{{ messages[0].content }}{% if no_think %}</think>{% endif %}"
    edit(house / "step-1" / "tokenizer_config.json", chat_template=thinks)
    grid = grid_of(house, "default,default:chat=1", "base")
    for planned in grid.cells:
        how = CellWork.of(planned.cell).generation
        assert (how is not None) == (planned.cell.task.name == "tell")
        if how is not None:
            assert how.think_end == ("</think>" if planned.cell.variant.chat else "")
    assert "template_thinks" in {finding.code for finding in grid.findings}


def test_an_answer_of_a_chat_ends_with_its_turn(house: Path) -> None:
    closes = "{% for m in messages %}{{ m.content }}<unk>{% endfor %}"
    edit(house / "step-1" / "tokenizer_config.json", chat_template=closes)
    grid = grid_of(house, "default,default:chat=1", "base")
    for planned, row in zip(grid.cells, grid.rows.to_pylist(), strict=True):
        how = CellWork.of(planned.cell).generation
        if how is not None:
            assert how.turn_end == (2 if row["chat"] else None)
            assert row["end_tokens"] == ([1, 2] if row["chat"] else [1])


def test_a_template_that_fails_costs_its_own_cells(house: Path, make_checkpoint: Make) -> None:
    other = make_checkpoint(house / "step-2", seed=2)
    edit(other / "tokenizer_config.json", chat_template="{{ raise_exception('no system') }}")
    grid = grid_of(house, "default,default:chat=1", "base", str(other))
    chats = {p.cell.subject.checkpoint.name for p in grid.cells if p.cell.variant.chat}
    assert "step-2" not in chats
    assert {p.cell.subject.checkpoint.name for p in grid.cells} == {"step-1", "step-2"}
    ((what, why),) = [line for line in grid.problems() if "step-2" in line[0]]
    assert what == "step-2 (2 cells)"
    assert "no system" in why
