"""Chats: a prompt through the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evalcore.deadline import MAX_TEMPLATE_MB, MAX_TEMPLATE_S, bounded
from evalcore.errors import InputError
from evalcore.identity import template_values
from evalcore.prompting.faults import PromptError, PromptFault
from evalcore.types import Variant


def chat_text(
    variant: Variant, turns: Sequence[tuple[str, str]], question: str, tokenizer: Any
) -> str:
    """The chat as text, up to where the answer begins.

    The template may write the BOS token itself; :class:`Encoder` then adds none.

    Args:
        variant: Its ``system`` text comes first, if it has one.
        turns: Worked examples as (question, answer) turns.
        question: The last turn of the user.
        tokenizer: Has the chat template.

    Raises:
        InputError: If there is no tokenizer or no chat template.
        PromptError: If the template refuses the chat, or silently leaves out the system text.
    """
    messages = []
    for asked, answered in turns:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answered})
    return conversation_text(variant, [*messages, {"role": "user", "content": question}], tokenizer)


def conversation_text(
    variant: Variant, messages: Sequence[Mapping[str, str]], tokenizer: Any
) -> str:
    """Messages as text, up to where the next answer begins; errors as of :func:`chat_text`.

    Args:
        variant: Its ``system`` text comes first, unless the messages begin with one.
        messages: ``role`` and ``content`` of each.
        tokenizer: Has the chat template.
    """
    where = f"prompt {variant.group}/{variant.name}"
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        raise InputError(f"{where}: chat=1 needs a tokenizer with a chat template; this has none")
    given = [dict(message) for message in messages]
    system = variant.system if not (given and given[0]["role"] == "system") else None
    if system:
        given.insert(0, {"role": "system", "content": system})
    try:
        text = str(_apply(tokenizer, given, variant))
    except Exception as error:  # raised by the template: unknown roles, order of turns
        reason = " ".join(str(error).split()) or type(error).__name__
        if system and _accepts(tokenizer, given[1:], variant):
            raise PromptError(
                PromptFault.SYSTEM_REFUSED,
                f"{where}: the chat template takes no system text ({reason}); leave it out, or "
                "write it into the prompt file's template",
            ) from None
        raise PromptError(
            PromptFault.CHAT_REFUSED, f"{where}: the chat template refuses it: {reason}"
        ) from None
    if system and system.strip() not in text:
        raise PromptError(
            PromptFault.SYSTEM_DROPPED,
            f"{where}: the chat template leaves out the system text; leave it out yourself, or "
            "write it into the prompt file's template",
        )
    return text


def _apply(tokenizer: Any, messages: list[dict[str, str]], variant: Variant) -> Any:
    values = template_values(variant.chat_args, variant.chat_date)
    # Loops within loops have no bound of their own in the library's sandbox.
    with bounded(MAX_TEMPLATE_S, MAX_TEMPLATE_MB):
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **values
        )


def _accepts(tokenizer: Any, messages: list[dict[str, str]], variant: Variant) -> bool:
    try:
        _apply(tokenizer, messages, variant)
    except Exception:  # the same open set of errors as above
        return False
    return True
