"""Conversations: turns of chat messages as files have them, read as roles and texts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalcore.tasks.faults import DataFault, TaskDataError

ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant",
    "bot": "assistant", "ai": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool",
}  # fmt: skip
"""Who speaks: what files call them, in any case -> the role it is read as."""
_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("content", "value")
_CALLS = ("tool_calls", "function_call")


def conversation(messages: Any, part: str) -> Any:
    """A part of chat messages up to the last turn of the assistant; None if there is no such turn,
    or nothing before it.

    ``answer``: that turn's text. ``turns``: the list of those before it. ``prompt``: those as
    text: a single message as it is, several with their speaker in front. A turn without text was
    not said: it is left out, whoever's it is.

    Raises:
        TaskDataError: If a turn is no mapping with role and content, its role is none of
            :data:`ROLES`, or it calls a tool in place of text.
    """
    if isinstance(messages, str):
        raise _odd("a text where a list of turns is expected; write them as a list, not as JSON "
                   "in a text")  # fmt: skip
    if not isinstance(messages, (list, tuple)):
        return None
    turns = [turn for message in messages if (turn := _turn(message))["content"].strip()]
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=0)
    if last == 0:
        return None
    if part == "answer":
        return turns[last]["content"]
    before = turns[:last]
    if part == "turns":
        return before
    if len(before) == 1:
        return before[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in before)


def _turn(message: Any) -> dict[str, str]:
    """Role and text of one message; of a content in parts its texts, one after the other."""
    given = message if isinstance(message, Mapping) else {}
    role = next((given[key] for key in _ROLE_KEYS if given.get(key) is not None), None)
    key = next((key for key in _TEXT_KEYS if key in given), None)
    if role is None or key is None:
        keys = ", ".join(map(str, given)) or "none"
        raise _odd(f"a turn with keys {keys}, where role and content (or from and value) are "
                   "expected; rename them in the file")  # fmt: skip
    known = ROLES.get(str(role).strip().casefold())
    if known is None:
        raise _odd(f"a turn of {str(role)[:40]!r}, which is no role ({', '.join(ROLES)}); rename "
                   "it in the file")  # fmt: skip
    if any(given.get(call) for call in _CALLS):
        raise _odd("a turn that calls a tool, which is no text; take such conversations out of "
                   "the file, or write the call as content")  # fmt: skip
    content = given[key]
    parts = content if isinstance(content, (list, tuple)) else [content]
    texts = [p["text"] if isinstance(p, Mapping) and "text" in p else p for p in parts]
    found = ["" if text is None else written(text, key) for text in texts]
    return {"role": known, "content": "\n".join(found)}


def _odd(what: str) -> TaskDataError:
    return TaskDataError(DataFault.NOT_TEXT, f"a conversation has {what}")


def written(value: Any, column: str) -> str:
    """A value as text.

    Raises:
        TaskDataError: If it is none: its Python spelling would stand in prompts and references.
    """
    if not isinstance(value, (Mapping, list, tuple, bytes)):
        return str(value)
    inside = ""
    if isinstance(value, Mapping):
        inside = f" (name what is inside: {column}.{next(iter(value), 'key')})"
    raise TaskDataError(
        DataFault.NOT_TEXT,
        f"column {column} holds a {type(value).__name__} where a text is expected{inside}",
    )
