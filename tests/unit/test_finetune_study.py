"""The study file: what is refused, and with which line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evalcore.errors import DefinitionError, InputError
from finetune import load_study, parse_study, study_schema

ROOT = Path(__file__).resolve().parents[2]
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
        ("name: nli", "name: ../nli", "s.yaml: tunings.0.name: string should match"),
        ("method: {steps: 5", "method: {kind: full, steps: 5", "s.yaml: method.kind: input"),
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


def test_every_mistake_gets_its_own_line() -> None:
    text = GOOD.replace("steps: 5", "steps: 0").replace("task: pocket_nli", "task: 3")
    with pytest.raises(DefinitionError) as caught:
        parse_study(text, Path("s.yaml"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith("s.yaml: ") for line in lines)


def test_two_tunings_of_one_name() -> None:
    text = GOOD.replace("controls:", "  - {name: nli, task: pocket_nli}\ncontrols:")
    with pytest.raises(DefinitionError, match=r"tunings\.1\.name: 'nli' is used twice"):
        parse_study(text, Path("s.yaml"))


def test_not_a_mapping_and_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="expected keys"):
        parse_study("- a\n", Path("s.yaml"))
    with pytest.raises(InputError, match="cannot be read"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xff")
    with pytest.raises(InputError, match="not UTF-8"):
        load_study(tmp_path / "latin.yaml")


def test_shipped_studies_are_valid_and_the_schema_is_current() -> None:
    for file in sorted((ROOT / "studies").glob("*.yaml")):
        assert load_study(file).file == file
    published = json.loads((ROOT / "finetune" / "schema" / "study.schema.json").read_text())
    assert published == study_schema(), "regenerate finetune/schema/study.schema.json"
