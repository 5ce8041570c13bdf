"""Frozen values handed from stage to stage. Nothing here reads a disk, a clock or a device.

Shape suffixes used in the whole package: ``N`` contexts of a batch, ``M`` continuations,
``T`` token positions. Flat arrays come with ``offsets`` of one entry more than there are items:
item ``i`` is ``flat[offsets[i]:offsets[i + 1]]``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

OutputType = Literal["multiple_choice", "generate_until", "loglikelihood", "loglikelihood_rolling"]
AnswerWay = Literal["choices", "first_token", "constrained", "free"]
Domain = Literal["in", "out", "none"]
TEMPLATE_DATE = "2024-07-26"
"""The day that chat templates which write the date are given, unless another is asked for."""
IntArray = npt.NDArray[np.int32]
OffsetArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Base-model weights at one point of pre-training (or fully tuned weights, with a parent).

    Attributes:
        name: Short name for people, unique in a run (``step-00400``).
        path: Local directory with config.json and safetensors.
        fingerprint: 32 hex digits over tensors and numeric configuration (see identity).
        tokenizer_fingerprint: 32 hex digits over what decides token ids.
        tokenizer_path: Directory the tokenizer is read from; empty: the checkpoint's own.
        template_fingerprint: 32 hex digits over the chat template; empty if there is none.
        template_dated: Whether the chat template writes the date.
        think_end: What closes a thinking part in the chat template; empty if it knows none.
        turn_end: Id with which the chat template closes an answer; it ends what chats generate.
        end_tokens: Ids that end a generation: the tokenizer's EOS and those of config.json and
            generation_config.json; None if they were not asked for.
        tokenizer_note: How transformers would have changed the ids of tokenizer.json; else empty.
        reading: Marks weights that are asked through another tokenizer, chat template or end than
            the first of these weights: 8 hex digits over those three; else empty.
        step: Pre-training step, if known; orders tables and pictures.
        source: What the user gave (a path, or ``repo@revision``).
        revision: Resolved commit of a hub checkpoint.
        origin: Where on the hub it is from (``repo@commit``, ``#folder``); empty: from a disk.
        content: Fingerprint of its tensors where ``fingerprint`` is over the hashes of its files,
            because it was first scored before anybody had read them; else empty.
        parent: Fingerprint of the checkpoint this one was fully tuned from.
        tuning: Tuning label of a fully tuned checkpoint.
        tuned_on: Table group a fully tuned checkpoint was tuned for.
        control: Kind of control a fully tuned checkpoint is, else None.
        seed: Training seed of a fully tuned checkpoint, if known.
        method: How a fully tuned checkpoint was tuned, where it is more than ``full``.
        tuning_step: Step of the tuning it was saved at, if known.
        labels_from: Who says what it was tuned on (``record``, ``option``, ``file``, ``pattern``,
            ``folder``, ``label``), if anybody does.
    """

    name: str
    path: str
    fingerprint: str
    tokenizer_fingerprint: str
    step: int | None = None
    source: str = ""
    revision: str | None = None
    parent: str | None = None
    tuning: str | None = None
    tuned_on: str | None = None
    control: str | None = None
    seed: int | None = None
    tokenizer_path: str = ""
    template_fingerprint: str = ""
    template_dated: bool = False
    think_end: str = ""
    turn_end: int | None = None
    end_tokens: tuple[int, ...] | None = None
    tokenizer_note: str = ""
    method: str | None = None
    tuning_step: int | None = None
    labels_from: str | None = None
    reading: str = ""
    origin: str = ""
    content: str = ""

    @property
    def id(self) -> str:
        """Its weights, ``~`` how they are asked where that is not the usual way."""
        return f"{self.fingerprint}~{self.reading}" if self.reading else self.fingerprint

    @property
    def tokenizer(self) -> str:
        """Directory its tokenizer is read from."""
        return self.tokenizer_path or self.path


