"""Small local tasks in lm-eval's format: every output type and the odd corners of each.

All text is made here from a seed, so that the tasks need no network and say nothing of anybody.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

PEOPLE = ("Dorira", "Tavira", "Kelno", "Bemul", "Osrith", "Yanec")
THINGS = ("mule", "old mill", "harbour", "lantern", "boat", "garden", "quiet dog", "book")
PLACES = ("Gorse", "the valley", "the long river", "Mara", "a small town")
VERBS = ("keeps", "paints", "sells", "finds", "repairs", "draws")
ODD = ("naïve café", "Straße №5", "日本の猫", "emoji 🙂 end", "zero\u200bwidth", "e\u0301clair")


def _sentence(rng: random.Random) -> str:
    return (
        f"{rng.choice(PEOPLE)} {rng.choice(VERBS)} the {rng.choice(THINGS)} in {rng.choice(PLACES)}"
    )


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Rows with every column any of the tasks asks for."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        things = rng.sample(THINGS, 4)
        answer = rng.randrange(4)
        person, place = rng.choice(PEOPLE), rng.choice(PLACES)
        head = rng.choice(things)
        made.append(
            {
                "number": number,
                "question": f"What does {person} see in {place}?",
                "padded": f"What does {person} see in {place}? ",
                "text": _sentence(rng) + ".",
                "options": [f"the {thing}" for thing in things],
                "answer": answer,
                "letter": "ABCD"[answer],
                "binary": rng.randrange(2),
                "golds": sorted(rng.sample(range(4), 2)),
                "short": head,
                "longer": f"{head} of {place}",
                "longest": f"{head} of {place} and {person}",
                "odd": rng.choice(ODD),
                "odd_options": rng.sample(ODD, 3),
                "first": f"{person} keeps the {things[0]} because the {things[0]}",
                "second": f"{person} keeps the {things[0]} because the {things[1]}",
                "tail": f"is in {place}.",
                "which": str(1 + rng.randrange(2)),
                "story": " ".join(_sentence(rng) + "." for _ in range(rng.choice((2, 6, 40)))),
                "last": rng.choice(THINGS),
                "names": [person, rng.choice(PEOPLE)],
                "lead": rng.choice(("So", "Well,", "I think")),
                "sum": f"{number} + {number % 3} = ",
            }
        )
    return made


CHOICE = {"output_type": "multiple_choice", "test_split": "test"}
GENERATE = {"output_type": "generate_until", "test_split": "test"}
MEAN = {"aggregation": "mean", "higher_is_better": True}


def _metrics(*names: str) -> list[dict[str, Any]]:
    return [{"metric": name, **MEAN} for name in names]


TASKS: dict[str, dict[str, Any]] = {
    # -- choices
    "pk_several_tokens": {
        **CHOICE,
        "tag": ["pk_tag"],
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "options",
        "doc_to_target": "answer",
        "metric_list": [
            *_metrics("acc", "acc_norm", "acc_bytes", "exact_match"),
            {"metric": "mcc"},
            {"metric": "brier_score"},
        ],
    },
    "pk_letters": {
        **CHOICE,
        "tag": ["pk_tag"],
        "doc_to_text": (
            "{{question}}\n"
            "{% for o in options %}{{'ABCD'[loop.index0]}}. {{o}}\n{% endfor %}Answer:"
        ),
        "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_target": "letter",
        "num_fewshot": 2,
        "fewshot_split": "train",
        "metric_list": _metrics("acc", "acc_norm"),
    },
    "pk_shared_tokens": {
        **CHOICE,
        "doc_to_text": "{{text}} It is about the",
        "doc_to_choice": "{{[short, longer, longest]}}",
        "doc_to_target": "{{answer % 3}}",
        "metric_list": _metrics("acc", "acc_norm", "acc_bytes"),
    },
    "pk_unicode": {
        **CHOICE,
        "doc_to_text": "{{odd}} → ",
        "doc_to_choice": "odd_options",
        "doc_to_target": "{{answer % 3}}",
        "target_delimiter": "",
        "metric_list": _metrics("acc", "acc_norm", "acc_bytes"),
    },
    "pk_no_context": {
        **CHOICE,
        "doc_to_text": "",
        "doc_to_choice": "{{[text, question]}}",
        "doc_to_target": "binary",
        "metric_list": [*_metrics("acc", "acc_norm"), {"metric": "f1"}],
    },
    "pk_described_shots": {
        **CHOICE,
        "description": "Statements about {{'people'}}.\n",
        "training_split": "train",
        "validation_split": "train",
        "doc_to_text": "{{padded}}",
        "doc_to_choice": {"a": "no", "b": "yes"},
        "doc_to_target": "{{['no', 'yes'][binary]}}",
        "target_delimiter": "\n",
        "fewshot_delimiter": "\n##\n",
        "num_fewshot": 3,
    },
    "pk_first_shots": {
        **CHOICE,
        "fewshot_config": {"sampler": "first_n", "split": "train", "target_delimiter": " -> "},
        "doc_to_text": "{{text}} Who?",
        "doc_to_choice": "{{[names[0], names[1], 'nobody']}}",
        "doc_to_target": 0,
        "num_fewshot": 2,
        "should_decontaminate": True,
        "doc_to_decontamination_query": "text",
        "metadata": {"version": 2.0},
    },
    "pk_written_shots": {
        **CHOICE,
        "fewshot_config": {"samples": rows(4, 77)},
        "doc_to_text": "{{question}}",
        "doc_to_choice": "options",
        "doc_to_target": "answer",
        "num_fewshot": 2,
    },
    "pk_shots_from_test": {
        **CHOICE,
        "doc_to_text": "{{question}}",
        "doc_to_choice": "options",
        "doc_to_target": "answer",
        "num_fewshot": 2,
    },
    "pk_mutual": {
        **CHOICE,
        "doc_to_text": "{{question}} It is",
        "doc_to_choice": "options",
        "doc_to_target": "answer",
        "metric_list": _metrics("acc", "acc_mutual_info"),
    },
    "pk_two_inputs": {
        **CHOICE,
        "doc_to_text": "{{which|int - 1}}",
        "doc_to_choice": "{{[first, second]}}",
        "doc_to_target": "tail",
        "metric_list": _metrics("acc", "acc_norm"),
    },
    "pk_two_inputs_shots": {
        "include": "pk_two_inputs.yaml",
        "fewshot_split": "train",
        "num_fewshot": 1,
    },
    "pk_several_right": {
        **CHOICE,
        "doc_to_text": "{{question}}",
        "doc_to_choice": "options",
        "doc_to_target": "golds",
        "metric_list": _metrics("acc", "exact_match"),
    },
    "pk_gold_outside": {
        **CHOICE,
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{options[:3]}}",
        "doc_to_target": "answer",
        "metric_list": _metrics("acc", "acc_norm"),
    },
    "pk_prefixed": {
        **CHOICE,
        "doc_to_text": "{{question}}",
        "gen_prefix": "{{lead}}",
        "doc_to_choice": "options",
        "doc_to_target": "answer",
        "fewshot_split": "train",
        "num_fewshot": 1,
    },
    "pk_long_context": {
        **CHOICE,
        "doc_to_text": "{{story}} {{story}} {{story}}\n{{question}}",
        "doc_to_choice": "options",
        "doc_to_target": "answer",
        "metric_list": _metrics("acc", "acc_norm"),
    },
    # -- log-likelihoods
    "pk_last_word": {
        "output_type": "loglikelihood",
        "validation_split": "test",
        "doc_to_text": "{{story[:120]}}",
        "doc_to_target": "{{' ' + last}}",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            *_metrics("acc"),
        ],
    },
    "pk_rolling": {
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{story}}",
        "metric_list": [
            {"metric": "word_perplexity"},
            {"metric": "byte_perplexity"},
            {"metric": "bits_per_byte"},
        ],
    },
    # -- generation
    "pk_stops": {
        **GENERATE,
        "doc_to_text": "{{text}} Then",
        "doc_to_target": "{{last}}",
        "generation_kwargs": {
            "until": ["e", "\n\n", "</s>"], "max_gen_toks": 20, "do_sample": False,
        },
        "metric_list": [{"metric": "exact_match", **MEAN, "ignore_case": True}],
    },
    "pk_filters": {
        **GENERATE,
        "doc_to_text": "{{sum}}",
        "doc_to_target": "{{number}}",
        "generation_kwargs": {"until": "\n", "max_gen_toks": 24, "temperature": 0.0},
        "filter_list": [
            {"name": "strict", "filter": [
                {"function": "regex", "regex_pattern": "([A-Za-z])"},
                {"function": "take_first"},
            ]},
            {"name": "flexible", "filter": [
                {"function": "regex", "group_select": -1, "regex_pattern": "(\\S)"},
                {"function": "lowercase"},
                {"function": "take_first"},
            ]},
        ],
        "metric_list": _metrics("exact_match"),
    },
    "pk_defaults": {
        **GENERATE,
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bleu"}, {"metric": "chrf"}],
    },
    "pk_several_targets": {
        **GENERATE,
        "doc_to_text": "{{text}}\nWho?",
        "doc_to_target": "names",
        "fewshot_split": "train",
        "num_fewshot": 1,
        "generation_kwargs": {"until": [" "], "max_gen_toks": 8},
        "metric_list": _metrics("exact_match"),
    },
    "pk_repeated": {
        **GENERATE,
        "doc_to_text": "{{padded}}",
        "doc_to_target": "{{last}}",
        "repeats": 2,
        "generation_kwargs": {"until": [], "max_gen_toks": 6, "do_sample": False},
        "filter_list": [
            {"name": "vote", "filter": [
                {"function": "majority_vote"}, {"function": "take_first"},
            ]},
        ],
        "metric_list": _metrics("exact_match"),
    },
}  # fmt: skip
"""Tasks whose files name no code."""

GROUPS: dict[str, dict[str, Any]] = {
    "pk_group": {
        "task": ["pk_several_tokens", "pk_gold_outside", "pk_long_context"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    },
}

CODE_TASK = """\
task: pk_code
dataset_path: json
dataset_kwargs: {data_files: {test: %(test)s, train: %(train)s}}
output_type: multiple_choice
test_split: test
fewshot_split: train
process_docs: !function pk_code.process_docs
doc_to_text: !function pk_code.text
doc_to_choice: !function pk_code.choices
doc_to_target: !function pk_code.target
num_fewshot: 1
process_results: !function pk_code.results
metric_list:
  - metric: brevity
    aggregation: !function pk_code.spread
    higher_is_better: false
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
CODE = """\
from pathlib import Path

(Path(__file__).parent / "it-ran").write_text("yes")


def process_docs(dataset):
    return dataset.map(lambda doc: {"asked": doc["question"].upper()}).filter(
        lambda doc: doc["number"] % 5 != 0
    )


def text(doc):
    return doc["asked"] + " =>"


def choices(doc):
    return [option[::-1] for option in doc["options"]]


def target(doc):
    return doc["answer"]


def results(doc, results):
    best = max(range(len(results)), key=lambda i: results[i][0])
    return {"acc": float(best == doc["answer"]), "brevity": (best, results[best][0])}


def spread(items):
    return max(value for _, value in items) - min(value for _, value in items)
"""


def write_tasks(folder: Path, count: int = 12, *, code: bool = True) -> Path:
    """Writes data and task files; tasks that name code lie in ``code/``.

    Returns:
        The folder to give as ``--include-path``.
    """
    tasks = folder / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, number, seed in (("test", count, 1), ("train", 9, 2)):
        file = folder / f"{split}.jsonl"
        lines = [json.dumps(row, ensure_ascii=False) for row in rows(number, seed)]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        files[split] = str(file)
    for name, task in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": files}}
        own = {"task": name, **({} if "include" in task else data), **task}
        text = yaml.safe_dump(own, allow_unicode=True, sort_keys=False)
        (tasks / f"{name}.yaml").write_text(text, encoding="utf-8")
    for name, group in GROUPS.items():
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump({"group": name, **group}))
    if code:
        (tasks / "code").mkdir(exist_ok=True)
        (tasks / "code" / "pk_code.yaml").write_text(CODE_TASK % files)
        (tasks / "code" / "pk_code.py").write_text(CODE)
    return tasks
