"""What of a base is trained, and what of it is written: a LoRA adapter, or every weight."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evalcore.errors import IncompatibleError
from evalcore.identity import adapter_is_zero, weight_files, weight_layout
from finetune.method import MethodSpec

# Copied from the parent as they are: the same text has to become the same ids.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "chat_template.jinja",
    "chat_template.json",
)  # fmt: skip
_CONFIG_FILES = ("config.json", "generation_config.json")


class LoraTuner:
    """A fresh LoRA adapter on a base whose own weights are only read."""

    def __init__(self, method: MethodSpec, seed: int) -> None:
        self._method = method
        self._seed = seed
        self._start: dict[str, Any] = {}

    @contextlib.contextmanager
    def applied(self, base: Any, name: str) -> Iterator[Any]:
        """The base with the adapter on it; taken off again whatever happens.

        Raises:
            IncompatibleError: If the base has no modules of the names asked for.
        """
        import torch
        from peft import LoraConfig, get_peft_model

        method = self._method
        config = LoraConfig(
            r=method.rank,
            lora_alpha=method.alpha,
            lora_dropout=method.dropout,
            target_modules=method.targets,
            use_rslora=method.rslora,
            use_dora=method.dora,
            init_lora_weights=True if method.init == "default" else method.init,
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(self._seed)  # decides the initialisation
        try:
            model = get_peft_model(base, config)
        except ValueError as error:  # peft: no module has such a name
            first_line = str(error).splitlines()[0]
            raise IncompatibleError(
                f"method.targets {method.targets!r} do not fit {name}: {first_line}"
            ) from None
        try:
            trained = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
            self._start = {n: p.detach().cpu().clone() for n, p in trained}
            yield model
        finally:
            model.unload()

    def save(self, model: Any, directory: Path) -> None:
        """Writes PEFT's own two files; its README with placeholders goes."""
        # "auto" would look the base up on the hub to see whether its vocabulary has grown.
        model.save_pretrained(str(directory), save_embedding_layers=False)
        (directory / "README.md").unlink(missing_ok=True)

    def moved(self, model: Any, directory: Path) -> float:
        """Share of the adapter's numbers that training changed; 0 where every delta is zero."""
        if adapter_is_zero(directory):
            return 0.0
        now = dict(model.named_parameters())
        changed = sum(
            int((now[name].detach().cpu() != start).sum()) for name, start in self._start.items()
        )
        return changed / max(1, sum(int(start.numel()) for start in self._start.values()))


class FullTuner:
    """Every weight of a base, trained in float32 in the place where it was loaded.

    Args:
        parent: Directory of the base.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent

    @contextlib.contextmanager
    def applied(self, base: Any, name: str) -> Iterator[Any]:
        """The base, all of it wanting gradients; afterwards it is another model."""
        base.requires_grad_(True)
        yield base

    def save(self, model: Any, directory: Path) -> None:
        """Writes an ordinary checkpoint with the parent's data types, names and tokenizer.

        Engines swap checkpoints of one layout in place, so tensors keep the names and types they
        have in the parent; its configuration is copied where that holds.
        """
        import torch

        layout = weight_layout(self._parent)
        types = {dtype for dtype, _ in layout.values()}
        stored = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
        # One type for all (None: a mixture, written as trained).
        dtype = getattr(torch, stored[types.pop()]) if len(types) == 1 else None
        shared: dict[int, Any] = {}  # tied weights stay one tensor, and are written once
        state = {
            key: shared.setdefault(tensor.data_ptr(), tensor.detach().to("cpu", dtype))
            for key, tensor in model.state_dict().items()
        }
        model.save_pretrained(str(directory), state_dict=state, max_shard_size="5GB")
        same_layout = weight_layout(directory) == layout
        for file in _TOKENIZER_FILES + (_CONFIG_FILES if same_layout else ()):
            if (self._parent / file).is_file():
                shutil.copyfile(self._parent / file, directory / file)

    def moved(self, model: Any, directory: Path) -> float:
        """Share of the stored weights that are not what they were in the parent.

        Steps that are smaller than half a unit in the last place of the parent's type are lost when
        the model is written, however exact they were trained.
        """
        from safetensors import safe_open

        parents = {}
        for file in weight_files(self._parent):
            with safe_open(file, "pt") as there:
                parents.update(dict.fromkeys(there.keys(), file))
        changed = total = 0
        for file in weight_files(directory):
            with safe_open(file, "pt") as own:
                for name in own.keys():  # noqa: SIM118  # no mapping: it has keys() alone
                    tensor = own.get_tensor(name)
                    total += tensor.numel()
                    if name not in parents:
                        changed += tensor.numel()
                        continue
                    with safe_open(parents[name], "pt") as there:
                        changed += int((tensor != there.get_tensor(name)).sum())
        return changed / max(1, total)


Tuner = LoraTuner | FullTuner


def weights_checksum(model: Any) -> int:
    """Sum of all weights of the base read as integers: cheap, and any single change shows.

    Weights that PEFT added are left out; a wrapped layer counts as the layer.
    """
    import torch

    views = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    total = 0
    for name, weight in model.named_parameters():
        if "lora_" not in name:
            as_integers = weight.detach().view(views[weight.element_size()])
            total += int(as_integers.sum(dtype=torch.int64))
    return total