@dataclass(frozen=True, slots=True)
class Adapter:
    """A PEFT LoRA directory.

    Attributes:
        name: Short name for people, unique for its checkpoint.
        path: Local directory with adapter_config.json and adapter_model.safetensors.
        fingerprint: 32 hex digits over tensors and numeric configuration.
        rank: Largest rank of its modules.
        tuning: Name of the tuning that made it, if known.
        tuned_on: Table group it was tuned for (``tuned_by`` of the task it learned), if known.
        control: Kind of control it is (``shuffled_labels``), else None.
        seed: Training seed, if known.
        untrained: True when every delta is exactly zero.
        copies: Directories of exact copies, which are not scored by themselves.
        origin, content: As of :class:`Checkpoint`.
        method: What its kind is called, where it is more than ``lora``.
        tuning_step: Step of the tuning it was saved at, if known.
        labels_from: Who says what it was tuned on; see :class:`Checkpoint`.
    """

    name: str
    path: str
    fingerprint: str
    rank: int
    tuning: str | None = None
    tuned_on: str | None = None
    control: str | None = None
    seed: int | None = None
    untrained: bool = False
    copies: tuple[str, ...] = ()
    method: str | None = None
    tuning_step: int | None = None
    labels_from: str | None = None
    origin: str = ""
    content: str = ""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is scored: a checkpoint, optionally with an adapter.

    Attributes:
        checkpoint: Weights, and how they are asked.
        adapter: Beside or in the weights.
        own: The checkpoint as the adapter's own tokenizer asks it, where that is another: a cell
            is asked so if it changes the cell's token ids or where its text ends.
    """

    checkpoint: Checkpoint
    adapter: Adapter | None = None
    own: Checkpoint | None = None

    @property
    def id(self) -> str:
        """Content identity: the checkpoint's id, ``+`` adapter fingerprint."""
        own = self.checkpoint.id
        return own if self.adapter is None else f"{own}+{self.adapter.fingerprint}"

    @property
    def parts(self) -> list[Checkpoint | Adapter]:
        """The checkpoint, and the adapter where there is one."""
        return [part for part in (self.checkpoint, self.adapter) if part is not None]

    @property
    def weights(self) -> str:
        """Identity of the weights alone, however they are asked."""
        own = self.checkpoint.fingerprint
        return own if self.adapter is None else f"{own}+{self.adapter.fingerprint}"

    @property
    def base_id(self) -> str | None:
        """Id of the subject this one is compared with; None for an untuned checkpoint."""
        if self.adapter is not None:
            return self.checkpoint.id
        parent, reading = self.checkpoint.parent, self.checkpoint.reading
        return f"{parent}~{reading}" if parent and reading else parent

    @property
    def made(self) -> Adapter | Checkpoint:
        """The adapter, or the checkpoint where there is none: what a tuning would have made."""
        return self.adapter if self.adapter is not None else self.checkpoint

    @property
    def tuning(self) -> str | None:
        return self.adapter.tuning if self.adapter is not None else self.checkpoint.tuning

    @property
    def tuned_on(self) -> str | None:
        """Task or table group it was tuned for, if known."""
        return self.made.tuned_on

    @property
    def method(self) -> str | None:
        """``lora`` or ``full``; None for an untuned checkpoint."""
        if self.adapter is not None:
            return self.adapter.method or "lora"
        return self.checkpoint.method or "full" if self.checkpoint.parent is not None else None

    @property
    def control(self) -> str | None:
        return self.adapter.control if self.adapter is not None else self.checkpoint.control

    @property
    def seed(self) -> int | None:
        return self.adapter.seed if self.adapter is not None else self.checkpoint.seed

    @property
    def label(self) -> str:
        own = self.checkpoint.name
        return own if self.adapter is None else f"{own} + {self.adapter.name}"


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


