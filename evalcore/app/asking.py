"""How a cell is asked of each subject: by its base's tokenizer, or by its adapter's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from evalcore.identity import asked_as, reading_of
from evalcore.prompting import same_requests
from evalcore.types import Checkpoint, Subject

Encode = Callable[[Checkpoint], Path]
"""The request file of the cell's task and variant for a checkpoint's tokenizer."""


def asked_of(
    subjects: Sequence[Subject], *, chat: bool, generates: bool, encode: Encode
) -> Iterator[Subject]:
    """Subjects as one (task, variant) is asked of them.

    An adapter's own tokenizer, chat template and end tokens are used where they change the token
    ids of this cell or the end of what it generates. Then the base is asked so too: a gain needs
    the same question on both sides. A base without a chat template is asked chats only so. The same
    holds for a fully tuned checkpoint, whose own tokenizer always asks, and its parent.

    Args:
        subjects: Of the whole run.
        chat: Whether the variant is a chat.
        generates: Whether text is generated.
        encode: Gives request files.
    """
    bases = {subject.checkpoint.id for subject in subjects if subject.adapter is None}
    templates = {
        subject.checkpoint.id
        for subject in subjects
        if subject.own is not None and subject.own.template_fingerprint
    }
    equal: dict[tuple[Path, Path], bool] = {}

    def differs(one: Checkpoint, other: Checkpoint) -> bool:
        if chat and not (one.template_fingerprint and other.template_fingerprint):
            return bool(other.template_fingerprint)  # the one that has a template is asked
        if generates and set(one.end_tokens or ()) != set(other.end_tokens or ()):
            return True
        files = encode(one), encode(other)
        if files not in equal:
            equal[files] = files[0] == files[1] or same_requests(*files)
        return not equal[files]

    parents = {
        subject.checkpoint.id: subject.checkpoint for subject in subjects if subject.adapter is None
    }
    for subject in subjects:
        checkpoint, own = subject.checkpoint, subject.own
        parent = parents.get(checkpoint.parent or "") if subject.adapter is None else None
        if parent is not None and not checkpoint.reading and differs(parent, checkpoint):
            yield Subject(asked_as(parent, checkpoint))
            yield Subject(replace(checkpoint, reading=reading_of(checkpoint)))
        elif own is not None and differs(checkpoint, own):
            if checkpoint.id in bases:
                yield Subject(own)
            yield Subject(own, subject.adapter)
        elif (
            subject.adapter is None
            and chat
            and not checkpoint.template_fingerprint
            and checkpoint.id in templates
        ):
            continue  # asked through its adapters' template
        else:
            yield subject
