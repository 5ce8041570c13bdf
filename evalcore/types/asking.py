"""What is asked, and how: tasks, documents, variants of prompts, and the cells of the grid."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evalcore.types.models import Subject

OutputType = Literal["multiple_choice", "generate_until", "loglikelihood", "loglikelihood_rolling"]
AnswerWay = Literal["choices", "first_token", "constrained", "free"]
Domain = Literal["in", "out", "none"]
TEMPLATE_DATE = "2024-07-26"
"""The day that chat templates which write the date are given, unless another is asked for."""


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """Greedy generation: when it ends.

    Attributes:
        max_tokens: New tokens at most.
        stops: Strings that end a text (they are not part of it).
        run_on: True: generation goes on past the stop strings, the raw text is kept as well, and a
            stop string counts only once something visible was written (stop rule 3). False: the
            first stop string ends the generation, wherever it stands, as in lm-evaluation-harness.
        think_end: What closes a thinking part, of which only what comes after it is the answer: no
            stop string ends the thinking, and the raw text is kept. Empty where nobody thinks.
        turn_end: A token that ends a generation beside the model's end tokens; of chats.
    """

    max_tokens: int = 32
    stops: tuple[str, ...] = ("\n",)
    run_on: bool = False
    think_end: str = ""
    turn_end: int | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A data set, what its columns mean, what is asked and how it is measured.

    Attributes:
        name: Unique name.
        version: Raised when documents or their meaning change.
        group: Prompt group (folder of prompt variants) and table group.
        output_type: What an engine is asked for.
        tuned_by: Name of the tuning whose group this task belongs to, if any.
        domain: Whether the task is in or out of that tuning's domain.
        choices: Fixed label names, in gold order; empty when each document has its own choices.
        words: Pairs of (label name, texts it stands for); what a prompt without label words of its
            own shows and scores. Several where a label is coarser than what models were tuned to
            say.
        metrics: Metric names, the primary one included.
        primary: The metric declared primary before anything is scored.
        generation: For ``generate_until``.
        fingerprint: Hash of the whole definition (32 hex digits).
        spec: The validated definition, for the modules that load documents.
    """

    name: str
    version: int
    group: str
    output_type: OutputType
    metrics: tuple[str, ...]
    primary: str
    tuned_by: str | None = None
    domain: Domain = "none"
    choices: tuple[str, ...] = ()
    words: tuple[tuple[str, tuple[str, ...]], ...] = ()
    generation: GenerationSettings = GenerationSettings()
    description: str = ""
    fingerprint: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict, hash=False, compare=False)


@dataclass(frozen=True, slots=True)
class Prebuilt:
    """Text of a document that comes ready from elsewhere (lm-evaluation-harness's own tasks).

    Attributes:
        contexts: One if all continuations follow it, else one per continuation; empty for
            ``loglikelihood_rolling``.
        continuations: Text after the context, delimiter included; empty for generation. For
            ``loglikelihood_rolling`` the one text (or empty: the first reference).
        targets: The continuations' own text, whose characters and bytes are counted.
        unconditional: Text scored after an empty context (mutual information); or empty.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    unconditional: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """One row of a task's data.

    Attributes:
        id: 32 hex digits over fields, choices, gold, references (and an ordinal for exact copies).
        index: Row number in its split.
        fields: Values templates may use.
        choices: Choice texts of ``multiple_choice``; empty otherwise.
        gold: Index of the right choice; -1 where there is none.
        golds: All right choices, where there are several (``gold`` is the first); else empty.
        references: Reference texts of ``generate_until`` / the target of ``loglikelihood`` / the
            text of ``loglikelihood_rolling``.
        prebuilt: Its text, where no prompt variant makes it.
    """

    id: str
    index: int
    fields: Mapping[str, Any]
    choices: tuple[str, ...] = ()
    gold: int = -1
    references: tuple[str, ...] = ()
    prebuilt: Prebuilt | None = None
    golds: tuple[int, ...] = ()


AXES: dict[str, tuple[str, ...]] = {
    "answer": ("choices", "first_token", "constrained", "free"),
}
"""Keys of a selection of prompts that set a variant's field of that name, with the words it may be;
where a key is not given, the field is as the prompt's file has it."""


