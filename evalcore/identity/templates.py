"""Chat templates: which one is used, and the values it is given beside the messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from evalcore.errors import InputError
from evalcore.identity.hashing import canonical_json
from evalcore.reading import check_depth
from evalcore.types import TEMPLATE_DATE

# What evalcore gives a template itself.
_OWN = {
    "messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message",
    "tokenize", "tools", "documents", "strftime_now", "padding", "truncation", "max_length",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
}  # fmt: skip


def chat_template(tokenizer: Any) -> str:
    """The chat template that is used when none is named; empty if there is none."""
    if not getattr(tokenizer, "chat_template", None):
        return ""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError:  # several, none of them called default
        return ""


def writes_the_date(template: str) -> bool:
    """Whether a chat template asks for the date of the day it is used."""
    return "strftime_now" in template


def turn_end(tokenizer: Any, specials: Mapping[str, int]) -> int | None:
    """The control token with which the chat template closes an answer's turn, if it does.

    Args:
        tokenizer: Has the chat template.
        specials: Its control tokens by their text.
    """
    answer = "An answer."
    messages = [
        {"role": "user", "content": "A question?"},
        {"role": "assistant", "content": answer},
    ]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, **template_values()))
    except Exception:  # raised by the template: it takes no such chat, or nothing at all
        return None
    _, found, closing = text.rpartition(answer)
    places = [
        (at, -len(mark), mark) for mark in specials if mark and (at := closing.find(mark)) >= 0
    ]
    return specials[min(places)[2]] if found and places else None


def parse_template_args(text: str | None) -> str:
    """Arguments of a chat template given as a JSON object, in canonical form; empty for none.

    Raises:
        InputError: If it is no JSON object, or names what evalcore gives the template itself.
    """
    if not text:
        return ""
    what = f"--chat-template-args {text if len(text) <= 200 else text[:60] + '...'!r}"
    try:
        values = json.loads(text)
        check_depth(values, what)
    except RecursionError:
        raise InputError(f'{what}: is nested too deeply; give {{"name": value}}') from None
    except ValueError as error:
        raise InputError(f'{what}: is not JSON ({error}); give {{"name": value}}') from None
    if not isinstance(values, dict):
        raise InputError(f'{what}: should be a JSON object, as {{"enable_thinking": false}}')
    taken = sorted(_OWN & set(values))
    if taken:
        raise InputError(f"{what}: {', '.join(taken)} is not for you to give; leave it out")
    return canonical_json(values) if values else ""


def parse_template_date(text: str | None) -> str:
    """The date that chat templates write, YYYY-MM-DD.

    Raises:
        InputError: If it is no date.
    """
    if not text:
        return TEMPLATE_DATE
    try:
        return datetime.strptime(text, "%Y-%m-%d").date().isoformat()
    except ValueError:
        raise InputError(f"--template-date {text!r}: expected YYYY-MM-DD") from None


def template_values(args: str = "", date: str = TEMPLATE_DATE) -> dict[str, Any]:
    """What a chat template is given beside the messages.

    The library gives templates the clock (``strftime_now``): the same run tomorrow would ask
    something else. Here that is a fixed day.

    Args:
        args: Canonical JSON object, or empty.
        date: YYYY-MM-DD.
    """
    now: Callable[[str], str] = datetime.strptime(date, "%Y-%m-%d").strftime
    return {**(json.loads(args) if args else {}), "strftime_now": now}
