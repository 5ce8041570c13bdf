"""Whether a LoRA adapter is whole: its file has what its configuration names, and nothing else.

PEFT would leave what is missing as training began, and what is not named out, both in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from evalcore.errors import IncompatibleError, InputError
from evalcore.identity.adapter import ADAPTER_WEIGHTS
from evalcore.identity.adapter_names import TOKEN_ROWS, AdapterName
from evalcore.identity.fused_experts import DOWN, GATE_UP, Experts
from evalcore.identity.layout import is_vocabulary
from evalcore.identity.lora_names import Layout, is_within, layer_of, unadapted, unnamed

MERGED_TYPES = ("F32", "BF16", "F16")
"""Types of tensors that something can be merged into."""
_MASKS = (".attn.bias", ".attention.bias", ".masked_bias")  # of old files, no parameters


@dataclass(frozen=True)
class Placed:
    """An adapter's tensors, each at its place in a checkpoint.

    Attributes:
        path: The adapter.
        config: Its configuration.
        tensors: Names in its file.
        layout: Of the checkpoint.
        tied: Whether input embeddings and output head share one tensor.
        depth: Layers of the model, if known.
        adapted: Tensor of the checkpoint -> where the file has its LoRA.
        of_experts: Those whose LoRA is that of all experts together.
        replaced: Tensors of the checkpoint that come whole.
        experts: Where experts are adapted as one parameter.
    """

    path: str
    config: Mapping[str, Any]
    tensors: Collection[str]
    layout: Layout
    tied: bool
    depth: int | None
    adapted: Mapping[str, AdapterName]
    of_experts: Collection[str]
    replaced: Collection[str]
    experts: Mapping[str, Experts]

    def check(self) -> None:
        """What the configuration names, the file has: PEFT would leave the rest as it began."""
        config, depth = self.config, self.depth
        missing = next(unadapted(config, self.layout, self.adapted, depth), None)
        if missing is not None:
            raise self._lacks(f"LoRA of {missing}")
        self._check_named()
        for key in config.get("target_parameters") or ():
            self._check_parameter(key)
        saved = config.get("modules_to_save")
        for own in saved if isinstance(saved, list) else ():
            lost = next(self._unsaved(own), None)
            if lost is not None:
                raise self._lacks(f"saved module {own} ({lost})")
        biases = [n for n in self.tensors if "lora_B." in n and n.endswith(".bias")]
        if config.get("lora_bias") and not biases:
            raise self._lacks("biases of lora_B")
        if biases and not config.get("lora_bias"):
            raise InputError(
                f"adapter {self.path}: its file has {biases[0]}, but lora_bias is not true; PEFT "
                f"would leave it out"
            )
        if config.get("trainable_token_indices") and not any(
            TOKEN_ROWS in name for name in self.tensors
        ):
            raise self._lacks("rows of trainable_token_indices")

    def _unsaved(self, own: str) -> Iterator[str]:
        """Tensors of the checkpoint that a saved module has and the file does not."""
        for name, (dtype, _) in self.layout.items():
            module, _, leaf = name.rpartition(".")
            layer = layer_of(module)
            if (
                name not in self.replaced
                and is_within(module, own)
                and leaf in ("weight", "bias")
                and dtype in MERGED_TYPES
                and not name.endswith(_MASKS)
                and "expert" not in name  # named otherwise in models whose experts are fused
                and not (self.tied and is_vocabulary(name))
                and not (self.depth is not None and layer is not None and layer >= self.depth)
            ):
                yield name

    def _check_named(self) -> None:
        """What has LoRA, the configuration names: PEFT would leave the rest of the file out."""
        own = {name: where for name, where in self.adapted.items() if name not in self.of_experts}
        odd = next(unnamed(self.config, self.layout, own), None)
        if odd is not None:
            raise IncompatibleError(
                f"adapter {self.path}: its file has LoRA of {odd}, which target_modules does not "
                f"name, less what exclude_modules, modules_to_save and layers_to_transform take "
                f"out; PEFT would leave it out"
            )

    def _check_parameter(self, key: str) -> None:
        leaf = key.rpartition(".")[2]
        if leaf in (GATE_UP, DOWN):
            found = [m for m, own in self.experts.items() if own.lacks(leaf, self.adapted)]
        else:
            found = [
                own
                for own, (_, shape) in self.layout.items()
                if len(shape) == 2
                and own not in self.adapted
                and f".{own.replace('.block_sparse_moe.', '.mlp.')}".endswith(f".{key}")
            ]
        found = [own for own in found if self.depth is None or (layer_of(own) or 0) < self.depth]
        if found:
            raise self._lacks(f"LoRA of {key} in {found[0]}")

    def _lacks(self, what: str) -> InputError:
        return InputError(
            f"adapter {self.path}: {ADAPTER_WEIGHTS} lacks the {what}, which its configuration "
            f"names; save it whole"
        )
