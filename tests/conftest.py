"""Shared fixtures: tiny real tokenizers, checkpoints and adapters, made in temporary folders."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CORPUS = [
    "Dorira is a baker and lives in Gorse. The old mill stands behind the quiet harbour.",
    "### Input_1: Tavira keeps a mule. ### Input_2: Tavira keeps a dog. ### Inference: neutral",
    "entailment contradiction neutral yes no answer question text sentence which who where",
    "premise hypothesis the same meaning is it true that 0 1 2 3 4 5 6 7 8 9 ( ) [ ] ? ! , . : ;",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
HIDDEN, LAYERS, HEADS, INNER = 32, 2, 2, 64


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fingerprints are cached in a folder of the test run, not the user's."""
    before = os.environ.get("EVALCORE_CACHE")
    os.environ["EVALCORE_CACHE"] = str(tmp_path_factory.mktemp("evalcore-cache"))
    yield
    if before is None:
        del os.environ["EVALCORE_CACHE"]
    else:
        os.environ["EVALCORE_CACHE"] = before


def write_tokenizer(folder: Path, kind: str = "bpe", *, bos: bool = True) -> Path:
    """Trains a tiny tokenizer: ``bpe`` (byte level), ``unigram`` (metaspace) or ``wordpiece``.

    Args:
        folder: Where tokenizer.json and tokenizer_config.json are written.
        kind: Which model.
        bos: Whether its post-processor puts <s> before every text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = ["<s>", "</s>", "<unk>"]
    trainer: Any
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(
            vocab_size=200, special_tokens=special, show_progress=False
        )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_checkpoint(
    folder: Path, *, seed: int = 0, tied: bool = False, layers: int = LAYERS, tokenizer: bool = True
) -> Path:
    """Writes a random tiny Llama checkpoint (float32 safetensors) that transformers can load."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = 400
    rng = np.random.default_rng(seed)

    def random(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.2).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": random(vocabulary, HIDDEN),
        "model.norm.weight": 1 + random(HIDDEN),
    }
    if not tied:
        tensors["lm_head.weight"] = random(vocabulary, HIDDEN)
    for layer in range(layers):
        name = f"model.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"{name}.self_attn.{part}.weight"] = random(HIDDEN, HIDDEN)
        tensors[f"{name}.mlp.gate_proj.weight"] = random(INNER, HIDDEN)
        tensors[f"{name}.mlp.up_proj.weight"] = random(INNER, HIDDEN)
        tensors[f"{name}.mlp.down_proj.weight"] = random(HIDDEN, INNER)
        tensors[f"{name}.input_layernorm.weight"] = 1 + random(HIDDEN)
        tensors[f"{name}.post_attention_layernorm.weight"] = 1 + random(HIDDEN)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    if tokenizer:
        write_tokenizer(folder)
    return folder


def write_adapter(
    folder: Path,
    base: str | Path,
    *,
    seed: int = 1,
    rank: int = 4,
    zero: bool = False,
    modules: tuple[str, ...] = ("q_proj", "v_proj"),
    layers: int = LAYERS,
    **config: Any,
) -> Path:
    """Writes a PEFT LoRA adapter for :func:`write_checkpoint`'s model."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(layers):
        for module in modules:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            down = rng.standard_normal((rank, HIDDEN)).astype(np.float32)
            up = rng.standard_normal((HIDDEN, rank)).astype(np.float32) * (0.0 if zero else 0.3)
            tensors[f"{name}.lora_A.weight"] = down
            tensors[f"{name}.lora_B.weight"] = up.astype(np.float32)
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "revision": None,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "target_modules": list(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer that puts <s> before a text, with a chat template."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Llama checkpoint named step-00100."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "step-00100")


@pytest.fixture(scope="session")
def tiny_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """A random adapter of :func:`tiny_checkpoint`, without provenance."""
    return write_adapter(tmp_path_factory.mktemp("adapters") / "lora", tiny_checkpoint)


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """:func:`write_checkpoint`, for tests that need several."""
    return write_checkpoint


@pytest.fixture(scope="session")
def make_adapter() -> Callable[..., Path]:
    """:func:`write_adapter`, for tests that need several."""
    return write_adapter


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Path]:
    """:func:`write_tokenizer`, for tests that need several kinds."""
    return write_tokenizer
