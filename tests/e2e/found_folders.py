"""Folders of runs as trainers and people leave them, of one tiny model; made by PEFT itself."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
_P = "base_model.model."


@dataclass
class House:
    """What was made.

    Attributes:
        runs: The folder that holds all of it.
        bases: Name of a checkpoint -> its folder.
        plain: Folder of a run -> (base, the adapter as PEFT saved it): what is to be scored.
        copies: Folder of a run -> the folder whose copy it is.
        refused: Folder of a run -> what its line says.
    """

    runs: Path
    bases: dict[str, Path]
    plain: dict[Path, tuple[Path, Path]] = field(default_factory=dict)
    copies: dict[Path, Path] = field(default_factory=dict)
    refused: dict[Path, str] = field(default_factory=dict)


class Maker:
    """Saves adapters with PEFT, each of its own seed, and dresses them as others do."""

    def __init__(self, root: Path, bases: dict[str, Path]) -> None:
        self.root = root
        self.house = House(root / "runs", bases)
        self._seed = 0

    def plain(self, base: str = "step-00100", **options: Any) -> Path:
        """A new adapter as PEFT saves it, beside what is scored."""
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        self._seed += 1
        torch.manual_seed(self._seed)
        config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **options}
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(self.house.bases[base], dtype=torch.float32),
            LoraConfig(task_type="CAUSAL_LM", **config),
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        folder = self.root / "plain" / str(self._seed)
        model.save_pretrained(folder)
        return folder

    def add(self, name: str, base: str = "step-00100", says: str = "", **options: Any) -> Path:
        """A new adapter in a folder of the runs; ``says``: the line it is refused with."""
        plain = self.plain(base, **options)
        folder = Path(shutil.copytree(plain, self.house.runs / name))
        if says:
            self.house.refused[folder] = says
        else:
            self.house.plain[folder] = (self.house.bases[base], plain)
        return folder


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}, indent=2))


def edit_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    made = {name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}
    save_file(made, file, metadata={"format": "pt"})


def put_tokenizer(folder: Path, base: Path, **settings: Any) -> None:
    """The base's tokenizer beside an adapter, with settings of the trainer's own."""
    shutil.copy(base / "tokenizer.json", folder)
    config = json.loads((base / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, **settings}))


def put_trainer(folder: Path, step: int) -> None:
    """What transformers' Trainer leaves in a checkpoint."""
    import torch

    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"step": step}, folder / name)
    state = {"global_step": step, "best_model_checkpoint": None, "log_history": []}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "README.md").write_text("---\nlibrary_name: peft\n---\n# Model card\n")


def split_base(base: Path, folder: Path) -> Path:
    """A checkpoint in two shards, as the Hub has large ones."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(tensors), {}
    for i, own in enumerate((names[::2], names[1::2]), 1):
        part = f"model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in own}, folder / part, metadata={"format": "pt"})
        places |= dict.fromkeys(own, part)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _trl(make: Maker) -> None:
    """A run folder whose last checkpoint is what the run ends with; a link to the best."""
    base = make.house.bases["step-00100"]
    first = make.add("trl sft/checkpoint-500")
    last = make.add("trl sft/checkpoint-1000")
    for folder, step in ((first, 500), (last, 1000)):
        put_trainer(folder, step)
        put_tokenizer(folder, base)
    final = make.house.runs / "trl sft"
    for file in last.iterdir():
        shutil.copy(file, final)
    make.house.copies[last] = final
    make.house.plain[final] = make.house.plain.pop(last)
    (make.house.runs / "best").symlink_to(final / "checkpoint-500")


def _axolotl(make: Maker) -> None:
    base = make.house.bases["step-00200"]
    folder = make.add("axolotl/outputs/lora-out", "step-00200", modules_to_save=["lm_head"])
    put_tokenizer(folder, base, padding_side="left", pad_token="</s>")
    shutil.copy(base / "config.json", folder)
    (folder / "debug.log").write_text("loading\n")
    shutil.copy(folder / "adapter_model.safetensors", folder / "adapter_model.bin")
    (folder / "checkpoint-3" / "global_step3").mkdir(parents=True)
    (folder / "checkpoint-3" / "zero_to_fp32.py").write_text("raise SystemExit\n")


def _unsloth(make: Maker) -> None:
    """Names of a multimodal model, a 4-bit copy on the Hub as base, a padding token."""
    folder = make.add("unsloth/outputs/checkpoint-60", r=16, use_rslora=True)
    put_trainer(folder, 60)
    edit_tensors(folder, lambda t: {k.replace("model.layers", "model.language_model.layers"): v
                                    for k, v in t.items()})  # fmt: skip
    edit_config(
        folder,
        base_model_name_or_path="unsloth/tiny-bnb-4bit",
        target_modules=r"(?:.*?(?:language).*?(?:self_attn).*?(?:q_proj|v_proj).*?)",
    )
    base = make.house.bases["step-00100"]
    put_tokenizer(folder, base, pad_token="<|PAD_TOKEN|>")
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    token = {**data["added_tokens"][0], "content": "<|PAD_TOKEN|>", "id": 400}
    file.write_text(json.dumps({**data, "added_tokens": [*data["added_tokens"], token]}))


def _factory(make: Maker) -> None:
    folder = make.add("saves/Tiny/lora/train_2025-11-01-10-20-30", use_dora=True)
    for name in ("all_results.json", "train_results.json", "trainer_log.jsonl"):
        (folder / name).write_text("{}\n")
    (folder / "training_args.yaml").write_text("stage: sft\nfinetuning_type: lora\n")
    put_tokenizer(folder, make.house.bases["step-00100"], chat_template=None, padding_side="right")
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _snapshot(make: Maker) -> None:
    """The Hub's cache: links into blobs, and a ref."""
    plain = make.plain()
    repo = make.house.runs / "hub/models--org--adapter"
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    for i, file in enumerate(sorted(plain.iterdir())):
        blob = repo / "blobs" / f"{i:064x}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    make.house.plain[snapshot] = (make.house.bases["step-00100"], plain)


