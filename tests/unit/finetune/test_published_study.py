"""The shipped study file against what the paper says, line by line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from evalcore.prompting import load_variants
from evalcore.tasks import load_task
from evalcore.tasks.model import split_range
from evalcore.types import Task, generation_of
from finetune import Study, load_study
from finetune.jobs import MixPart
from finetune.study import TuningSpec

ROOT = Path(__file__).resolve().parents[3]
FACTS = yaml.safe_load((ROOT / "tests/data/study/amuro-char.yaml").read_text("utf-8"))
GENERATION = ("summarization", "question_generation_answers")
OURS = {
    "mnli": "mnli_matched", "socialiqa": "socialiqa_qg_answers", "tulu": "tulu_v2",
    "tweetqa": "tweetqa_qg_answers",
}  # fmt: skip
"""The paper's names of what it tunes on and evaluates -> tasks here."""


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(ROOT / "studies" / "amuro-char-olmo1b.yaml")


def tunings(study: Study) -> dict[str, tuple[TuningSpec, TuningSpec]]:
    """The paper's name -> its tuning, and the LoRA one beside it."""
    by_task: dict[str, list[TuningSpec]] = {}
    for tuning in study.tunings:
        by_task.setdefault(str(tuning.task), []).append(tuning)
    found = {name: by_task[OURS.get(name, name)] for name in FACTS["tuning"]["epochs"]}
    assert len(by_task) == len(found) == 5
    return {name: (one, two) for name, (one, two) in found.items()}


def task_of(name: str, tuned_on: str) -> Task:
    if (name, tuned_on) == ("sciq", "socialiqa"):
        return load_task("sciq_qg_answers")
    return load_task(OURS.get(name, name))


def evaluated() -> list[tuple[str, str, Task]]:
    """(tuned on, in or out, task) of all that the paper evaluates."""
    return [
        (tuned_on, domain, task_of(name, tuned_on))
        for tuned_on, both in FACTS["evaluation"]["sets"].items()
        for domain, names in zip(("in", "out"), both, strict=True)
        for name in names
    ]


def test_checkpoints(study: Study) -> None:
    facts = FACTS["models"]
    (entry,) = study.checkpoints.hub
    names = [f"step{step}-tokens{tokens}B" for step, tokens in facts["checkpoints"].items()]
    assert entry.sources == [f"{facts['repository']}@{n}" for n in [*names, facts["final"]]]


def test_rows_that_are_learned(study: Study) -> None:
    facts = FACTS["tuning"]
    for name, both in tunings(study).items():
        for tuning in both:
            assert tuning.data_seed == facts["data_seed"]
            assert tuning.variants == ["default"]
            assert tuning.checkpoints == "all"
            if name == "tulu":
                assert tuning.share == facts["tulu_share"]
                total, drawn = facts["tulu_rows"]
                assert MixPart("tulu_v2", None, share=tuning.share).rows_of(total) == drawn
            else:
                assert (tuning.examples, tuning.share) == (facts["examples"][name], None)


def test_hyper_parameters(study: Study) -> None:
    facts = FACTS["tuning"]
    for name, (full, lora) in tunings(study).items():
        method, other = study.method_of(full), study.method_of(lora)
        for key, value in facts["method"].items():
            assert getattr(method, key) == value, (name, key)
            assert getattr(other, key) == value or key == "kind", (name, key)
        assert method.learning_rate == facts["learning_rate"][name]
        assert method.epochs == other.epochs == facts["epochs"][name]
        assert (method.steps, method.gradient_accumulation, method.packing) == (None, 1, False)
        # an own choice: a LoRA learns at a hundred times the rate, in the paper's proportions
        assert other.learning_rate == pytest.approx(100 * method.learning_rate)


def test_what_is_evaluated_on_which_rows(study: Study) -> None:
    facts = FACTS["evaluation"]
    assert study.evaluation is not None
    assert sorted(study.evaluation.tasks) == sorted(task.name for _, _, task in evaluated())
    named = {full.task: name for name, (full, _) in tunings(study).items()}
    for tuned_on, domain, task in evaluated():
        (group,) = {load_task(t).tuned_by for t, n in named.items() if n == tuned_on}  # type: ignore[arg-type]
        assert (task.tuned_by, task.domain) == (group, domain), task.name
        generated = task.output_type == "generate_until"
        assert generated == (task.group in GENERATION)
        if generated:
            assert task.generation.max_tokens == facts["new_tokens"]["generation"]
            assert task.primary == facts["metric"]["generation"]
        else:
            assert task.primary in (facts["metric"]["classification"], "acc_norm")
    for name, split in facts["splits"].items():
        assert load_task(OURS.get(name, name)).spec["splits"]["score"] == split
    for name in facts["splits_not_as_published"]:
        task = load_task(OURS.get(name, name))
        assert split_range(task.spec["splits"]["score"])[0] == "validation"
        assert task.spec["published"]  # which is said


def test_labels(study: Study) -> None:
    facts = FACTS["evaluation"]
    for name in ("mnli_matched", "mnli_mismatched", "gpt3nli"):
        assert list(load_task(name).choices) == facts["labels"]["nli"]
    rte = load_task("rte")
    texts = [text for label in rte.choices for text in dict(rte.words).get(label, (label,))]
    assert texts == facts["labels"]["nli"]  # the coarser label stands for two of the tuned one's
    for name in ("paws", "qqp", "stsb"):
        assert sorted(load_task(name).choices) == sorted(facts["labels"]["paraphrase"])
    assert load_task("stsb").spec["gold"]["above"] == facts["binarised"]["stsb"]


def prompts_of(study: Study, task: Task) -> dict[str, Any]:
    assert study.evaluation is not None
    return {
        variant.name: variant
        for tasks, prompts in study.evaluation.blocks
        if task.name in tasks.split(",")
        for variant in load_variants(task.group, prompts)
    }


def test_prompts_and_ways_of_answering(study: Study) -> None:
    facts = FACTS["evaluation"]
    for tuned_on, domain, task in evaluated():
        found = prompts_of(study, task)
        at = f":shots={facts['shots']}"
        assert {f"{name}{at}" for name in facts["prompts"]} <= found.keys()
        first = (tuned_on, domain) in {("xsum", "in"), ("socialiqa", "in"), ("paws", "in")}
        if (first and task.name != "xlsum_english") or task.name == "mnli_matched":
            counts = {v.shots for v in found.values() if v.name.startswith("default")}
            assert counts == set(facts["shots_examined"])
        if tuned_on in ("mnli", "paws"):
            ways = {(v.answer, v.delimiter) for v in found.values() if v.answer != "choices"}
            assert {("first_token", " "), ("first_token", "")} <= ways
            free = next(v for v in found.values() if v.answer == "free")
            settings = generation_of(task, free)
            assert settings is not None
            assert settings.max_tokens == facts["new_tokens"]["classification"]


def test_groups_of_the_published_table(study: Study) -> None:
    assert study.evaluation is not None
    facts = FACTS["table_6"]
    groups = study.evaluation.groups
    for name in ("learned in fine-tuning", "learned in pre-training"):
        wanted = sorted(OURS.get(each, each) for each in facts[name])
        assert sorted(groups[name].tasks) == wanted
        assert groups[name].prompts == facts["prompts"]
    assert groups["learned in pre-training"].tuned_by == "tulu_v2"
    assert study.evaluation.primary is not None
    assert study.evaluation.primary.shots == facts["shots"]
