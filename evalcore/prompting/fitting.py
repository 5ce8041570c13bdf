"""Token ids of one document: what is asked, cut to what the model can read and how it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from evalcore.errors import InputError
from evalcore.prompting.encoding import Encoder, Pair
from evalcore.types import Document, EncodingSettings, GenerationSettings, Task, Variant


@dataclass(frozen=True, slots=True)
class RequestText:
    """Text of one document before it is encoded.

    Attributes:
        contexts: One if all continuations follow it, else one per continuation.
        continuations: What is scored, delimiter included (rolling: the one text).
        targets: The same without delimiter: what lengths in characters and bytes are of.
        unconditional: Text scored after an empty context, or empty.
        shots: Worked examples in the context.
        owners: The choice each continuation is a text of; empty where each choice has one.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    targets: tuple[str, ...]
    unconditional: tuple[str, ...] = ()
    shots: int = 0
    owners: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """Ids of one document.

    Attributes:
        pairs: (context, continuation) of each choice, window or reference.
        unconditional: The same after an empty context, or empty.
        prompt: What is generated from, if anything is.
        truncated: Context tokens cut off, the most of any request.
        fits: Whether the model can read all of it.
        owners: The choice each pair is a text of; empty where each choice has one.
    """

    pairs: list[Pair]
    unconditional: list[Pair]
    prompt: list[int] | None = None
    truncated: int = 0
    fits: bool = True
    owners: tuple[int, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every continuation has tokens, and there is something to ask at all."""
        some = bool(self.pairs) or self.prompt is not None
        return some and all(tokens for _, tokens in (*self.pairs, *self.unconditional))


def encode_texts(
    encoder: Encoder,
    texts: Sequence[RequestText],
    *,
    rolling: int | None = None,
    prompts: bool = False,
) -> list[Asked]:
    """Encodes documents in few tokenizer calls.

    Args:
        encoder: Tokenizer and BOS policy.
        texts: What to encode.
        rolling: Cut each text's one continuation into windows of this many tokens.
        prompts: Whether the whole (first) context is wanted as well, to go on from.
    """
    if rolling is not None:
        windows = encoder.rolling_windows([text.continuations[0] for text in texts], rolling)
        return [Asked(own, []) for own in windows]
    items: list[tuple[str, Sequence[str]]] = []
    for text in texts:
        if len(text.contexts) == 1:
            items.append((text.contexts[0], text.continuations))
        else:
            items += [(c, [t]) for c, t in zip(text.contexts, text.continuations, strict=True)]
        items.append(("", text.unconditional))
    groups = iter(encoder.encode_pairs(items))
    asked = []
    for text in texts:
        pairs = [pair for _ in text.contexts for pair in next(groups)]
        asked.append(Asked(pairs, next(groups), owners=text.owners))
    return _with_prompts(encoder, texts, asked) if prompts else asked


def _with_prompts(
    encoder: Encoder, texts: Sequence[RequestText], asked: list[Asked]
) -> list[Asked]:
    """Adds the whole context of each document; only those that end in white space, or have no
    pair that holds it already, are encoded again."""
    again = [
        i
        for i, (text, own) in enumerate(zip(texts, asked, strict=True))
        if not own.pairs or text.contexts[0] != text.contexts[0].rstrip()
    ]
    whole = dict(
        zip(again, encoder.encode_prompts([texts[i].contexts[0] for i in again]), strict=True)
    )
    return [
        replace(own, prompt=whole[i] if i in whole else own.pairs[0][0])
        for i, own in enumerate(asked)
    ]


def fit(
    asked: Asked,
    settings: EncodingSettings,
    generation: GenerationSettings | None,
    *,
    rolling: bool = False,
    together: bool = False,
) -> Asked:
    """Fits a document's ids into the model's length.

    ``drop_shots``: nothing is cut here; context + continuation (or + new tokens) must be within
    ``max_length``. ``truncate_left``: contexts lose their beginning by lm-evaluation-harness's
    rules. For scoring the model reads ``max_length`` tokens, of context and continuation but its
    last token; for generation ``max_length`` less the new tokens. Windows fit by their making.

    Args:
        asked: Ids of a document.
        settings: Longest sequence and what happens beyond it.
        generation: Settings if something is generated.
        rolling: Whether the pairs are windows.
        together: Cut all contexts alike, so that continuations keep a shared context.
    """
    if rolling:
        return asked
    room = settings.max_length - (generation.max_tokens if generation is not None else 0)
    if settings.overflow == "drop_shots":
        lengths = [len(c) + len(t) for c, t in (*asked.pairs, *asked.unconditional)]
        if generation is not None and asked.prompt is not None:
            lengths.append(len(asked.prompt) + generation.max_tokens)
        return replace(asked, fits=max(lengths, default=0) <= settings.max_length)
    longest = max((len(t) for _, t in (*asked.pairs, *asked.unconditional)), default=0)
    if longest > settings.max_length or room < 1:
        return replace(asked, fits=False)
    pairs = [
        (c[-(settings.max_length + 1 - (longest if together else len(t))) :], t)
        for c, t in asked.pairs
    ]
    lost = [len(old) - len(new) for (old, _), (new, _) in zip(asked.pairs, pairs, strict=True)]
    prompt = asked.prompt
    if generation is not None and prompt is not None:
        lost.append(max(0, len(prompt) - room))
        prompt = prompt[-room:]
    return replace(asked, pairs=pairs, prompt=prompt, truncated=max(lost, default=0))


def first_tokens(
    asked: Asked,
    text: RequestText,
    task: Task,
    variant: Variant,
    document: Document,
    tokenizer: Any,
) -> Asked:
    """Cuts every choice to its first token (``answer=first_token``).

    White space at the end of the context stays there where it is a token of its own, so that the
    first token is the label's. Texts of one choice may begin with the same token.

    Raises:
        InputError: If two choices begin with the same token: the first token cannot tell them
            apart.
    """
    pairs = _spaces_in_context(asked)
    owners = asked.owners or tuple(range(len(pairs)))
    begun: dict[tuple[int, ...], int] = {}
    for i, (context, tokens) in enumerate(pairs):
        first = begun.setdefault((*context, *tokens[:1]), i)
        if owners[first] != owners[i]:
            shared = tokenizer.convert_ids_to_tokens(tokens[:1])
            raise InputError(
                f"task {task.name}, prompt {variant.name}: answer=first_token cannot tell "
                f"{text.targets[first]!r} from {text.targets[i]!r} (document {document.index}): "
                f"both begin with token {shared[0] if shared else ''!r}; use answer=choices or "
                "other label words, or change space="
            )
    cut = [(context, tokens[:1]) for context, tokens in pairs]
    return replace(asked, pairs=cut, prompt=None)


def _spaces_in_context(asked: Asked) -> list[Pair]:
    prompt = asked.prompt
    if prompt is None:
        return asked.pairs
    wholes = [context + tokens for context, tokens in asked.pairs]
    if all(len(w) > len(prompt) and w[: len(prompt)] == prompt for w in wholes):
        return [(prompt, whole[len(prompt) :]) for whole in wholes]
    return asked.pairs
