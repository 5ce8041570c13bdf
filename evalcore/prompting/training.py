"""Text for tuning, the same that is scored: one answer, or every answer of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evalcore.identity import special_tokens, turn_end
from evalcore.prompting.chat import conversation_text
from evalcore.prompting.faults import PromptError, PromptFault
from evalcore.prompting.guarding import guarded
from evalcore.prompting.rendering import gold_target, render, render_question
from evalcore.tasks import conversation
from evalcore.types import Document, Task, Variant

Exchange = tuple[list[dict[str, str]], str]
"""Turns since the answer before, and the answer."""


def training_pair(
    task: Task,
    variant: Variant,
    document: Document,
    shots: Sequence[Document] = (),
    tokenizer: Any = None,
) -> tuple[str, str]:
    """Text to train on: (prompt, completion); the completion is the right answer.

    The completion begins with the delimiter, as the scored continuation does (chat: without).
    Control tokens that data names are marked for :func:`encode_training`.

    Args:
        task: The task.
        variant: The prompt variant.
        document: A document with a right answer.
        shots: Worked examples shown before.
        tokenizer: Needed by chat variants; knows what names a control token.
    """
    if tokenizer is not None:
        document, *shots = guarded([document, *shots], tokenizer)
    return _pair(task, variant, document, shots, tokenizer)


def _pair(
    task: Task, variant: Variant, document: Document, shots: Sequence[Document], tokenizer: Any
) -> tuple[str, str]:
    context = render(task, variant, document, shots, tokenizer).context
    target = gold_target(task, variant, document)
    return context, target if variant.chat else variant.delimiter + target


def training_turns(
    task: Task,
    variant: Variant,
    document: Document,
    shots: Sequence[Document] = (),
    tokenizer: Any = None,
) -> list[tuple[str, str]]:
    """Text to train on, answer by answer: (what stands before it since the last one, the answer).

    One pair (see :func:`training_pair`) for all but conversations, which are tasks with a field
    ``{messages: .., part: turns}``: there every turn of the assistant is learned. What is asked is
    written as the prompt variant writes a question (``io``: as it is). With ``chat=1`` turns go
    through the chat template; else exchanges follow one another with the separator between them.

    Raises:
        PromptError: If the chat template refuses a conversation, or writes an answer differently
            once the conversation goes on (it cannot be learned then as it would be asked), or
            leaves out a turn.
    """
    name = turns_field(task)
    if name is None:
        return [training_pair(task, variant, document, shots, tokenizer)]
    if tokenizer is not None:
        document, *shots = guarded([document, *shots], tokenizer)
    exchanges = exchanges_of(document, name)
    if variant.chat:
        return _chat_turns(task, variant, document, exchanges, tokenizer)
    pairs: list[tuple[str, str]] = []
    for asked, answer in exchanges:
        prompt = conversation([*asked, {"role": "assistant", "content": answer}], "prompt")
        one = _asking(task, document, prompt, answer)
        before, learned = _pair(task, variant, one, shots, tokenizer)
        pairs.append((variant.separator + before if pairs else before, learned))
        shots = ()  # before the first exchange alone
    return pairs


def _asking(task: Task, document: Document, prompt: str, answer: str) -> Document:
    """A document that asks one exchange of a conversation."""
    fields = {key: prompt for key, part in task.spec["fields"].items() if _is_prompt(part)}
    return replace(document, fields={**document.fields, **fields}, references=(answer,))


def turns_field(task: Task) -> str | None:
    """The field that holds a conversation's turns; None for tasks that are none."""
    fields = task.spec.get("fields") or {}
    return next(
        (key for key, part in fields.items() if isinstance(part, Mapping)
         and part.get("messages") and part.get("part") == "turns"), None,
    )  # fmt: skip


def _is_prompt(part: Any) -> bool:
    return bool(
        isinstance(part, Mapping)
        and part.get("messages")
        and part.get("part", "prompt") == "prompt"
    )


def exchanges_of(document: Document, field: str) -> list[Exchange]:
    """The exchanges of a conversation, its last answer (the reference) included.

    White space at both ends of a turn goes. Answers that follow one another are one, with an empty
    line between; an answer that nothing was asked before belongs to the first question.
    """
    turns = [*document.fields[field], {"role": "assistant", "content": document.references[0]}]
    exchanges: list[Exchange] = []
    waiting: list[dict[str, str]] = []
    for turn in turns:
        role, text = str(turn["role"]), str(turn["content"]).strip()
        asked = any(one["role"] != "assistant" for one in waiting)
        if role != "assistant" or not (asked or exchanges):
            waiting.append({"role": role, "content": text})
        elif waiting:
            exchanges.append((waiting, text))
            waiting = []
        else:
            before, answer = exchanges[-1]
            exchanges[-1] = before, f"{answer}\n\n{text}".strip()
    return exchanges or [(waiting[:-1], waiting[-1]["content"])]


def _chat_turns(
    task: Task,
    variant: Variant,
    document: Document,
    exchanges: Sequence[Exchange],
    tokenizer: Any,
) -> list[tuple[str, str]]:
    messages: list[dict[str, str]] = []
    pairs: list[tuple[str, str]] = []
    end = _end_text(tokenizer)
    done = ""
    for asked, answer in exchanges:
        *before, last = asked
        question = render_question(task, variant, _asking(task, document, last["content"], answer))
        new = [*before, {**last, "content": question}]
        messages += new
        text = conversation_text(variant, messages, tokenizer)
        if not text.startswith(done):
            raise PromptError(
                PromptFault.CHAT_REFUSED,
                f"prompt {variant.group}/{variant.name}: the chat template writes an answer "
                "differently once the conversation goes on; tune without chat=1",
            )
        lost = [turn["role"] for turn in new if turn["content"].strip() not in text[len(done) :]]
        if lost:
            raise PromptError(
                PromptFault.CHAT_REFUSED,
                f"prompt {variant.group}/{variant.name}: the chat template leaves out a turn of "
                f"{lost[0]}; tune without chat=1",
            )
        # the token that closes an answer is learned with it, as an id
        pairs.append((text[len(done) :].removeprefix(end if pairs else ""), answer))
        done = text + answer
        messages.append({"role": "assistant", "content": answer})
    return pairs


def _end_text(tokenizer: Any) -> str:
    specials = special_tokens(tokenizer)
    end = turn_end(tokenizer, specials)
    end = tokenizer.eos_token_id if end is None else end
    return next((text for text, number in specials.items() if number == end), "")
