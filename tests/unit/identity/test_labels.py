"""Labels from options, files, name patterns and trainers' folders; parents of full checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest

from evalcore.errors import IncompatibleError, InputError
from evalcore.identity import resolve_subjects
from evalcore.identity.labelling import LabelSources, label_subjects
from evalcore.identity.labels import (
    CONTROLS,
    Labels,
    NamePattern,
    parse_tuned_on,
    path_names,
    read_labels,
    trainer_labels,
)
from evalcore.identity.parents import ParentMap
from evalcore.types import Adapter, Checkpoint, Subject
from finetune.study import ControlSpec

CHECKPOINT = Checkpoint("base", "/models/base", "b" * 32, "t" * 32)


def subject(path: Path, number: int = 0, **more: Any) -> Subject:
    return Subject(CHECKPOINT, Adapter(path.name, str(path), f"{number:032x}", 4, **more))


def labelled(subjects: list[Subject], folder: Path, **sources: Any) -> list[Subject]:
    found, _ = label_subjects(subjects, LabelSources(folders=(folder,), **sources))
    return list(found)


# Names with signs of their own ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "entry", "others"),
    [
        ("run[1]", r"run\[1]=mine", ["run1", "run[12]"]),
        ("run[1]", "run[1]=mine", ["run2"]),
        ("a*b", r"a\*b=mine,seed=2", ["axb"]),
        ("what?", r"what\?=mine", ["whats"]),
        ("lr=1e-4,seed=2", r"lr=1e-4\,seed=2=mine,seed=2", ["lr=1e-4"]),
        ("lr=1e-4", "lr=*=mine", ["lr"]),
        ("back\\slash", r"back\\slash=mine", ["backslash"]),
        ("two\nlines\x1b[31m", r"two\\nlines\\x1b\[31m=mine", ["two"]),
    ],
)
def test_a_name_with_signs_of_globs_can_be_labelled(
    tmp_path: Path, name: str, entry: str, others: list[str]
) -> None:
    models = [subject(tmp_path / each, i) for i, each in enumerate((name, *others))]
    found = labelled(models, tmp_path, rules=(parse_tuned_on(entry),))
    assert [s.tuned_on for s in found] == ["mine"] + [None] * len(others)


def test_files_and_maps_know_such_names_too(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text('path,tuned_on\n"a=1,b[2]",mine\n')
    (found,) = labelled([subject(tmp_path / "a=1,b[2]")], tmp_path)
    assert found.tuned_on == "mine"
    entries = ParentMap.parse([r"full\=[1]=models/base\=2"], []).entries
    assert entries == ((r"full\=[1]", "models/base=2"),)


def test_names_are_shown_on_one_line(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Any
) -> None:
    for name in ("two\nlines", "bell\x07", "sub\nfolder/checkpoint-5"):
        make_adapter(tmp_path / name, tiny_checkpoint, seed=len(name))
    subjects = [s for s in resolve_subjects([tmp_path]).subjects if s.adapter is not None]
    found = labelled(subjects, tmp_path)
    names = {s.adapter.name for s in found if s.adapter is not None}
    assert names == {r"two\nlines", r"bell\x07", r"sub\nfolder/checkpoint-5"}
    assert {s.tuning for s in found} == {None, r"sub\nfolder"}


# Written forms ----------------------------------------------------------------------------------


def test_tuned_on_is_a_glob_a_task_and_more() -> None:
    rule = parse_tuned_on("runs/lr=1e-4/*=pocket_nli,seed=3,control=shuffled_labels,tuning_step=50")
    assert rule.glob == "runs/lr=1e-4/*"
    assert rule.labels == Labels(
        "pocket_nli", "pocket_nli", seed=3, control="shuffled_labels", tuning_step=50
    )
    assert parse_tuned_on("a*=nli,tuning=mine,seed=-").clears == ("seed",)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("pocket_nli", "expected GLOB=TASK"),
        ("=pocket_nli", "expected GLOB=TASK"),
        ("a*=nli,seed", "'seed' is not KEY=VALUE"),
        ("a*=nli,seed=two", "seed should be a whole number, not 'two'"),
        ("a*=nli,seed=-1", "seed should be a whole number"),
        ("a*=nli,sead=1", "unknown label 'sead'; nearest: seed"),
        ("a*=nli\x1b[31m", "tuned_on should be a short text"),
    ],
)
def test_wrong_options_say_what_is_expected(entry: str, says: str) -> None:
    with pytest.raises(InputError, match=says.replace("(", r"\(")):
        parse_tuned_on(entry)


def test_name_pattern_reads_the_end_of_a_path() -> None:
    pattern = NamePattern.parse("{step}/{tuning}-seed{seed}")
    assert pattern.labels("/x/step-00700/pocket_nli-seed12") == Labels(
        tuning="pocket_nli", seed=12, step=700
    )
    assert pattern.labels("/x/step-00700/pocket_nli") is None
    assert NamePattern.parse("{tuned_on}/*/checkpoint-{tuning_step}").labels(
        "runs/nli/2026-01-01/checkpoint-50"
    ) == Labels(tuned_on="nli", tuning="nli", tuning_step=50)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("runs/*", "name at least one of {tuned_on}"),
        ("{tuning", "name at least one of"),
        ("{task}-x", "unknown label 'task'"),
        ("{seed}/{seed}", "stands there twice"),
    ],
)
def test_wrong_patterns_say_what_is_expected(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        NamePattern.parse(text)


def test_a_pattern_whose_value_is_no_number_says_of_which_path() -> None:
    with pytest.raises(InputError, match="x-seedlast: seed should be a whole number, not 'last'"):
        NamePattern.parse("{tuning}-seed{seed}").labels("runs/x-seedlast")


def test_yaml_and_csv_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "labels.yaml").write_text("nli-*: {tuned_on: nli, seed: 1}\nqa: boolq\n")
    (tmp_path / "labels.csv").write_text("path,tuned_on,seed\nnli-*,nli,1\nqa,boolq,\n")
    one, two = (read_labels(tmp_path / f"labels.{kind}") for kind in ("yaml", "csv"))
    assert [(r.glob, r.labels) for r in one] == [(r.glob, r.labels) for r in two]
    assert one[1].labels == Labels("boolq", "boolq")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("labels.yaml", "a: [1, 2]", "labels.yaml, 'a': expected GLOB: TASK"),
        ("labels.yaml", "- a", "expected lines such as"),
        ("labels.yaml", "a: {seed: true}", "labels.yaml, 'a': seed should be a whole number"),
        ("labels.yaml", "a: nli\nb: x\na: qa", "'a' stands there twice"),
        ("labels.yaml", "a: {", "is not YAML"),
        ("labels.yaml", "a: !!python/name:os.system x", "is not YAML"),
        ("labels.csv", "name,seed\nx,1", "no column 'path'"),
        ("labels.csv", "path,seed\nx,one", "labels.csv, line 2: seed should be a whole number"),
        ("labels.csv", "path,seed\nx,1,2", "line 2: too many values"),
        ("labels.csv", "path,loss\nx,1", "line 2"),
        ("labels.csv", "\xff", "UTF-8"),
        ("labels.csv", "path,seed\nx," + "9" * 5000, "line 2: seed should be a whole number"),
        ("labels.csv", "path,step\nx," + "9" * 5000, "line 2: step should be a whole number"),
        ("labels.csv", f"path,tuned_on\nx,{'y' * 140_000}", "labels.csv is not CSV"),
        (
            "labels.csv",
            "path,control\nx,shuffled",
            "kind of control 'shuffled'; nearest",
        ),
        ("labels.yaml", "a: {seed: 0x" + "f" * 100_000 + "}", "is not YAML"),
        ("labels.yaml", "a: {seed: " + "1:" * 3000 + "1}", "is not YAML"),
    ],
)
def test_wrong_files_say_where(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=says):
        read_labels(tmp_path / name)


@pytest.mark.parametrize("number", ["²", "٣", "9" * 5000, "9" * 19])
def test_seeds_are_numbers_as_tables_hold_them(number: str) -> None:
    with pytest.raises(InputError, match="seed should be a whole number"):
        parse_tuned_on(f"x=nli,seed={number}")
    with pytest.raises(InputError, match="step should be a whole number"):
        parse_tuned_on(f"x=nli,step={number}")


def test_a_control_is_of_a_known_kind() -> None:
    assert set(CONTROLS) == set(get_args(ControlSpec.model_fields["kind"].annotation))
    for known in CONTROLS:
        assert parse_tuned_on(f"x=nli,control={known}").labels.control == known
    assert parse_tuned_on("x=nli,control=-").clears == ("control",)
    with pytest.raises(InputError, match=r"'shuffled'; nearest: shuffled_labels.*format_only"):
        parse_tuned_on("x=nli,control=shuffled")


# Sources ----------------------------------------------------------------------------------------


def test_sources_are_believed_in_order_and_field_by_field(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "nli-seed7" / "checkpoint-500"
    run.mkdir(parents=True)
    (tmp_path / "runs" / "labels.yaml").write_text(
        "nli-*: {tuned_on: from_file, control: shuffled_labels}\n"
    )
    one = subject(run)
    sources = {
        "rules": (parse_tuned_on("nli-*=from_option"),),
        "pattern": NamePattern.parse("{tuning}-seed{seed}/*"),
    }
    (found,) = labelled([one], tmp_path / "runs", **sources)
    assert found.tuned_on == "from_option"
    assert (found.control, found.seed) == ("shuffled_labels", 7)
    assert found.made.tuning_step == 500
    assert found.made.labels_from == "option"
    assert found.label == "base + nli-seed7/checkpoint-500"
    (found,) = labelled([one], tmp_path / "runs")
    assert (found.tuned_on, found.made.labels_from) == ("from_file", "file")
    recorded = subject(run, tuning="t", tuned_on="from_record", seed=1)
    (found,) = labelled([recorded], tmp_path / "runs", **sources)
    assert (found.tuned_on, found.seed, found.made.labels_from) == ("from_record", 1, "record")
    mended = {one.id: (Labels("by_hand", "by_hand"), "label")}
    (found,) = labelled([one], tmp_path / "runs", known=mended, **sources)
    assert (found.tuned_on, found.made.labels_from) == ("by_hand", "label")
    before = {one.id: (Labels("of_last_run", "of_last_run"), "option")}
    (found,) = labelled([subject(tmp_path / "elsewhere")], tmp_path / "runs", known=before)
    assert (found.tuned_on, found.made.labels_from) == ("of_last_run", "option")


def test_later_lines_and_nearer_files_win(tmp_path: Path) -> None:
    inner = tmp_path / "runs" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "runs" / "labels.yaml").write_text("'*': outer\ninner/a: {seed: 1}\n")
    (inner / "labels.csv").write_text("path,tuned_on\n*,first\na,second\n")
    a, b = labelled([subject(inner / "a", 1), subject(inner / "b", 2)], tmp_path / "runs")
    assert (a.tuned_on, a.seed) == ("second", 1)
    assert b.tuned_on == "first"


def test_what_fits_nothing_is_told(tmp_path: Path) -> None:
    one = subject(tmp_path / "runs" / "a")
    with pytest.raises(InputError, match=r"no model's path or name fits 'b\*' \(there: base .*a\)"):
        labelled([one], tmp_path, rules=(parse_tuned_on("b*=nli"),))
    with pytest.raises(InputError, match="fits no model's path"):
        labelled([one], tmp_path, pattern=NamePattern.parse("{tuning}-seed{seed}"))
    (tmp_path / "labels.yaml").write_text("b*: nli\n")
    _, notes = label_subjects([one], LabelSources(folders=(tmp_path,)))
    assert any("'b*': fits no model here" in note for note in notes)
    (tmp_path / "labels.csv").write_text("path\n")
    with pytest.raises(InputError, match=r"labels\.yaml, labels\.csv: keep one"):
        labelled([one], tmp_path)


def test_a_glob_does_not_reach_above_the_folder_searched(tmp_path: Path) -> None:
    names = path_names(tmp_path / "nli" / "x" / "y" / "runs" / "a", (tmp_path / "nli/x/y/runs",))
    assert "runs/a" in names
    assert not any(name.startswith("nli") for name in names)


def test_a_step_of_pretraining_is_given_to_the_checkpoint_and_never_contradicts_it() -> None:
    path = Path("/runs/step-00700/nli-seed1")
    pattern = NamePattern.parse("{step}/{tuning}-seed{seed}")
    base = Subject(CHECKPOINT)
    found, tuned = label_subjects([base, subject(path)], LabelSources(pattern=pattern))[0]
    assert (found.checkpoint.step, tuned.checkpoint.step) == (700, 700)
    other = Checkpoint("base", "/models/base", "b" * 32, "t" * 32, step=900)
    with pytest.raises(InputError, match="its labels say step 700, but checkpoint base is of step"):
        label_subjects([Subject(other, subject(path).adapter)], LabelSources(pattern=pattern))


# Trainers' folders ------------------------------------------------------------------------------


def test_checkpoints_of_a_trainer_are_steps_of_one_tuning(tmp_path: Path) -> None:
    run = tmp_path / "my-run"
    (run / "checkpoint-500").mkdir(parents=True)
    state = run / "checkpoint-500" / "trainer_state.json"
    assert trainer_labels(run / "checkpoint-500") == Labels(tuning="my-run", tuning_step=500)
    assert trainer_labels(run) == Labels(tuning="my-run")
    state.write_text(json.dumps({"max_steps": 640}))
    assert trainer_labels(run) == Labels(tuning="my-run", tuning_step=640)
    state.write_text("[" * 100000)
    assert trainer_labels(run) == Labels(tuning="my-run")
    assert trainer_labels(tmp_path / "nothing") == Labels()


def test_the_model_a_run_ends_with_has_the_step_of_its_copy(
    tmp_path: Path, tiny_checkpoint: Path, make_adapter: Any
) -> None:
    for number, name in enumerate(("checkpoint-10", "checkpoint-20")):
        make_adapter(tmp_path / "run" / name, tiny_checkpoint, seed=number)
    make_adapter(tmp_path / "run", tiny_checkpoint, seed=1)
    resolved = resolve_subjects([tmp_path])
    _, *tuned = labelled(list(resolved.subjects), tmp_path)
    assert [s.made.tuning_step for s in tuned] == [10, 20] or [
        s.made.tuning_step for s in tuned
    ] == [
        20,
        10,
    ]
    assert {s.tuning for s in tuned} == {"run"}
    assert {s.tuned_on for s in tuned} == {None}, "a folder's name says nothing about the data"


# Parents ----------------------------------------------------------------------------------------


def test_parent_map_finds_full_checkpoints_and_their_parent(
    tmp_path: Path, tiny_checkpoint: Path, make_checkpoint: Any
) -> None:
    for number in (50, 70):
        make_checkpoint(tmp_path / "full" / "run" / f"checkpoint-{number}", seed=number)
    entry = f"full/*={tiny_checkpoint}"
    parents = ParentMap.parse([entry], [tmp_path / "full"])
    assert [path.name for path in parents.tuned] == ["checkpoint-50", "checkpoint-70"]
    resolved = resolve_subjects((), (*map(str, parents.tuned), *parents.parents))
    subjects = labelled(parents.applied(resolved.subjects, [tmp_path / "full"]), tmp_path / "full")
    base, *tuned = sorted(subjects, key=lambda s: s.made.tuning_step or 0)
    assert base.base_id is None
    assert {s.base_id for s in tuned} == {base.id}
    assert [s.made.tuning_step for s in tuned] == [50, 70]
    assert {(s.checkpoint.step, s.method, s.tuning) for s in tuned} == {(100, "full", "run")}


def test_wrong_parent_maps_are_refused(
    tmp_path: Path, tiny_checkpoint: Path, make_checkpoint: Any
) -> None:
    tuned = make_checkpoint(tmp_path / "tuned", seed=5)
    with pytest.raises(InputError, match="expected GLOB=PATH"):
        ParentMap.parse(["tuned"], [tmp_path])
    nothing = ParentMap.parse([f"other*={tiny_checkpoint}"], [tmp_path])
    subjects = resolve_subjects((), (str(tuned), str(tiny_checkpoint))).subjects
    with pytest.raises(InputError, match=r"no checkpoint's path or name fits 'other\*'"):
        nothing.applied(subjects, [tmp_path])
    itself = ParentMap.parse([f"tuned={make_checkpoint(tmp_path / 'copy', seed=5)}"], [tmp_path])
    with pytest.raises(InputError, match="tuning changed nothing"):
        itself.applied(subjects, [tmp_path])
    known = [Subject(Checkpoint("tuned", str(tuned), "f" * 32, "t" * 32, parent="e" * 32))]
    given = ParentMap.parse([f"tuned={tiny_checkpoint}"], [tmp_path])
    with pytest.raises(IncompatibleError, match="tuned from another checkpoint by its record"):
        given.applied(known, [tmp_path])


def test_a_name_letter_by_letter_fits_with_an_escaped_comma_too() -> None:
    """The page's own example: a folder that is literally called so."""
    rule = parse_tuned_on(r"lr=1e-4\,r[8]=pocket_nli")
    assert rule.labels.tuned_on == "pocket_nli"
    assert rule.matches(["lr=1e-4,r[8]"])
    assert rule.matches(["lr=1e-4,r8"]), "it is a glob still"
    assert not rule.matches(["lr=1e-4,r9"])
    assert rule.where == r"--tuned-on 'lr=1e-4\,r[8]=pocket_nli'", "as it was typed"


@pytest.mark.parametrize("name", ["labels.yaml", "labels.csv"])
@pytest.mark.parametrize("how", ["pipe", "link"])
def test_a_labels_file_that_is_none_is_named(name: str, how: str, tmp_path: Path) -> None:
    (run := tmp_path / "runs" / "a").mkdir(parents=True)
    file = tmp_path / "runs" / name
    if how == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to("nowhere")
    reason = "a pipe, expected a regular file" if how == "pipe" else "a link to nothing"
    with pytest.raises(InputError, match=f"{name} is {reason}"):
        labelled([subject(run)], tmp_path / "runs")
