"""The pocket world: a small invented country, its words, its people and its sentences.

Everything here is a pure function of a ``random.Random`` (or of nothing): no I/O, no clock, no
global state. Rows of the pocket tasks and text to pre-train on are both made from it, so that
pre-training can teach what the tasks ask about.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

_ROOTS = ("Bel", "Dor", "Kam", "Lin", "Mar", "Nor", "Pel", "Ras", "Sol", "Tav", "Ul", "Ver", "Yan",
          "Zor")  # fmt: skip
_ENDINGS = ("an", "eth", "ira", "ok", "una", "is", "ado", "em", "ulf", "ay")
NUM_PEOPLE = 24
NUM_FAMOUS = 48


def _names() -> tuple[str, ...]:
    names = [root + ending for root in _ROOTS for ending in _ENDINGS]
    random.Random("pocket names").shuffle(names)
    return tuple(names)


_NAMES = _names()
PEOPLE: tuple[str, ...] = _NAMES[:NUM_PEOPLE]
"""Anybody: a sentence about one of them is made up on the spot and holds for that text only."""
FAMOUS: tuple[str, ...] = _NAMES[NUM_PEOPLE : NUM_PEOPLE + NUM_FAMOUS]
"""People of the chronicle: what is said of them is the same wherever it is said."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing that can be said of an entity.

    Attributes:
        kind: Short name.
        clause: Predicate with ``{}`` where the value goes (``lives in {}``).
        values: All values; an entity has exactly one of each kind.
    """

    kind: str
    clause: str
    values: tuple[str, ...]

    def say(self, value: str) -> str:
        return self.clause.format(value)


CRAFTS = ("baker", "smith", "weaver", "miller", "potter", "sailor")
TOWNS = ("Arvel", "Brenn", "Cardo", "Fenway", "Gorse", "Halden")
ANIMALS = ("cat", "dog", "goat", "horse", "mule", "duck")
DRINKS = ("tea", "milk", "cider", "water", "wine", "beer")
COLOURS = ("red", "blue", "green", "black", "white", "grey")
MATERIALS = ("wood", "iron", "clay", "glass", "bone", "stone")
ROOMS = ("hall", "barn", "attic", "cellar", "kitchen", "garden")
PRICES = ("two", "three", "four", "five", "six", "seven")
THINGS = ("lamp", "cart", "chest", "drum", "bell", "stool", "clock", "bowl")

PERSON_ATTRIBUTES = (
    Attribute("craft", "is a {}", CRAFTS),
    Attribute("town", "lives in {}", TOWNS),
    Attribute("pet", "keeps a {}", ANIMALS),
    Attribute("drink", "drinks some {}", DRINKS),
)
THING_ATTRIBUTES = (
    Attribute("material", "is made of {}", MATERIALS),
    Attribute("room", "stands in the {}", ROOMS),
    Attribute("price", "costs just {} coins", PRICES),
    Attribute("owner", "belongs to the {}", CRAFTS),
)


@dataclass(frozen=True, slots=True)
class Inference:
    """Premise, hypothesis, and label: 0 entailment, 1 neutral, 2 contradiction."""

    premise: str
    hypothesis: str
    label: int


def _other(rng: random.Random, values: Sequence[str], *taken: str) -> str:
    return rng.choice([value for value in values if value not in taken])


def describe_person(name: str, clauses: Sequence[str]) -> str:
    """In-domain surface: ``Belan lives in Arvel and keeps a cat.``"""
    return f"{name} {' and '.join(clauses)}."


def describe_thing(thing: str, clauses: Sequence[str]) -> str:
    """Out-of-domain surface: ``See the lamp: it is made of wood, it costs just two coins.``"""
    return f"See the {thing}: it {', it '.join(clauses)}."


def claim_thing(thing: str, clause: str) -> str:
    return f"This {thing} {clause}."


def make_inference(rng: random.Random, label: int, *, things: bool = False) -> Inference:
    """Makes a premise that says two things of an entity, and a hypothesis that says one.

    The hypothesis' value and the premise's pair of attributes have the same distribution under
    every label, so neither sentence alone tells the label.
    """
    attributes = THING_ATTRIBUTES if things else PERSON_ATTRIBUTES
    asked = rng.choice(attributes)
    value = rng.choice(asked.values)
    others = rng.sample([a for a in attributes if a is not asked], 2)
    said = [(a, rng.choice(a.values)) for a in others]
    if label != 1:
        said[rng.randrange(2)] = (asked, value if label == 0 else _other(rng, asked.values, value))
    clauses = [a.say(v) for a, v in said]
    if things:
        thing = rng.choice(THINGS)
        return Inference(
            describe_thing(thing, clauses), claim_thing(thing, asked.say(value)), label
        )
    name = rng.choice(PEOPLE)
    return Inference(
        describe_person(name, clauses), describe_person(name, [asked.say(value)]), label
    )


# Two ways to say one thing; {a} hands {o} to {b}.
EVENT_FORMS: tuple[tuple[str, str], ...] = (
    ("{a} gave the {o} to {b}.", "{b} got the {o} from {a}."),
    ("{a} sold the {o} to {b}.", "{b} bought the {o} from {a}."),
    ("{a} lent the {o} to {b}.", "{b} borrowed the {o} from {a}."),
    ("{a} threw the {o} to {b}.", "{b} caught the {o} from {a}."),
)


@dataclass(frozen=True, slots=True)
class Event:
    """A thing goes from one person to another in one of four ways."""

    verb: int
    giver: str
    taker: str
    thing: str

    def say(self, form: int) -> str:
        """Form 0 speaks from the giver's side, form 1 from the taker's."""
        return EVENT_FORMS[self.verb][form].format(a=self.giver, b=self.taker, o=self.thing)


def random_event(rng: random.Random) -> Event:
    giver, taker = rng.sample(PEOPLE, 2)
    return Event(rng.randrange(len(EVENT_FORMS)), giver, taker, rng.choice(THINGS))


def alter_event(rng: random.Random, event: Event) -> Event:
    """Another event that differs in one respect: who gives whom, how, or what."""
    change = rng.choice(("roles", "verb", "thing"))
    if change == "roles":
        return Event(event.verb, event.taker, event.giver, event.thing)
    if change == "verb":
        verb = rng.choice([v for v in range(len(EVENT_FORMS)) if v != event.verb])
        return Event(verb, event.giver, event.taker, event.thing)
    return Event(event.verb, event.giver, event.taker, _other(rng, THINGS, event.thing))


def make_pair(rng: random.Random, same: bool) -> tuple[str, str]:
    """Two sentences, one from each side, about the same event or about two that differ once."""
    first = random_event(rng)
    second = first if same else alter_event(rng, first)
    form = rng.randrange(2)
    return first.say(form), second.say(1 - form)


@dataclass(frozen=True, slots=True)
class Record:
    """What a register says of somebody."""

    name: str
    craft: str
    town: str
    colour: str
    pet: str

    def fields(self) -> dict[str, str]:
        return {
            "name": self.name,
            "craft": self.craft,
            "town": self.town,
            "pet": f"{self.colour} {self.pet}",
        }

    def sentence(self) -> str:
        """The house style that ``describe`` asks for."""
        return f"{self.name}, {self.craft} of {self.town}, has a {self.colour} {self.pet}."


def random_record(rng: random.Random) -> Record:
    return Record(rng.choice(PEOPLE), rng.choice(CRAFTS), rng.choice(TOWNS), rng.choice(COLOURS),
                  rng.choice(ANIMALS))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Relation:
    """A kind of fact of the chronicle.

    Attributes:
        kind: Short name.
        statement: With ``{name}`` and ``{value}``.
        question: With ``{name}``.
        values: Possible values, each several words; every value holds for equally many people.
    """

    kind: str
    statement: str
    questions: tuple[str, str]
    values: tuple[str, ...]


RELATIONS = (
    Relation("house", "{name} has a house {value}.",
             ("Where is the house of {name}?", "Where does {name} have a house?"),
             ("by the stone bridge", "near the salt lake", "under the great oak",
              "behind the old mill", "on the windy hill", "at the north gate",
              "beside the deep well", "above the quiet harbour")),
    Relation("work", "{name} made {value}.",
             ("What did {name} make?", "What is the work of {name}?"),
             ("a crown of amber", "a bridge of rope", "a map of stars", "a book of songs",
              "a boat of reeds", "a wall of ice", "a flute of bone", "a coat of feathers")),
    Relation("fear", "{name} is afraid of {value}.",
             ("What is {name} afraid of?", "What does {name} fear?"),
             ("the long winter", "the dark forest", "the loud thunder", "the hungry wolves",
              "the rising river", "the empty road", "the silent judge", "the burning sun")),
    Relation("teacher", "{name} learned from {value}.",
             ("Who taught {name}?", "From whom did {name} learn?"),
             ("a blind painter", "a tired soldier", "a rich widow", "a young priest",
              "a lonely shepherd", "a proud captain", "a clever thief", "a gentle nurse")),
    Relation("dish", "{name} loves to eat {value}.",
             ("What does {name} love to eat?", "Which dish does {name} love?"),
             ("bread with honey", "fish with lemon", "rice with beans", "soup with onions",
              "cake with plums", "eggs with pepper", "cheese with nuts", "apples with cream")),
)  # fmt: skip


def famous_facts() -> dict[tuple[str, str], str]:
    """All facts of the chronicle: (name, relation kind) -> value."""
    facts: dict[tuple[str, str], str] = {}
    for relation in RELATIONS:
        values = [relation.values[i % len(relation.values)] for i in range(len(FAMOUS))]
        random.Random(f"pocket facts {relation.kind}").shuffle(values)
        facts.update(
            {(name, relation.kind): value for name, value in zip(FAMOUS, values, strict=True)}
        )
    return facts
