"""Runs of evalcore and of lm-eval on the same models and tasks, and their comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evalcore.prompting import load_tokenizer, load_variants, render_targets
from evalcore.tasks import load_documents, load_task
from tests.agreement.engine_models import save_adapter
from tests.agreement.lm_eval_compare import Comparison, compare, read_scored
from tests.agreement.lm_eval_peer import Job
from tests.conftest import write_tokenizer

POSITIONS = 512
"""Few, so that some of the tasks' texts are longer."""


@dataclass(frozen=True)
class Models:
    """Checkpoints, and adapters by name with their base.

    Attributes:
        checkpoints: Folders.
        adapters: (adapter folder, its base's folder).
    """

    checkpoints: tuple[Path, ...]
    adapters: tuple[tuple[Path, Path], ...] = ()

    def peer_models(self) -> dict[str, dict[str, str]]:
        """lm-eval's model arguments by the name evalcore gives the model."""
        bases = {path.name: {"pretrained": str(path)} for path in self.checkpoints}
        tuned = {
            adapter.name: {"pretrained": str(base), "peft": str(adapter)}
            for adapter, base in self.adapters
        }
        return bases | tuned


def run_score(results: Path, models: Models, *options: object, timeout_s: float = 900) -> str:
    """``evalcore score`` in a process of its own; its output."""
    command = [sys.executable, "-m", "evalcore", "score", *(a for a, _ in models.adapters)]
    for checkpoint in models.checkpoints:
        command += ["-m", checkpoint]
    command += ["-o", results, "--dtype", "float32", "--threads", 1, *options]
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    return done.stdout


def selection(names: Sequence[str]) -> str:
    """``lm-eval:`` before every name."""
    return ",".join(f"lm-eval:{name}" for name in names)


def compare_all(
    said: dict[str, Any], results: Path, rename: dict[str, str] | None = None
) -> dict[tuple[str, str], Comparison]:
    """Comparisons by (model, lm-eval's task).

    Args:
        said: What lm-eval said, by model.
        results: evalcore's results folder.
        rename: lm-eval's task name -> evalcore's, where evalcore scored a task of its own.
    """
    scored = read_scored(results)
    found = {}
    for model, answer in said.items():
        for task, samples in answer["samples"].items():
            key = (model, (rename or {}).get(task, f"lm-eval:{task}"))
            found[model, task] = compare(
                samples, answer["results"][task], scored.cells[key], scored.outcomes.get(key)
            )
    return found


def job(models: Models, names: Sequence[str], include: Path, **options: Any) -> Job:
    """A run of lm-eval's hf backend on all models."""
    return Job(models.peer_models(), list(names), str(include), options)


def make_models(folder: Path, *, bos: bool = True) -> Models:
    """A random tiny Llama and an adapter of it, of shapes every engine takes.

    Args:
        folder: Where they are written.
        bos: Whether the tokenizer begins texts with BOS.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    base = write_tokenizer(folder / "step-00100", bos=bos)
    # As many rows as the tokenizer has tokens: with an adapter lm-eval cuts the rest away.
    vocabulary = len(load_tokenizer(base))
    torch.manual_seed(11)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(base)
    adapter = save_adapter(folder / "adapters" / "lora", base, 12)
    return Models((base,), ((adapter, base),))


def write_own_task(folder: Path, name: str, count: int, data_root: Path | None = None) -> str:
    """One of evalcore's own tasks under its ``default`` prompt, as a task file of lm-eval.

    The template, the choices and the stops are evalcore's; that the two then agree shows that
    rendering, encoding and metrics do.

    Args:
        folder: Where task file and rows are written.
        name: evalcore's name of it.
        count: The first so many documents.
        data_root: Folder of local data.

    Returns:
        Its name for lm-eval.
    """
    task = load_task(name)
    (variant,) = load_variants(task.group, "default")
    rows = []
    for document in load_documents(task, limit=count, data_root=data_root):
        shown, _ = render_targets(task, variant, document)
        own = {"choices": list(shown), "gold": document.gold, "reference": shown[0]}
        rows.append({**document.fields, **own})
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    config: dict[str, Any] = {
        "task": f"own_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": task.output_type,
        "doc_to_text": variant.template,
        "target_delimiter": variant.delimiter,
    }
    if task.output_type == "multiple_choice":
        asked = ["acc", "acc_norm", "acc_bytes"]
        asked += [name for name in ("acc_mutual_info",) if name in task.metrics]
        means = [{"metric": metric, "aggregation": "mean", "higher_is_better": True}
                 for metric in asked]  # fmt: skip
        config |= {"doc_to_choice": "choices", "doc_to_target": "gold", "metric_list": means}
    else:
        config |= {
            "doc_to_target": "reference",
            "generation_kwargs": {
                "until": list(task.generation.stops),
                "max_gen_toks": task.generation.max_tokens,
                "do_sample": False,
            },
        }
    (folder / f"own_{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False), "utf-8")
    return f"own_{name}"
