"""Training throughput against the script one would otherwise write with peft and Trainer.

    python -m bench.tuning --model DIR [--task TASK] [--pairs 5] [--adapters 3] [--packing]
                           [--reload] [--group-by-length] [--batch-size 16] [--epochs 1]

Both sides learn the same rows, encoded by the same code, with the same LoRA, batch size, epochs
and device, and write PEFT files. The plain script reads the base for every adapter, pads batches
and lets the model compute its own loss. evalcore reads the base once for all adapters (unless
``--reload``), computes logits only where they are learned, and packs rows (with ``--packing``).

One pair is all adapters by one side, then by the other; the order alternates. Printed are tokens
per second (padding not counted) of each side, and the median ratio with a 95 % bootstrap interval
over pairs. Timings mean something only on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from evalcore.identity import open_checkpoint
from evalcore.machine import cores
from evalcore.prompting import load_tokenizer
from finetune.data import build_training_set
from finetune.jobs import MixPart, TuneJob
from finetune.method import MethodSpec

BOOTSTRAPS = 10_000


@dataclass(frozen=True)
class Setting:
    """What is compared; see the options."""

    model: str
    task: str
    variant: str
    examples: int
    adapters: int
    pairs: int
    batch_size: int
    epochs: float
    rank: int
    max_length: int
    packing: bool
    group_by_length: bool
    reload: bool
    device: str
    threads: int
    dtype: str


@dataclass(frozen=True)
class Side:
    """One side of a pair: tokens learned and seconds, reading the base included."""

    tokens: int
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


def job_of(setting: Setting, directory: Path, seed: int) -> TuneJob:
    """A tuning job of the setting."""
    return TuneJob(
        checkpoint=open_checkpoint(setting.model),
        tuning=setting.task,
        tasks=(MixPart(setting.task, setting.examples),),
        variants=(setting.variant,),
        data_seed=0,
        seed=seed,
        control=None,
        method=MethodSpec(
            rank=setting.rank,
            alpha=2 * setting.rank,
            epochs=setting.epochs,
            batch_size=setting.batch_size,
            max_length=setting.max_length,
            packing=setting.packing,
            group_by_length=setting.group_by_length,
            dtype=setting.dtype,
        ),
        held_out=(),
        directory=str(directory),
    )


def ours(setting: Setting, folder: Path) -> Side:
    """All adapters by the tuning stage's worker."""
    from finetune.results import TuneConfig
    from finetune.train import TuneWorker

    start, tokens = time.perf_counter(), 0
    worker = TuneWorker(TuneConfig(threads=setting.threads, device=setting.device))  # type: ignore[arg-type]
    for seed in range(setting.adapters):
        tokens += worker.run(job_of(setting, folder / f"ours-{seed}", seed)).tokens
        if setting.reload:
            worker.close()
    worker.close()
    return Side(tokens, time.perf_counter() - start)


def plain(setting: Setting, folder: Path) -> Side:
    """All adapters one after the other by a plain script."""
    start, tokens = time.perf_counter(), 0
    for seed in range(setting.adapters):
        tokens += plain_adapter(setting, folder / f"plain-{seed}", seed)
        gc.collect()
    return Side(tokens, time.perf_counter() - start)


