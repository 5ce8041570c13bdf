"""Pre-trains the pocket model in minutes on a CPU and saves it at several steps.

Every checkpoint is an ordinary Hugging Face folder (config, safetensors, tokenizer, generation
configuration) plus ``checkpoint.json``; all of them are the points of one run.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evalcore.errors import InputError
from finetune.pocket.text import documents, real_text
from finetune.pocket.tokenizer import BOS_ID, EOS_ID, PAD_ID, save_tokenizer, train_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

logger = logging.getLogger("evalcore")

CHECKPOINT_FILE = "checkpoint.json"
TEXT_VERSION = 4
"""Raised when generated text, tokenizer or loop change so that old checkpoints are not current."""
DEFAULT_STEPS = 700
DEFAULT_SAVE_STEPS = (30, 100, 250, 450, 700)
Progress = Callable[[int, int, float, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class PocketConfig:
    """Size of the model and of a step; the defaults are what the pocket study uses.

    ``head_dim = hidden_size / num_heads`` must be 64: vLLM's attention on CPUs asks for it.
    """

    vocab_size: int = 1024
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 3
    num_heads: int = 2
    max_position: int = 512
    sequence_tokens: int = 128
    batch_sequences: int = 8
    initializer_range: float = 0.06
    learning_rate: float = 2e-3
    warmup_steps: int = 30
    weight_decay: float = 0.01
    tokenizer_documents: int = 12_000


def pretrain(
    out_dir: Path,
    *,
    steps: int = DEFAULT_STEPS,
    save_steps: Sequence[int] = DEFAULT_SAVE_STEPS,
    seed: int = 0,
    text_dir: Path | None = None,
    threads: int = 2,
    config: PocketConfig | None = None,
    on_progress: Progress | None = None,
) -> list[Path]:
    """Pre-trains, saving a checkpoint at each of ``save_steps``; does nothing if all are there.

    Args:
        out_dir: Folder of the checkpoints ``step-00025`` ... (made if needed).
        steps: Steps of the whole run; the learning rate schedule ends there.
        save_steps: Steps to save at, at most ``steps``.
        seed: Seeds weights and the order of the text.
        text_dir: Folder with real text to mix in (see :func:`finetune.pocket.text.real_text`).
        threads: Threads torch uses meanwhile.
        config: Model and batch sizes.
        on_progress: Called as ``(step, steps, loss, {"tokens", "tokens_per_s", "saved"})`` every
            few steps and after each save (``saved`` is then the folder's name).

    Returns:
        The checkpoint folders in order of step.

    Raises:
        InputError: If a save step is out of range, ``text_dir`` holds no text, or ``out_dir`` has
            checkpoints made with other settings or other text.
    """
    config = config or PocketConfig()
    save_steps = sorted(set(save_steps))
    if not save_steps or save_steps[0] < 1 or save_steps[-1] > steps:
        raise InputError(f"save_steps {list(save_steps)}: expected steps from 1 to {steps}")
    folders = [out_dir / f"step-{step:05d}" for step in save_steps]
    real = real_text(text_dir) if text_dir is not None else None
    settings = _settings(config, steps, seed, real)
    if all(_is_current(folder, settings) for folder in folders):
        return folders
    _refuse_others(folders, settings)
    import torch

    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _train(dict(zip(save_steps, folders, strict=True)), config, settings, real, on_progress)
    finally:
        torch.set_num_threads(threads_before)
    return folders


def _settings(
    config: PocketConfig, steps: int, seed: int, real: list[str] | None
) -> dict[str, Any]:
    digest = hashlib.sha256("\n".join(real).encode()).hexdigest()[:32] if real else None
    return {
        "text_version": TEXT_VERSION,
        "steps": steps,
        "seed": seed,
        "real_text": digest,
        **asdict(config),
    }


def _is_current(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether a checkpoint is finished (it appears by one rename) and made with these settings."""
    try:
        return bool(json.loads((folder / CHECKPOINT_FILE).read_text())["settings"] == settings)
    except (OSError, ValueError, KeyError):
        return False


def _refuse_others(folders: Sequence[Path], settings: dict[str, Any]) -> None:
    """Checkpoints that adapters and results may already stand on are not overwritten."""
    for folder in folders:
        if (folder / CHECKPOINT_FILE).exists() and not _is_current(folder, settings):
            raise InputError(
                f"{folder} was pre-trained with other settings or other text (see its "
                f"{CHECKPOINT_FILE}); give another folder, or remove this one and what was made "
                f"from it"
            )


def _train(
    save_at: dict[int, Path],
    config: PocketConfig,
    settings: dict[str, Any],
    real: list[str] | None,
    on_progress: Progress | None,
) -> None:
    import torch

    seed, steps = settings["seed"], settings["steps"]
    tokenizer = build_tokenizer(config, seed, real)
    model = build_model(config, len(tokenizer), seed)
    optimizer = _optimizer(model, config)
    batches = token_batches(tokenizer, config, seed, real)
    tokens_per_step = config.batch_sequences * config.sequence_tokens
    started = time.perf_counter()
    model.train()
    for step in range(1, max(save_at) + 1):
        part = schedule(step, steps, config.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * part
        ids = torch.from_numpy(next(batches))
        loss = packed_loss(model, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        saved = None
        if step in save_at:
            record = {"step": step, "tokens": step * tokens_per_step, "loss": loss.item()}
            save_checkpoint(save_at[step], model, tokenizer, {**record, "settings": settings})
            saved = save_at[step].name
        if on_progress is not None and (saved or step % 10 == 0):
            done = step * tokens_per_step
            per_second = done / (time.perf_counter() - started)
            on_progress(
                step,
                steps,
                loss.item(),
                {"tokens": done, "tokens_per_s": per_second, "saved": saved},
            )


def build_tokenizer(
    config: PocketConfig, seed: int, real: list[str] | None
) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on the run's first documents and some passages of real text."""
    texts = list(itertools.islice(documents(seed), config.tokenizer_documents))
    if real:
        texts += random.Random(f"pocket tokenizer {seed}").sample(real, min(2000, len(real)))
    return train_tokenizer(texts, config.vocab_size)


def build_model(config: PocketConfig, vocab_size: int, seed: int) -> LlamaForCausalLM:
    """A freshly initialised pocket Llama with tied embeddings, float32."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.intermediate_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_heads,
                max_position_embeddings=config.max_position,
                initializer_range=config.initializer_range,
                tie_word_embeddings=True,
                bos_token_id=BOS_ID,
                eos_token_id=EOS_ID,
                pad_token_id=PAD_ID,
            )
        )
    model.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, do_sample=False
    )
    return model


def packed_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of packed rows; no token sees a document before its own.

    Args:
        model: The model being trained.
        ids: int64 [rows, tokens]; every BOS starts a document.
    """
    import torch

    document = (ids == BOS_ID).cumsum(dim=1)
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    visible = (document[:, :, None] == document[:, None, :]) & causal
    logits = model(input_ids=ids, attention_mask=visible[:, None], use_cache=False).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)
    )


def _optimizer(model: LlamaForCausalLM, config: PocketConfig) -> torch.optim.Optimizer:
    import torch

    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1]},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
        fused=True,
    )


