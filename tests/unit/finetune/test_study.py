"""The study file: what is refused, and with which line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evalcore.errors import DefinitionError, InputError
from finetune import StudyError, StudyFault, load_study, parse_study, study_schema
from finetune.study import HubCheckpoints

ROOT = Path(__file__).resolve().parents[3]
GOOD = """
name: small
checkpoints: {paths: ["step-*"]}
tunings:
  - {name: nli, task: pocket_nli, examples: 20, method: {rank: 4}}
controls: [{kind: shuffled_labels, of: [nli]}]
method: {steps: 5, learning_rate: 1e-3}
"""


def test_a_good_study_and_merged_methods() -> None:
    study = parse_study(GOOD, Path("s.yaml"))
    method = study.method_of(study.tunings[0])
    assert (method.rank, method.steps, method.learning_rate) == (4, 5, 1e-3)
    assert study.controls[0].checkpoints == "last"
    assert method.merged({"epochs": 2}).steps is None


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: small", "", "s.yaml: name: field required"),
        ("rank: 4", "rnak: 4", "s.yaml: tunings.0.method.rnak: unknown key"),
        ("rank: 4", "rank: 0", "s.yaml: tunings.0.method.rank: input should be greater than"),
        ("steps: 5", "steps: five", "s.yaml: method.steps: "),
        ("steps: 5", "steps: 5, epochs: 1", "s.yaml: method: give steps or epochs, not both"),
        ("of: [nli]", "of: [mnli]", "s.yaml: controls.0.of: no tuning is named 'mnli'"),
        ("kind: shuffled_labels", "kind: other", "s.yaml: controls.0.kind: input should be"),
        ("examples: 20", "examples: 20, seeds: [1, 1]", "tunings.0.seeds: seeds [1, 1]"),
        ("examples: 20", "examples: 20, more_seeds: {seeds: [0, 1]}", "more_seeds [0, 1] are not"),
        ("name: nli", "name: ../nli", "s.yaml: tunings.0.name: string should match"),
        ("steps: 5", "steps: 5, batch_size: 6, devices: 4", "batch_size 6 cannot be shared evenly"),
        ("rank: 4", "rank: 3, init: orthogonal", "init orthogonal needs an even rank, not 3"),
        ("name: small", "name: small\nname: other", "s.yaml:2: not valid YAML: key 'name'"),
        ("name: small", "name: [small", "not valid YAML"),
        ("name: small", "name: !!python/object:os.system x", "not valid YAML"),
        ("name: small", "name: small\nevaluaton: {}", "s.yaml: evaluaton: unknown key"),
    ],
)
def test_mistakes_are_named_by_file_and_key(old: str, new: str, expected: str) -> None:
    text = GOOD.lstrip().replace(old, new, 1)
    with pytest.raises(DefinitionError) as caught:
        parse_study(text, Path("s.yaml"))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


FAULTS = [
    (StudyFault.BROKEN_YAML, "name: small", "name: [small"),
    (StudyFault.KEY_TWICE, "name: small", "name: small\nname: other"),
    (StudyFault.UNKNOWN_KEY, "examples: 20", "exmples: 20"),
    (StudyFault.MISSING_KEY, "name: small", "description: none"),
    (StudyFault.WRONG_VALUE, "examples: 20", "examples: twenty"),
    (StudyFault.LORA_KEY_WITH_FULL, "{rank: 4}", "{kind: full, learning_rate: 1e-6, rank: 4}"),
    (StudyFault.SELECT_WITHOUT_HELD_OUT, "examples: 20", "select: {learning_rate: [1e-3, 1e-4]}"),
    (StudyFault.NAME_TWICE, "controls:", "  - {name: nli, task: pocket_nli}\ncontrols:"),
    (StudyFault.UNKNOWN_TUNING, "of: [nli]", "of: [mnli]"),
    (StudyFault.BAD_GRID, "examples: 20", "grid: {examples: [many]}"),
]


@pytest.mark.parametrize(("code", "old", "new"), FAULTS, ids=[str(f[0]) for f in FAULTS])
def test_every_kind_of_mistake_has_its_code(code: StudyFault, old: str, new: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_study(GOOD.lstrip().replace(old, new, 1), Path("s.yaml"))
    assert caught.value.codes == (code,)
    assert str(caught.value).startswith("s.yaml:")
    assert str(caught.value).endswith(f"[{code}]")
    assert caught.value.exit_status == 2


def test_full_tuning_takes_over_neither_lora_keys_nor_the_learning_rate() -> None:
    text = GOOD.replace("method: {steps", "method: {rank: 64, dora: true, steps")
    for override in (
        "{kind: full, learning_rate: 2e-6}",
        "{kind: full, learning_rate: 2e-6, epochs: 1}",
    ):
        study = parse_study(text.replace("{rank: 4}", override), Path("s.yaml"))
        method = study.method_of(study.tunings[0])
        assert (method.kind, method.learning_rate) == ("full", 2e-6)
        assert not {"rank", "dora", "targets"} & method.settings().keys()
    assert method.steps is None
    with pytest.raises(StudyError, match="kind full needs a learning_rate of its own"):
        parse_study(text.replace("{rank: 4}", "{kind: full}"), Path("s.yaml"))


def test_settings_leave_out_what_is_only_about_speed() -> None:
    study = parse_study(GOOD, Path("s.yaml"))
    method = study.method
    same = method.merged({"save_every": 2, "gradient_checkpointing": True, "devices": 2})
    assert same.settings() == method.settings()
    assert method.merged({"packing": True}).settings() != method.settings()


def test_a_grid_becomes_named_tunings_and_controls_follow() -> None:
    grid = "examples: 20, grid: {rank: [4, 8], learning_rate: [1e-3, 2e-4], dora: [true]}"
    study = parse_study(GOOD.replace("examples: 20", grid).replace("{rank: 4}", "{}"), Path("s"))
    points = study.expanded()
    assert [p.name for p in points] == [
        "nli+rank4+lr0.001+doratrue", "nli+rank4+lr0.0002+doratrue",
        "nli+rank8+lr0.001+doratrue", "nli+rank8+lr0.0002+doratrue",
    ]  # fmt: skip
    methods = [study.method_of(p) for p in points]
    assert [(m.rank, m.learning_rate, m.dora) for m in methods] == [
        (4, 1e-3, True), (4, 2e-4, True), (8, 1e-3, True), (8, 2e-4, True),
    ]  # fmt: skip
    assert all(p.examples == 20 and not p.grid for p in points)
    assert all(m.steps == 5 for m in methods)


def test_a_grid_over_rows_and_prompts() -> None:
    grid = "grid: {examples: [5, 10], variants: [default, [default, io]]}"
    study = parse_study(GOOD.replace("examples: 20", grid), Path("s.yaml"))
    found = [(p.name, p.examples, p.variants) for p in study.expanded()]
    assert found == [
        ("nli+examples5+variantsdefault", 5, ["default"]),
        ("nli+examples5+variantsdefault_io", 5, ["default", "io"]),
        ("nli+examples10+variantsdefault", 10, ["default"]),
        ("nli+examples10+variantsdefault_io", 10, ["default", "io"]),
    ]
    for wrong in ("{kind: [full]}", "{rank: [4, 4]}", "{rank: []}"):
        with pytest.raises(StudyError, match=r"tunings\.0\.grid"):
            parse_study(GOOD.replace("examples: 20", f"grid: {wrong}"), Path("s.yaml"))


def test_selection_stands_for_the_learning_rate() -> None:
    select = "examples: 20, select: {learning_rate: [1e-3, 1e-4], held_out: 0.1}"
    study = parse_study(GOOD.replace("examples: 20", select), Path("s.yaml"))
    assert study.method_of(study.tunings[0]).learning_rate == 1e-3
    for old, new, expected in (
        ("[1e-3, 1e-4]", "[1e-3, 1e-3]", "not distinct"),
        ("held_out: 0.1", "held_out: 1.5", "a share below 1 or a whole number"),
        ("held_out: 0.1", "held_out: 20", "leaves none of 20 rows to train on"),
        ("examples: 20,", "grid: {learning_rate: [1e-3]},", "is in grid and in select"),
    ):
        with pytest.raises(StudyError, match=expected):
            parse_study(GOOD.replace("examples: 20", select.replace(old, new)), Path("s.yaml"))


@pytest.mark.parametrize(
    ("mix", "examples", "expected"),
    [
        ("[{task: a}, {task: b}]", "11", [("a", 6), ("b", 5)]),
        ("[{task: a, weight: 3}, {task: b}]", "100", [("a", 75), ("b", 25)]),
        ("[{task: a, examples: 7}, {task: b, weight: 2}, {task: c}]", "10",
         [("a", 7), ("b", 2), ("c", 1)]),
        ("[{task: a, examples: 7}, {task: b}]", "null", [("a", 7), ("b", None)]),
    ],
)  # fmt: skip
def test_the_rows_of_a_mix(mix: str, examples: str, expected: list[tuple[str, int]]) -> None:
    text = GOOD.replace("task: pocket_nli, examples: 20", f"mix: {mix}, examples: {examples}")
    parts = parse_study(text, Path("s.yaml")).tunings[0].parts
    assert [(task, rows) for task, rows, _ in parts] == expected


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("rank: 4", "epochs: .inf", "tunings.0.method.epochs"),
        ("steps: 5", "epochs: .inf", "method.epochs"),
        ("steps: 5", "epochs: 1e308", "method.epochs"),
        ("rank: 4", "alpha: .inf", "tunings.0.method.alpha"),
        ("steps: 5", "weight_decay: .inf", "method.weight_decay"),
        ("steps: 5", "max_grad_norm: .nan", "method.max_grad_norm"),
        ("examples: 20", "grid: {alpha: [.inf]}", "tunings.0"),
        ("examples: 20", "grid: {examples: [.inf]}", "tunings.0.grid"),
        ("task: pocket_nli", "mix: [{task: a, weight: .inf}, {task: b}]", "tunings.0.mix.0.weight"),
        (
            "examples: 20",
            "select: {learning_rate: [1e-3, 1e-4], held_out: .inf}",
            "tunings.0.select.held_out",
        ),
        (
            'paths: ["step-*"]',
            "hub: [{repo: m, steps: [1], revision: 's{tokens}', tokens_per_step: .inf}]",
            "checkpoints.hub.0.tokens_per_step",
        ),
        (
            'paths: ["step-*"]',
            "hub: [{repo: m, steps: [1000], revision: 's{tokens}', tokens_per_step: 1e308}]",
            "checkpoints.hub.0.tokens_per_step",
        ),
    ],
)
def test_numbers_without_end_are_mistakes(old: str, new: str, key: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_study(GOOD.replace(old, new, 1), Path("s.yaml")).method.rows_seen(20)
    assert all(line.startswith(f"s.yaml: {key}") for line in caught.value.lines), caught.value


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("rank: 4", "rank: true", "tunings.0.method.rank: expected a number, not True"),
        ("steps: 5", "steps: true", "method.steps: expected a number, not True"),
        ("examples: 20", "examples: true", "tunings.0.examples: expected a number"),
        ("examples: 20", "grid: {rank: [true]}", "tunings.0.method.rank: expected a number"),
        ("examples: 20", "share: true", "tunings.0.share: expected a number"),
        ('paths: ["step-*"]', "hub: [{repo: m, steps: [true]}]", "checkpoints.hub.0.steps"),
        ("steps: 5", "steps: 5, targets: ['']", "method.targets.0: "),
        ("method: {steps", "evaluation: {tasks: [a], groups: {'': {tasks: [a]}}}\nmethod: {steps",
         "evaluation.groups."),
        ("method: {steps", "evaluation: {tasks: [a], groups: {g: {tasks: ['']}}}\nmethod: {steps",
         "evaluation.groups.g.tasks.0: "),
        ("task: pocket_nli", "mix: [{task: a, examples: 30}, {task: b, examples: 30}]",
         "tunings.0: mix: its entries ask for 60 rows, examples for 20"),
        ("task: pocket_nli", "mix: [{task: a, examples: 3}, {task: b, examples: 4}]",
         "tunings.0: mix: its entries ask for 7 rows in all, examples for 20; leave examples out"),
    ],
)  # fmt: skip
def test_values_that_would_mean_something_else(old: str, new: str, key: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse_study(GOOD.replace(old, new, 1), Path("s.yaml"))
    assert f"s.yaml: {key}" in str(caught.value)


def test_truth_stays_where_it_is_asked_for_and_whole_numbers_in_their_spellings() -> None:
    grid = "examples: 20, grid: {dora: [true, false], rank: [8.0]}"
    text = GOOD.replace("examples: 20", grid).replace("steps: 5", "steps: 5.0, rslora: true")
    study = parse_study(text, Path("s.yaml"))
    methods = [study.method_of(point) for point in study.expanded()]
    assert [(m.dora, m.rank, m.steps, m.rslora) for m in methods] == [
        (True, 8, 5, True), (False, 8, 5, True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("1e308, 1e308", [10, 10]), ("0.1, 0.3", [5, 15]), ("5e-324, 1.5e-323", [5, 15])],
)
def test_weights_of_any_size_are_shares(weights: str, expected: list[int]) -> None:
    one, two = weights.split(", ")
    mix = f"mix: [{{task: a, weight: {one}}}, {{task: b, weight: {two}}}]"
    tuning = parse_study(GOOD.replace("task: pocket_nli", mix), Path("s.yaml")).tunings[0]
    assert [rows for _, rows, _ in tuning.parts] == expected


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ("mix: [{task: a}], task: b", "give task or mix, one of them"),
        ("examples: 3", "give task or mix, one of them"),
        ("mix: [{task: a}, {task: a}]", "a task is in the mix twice"),
        (
            "mix: [{task: a, examples: 5}, {task: b}], examples: 5",
            "no row of examples is left for b",
        ),
    ],
)
def test_mixes_that_make_no_sense(new: str, expected: str) -> None:
    text = GOOD.replace("task: pocket_nli, examples: 20", new)
    with pytest.raises(StudyError, match=expected):
        parse_study(text, Path("s.yaml"))


def test_revisions_of_steps() -> None:
    entry = HubCheckpoints(
        repo="org/model", steps=[1000, 738000], revisions=["main"],
        revision="step{step}-tokens{tokens}B", tokens_per_step=4_192_700,
    )  # fmt: skip
    assert entry.sources == [
        "org/model@step1000-tokens4B", "org/model@step738000-tokens3094B", "org/model@main",
    ]  # fmt: skip
    ranged = HubCheckpoints(repo="m", steps={"first": 10, "last": 30, "every": 10})
    assert ranged.sources == ["m@step10", "m@step20", "m@step30"]


@pytest.mark.parametrize(
    ("hub", "expected"),
    [
        ("{repo: a/b}", "give revisions, steps, or both"),
        ("{repo: a/b, steps: [1], revision: 's{tokens}'}", "needs tokens_per_step"),
        ("{repo: a/b, steps: [1], revision: 's{x}'}", "may be in braces"),
        (
            "{repo: a/b, steps: {first: 1, last: 5}}",
            "checkpoints.hub.0.steps.every: field required",
        ),
    ],
)
def test_hub_entries_that_make_no_sense(hub: str, expected: str) -> None:
    text = GOOD.replace('{paths: ["step-*"]}', f"{{hub: [{hub}]}}")
    with pytest.raises(StudyError) as caught:
        parse_study(text, Path("s.yaml"))
    assert expected in str(caught.value)


def test_every_mistake_gets_its_own_line() -> None:
    text = GOOD.replace("steps: 5", "steps: 0").replace("task: pocket_nli", "task: 3")
    with pytest.raises(DefinitionError) as caught:
        parse_study(text, Path("s.yaml"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith("s.yaml: ") for line in lines)


def test_groups_and_the_primary_way_are_checked() -> None:
    evaluation = """