@dataclass(frozen=True)
class ScoreBatch:
    """Continuations to score, grouped by context; flat arrays.

    Attributes:
        context_tokens: int32 [T_context], one context after the other, none empty.
        context_offsets: int64 [N + 1].
        continuation_tokens: int32 [T_continuation]. Never empty per continuation.
        continuation_offsets: int64 [M + 1].
        continuation_context: int32 [M], non-decreasing: the context each continuation follows.
    """

    context_tokens: IntArray
    context_offsets: OffsetArray
    continuation_tokens: IntArray
    continuation_offsets: OffsetArray
    continuation_context: IntArray

    @property
    def num_contexts(self) -> int:
        return len(self.context_offsets) - 1

    @property
    def num_continuations(self) -> int:
        return len(self.continuation_offsets) - 1

    @classmethod
    def from_lists(
        cls, items: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]
    ) -> ScoreBatch:
        """Builds a batch from (context, continuations) pairs of token-id lists."""
        contexts = [context for context, _ in items]
        continuations = [tokens for _, group in items for tokens in group]
        owner = [i for i, (_, group) in enumerate(items) for _ in group]
        return cls(*flatten(contexts), *flatten(continuations), np.asarray(owner, dtype=np.int32))

    def context(self, i: int) -> IntArray:
        return self.context_tokens[self.context_offsets[i] : self.context_offsets[i + 1]]

    def continuation(self, i: int) -> IntArray:
        return self.continuation_tokens[
            self.continuation_offsets[i] : self.continuation_offsets[i + 1]
        ]


@dataclass(frozen=True)
class GenerateBatch:
    """Contexts to continue greedily.

    Attributes:
        context_tokens: int32 [T_context].
        context_offsets: int64 [N + 1].
        settings: One per batch: the caller groups contexts by settings.
    """

    context_tokens: IntArray
    context_offsets: OffsetArray
    settings: GenerationSettings

    @property
    def num_contexts(self) -> int:
        return len(self.context_offsets) - 1

    def context(self, i: int) -> IntArray:
        return self.context_tokens[self.context_offsets[i] : self.context_offsets[i + 1]]


@dataclass(frozen=True)
class ScoreResult:
    """Answer to a :class:`ScoreBatch`.

    Attributes:
        token_logprobs: float64 [T_continuation], natural log, aligned with continuation_tokens.
        is_greedy: bool [M], whether every token of the continuation is the model's arg max.
        computed_tokens: int64 [N], prompt tokens run through the model for each context's group.
        cached_tokens: int64 [N], prompt tokens of the group served from a cache or shared.
        fallbacks: Continuations that were scored again the slow exact way.
    """

    token_logprobs: FloatArray
    is_greedy: npt.NDArray[np.bool_]
    computed_tokens: OffsetArray
    cached_tokens: OffsetArray
    fallbacks: int = 0


@dataclass(frozen=True)
class GenerateResult:
    """Answer to a :class:`GenerateBatch`; every list has N entries.

    Attributes:
        texts: Generated text (after its thinking), cut before the first stop string.
        token_counts: Tokens generated, the end token included.
        finish_reasons: ``stop`` (end token or stop string) or ``length``; of texts that were cut
            afterwards also ``run_on`` and ``empty`` (see ``scoring.generating``).
        computed_tokens: int64 [N] prompt tokens computed.
        cached_tokens: int64 [N] prompt tokens served from a cache.
        raw_texts: With ``run_on`` or ``think_end``: all of the text; else empty.
    """

    texts: list[str]
    token_counts: list[int]
    finish_reasons: list[str]
    computed_tokens: OffsetArray
    cached_tokens: OffsetArray
    raw_texts: list[str] = field(default_factory=list)


def flatten(items: Sequence[Sequence[int]]) -> tuple[IntArray, OffsetArray]:
    """Concatenates token-id lists into (flat int32 [T], offsets int64 [len + 1])."""
    offsets = np.zeros(len(items) + 1, dtype=np.int64)
    np.cumsum([len(item) for item in items], out=offsets[1:])
    flat = np.fromiter((t for item in items for t in item), dtype=np.int32, count=int(offsets[-1]))
    return flat, offsets