def schedule(step: int, steps: int, warmup_steps: int) -> float:
    """Share of the highest learning rate: linear warm-up, then a cosine down to a tenth.

    ``step`` counts from 1.
    """
    if step < warmup_steps:
        return step / warmup_steps
    part = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * part))


def token_batches(
    tokenizer: PreTrainedTokenizerFast, config: PocketConfig, seed: int, real: list[str] | None
) -> Iterator[np.ndarray]:
    """Endless packed batches, int64 [batch_sequences, sequence_tokens]; BOS document EOS ..."""
    stream = documents(seed, real)
    size = config.batch_sequences * config.sequence_tokens
    held: list[int] = []
    while True:
        while len(held) < size:
            for ids in tokenizer(list(itertools.islice(stream, 512)))["input_ids"]:
                held.extend(ids)
                held.append(EOS_ID)
        batch = np.asarray(held[:size], dtype=np.int64)
        held = held[size:]
        yield batch.reshape(config.batch_sequences, config.sequence_tokens)


def save_checkpoint(
    folder: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    record: dict[str, Any],
) -> None:
    """Writes a checkpoint beside its place, then renames: a folder that is there is complete."""
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    model.config.save_pretrained(draft)
    model.generation_config.save_pretrained(draft)
    # The tied lm_head is left away, as save_pretrained does (which shows a progress bar).
    tensors = {k: v.contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(tensors, draft / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tokenizer, draft)
    (draft / CHECKPOINT_FILE).write_text(json.dumps(record, indent=1))
    if folder.exists():
        shutil.rmtree(folder)
    draft.rename(folder)
