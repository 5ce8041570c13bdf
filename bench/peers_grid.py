"""The grid that every system of ``bench/peers.py`` scores: models, tasks, prompts, the same texts.

evalcore gets task and prompt definitions as a user would write them. lm-evaluation-harness gets one
task per (task, prompt variant) whose rows hold the texts already rendered, so that it cannot differ
in wording and spends no time on templates.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.peer_runner import fingerprint
from evalcore.benchmark.models import random_adapter, random_checkpoint, read_config
from evalcore.prompting import draw_shots, load_variants, render
from evalcore.tasks import load_documents, load_task

GROUP = "bench_choice"
_PLACES, _THINGS, _KINDS, _PEOPLE, _DEEDS = (
    words.split()
    for words in (
        "harbour mill orchard station bridge market tower garden library quarry",
        "lantern basket kettle ladder violin anchor carpet hammer mirror saddle",
        "old bright heavy narrow broken painted wooden silver quiet crooked",
        "Arlo Bettina Corin Dalia Emeric Frida Gustav Helena Ivo Jorinde",
        "left found hid sold mended carried lost bought kept forgot",
    )
)
_TEMPLATES = {
    "default": "{{ passage }}\nQuestion: {{ question }}\nAnswer:",
    "instruct": "Read the text and answer.\n\n{{ passage }}\n\n{{ question }}\nThe answer is",
    "io": "Input: {{ passage }} {{ question }}\nOutput:",
    "short": "{{ passage }}\n{{ question }}",
    "notes": "Notes: {{ passage }}\nSomebody asks: {{ question }}\nSomebody else replies:",
    "exam": "EXAM\nText: {{ passage }}\nTask: {{ question }}\nSolution:",
}
VARIANTS = tuple(_TEMPLATES)


@dataclass(frozen=True)
class GridSize:
    """How much is scored.

    Attributes:
        checkpoints: Random checkpoints of one layout.
        adapters: Random adapters on each.
        tasks: Tasks; task i has passages of 2 i + 2 sentences and 2 to 5 choices of several tokens.
        variants: Prompt variants of each, at most six.
        shots: Worked examples in every prompt.
        documents: Rows of each task; a run may score fewer.
    """

    checkpoints: int = 4
    adapters: int = 4
    tasks: int = 4
    variants: int = 6
    shots: int = 0
    documents: int = 1000

    @property
    def subjects(self) -> int:
        return self.checkpoints * (1 + self.adapters)

    @property
    def cells(self) -> int:
        return self.subjects * self.tasks * self.variants


def task_name(number: int) -> str:
    return f"bench_qa_{number}"


def documents(number: int, count: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Rows of a task: who did what with which thing where, in made-up sentences.

    Yields:
        ``passage``, ``question``, ``choices`` (phrases of several words) and ``answer`` (index).
    """
    rng = random.Random(f"{seed}-{number}")
    sentences, choices = 2 * number + 2, 2 + number % 4
    for row in range(count):
        facts = [
            (rng.choice(_PEOPLE), rng.choice(_DEEDS), rng.choice(_KINDS), thing, place)
            for thing, place in zip(
                rng.choices(_THINGS, k=sentences), rng.choices(_PLACES, k=sentences), strict=True
            )
        ]
        passage = " ".join(
            f"On day {row + i} {who} {deed} the {kind} {thing} near the {place}."
            for i, (who, deed, kind, thing, place) in enumerate(facts)
        )
        at = rng.randrange(sentences)
        who, deed, kind, thing, place = facts[at]
        right = f"the {kind} {thing} near the {place}"
        others: list[str] = []
        while len(others) < choices - 1:
            other = f"the {rng.choice(_KINDS)} {rng.choice(_THINGS)} near the {rng.choice(_PLACES)}"
            if other != right and other not in others:
                others.append(other)
        answer = rng.randrange(choices)
        others.insert(answer, right)
        yield {
            "passage": passage,
            "question": f"What is it that {who} {deed} on day {row + at}?",
            "choices": others,
            "answer": answer,
        }


def write_tasks(root: Path, size: GridSize) -> None:
    """Data, task definitions and prompts for evalcore: ``data/``, ``tasks/``, ``prompts/``."""
    (root / "tasks").mkdir(parents=True, exist_ok=True)
    for number in range(size.tasks):
        name = task_name(number)
        for split, count, seed in (("test", size.documents, 0), ("shots", 32, 1)):
            rows = "".join(json.dumps(row) + "\n" for row in documents(number, count, seed))
            _write(root / "data" / name / f"{split}.jsonl", rows)
        _write(root / "tasks" / f"{name}.yaml", yaml.safe_dump(_definition(name), sort_keys=False))
    for name in VARIANTS[: size.variants]:
        prompt = {
            "name": name, "group": GROUP, "description": "For bench/peers.py.",
            "template": _TEMPLATES[name], "target": "{{ choice }}", "delimiter": " ",
            "separator": "\n\n", "label_words": {}, "system": None,
        }  # fmt: skip
        _write(root / "prompts" / GROUP / f"{name}.yaml", yaml.safe_dump(prompt, sort_keys=False))


def _definition(name: str) -> dict[str, Any]:
    return {
        "name": name, "version": 1, "group": GROUP, "description": "Made-up questions.",
        "licence": "Apache-2.0", "citation": "bench/peers_grid.py",
        "output_type": "multiple_choice", "tuned_by": None, "domain": "none",
        "source": {"path": name},
        "splits": {"score": "test", "shots": "shots", "train": "shots"},
        "fields": {"passage": "passage", "question": "question"},
        "choices": {"column": "choices"}, "gold": {"column": "answer"},
        "metrics": ["acc"], "primary": "acc",
    }  # fmt: skip


