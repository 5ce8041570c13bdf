"""Random tiny models, adapters and batches for the engine tests; the oracle in its own process.

The oracle (transformers) never runs in the process of a vLLM engine: vLLM's transformers backend
patches transformers' classes, and building such a model there afterwards raises.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.types import Adapter, Checkpoint, GenerateBatch, ScoreBatch, Subject

VOCAB = 512
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def in_process(function: Callable[..., Any], *args: Any) -> Any:
    """Runs ``function(*args)`` in a spawned process and returns its answer."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(function, args)


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


def save_model(folder: Path, kind: str, seed: int, *, layers: int = 3, vocab: int = VOCAB) -> Path:
    """Saves a random float32 model: ``kind`` is llama or olmo, ``-tied`` or ``-untied``."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, OlmoConfig

    family, tying = kind.split("-")
    common = {
        "vocab_size": vocab,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": layers,
        "num_attention_heads": 4 if family == "llama" else 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": tying == "tied",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    config = (LlamaConfig if family == "llama" else OlmoConfig)(**common)
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
    """A subject whose fingerprints are names: unique is all an engine asks of them."""
    checkpoint = Checkpoint(base.name, str(base), base.name, "tokenizer")
    if adapter is None:
        return Subject(checkpoint)
    untrained = adapter.name.startswith("zero")
    return Subject(
        checkpoint, Adapter(adapter.name, str(adapter), adapter.name, 8, untrained=untrained)
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


def generate_contexts(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    from evalcore.types import flatten

    rng = np.random.default_rng(seed)
    return flatten(
        [rng.integers(3, VOCAB, int(rng.integers(1, 80))).tolist() for _ in range(count)]
    )


def oracle(
    cases: Sequence[tuple[Subject, ScoreBatch | None, GenerateBatch | None]],
) -> list[tuple[Any, Any, Any]]:
    """(score result, margins float64 [T_continuation], generate result) of every case, by hf.

    The margin of a token is the gap between the two largest log-probabilities at its row.
    """
    from evalcore.engines.hf import HFEngine
    from evalcore.engines.protocol import EngineSpec

    engine = HFEngine(EngineSpec(kind="hf", dtype="float32", device="cpu", threads=2))
    answers = []
    for who, score, generate in cases:
        engine.load(who)
        answers.append(
            (
                engine.score(score) if score is not None else None,
                engine.margins(score) if score is not None else None,
                engine.generate(generate) if generate is not None else None,
            )
        )
    return answers
