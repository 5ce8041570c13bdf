"""The published study on a loopback hub: its repositories, revisions and schemas, in small.

Rows have the columns of the real sets (tests/data/root, invented texts); what is learned is drawn
anew from a few words, as many rows as a test asks for. Checkpoints are random tiny OLMo models
under the revision names of the real ones.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evalcore.tasks import list_tasks
from evalcore.tasks.model import split_range
from evalcore.types import Task
from tests.conftest import write_tokenizer
from tests.hub.loopback import LoopbackHub

DATA = Path(__file__).resolve().parents[1] / "data" / "root"
STUDY_FILE = Path(__file__).resolve().parents[2] / "studies" / "amuro-char-olmo1b.yaml"
MODEL = "allenai/OLMo-1B-hf"
MOST_WORDS = 120
"""Of one row."""
WIDTH, INNER, LAYERS, VOCABULARY = 64, 64, 2, 400
WORDS = ("river", "stone", "lamp", "baker", "ferry", "copper", "winter", "garden", "letter",
         "cloud", "market", "horse", "paper", "window", "engine", "island")  # fmt: skip


def serve_models(hub: LoopbackHub, folder: Path, revisions: Sequence[str]) -> None:
    """A tiny checkpoint under each revision."""
    files = {file.name: file.read_bytes() for file in write_tokenizer(folder, bos=False).iterdir()}
    files["config.json"] = json.dumps(_config()).encode()
    repository = hub.repository("model", MODEL)
    for seed, revision in enumerate(revisions):
        repository.commit({**files, "model.safetensors": _weights(seed)}, ref=revision)


def serve_data(hub: LoopbackHub, train_rows: Mapping[str, int] | None = None) -> list[Task]:
    """Every data set of the shipped definitions, at the commits they name.

    Args:
        hub: The hub.
        train_rows: Task -> rows of the split it learns; others have those of tests/data/root.

    Returns:
        The tasks whose rows are on the hub.
    """
    tasks = [task for task in list_tasks() if task.spec["source"].get("hub")]
    for repo in dict.fromkeys(task.spec["source"]["hub"]["repo"] for task in tasks):
        own = [task for task in tasks if task.spec["source"]["hub"]["repo"] == repo]
        _serve(hub, repo, own, train_rows or {})
    return tasks


def _serve(
    hub: LoopbackHub, repo: str, tasks: Sequence[Task], train_rows: Mapping[str, int]
) -> None:
    files: dict[str, bytes | str] = {}
    configs: dict[str, list[dict[str, str]]] = {}
    for task in tasks:
        source, splits = task.spec["source"]["hub"], task.spec["splits"]
        config, pattern = source.get("config") or "", source.get("files")
        for split in {split_range(name)[0] for name in splits.values() if name}:
            rows = _rows(DATA / repo / config / f"{split}.jsonl")
            path = f"{config or 'data'}/{split}-00000-of-00001.parquet"
            if pattern:
                path = pattern.replace("{split}", split).replace("*", "0000")
            learned = splits.get("train") and split_range(splits["train"])[0] == split
            if learned and task.name in train_rows:
                rows = _drawn(rows, train_rows[task.name])
            elif path in files:
                continue  # another task of the same set
            files[path] = _parquet(rows)
            part = {"split": split, "path": path}
            if part not in configs.setdefault(config or "default", []):
                configs[config or "default"].append(part)
    card = {"configs": [{"config_name": n, "data_files": parts} for n, parts in configs.items()]}
    if not any(task.spec["source"]["hub"].get("files") for task in tasks):
        files["README.md"] = f"---\n{json.dumps(card)}\n---\n"
    revision = tasks[0].spec["source"]["hub"]["revision"]
    pinned = not revision.startswith("refs/")
    hub.repository("dataset", repo).commit(
        files, ref="main" if pinned else revision, sha=revision if pinned else None
    )


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def _drawn(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Rows of the same shape and labels, their longer texts put together from words."""
    words = iter(np.random.default_rng(0).integers(len(WORDS), size=count * MOST_WORDS).tolist())

    def other(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: other(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [other(inner) for inner in value]
        if isinstance(value, str) and " " in value.strip():
            return " ".join(WORDS[next(words)] for _ in value.split()[:12])
        return value

    return [other(rows[i % len(rows)]) for i in range(count)]


def _config() -> dict[str, Any]:
    return {
        "architectures": ["OlmoForCausalLM"], "model_type": "olmo", "vocab_size": VOCABULARY,
        "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": True,
        "torch_dtype": "float32", "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1,
        "attention_bias": False, "clip_qkv": None,
    }  # fmt: skip


def _weights(seed: int) -> bytes:
    from safetensors.numpy import save

    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        for part in "qkvo":
            shapes[f"model.layers.{layer}.self_attn.{part}_proj.weight"] = (WIDTH, WIDTH)
        for part, shape in (("gate", (INNER, WIDTH)), ("up", (INNER, WIDTH)),
                            ("down", (WIDTH, INNER))):  # fmt: skip
            shapes[f"model.layers.{layer}.mlp.{part}_proj.weight"] = shape
    tensors = {
        name: (rng.standard_normal(shape) * 0.2).astype(np.float32)
        for name, shape in shapes.items()
    }
    return save(tensors, metadata={"format": "pt"})