def _write(path: Path, text: str) -> None:
    """Writes what is new only: caches of everybody know a file by its time of change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def selection(size: GridSize) -> str:
    """The prompt selection of evalcore's command line."""
    suffix = f":shots={size.shots}" if size.shots else ""
    return ",".join(f"{name}{suffix}" for name in VARIANTS[: size.variants])


def peer_task(task: str, variant: str) -> str:
    """Name of the lm-eval task of a (task, variant)."""
    return f"{task}__{variant.replace(':', '_').replace('=', '').replace(',', '_')}"


def peer_definition(name: str, rows: Path) -> dict[str, Any]:
    """lm-evaluation-harness's definition of a task whose rows hold finished texts."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(rows.resolve())}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1},
    }


def write_peer_tasks(root: Path, size: GridSize) -> dict[str, tuple[str, str]]:
    """Writes lm-eval's tasks into ``root/peers``, rendered by evalcore's own code.

    Returns:
        lm-eval task name -> (task, variant).
    """
    names: dict[str, tuple[str, str]] = {}
    for number in range(size.tasks):
        task = load_task(task_name(number), search=[root / "tasks"])
        docs = load_documents(task, "score", data_root=root / "data")
        pool = load_documents(task, "shots", data_root=root / "data") if size.shots else []
        for variant in load_variants(GROUP, selection(size), search=[root / "prompts"]):
            shots = draw_shots(task, variant, pool, {d.id for d in docs}) if variant.shots else []
            name = peer_task(task.name, variant.name)
            rows = []
            for document in docs:
                text = render(task, variant, document, shots)
                rows.append(
                    json.dumps(
                        {
                            "context": text.context,
                            "choices": list(text.continuations),
                            "gold": document.gold,
                        }
                    )
                )
            file = root / "peers" / f"{name}.jsonl"
            _write(file, "\n".join(rows) + "\n")
            _write(file.with_suffix(".yaml"), yaml.safe_dump(peer_definition(name, file)))
            names[name] = (task.name, variant.name)
    return names


@dataclass(frozen=True)
class GridSubject:
    """A checkpoint, alone or with an adapter, and the folder where both are merged."""

    checkpoint: Path
    adapter: Path | None
    merged: Path

    @property
    def label(self) -> str:
        return self.checkpoint.name + (f"+{self.adapter.name}" if self.adapter else "")


def write_models(root: Path, size: GridSize, config: str, rank: int) -> list[GridSubject]:
    """Random checkpoints with a tokenizer of their own, adapters, and merged folders for peers."""
    from finetune.pocket.tokenizer import save_tokenizer, train_tokenizer

    numbers = read_config(config)
    texts = [
        f"{row['passage']} {row['question']} {' '.join(row['choices'])}"
        for row in documents(1, 400, seed=2)
    ]
    trained = train_tokenizer(texts, min(2048, numbers["vocab_size"]))

    def save_tokenizer_to(folder: Path) -> None:
        save_tokenizer(trained, folder)
        fill_vocabulary(folder / "tokenizer.json", numbers["vocab_size"])

    subjects = []
    for step in range(1, size.checkpoints + 1):
        folder = root / "models" / f"step-{step:05d}"
        random_checkpoint(folder, numbers, "float32", seed=step)
        save_tokenizer_to(folder)
        subjects.append(GridSubject(folder, None, folder))
        for number in range(size.adapters):
            adapter = root / "adapters" / folder.name / f"lora-{step}-{number}"
            if not (adapter / "adapter_config.json").is_file():
                random_adapter(adapter, folder.resolve(), rank, seed=100 * step + number)
            merged = root / "merged" / f"{folder.name}-{adapter.name}"
            if not (merged / "config.json").is_file():
                _merge(folder, adapter, merged)
                save_tokenizer_to(merged)
            subjects.append(GridSubject(folder, adapter, merged))
    return subjects


def fill_vocabulary(path: Path, size: int) -> None:
    """Gives a tokenizer entries that no text leads to, until it has ``size``.

    lm-eval's hf backend resizes a model with an adapter to the tokenizer's length. Where the model
    has more rows (padding), that changes the softmax, hence every score.
    """
    tokenizer = json.loads(path.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    for number in range(len(vocabulary), size):
        vocabulary[f"<unused {number}>"] = number
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")


def _merge(checkpoint: Path, adapter: Path, merged: Path) -> None:
    """Writes the merged folder; how long it took stands in ``merge_s.json`` beside all of them."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(merged)
    seconds = time.perf_counter() - begin
    _write(merged.parent / "merge_s.json", json.dumps([*merge_seconds(merged.parent), seconds]))


def merge_seconds(folder: Path) -> list[float]:
    """Seconds that each merged folder took to make."""
    path = folder / "merge_s.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else []


def tokens_of(tables: Sequence[Any], limit: int) -> dict[str, Any]:
    """What request tables come to when every continuation is sent with its context.

    Returns:
        ``requests``, their ``tokens``, and the ``fingerprint`` of all token ids.
    """
    pairs: list[tuple[list[int], list[int]]] = []
    for table in tables:
        for row in table.slice(0, limit).to_pylist():
            contexts = row["contexts"]
            for place, continuation in enumerate(row["continuations"]):
                context = contexts[0] if len(contexts) == 1 else contexts[place]
                pairs.append((list(context), list(continuation)))
    tokens = sum(len(context) + len(continuation) for context, continuation in pairs)
    return {"requests": len(pairs), "tokens": tokens, "fingerprint": fingerprint(pairs)}