def plain_adapter(setting: Setting, directory: Path, seed: int) -> int:
    """One adapter as the libraries' own examples train it; gives tokens learned."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        Trainer,
        TrainingArguments,
        default_data_collator,
    )
    from transformers.trainer_callback import PrinterCallback

    cpu = setting.device == "cpu"
    half = not cpu and setting.dtype != "float32"
    dtype = torch.bfloat16 if half or setting.dtype == "bfloat16" else torch.float32
    job = job_of(setting, directory, seed)
    rows = build_training_set(job, load_tokenizer(setting.model), setting.max_length)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(setting.model, dtype=dtype)
    config = LoraConfig(
        r=setting.rank, lora_alpha=2 * setting.rank, target_modules="all-linear",
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(model, config)

    def pad(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
        longest = max(len(row["input_ids"]) for row in batch)
        fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        padded = [{k: v + [fill[k]] * (longest - len(v)) for k, v in row.items()} for row in batch]
        return dict(default_data_collator(padded))

    dataset = [
        {
            "input_ids": prompt + completion,
            "labels": [-100] * len(prompt) + completion,
            "attention_mask": [1] * (len(prompt) + len(completion)),
        }
        for prompt, completion in zip(rows.prompts, rows.completions, strict=True)
    ]
    sampling = "group_by_length" if setting.group_by_length else "random"
    arguments = TrainingArguments(
        output_dir=str(directory), num_train_epochs=setting.epochs, learning_rate=2e-4,
        per_device_train_batch_size=setting.batch_size, train_sampling_strategy=sampling,
        optim="adamw_torch", lr_scheduler_type="linear", warmup_steps=1, use_cpu=cpu, bf16=half,
        save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True,
        remove_unused_columns=False, seed=seed,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset, data_collator=pad)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.save_pretrained(directory)
    return round(setting.epochs * sum(len(row["input_ids"]) for row in dataset))


def interval(ratios: list[float], seed: int = 0) -> tuple[float, float, float]:
    """(median, lower, upper) of ratios: 95 % percentile bootstrap over pairs."""
    values = np.asarray(ratios)
    draws = np.random.default_rng(seed).integers(0, len(values), (BOOTSTRAPS, len(values)))
    medians = np.median(values[draws], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(values)), float(low), float(high)


def compare(setting: Setting) -> dict[str, Any]:
    """Runs all pairs; prints each and gives everything that was measured."""
    pairs = []
    ratios: list[float] = []
    for number in range(setting.pairs):
        sides: dict[str, Side] = {}
        with tempfile.TemporaryDirectory(prefix="evalcore-bench-") as folder:
            arms = [("ours", ours), ("plain", plain)]
            for name, run in arms if number % 2 == 0 else arms[::-1]:
                sides[name] = run(setting, Path(folder))
        ratio = sides["ours"].tokens_per_s / sides["plain"].tokens_per_s
        ratios.append(ratio)
        pairs.append({**{name: asdict(side) for name, side in sides.items()}, "ratio": ratio})
        print(
            f"pair {number + 1}: evalcore {sides['ours'].tokens_per_s:,.0f} tokens/s, "
            f"plain {sides['plain'].tokens_per_s:,.0f} tokens/s, ratio {ratio:.3f}",
            flush=True,
        )
    median, low, high = interval(ratios)
    print(f"median ratio {median:.3f}, 95 % interval {low:.3f} to {high:.3f}, {len(pairs)} pairs")
    return {
        "setting": asdict(setting),
        "pairs": pairs,
        "median": median,
        "low": low,
        "high": high,
        "machine": {"cpus": cores(), "processor": platform.processor()},
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")},
    }


def warm_up(setting: Setting) -> None:
    """Imports and first-use costs of both sides, before anything is timed."""
    import torch

    if setting.threads:
        torch.set_num_threads(setting.threads)
    small = Setting(**{**asdict(setting), "adapters": 1, "examples": setting.batch_size})
    with tempfile.TemporaryDirectory(prefix="evalcore-bench-") as folder:
        ours(small, Path(folder))
        plain(small, Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="checkpoint directory")
    parser.add_argument("--task", default="pocket_nli")
    parser.add_argument("--variant", default="default")
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--adapters", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--packing", action="store_true")
    parser.add_argument("--group-by-length", action="store_true")
    parser.add_argument("--reload", action="store_true", help="read the base for every adapter")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write everything measured to this file")
    values = vars(parser.parse_args())
    out = values.pop("json")
    setting = Setting(**values)
    warm_up(setting)
    measured = compare(setting)
    if out is not None:
        out.write_text(json.dumps(measured, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