def option_of(variant: str, key: str) -> str:
    """The value of an option in a variant's name; empty if it was not given."""
    found = re.search(rf"[:,]{key}=(\w+)", variant)
    return found[1] if found else ""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to turn a document into text.

    Attributes:
        name: Canonical selection text (``default``, ``default:shots=4``), unique within a group.
        group: Prompt group.
        template: Jinja template of the context (document fields are its variables).
        target: Jinja template of one continuation (``choice`` is the choice text or reference).
        delimiter: Text between context and continuation.
        separator: Text between shots, and between the last shot and the question.
        label_words: Pairs of (label name, words shown instead, several where the label stands for
            several texts); empty to show labels, or the task's own words, as they are.
        shots: Number of worked examples before the question.
        shots_seed: Seed that draws them.
        shots_order: 0: as drawn; else the seed of another order of the same shots.
        shots_balance: Whether labels take turns among the shots.
        chat: Whether the tokenizer's chat template is applied.
        chat_shots: Shots as turns of the chat, or as text in its one question.
        system: System text of the chat, if any.
        chat_args: Arguments of the chat template, canonical JSON; empty for none.
        chat_date: Day the chat template may write, YYYY-MM-DD. It counts where one does (in a
            cell's key), not in the fingerprint.
        listing: ``cloze``: the text of a choice is scored; ``letters``: choices are listed in the
            context (``{{ listing }}``) and their letters are scored.
        answer: How a choice is made: by the log-probability of whole choices, of their first
            tokens, by greedy decoding that may only write choices, or by free generation.
        fingerprint: Hash of all of the above but the name (32 hex digits).
    """

    name: str
    group: str
    template: str
    target: str = "{{ choice }}"
    delimiter: str = " "
    separator: str = "\n\n"
    label_words: tuple[tuple[str, str | tuple[str, ...]], ...] = ()
    shots: int = 0
    shots_seed: int = 0
    shots_order: int = 0
    shots_balance: bool = False
    chat: bool = False
    chat_shots: Literal["turns", "text"] = "turns"
    system: str | None = None
    chat_args: str = ""
    chat_date: str = TEMPLATE_DATE
    listing: Literal["cloze", "letters"] = "cloze"
    answer: AnswerWay = "choices"
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class EncodingSettings:
    """How text becomes token ids; part of a cell's identity.

    Attributes:
        max_length: Longest context + continuation in tokens (generation: + max_tokens).
        add_bos: ``auto`` follows the tokenizer; otherwise force it on or off.
        overflow: ``drop_shots`` drops whole shots, then fails the document visibly (flagged);
            ``truncate_left`` cuts the context's beginning, as lm-evaluation-harness does (flagged).
    """

    max_length: int = 2048
    add_bos: Literal["auto", "always", "never"] = "auto"
    overflow: Literal["drop_shots", "truncate_left"] = "drop_shots"


FREE_ANSWER = GenerationSettings(max_tokens=5, stops=("\n",), run_on=True)
"""How a choice is generated freely, unless the task says otherwise (the study's five tokens)."""


def generation_of(task: Task, variant: Variant) -> GenerationSettings | None:
    """Settings of what is generated for a cell; None where nothing is."""
    if task.output_type == "generate_until":
        return task.generation
    if task.output_type == "multiple_choice" and variant.answer == "free":
        return task.generation if task.spec.get("generation") else FREE_ANSWER
    return None


@dataclass(frozen=True, slots=True)
class Cell:
    """Subject x task x prompt variant; ``key`` is its content identity (32 hex digits)."""

    key: str
    subject: Subject
    task: Task
    variant: Variant