def _wrapped(make: Maker) -> None:
    fsdp = make.add("accelerate fsdp")
    edit_tensors(fsdp, lambda t: {k.replace(_P, "_fsdp_wrapped_module." + _P): v
                                  for k, v in t.items()})  # fmt: skip
    compiled = make.add("compiled/run=1,2@x#%'")
    edit_tensors(compiled, lambda t: {k.replace(_P, _P + "_orig_mod."): v for k, v in t.items()})
    make.add("é 試驗 тест/ключ ∆", target_modules="all-linear")
    whole = make.add("merged and adapter")
    for file in make.house.bases["step-00200"].iterdir():
        shutil.copy(file, whole)


def _broken(make: Maker) -> None:
    zero3 = make.add("deepspeed zero3", says="is empty")
    edit_tensors(zero3, lambda t: {k: v[:0] for k, v in t.items()})
    empty = make.add("zero3 too", says="holds no tensors")
    edit_tensors(empty, lambda t: {})
    half = make.add("copied half", says="is cut short")
    file = half / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    diverged = make.add("diverged", says="holds NaN")
    edit_tensors(diverged, lambda t: {k: v * float("nan") for k, v in t.items()})
    lost = make.add("layer lost", says="lacks the LoRA of", target_modules=r".*(q|v)_proj")
    edit_tensors(lost, lambda t: {k: v for k, v in t.items() if "layers.1." not in k})
    old = make.add("old peft", says="evalcore convert")
    (old / "adapter_model.safetensors").rename(old / "adapter_model.bin")
    make.add("pissa", says="--initial FOLDER", init_lora_weights="pissa_niter_4")
    ia3 = make.add("ia3", says="peft_type is 'IA3'")
    edit_config(ia3, peft_type="IA3")
    score = make.add("reward model", says="has no tensor score.weight")
    edit_config(score, task_type="SEQ_CLS", modules_to_save=["score"])
    edit_tensors(score, lambda t: {**t, _P + "score.weight": next(iter(t.values())).clone()})
    cut = make.add("tmp-checkpoint-15", says="adapter_model.safetensors is missing")
    (cut / "adapter_model.safetensors").unlink()
    bare = make.add("weights alone", says="has no adapter_config.json beside it")
    (bare / "adapter_config.json").unlink()
    moved = make.add("moved", says="its base is not certain")
    edit_config(moved, base_model_name_or_path="/home/someone/models/tiny")


def build(root: Path, base: Path, other: Path) -> House:
    """Writes more than twenty folders below ``root/runs``."""
    bases = {"step-00100": base, "step-00200": split_base(other, root / "bases" / "step-00200")}
    make = Maker(root, bases)
    for part in (_trl, _axolotl, _unsloth, _factory, _snapshot, _wrapped, _broken):
        part(make)
    return make.house
