"""The pocket world: a small invented country, its words, its people and its sentences.

Everything here is a pure function of a ``random.Random`` (or of nothing): no I/O, no clock, no
global state. Rows of the pocket tasks and text to pre-train on are both made from it, so that
pre-training can teach what the tasks ask about.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

_ROOTS = ("Bel", "Dor", "Kam", "Lin", "Mar", "Nor", "Pel", "Ras", "Sol", "Tav", "Ul", "Ver", "Yan",
          "Zor")  # fmt: skip
_ENDINGS = ("an", "eth", "ira", "ok", "una", "is", "ado", "em", "ulf", "ay")
NUM_PEOPLE = 24
NUM_FAMOUS = 36


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
COLOURS = ("red", "blue", "green", "black", "white", "grey")
MATERIALS = ("wood", "iron", "clay", "glass", "bone", "stone")
ROOMS = ("hall", "barn", "attic", "cellar", "kitchen", "garden")
PRICES = ("two", "three", "four", "five", "six", "seven")
THINGS = ("lamp", "cart", "chest", "drum", "bell", "stool", "clock", "bowl")

THING_ATTRIBUTES = (
    Attribute("material", "is made of {}", MATERIALS),
    Attribute("room", "stands in the {}", ROOMS),
    Attribute("price", "costs just {} coins", PRICES),
    Attribute("owner", "belongs to the {}", CRAFTS),
)


def random_claim(rng: random.Random) -> str:
    """Something about a thing, without a capital or a full stop: ``the lamp is made of wood``."""
    attribute = rng.choice(THING_ATTRIBUTES)
    return f"the {rng.choice(THINGS)} {attribute.say(rng.choice(attribute.values))}"


# What follows from "Belan VERB that X" is decided by the verb: X, nothing, or that X is not so.
SAYING_VERBS: tuple[tuple[str, ...], ...] = (
    ("knows", "sees", "proves", "learns", "shows", "notices", "finds", "recalls"),
    ("thinks", "says", "hopes", "claims", "guesses", "believes", "writes", "dreams"),
    ("lies", "pretends", "jokes", "feigns", "bluffs", "fibs", "invents", "fakes"),
)
"""Indexed like the labels of ``nli``."""
NUM_DOMAIN_VERBS = 5
"""The first so many verbs of each class make ``nli``; the others are kept for ``nli_ood``."""


@dataclass(frozen=True, slots=True)
class Inference:
    """Premise, hypothesis, and label: 0 entailment, 1 neutral, 2 contradiction."""

    premise: str
    hypothesis: str
    label: int


def say_claim(name: str, verb: str, claim: str) -> str:
    """In-domain surface: ``Belan knows that the lamp is made of wood.``"""
    return f"{name} {verb} that {claim}."


def say_claim_last(name: str, verb: str, claim: str) -> str:
    """Out-of-domain surface: ``That the lamp is made of wood is what Belan knows.``"""
    return f"That {claim} is what {name} {verb}."


def state(claim: str) -> str:
    return f"{claim[0].upper()}{claim[1:]}."


def make_inference(rng: random.Random, label: int, *, ood: bool = False) -> Inference:
    """Somebody knows, thinks or lies that something is so; is it so?

    The hypothesis is distributed alike under every label and tells nothing; the premise's verb
    decides (in studies of inference: veridicality). Out of domain, verbs and sentence differ.
    """
    verbs = SAYING_VERBS[label]
    verb = rng.choice(verbs[NUM_DOMAIN_VERBS:] if ood else verbs[:NUM_DOMAIN_VERBS])
    claim = random_claim(rng)
    say = say_claim_last if ood else say_claim
    return Inference(say(rng.choice(PEOPLE), verb, claim), state(claim), label)


DEEDS = ("bought", "sold", "lost", "found", "cleaned", "painted", "moved", "mended")
HARMLESS_ADVERBS = ("truly", "really", "indeed", "duly", "plainly", "clearly")
CHANGING_ADVERBS = ("nearly", "almost", "never", "hardly", "barely", "rarely")


@dataclass(frozen=True, slots=True)
class Deed:
    """Somebody did something to a thing, or an adverb says that it was not quite so."""

    name: str
    adverb: str
    verb: str
    thing: str

    def say(self, form: int) -> str:
        """Form 0 is active, form 1 passive."""
        if form == 0:
            return f"{self.name} {self.adverb} {self.verb} the {self.thing}."
        return f"The {self.thing} was {self.adverb} {self.verb} by {self.name}."


def random_deed(rng: random.Random) -> Deed:
    """A deed with a harmless adverb."""
    return Deed(
        rng.choice(PEOPLE), rng.choice(HARMLESS_ADVERBS), rng.choice(DEEDS), rng.choice(THINGS)
    )


def make_pair(rng: random.Random, same: bool) -> tuple[str, str]:
    """An active and a passive sentence about one deed, in either order.

    They say the same unless an adverb in one of the two (either one) changes the meaning.
    """
    first = random_deed(rng)
    second = replace(first, adverb=_other(rng, HARMLESS_ADVERBS, first.adverb))
    if not same:
        changing = rng.choice(CHANGING_ADVERBS)
        if rng.random() < 0.5:
            first = replace(first, adverb=changing)
        else:
            second = replace(second, adverb=changing)
    form = rng.randrange(2)
    return first.say(form), second.say(1 - form)


def _other(rng: random.Random, values: Sequence[str], *taken: str) -> str:
    return rng.choice([value for value in values if value not in taken])


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
