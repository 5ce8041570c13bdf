"""What a study declares of its report is there to be filled, or one line says what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune import StudyError, StudyFault, load_study, parse_study
from finetune.checks import check_names

ROOT = Path(__file__).resolve().parents[3]
STUDY = yaml.safe_load("""
name: s
checkpoints: {hub: [{repo: org/m, revisions: [main]}]}
tunings: [{name: t, task: rte, examples: 6}]
evaluation:
  tasks: [rte, mnli_matched]
  prompts: "default:shots=4,instruct:shots=4"
  extra: [{tasks: [rte], prompts: "default:shots=4,answer=first_token,space=0"}]
  groups: {g: {tasks: [rte], tuned_by: mnli, prompts: [default]}}
  primary: {shots: 4}
""")


def mistake(path: str, value: Any) -> tuple[StudyFault, str]:
    """What is said when one key of a good study is another value."""
    text = yaml.safe_dump(STUDY)
    study = yaml.safe_load(text)
    *outer, last = path.split(".")
    place = study
    for key in outer:
        place = place[int(key) if isinstance(place, list) else key]
    place[last] = value
    with pytest.raises(StudyError) as caught:
        check_names(parse_study(yaml.safe_dump(study), Path("s.yaml")))
    assert "\n" not in str(caught.value)
    return caught.value.codes[0], str(caught.value)


CASES = [
    ("evaluation.primary", {"shots": 5}, "unknown-variant", "primary: no prompt asks in this way"),
    ("evaluation.primary", {"shots": 4, "chat": True}, "unknown-variant", "there are default:sh"),
    ("evaluation.primary", {"shots": 4, "answer": "free"}, "unknown-variant", "no prompt asks"),
    ("evaluation.groups.g.tasks", ["rt"], "unknown-task", "scored task 'rt'; nearest: rte"),
    ("evaluation.groups.g.tasks", ["arc_easy"], "unknown-task", "unknown scored task 'arc_easy'"),
    ("evaluation.groups.g.prompts", ["defualt"], "unknown-variant", "task rte has no prompts def"),
    ("evaluation.groups.g.tuned_by", "paws", "unknown-tuning", "nothing is tuned on 'paws'"),
    ("evaluation.groups.g.promts", ["default"], "unknown-key", "groups.g.promts: unknown key"),
    ("tunings.0.seeds", [True], "wrong-value", "expected a number"),
    ("checkpoints.hub.0.revisions", ["a", "a"], "wrong-value", "org/m@a is named twice"),
    ("checkpoints.hub.0.revisions", ["../x"], "wrong-value", "no branch, tag or commit"),
    ("checkpoints.hub.0.revisions", [" "], "wrong-value", "no branch, tag or commit"),
    ("checkpoints.hub.0.steps", {"first": 2, "last": 1, "every": 1}, "wrong-value", "none from 2"),
]


@pytest.mark.parametrize(("path", "value", "code", "words"), CASES)
def test_what_no_run_would_fill_is_refused(path: str, value: Any, code: str, words: str) -> None:
    found, said = mistake(path, value)
    assert (found, words in said) == (code, True), said


def test_good_declarations_and_the_shipped_ones_pass() -> None:
    check_names(parse_study(yaml.safe_dump(STUDY), Path("s.yaml")))
    other = yaml.safe_load(yaml.safe_dump(STUDY))
    other["evaluation"]["primary"] = {"shots": 4, "answer": "first_token", "space": 0}
    check_names(parse_study(yaml.safe_dump(other), Path("s.yaml")))
    other["evaluation"]["tasks"].append("lm-eval:arc_easy")  # nothing is known of its prompts
    other["evaluation"]["groups"]["g"]["tasks"] = ["lm-eval:arc_easy"]
    check_names(parse_study(yaml.safe_dump(other), Path("s.yaml")))
    for file in sorted((ROOT / "studies").glob("*.yaml")):
        check_names(load_study(file))
