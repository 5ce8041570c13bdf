"""Rows for tasks that come with lm-eval itself: their columns, our words."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.agreement.lm_eval_tasks import PEOPLE, PLACES, THINGS, VERBS

TASKS = [
    "arc_easy", "hellaswag", "winogrande", "gsm8k", "lambada_openai", "wikitext", "sciq", "qqp",
    "cola", "copa", "truthfulqa_mc2", "triviaqa", "openbookqa", "social_iqa", "mmlu_anatomy",
    "coqa",
]  # fmt: skip
"""Functions of lm-eval's own (process_docs, process_results, choices, targets), filters, two
inputs, rolling text, templates of every kind."""


def write_rows(root: Path, count: int = 8) -> Path:
    """Writes ``<root>/<repo>/<config>/<split>.jsonl`` for every task."""
    rng = random.Random(3)
    for place, splits in _sets(rng, count).items():
        folder = root / place
        folder.mkdir(parents=True, exist_ok=True)
        for split, rows in splits.items():
            lines = [json.dumps(row) for row in rows]
            (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return root


def _sets(rng: random.Random, count: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    def pick(values: tuple[str, ...]) -> str:
        return rng.choice(values)

    def clause() -> str:
        return f"{pick(PEOPLE)} {pick(VERBS)} the {pick(THINGS)}"

    def texts(number: int) -> list[str]:
        return [f"the {thing}" for thing in rng.sample(THINGS, number)]

    def arc(_: int) -> dict[str, Any]:
        labels = rng.choice((["A", "B", "C", "D"], ["1", "2", "3", "4"]))
        return {
            "question": f"What is in {pick(PLACES)}?",
            "question_stem": f"{clause()} because of",
            "choices": {"text": texts(4), "label": labels},
            "answerKey": rng.choice(labels),
        }

    def hellaswag(_: int) -> dict[str, Any]:
        return {
            "activity_label": "Working", "ctx_a": f"{clause()}.", "ctx_b": "then",
            "endings": [f"[step] {clause()} [title] again." for _ in range(4)],
            "label": str(rng.randrange(4)),
        }  # fmt: skip

    def winogrande(_: int) -> dict[str, Any]:
        return {
            "sentence": f"{clause()} because the _ was in {pick(PLACES)}.",
            "option1": "mill", "option2": "quiet dog", "answer": rng.choice("12"),
        }  # fmt: skip

    def gsm8k(number: int) -> dict[str, Any]:
        return {"question": f"How many are {number} and 3?",
                "answer": f"They are {number + 3}.\n#### {number + 3}"}  # fmt: skip

    def wikitext(_: int) -> dict[str, Any]:
        body = " . ".join(f"{clause()} , in {pick(PLACES)}" for _ in range(25))
        return {"page": f' = {pick(PLACES)} = \n {body} @-@ \'s " so " ( yes ) .'}

    def sciq(_: int) -> dict[str, Any]:
        one, two, three, four = texts(4)
        return {"support": f" {clause()}.", "question": "Which?", "distractor1": one,
                "distractor2": two, "distractor3": three, "correct_answer": four}  # fmt: skip

    def truthful(_: int) -> dict[str, Any]:
        targets = {"choices": texts(4), "labels": [1, 0, rng.randrange(2), 0]}
        return {"question": f"Who {pick(VERBS)}?", "mc1_targets": targets, "mc2_targets": targets}

    def siqa(_: int) -> dict[str, Any]:
        one, two, three = texts(3)
        return {"context": f"{clause()}.", "question": "Why?", "answerA": one, "answerB": two,
                "answerC": three, "label": rng.choice("123")}  # fmt: skip

    def mmlu(_: int) -> dict[str, Any]:
        return {"question": f" {clause()}? ", "choices": texts(4), "answer": rng.randrange(4)}

    def coqa(_: int) -> dict[str, Any]:
        turns = [clause() for _ in range(3)]
        answers = {"input_text": texts(3)}
        return {
            "story": f"{clause()}. {clause()}.",
            "questions": {"input_text": turns},
            "answers": answers,
            "additional_answers": {str(i): answers for i in range(3)},
        }

    def copa(_: int) -> dict[str, Any]:
        return {"premise": f"{clause()}.", "choice1": f"The {pick(THINGS)} fell.",
                "choice2": f"The {pick(THINGS)} rose.", "question": rng.choice(("cause", "effect")),
                "label": rng.randrange(2)}  # fmt: skip

    def pair(_: int) -> dict[str, Any]:
        return {"question1": f"{clause()}?", "question2": f"{clause()}?", "sentence": clause(),
                "label": rng.randrange(2)}  # fmt: skip

    makers = {
        "allenai/ai2_arc/ARC-Easy": (arc, ("train", "validation", "test")),
        "allenai/openbookqa/main": (arc, ("train", "validation", "test")),
        "Rowan/hellaswag": (hellaswag, ("train", "validation")),
        "allenai/winogrande/winogrande_xl": (winogrande, ("train", "validation")),
        "openai/gsm8k/main": (gsm8k, ("train", "test")),
        "EleutherAI/lambada_openai/default": (
            lambda _: {"text": f"{clause()} in {pick(PLACES)} {pick(THINGS)}"}, ("test",),
        ),
        "EleutherAI/wikitext_document_level/wikitext-2-raw-v1": (
            wikitext, ("train", "validation", "test"),
        ),
        "allenai/sciq": (sciq, ("train", "validation", "test")),
        "nyu-mll/glue/qqp": (pair, ("train", "validation")),
        "nyu-mll/glue/cola": (pair, ("train", "validation")),
        "aps/super_glue/copa": (copa, ("train", "validation")),
        "truthfulqa/truthful_qa/multiple_choice": (truthful, ("validation",)),
        "mandarjoshi/trivia_qa/rc.nocontext": (
            lambda _: {"question": clause(), "answer": {"aliases": texts(2)}},
            ("train", "validation"),
        ),
        "lighteval/siqa": (siqa, ("train", "validation")),
        "cais/mmlu/anatomy": (mmlu, ("dev", "test")),
        "EleutherAI/coqa": (coqa, ("train", "validation")),
    }  # fmt: skip
    return {
        place: {split: [make(number) for number in range(count)] for split in splits}
        for place, (make, splits) in makers.items()
    }
