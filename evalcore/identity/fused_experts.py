"""LoRA on experts that the model holds as one parameter, over files that hold each by itself.

transformers 5 stacks a layer's experts into ``gate_up_proj`` [E, 2 I, H] (gates first, then ups)
and ``down_proj`` [E, H, I]; their files keep a matrix for each expert. PEFT (``target_parameters``)
gives each parameter one A [E r, in] and one B [out, r E]: expert e has rows e r ... of A, and of B
every E-th column from e on (peft 0.21, ``lora.ParamWrapper``). Several parameters of a module are
wrapped one around the other, so that names tell them apart by ``base_layer`` alone; shapes say
which is which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evalcore.identity.adapter_names import core
from evalcore.identity.lora_names import Layout

FAMILIES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
"""``model_type`` of architectures whose merges were held to PEFT's."""
GATE_UP, DOWN = "gate_up_proj", "down_proj"
_OWN = re.compile(r"^(.+\.experts)\.(\d+)\.(\w+)\.weight$")
_NAMES = {"w1": "gate", "w3": "up", "w2": "down",
          "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ExpertPart:
    """Which part of fused factors belongs to one matrix of one expert.

    Attributes:
        number: Of the expert.
        count: How many there are.
        rows: First of the fused parameter's rows, and the one after the last.
    """

    number: int
    count: int
    rows: tuple[int, int]

    def of(self, a: Any, b: Any) -> tuple[Any, Any]:
        """(A [rank, in], B [out, rank]) of this matrix, cut out of the fused ones."""
        low, high = self.rows
        own = a.reshape(self.count, -1, a.shape[-1])[self.number]
        return own, b.reshape(b.shape[0], -1, self.count)[low:high, :, self.number]


@dataclass(frozen=True)
class Experts:
    """The experts of one layer in a checkpoint's files.

    Attributes:
        gate, up, down: Tensor of each expert, in order.
        inner: I, outputs of a gate.
        outer: H, its inputs.
    """

    gate: tuple[str, ...]
    up: tuple[str, ...]
    down: tuple[str, ...]
    inner: int
    outer: int

    def parts(self, a: tuple[int, ...], b: tuple[int, ...]) -> dict[str, ExpertPart] | None:
        """Tensor -> what of factors of these shapes belongs to it; None: they fit neither."""
        count = len(self.gate)
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] % count or not a[0]:
            return None
        i, h = self.inner, self.outer
        if (a[1], b[0]) == (h, 2 * i):
            ups = {name: ExpertPart(n, count, (i, 2 * i)) for n, name in enumerate(self.up)}
            return {n: ExpertPart(e, count, (0, i)) for e, n in enumerate(self.gate)} | ups
        if (a[1], b[0]) == (i, h):
            return {name: ExpertPart(n, count, (0, h)) for n, name in enumerate(self.down)}
        return None

    def lacks(self, key: str, adapted: Mapping[str, Any]) -> bool:
        """Whether a parameter that a configuration names has no factors."""
        return (self.gate if key.endswith(GATE_UP) else self.down)[0] not in adapted


def module_of(name: str) -> str:
    """What a module of experts is called in adapters and in files alike."""
    words = core(name.replace(".block_sparse_moe.", ".mlp.")).split(".")
    return ".".join(word for word in words if word != "base_layer")


def experts_of(layout: Layout) -> dict[str, Experts]:
    """Module -> its experts, where the files hold each by itself and all alike."""
    held: dict[str, dict[str, dict[int, str]]] = {}
    for name in layout:
        found = _OWN.match(name)
        if found is not None:
            module = held.setdefault(module_of(found[1]), {})
            module.setdefault(_NAMES.get(found[3], found[3]), {})[int(found[2])] = name
    return {
        module: experts
        for module, kinds in held.items()
        if (experts := _alike(kinds, layout)) is not None
    }


def _alike(kinds: Mapping[str, Mapping[int, str]], layout: Layout) -> Experts | None:
    if set(kinds) != {"gate", "up", "down"}:
        return None
    count = len(kinds["gate"])
    names = {}
    for kind, own in kinds.items():
        if sorted(own) != list(range(count)):
            return None
        names[kind] = tuple(own[n] for n in range(count))
    shapes = {kind: {layout[name][1] for name in own} for kind, own in names.items()}
    (first, *others) = shapes["gate"]
    if others or len(first) != 2 or shapes["up"] != {first} or shapes["down"] != {first[::-1]}:
        return None
    return Experts(names["gate"], names["up"], names["down"], *first)
