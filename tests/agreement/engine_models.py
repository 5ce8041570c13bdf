"""Random tiny models, adapters and batches for the engine tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.errors import InputError
from evalcore.identity import adapter_fingerprint, checkpoint_fingerprint
from evalcore.types import Adapter, Checkpoint, ScoreBatch, Subject, flatten

VOCAB = 512
POSITIONS = 1024
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["question answer yes no true false red green blue"] * 9, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


# Linear layers an adapter changes, where they are not named as in Llama.
NEOX_LINEAR = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
WINDOW = 48
EXPERTS = ("olmoe", "mixtral", "qwen3moe")  # mixtures of experts


def _config(kind: str, layers: int) -> Any:
    """A small configuration of a kind: family, and what is special about it (``-tied`` ...)."""
    import transformers as t

    family, special = kind.split("-")
    common: dict[str, Any] = {
        "vocab_size": VOCAB + 5 if special == "padded" else VOCAB,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": layers,
        "num_attention_heads": 2 if family == "olmo" else 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": special == "tied",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    if family == "cohere2":
        common |= {"layer_types": ["sliding_attention"] * layers, "tie_word_embeddings": True}
    if special == "sliding":
        common["sliding_window"] = WINDOW
    if family == "neox":
        del common["num_key_value_heads"]
    classes = {
        "llama": t.LlamaConfig,
        "olmo": t.OlmoConfig,
        "olmo2": t.Olmo2Config,
        "qwen": t.Qwen2Config,
        "neox": t.GPTNeoXConfig,
        "mistral": t.MistralConfig,
        "olmoe": t.OlmoeConfig,
        "mixtral": t.MixtralConfig,
        "qwen3moe": t.Qwen3MoeConfig,
        "cohere2": t.Cohere2Config,
    }
    if family in EXPERTS:
        common |= {"num_experts_per_tok": 2, "intermediate_size": 96}
        common["num_local_experts" if family == "mixtral" else "num_experts"] = 4
    if family == "qwen3moe":
        common |= {"moe_intermediate_size": 96, "head_dim": 32, "norm_topk_prob": True}
    return classes[family](**common)


def save_model(folder: Path, kind: str, seed: int, *, layers: int = 3) -> Path:
    """Saves a random float32 model; ``kind`` as ``llama-tied`` (see ``_config``)."""
    import torch
    from transformers import AutoModelForCausalLM

    config = _config(kind, layers)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.08)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_adapter(
    folder: Path,
    base: Path,
    seed: int,
    *,
    targets: Sequence[str] = ("q_proj", "v_proj", "gate_proj", "down_proj"),
    zero: bool = False,
    scale: float = 0.05,
    **options: Any,
) -> Path:
    """Saves a random PEFT adapter for ``base`` (``zero``: B = 0, as before any training)."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": list(targets), **options})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    if not zero:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and "magnitude" not in name:
                    parameter.add_(torch.randn_like(parameter) * scale)
                elif parameter.requires_grad:
                    parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
    model.save_pretrained(folder)
    return folder


def subject(base: Path, adapter: Path | None = None) -> Subject:
    """A subject; its tokenizer's fingerprint is the same for all models here."""
    checkpoint = Checkpoint(base.name, str(base), checkpoint_fingerprint(base), "tokenizer")
    if adapter is None:
        return Subject(checkpoint)
    untrained = adapter.name.startswith("zero")
    try:
        fingerprint = adapter_fingerprint(adapter)
    except InputError:  # what is wrong with it is for the engine to say
        fingerprint = str(adapter)
    return Subject(
        checkpoint, Adapter(adapter.name, str(adapter), fingerprint, 8, untrained=untrained)
    )


def random_batch(seed: int, groups: int, *, max_context: int = 100) -> ScoreBatch:
    """Random contexts with 1 to 4 random continuations, some contexts with a common prefix."""
    rng = np.random.default_rng(seed)
    shots = rng.integers(3, VOCAB, 70).tolist()
    items = []
    for index in range(groups):
        context = rng.integers(3, VOCAB, int(rng.integers(1, max_context))).tolist()
        if index % 3 == 0:
            context = shots + context
        choices = [
            rng.integers(3, VOCAB, int(rng.integers(1, 6))).tolist()
            for _ in range(int(rng.integers(1, 5)))
        ]
        items.append((context, choices))
    return ScoreBatch.from_lists(items)


