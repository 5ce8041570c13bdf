"""Whose scores: checkpoints, adapters, and a checkpoint alone or with an adapter."""

from __future__ import annotations

from dataclasses import dataclass


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