evaluation:
  tasks: [pocket_nli, pocket_facts]
  primary: {shots: 4, answer: first_token}
  groups:
    one: {tasks: [pocket_nli]}
    two: {tasks: [pocket_facts], tuned_by: mix, prompts: [default]}
"""
    spec = parse_study(GOOD + evaluation, Path("s.yaml")).evaluation
    assert spec is not None
    assert spec.primary is not None
    assert (spec.primary.shots, spec.primary.answer, spec.primary.chat) == (4, "first_token", False)
    assert [(n, g.tasks, g.tuned_by, g.prompts) for n, g in spec.groups.items()] == [
        ("one", ["pocket_nli"], None, []), ("two", ["pocket_facts"], "mix", ["default"]),
    ]  # fmt: skip
    for old, new, said in (
        ("[pocket_facts], tuned_by", "[pocket_nli], tuned_by", "pocket_nli: a task stands in one"),
        ("tasks: [pocket_nli]}", "tasks: []}", "evaluation.groups.one.tasks"),
        ("answer: first_token", "answer: guess", "evaluation.primary.answer"),
        ("shots: 4", "shot: 4", "evaluation.primary.shot: unknown key"),
    ):
        with pytest.raises(DefinitionError) as caught:
            parse_study(GOOD + evaluation.replace(old, new), Path("s.yaml"))
        assert said in str(caught.value), caught.value


def test_two_tunings_of_one_name() -> None:
    text = GOOD.replace("controls:", "  - {name: nli, task: pocket_nli}\ncontrols:")
    with pytest.raises(DefinitionError, match=r"tunings\.1\.name: 'nli' is used twice"):
        parse_study(text, Path("s.yaml"))


def test_not_a_mapping_and_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="expected keys") as caught:
        parse_study("- a\n", Path("s.yaml"))
    assert caught.value.codes == (StudyFault.NOT_A_MAPPING,)
    with pytest.raises(InputError, match="is missing"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    with pytest.raises(InputError, match="not UTF-8"):
        load_study(tmp_path / "latin.yaml")


def test_shipped_studies_are_valid_and_the_schema_is_current() -> None:
    for file in sorted((ROOT / "studies").glob("*.yaml")):
        assert load_study(file).file == file
    published = json.loads((ROOT / "finetune" / "schema" / "study.schema.json").read_text())
    assert published == study_schema(), "regenerate finetune/schema/study.schema.json"