def edge_batch(seed: int) -> ScoreBatch:
    """What goes wrong if anything does: block multiples, one token, repeats, shared tokens."""
    rng = np.random.default_rng(seed)

    def draw(count: int) -> list[int]:
        return rng.integers(3, VOCAB, count).tolist()

    items: list[tuple[list[int], list[list[int]]]] = []
    for length in (1, 2, 30, 31, 32, 33, 34, 63, 64, 65, 96, 128, 200):
        context, start = draw(length), draw(3)
        items.append((context, [draw(1), draw(1), draw(1)]))
        items.append((context, [draw(2), draw(40), draw(1), draw(5)]))
        items.append((context, [[*start, *draw(1)], [*start, *draw(2)], start, start]))
    longest = items[-1][0]
    items.append((longest[:100], [draw(2)]))  # a context that is a prefix of another
    items.append(([*longest, *draw(60)], [draw(2), draw(3)]))
    items.append((draw(64), [longest[:32], longest[:33]]))
    order = rng.permutation(len(items))
    return ScoreBatch.from_lists([items[i] for i in order])


def boundary_batch(seed: int, groups: int) -> ScoreBatch:
    """Contexts around block boundaries, half of them after shared shots that may fill a block.

    Choices often begin alike, and are one token, several, or more than a block.
    """
    rng = np.random.default_rng(seed)

    def draw(count: int) -> list[int]:
        return rng.integers(3, VOCAB, count).tolist()

    shots = [draw(64), draw(int(rng.integers(40, 90)))]
    items = []
    for _ in range(groups):
        near = int(rng.choice([32, 64, 96])) + int(rng.integers(-2, 3))
        length = int(rng.choice([near, int(rng.integers(1, 130))]))
        before = shots[int(rng.integers(0, 2))] if rng.random() < 0.5 else []
        start = draw(int(rng.integers(1, 5)))
        choices = []
        for _ in range(int(rng.integers(1, 5))):
            own = draw(int(rng.choice([1, 1, 2, 3, 5, 40], p=[0.3, 0.2, 0.2, 0.15, 0.1, 0.05])))
            choices.append([*start, *own] if rng.random() < 0.3 else own)
        items.append(([*before, *draw(length)], choices))
    return ScoreBatch.from_lists(items)


def shuffled(seed: int, batch: ScoreBatch) -> tuple[ScoreBatch, np.ndarray]:
    """The batch with contexts in another order; where each continuation token has gone."""
    order = np.random.default_rng(seed).permutation(batch.num_contexts)
    owner = batch.continuation_context
    members = [np.flatnonzero(owner == i) for i in order]
    bounds = batch.continuation_offsets
    mixed = ScoreBatch.from_lists(
        [
            (batch.context(int(i)).tolist(), [batch.continuation(int(j)).tolist() for j in group])
            for i, group in zip(order, members, strict=True)
        ]
    )
    at = [np.arange(bounds[j], bounds[j + 1]) for group in members for j in group]
    return mixed, np.concatenate(at)


def full_batch(seed: int, length: int) -> ScoreBatch:
    """Sequences of exactly ``length`` tokens, split in many places, and some a little shorter."""
    rng = np.random.default_rng(seed)
    whole = rng.integers(3, VOCAB, length).tolist()
    other = rng.integers(3, VOCAB, length).tolist()
    items = [(whole[:-at], [whole[-at:], other[-at:]]) for at in (1, 2, 9, 30)]
    items.append((other[:-3], [other[-3:-1], whole[-3:-2], other[-3:]]))
    items.append((whole[:1], [whole[1:]]))
    return ScoreBatch.from_lists(items)


def every_token_batch(seed: int) -> ScoreBatch:
    """Two contexts, each followed by every token: one of them is greedy."""
    rng = np.random.default_rng(seed)
    every = [[token] for token in range(VOCAB)]
    return ScoreBatch.from_lists([(rng.integers(3, VOCAB, n).tolist(), every) for n in (7, 33)])


def generate_contexts(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return flatten(
        [rng.integers(3, VOCAB, int(rng.integers(1, 80))).tolist() for _ in range(count)]
    )
