"""What a LoRA adapter does to each tensor of its checkpoint, from configuration and header.

The same reading serves the check before planning, merging, and the loading of ``engines.hf``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalcore.errors import IncompatibleError, InputError
from evalcore.identity.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config, adapter_file
from evalcore.identity.adapter_names import (
    TOKEN_ROWS,
    AdapterName,
    by_core,
    one_of,
    parse_name,
    pattern_value,
    pattern_values,
)
from evalcore.identity.adapter_schema import check_tensors
from evalcore.identity.checkpoint import numeric_config
from evalcore.identity.fused_experts import (
    DOWN,
    FAMILIES,
    GATE_UP,
    ExpertPart,
    Experts,
    experts_of,
    module_of,
)
from evalcore.identity.header import read_header
from evalcore.identity.layout import HEADS, embeddings_of, is_vocabulary, stored_transposed
from evalcore.identity.lora_names import INNER, Layout, check_init, model_depth
from evalcore.identity.lora_whole import MERGED_TYPES, Placed
from evalcore.identity.weights import same_bytes, same_values

# What stands for a weight in GPTQ, AWQ and compressed-tensors.
_QUANTISED = (".qweight", ".weight_packed")
_ONLY_PEFT = (  # PEFT itself applies them, or says that it cannot
    "layer_replication", "use_qalora", "use_bdlora",
    "alora_invocation_tokens", "arrow_config", "monteclora_config", "velora_config",
)  # fmt: skip
_PARAMETERS_NEED_PEFT = ("rank_pattern", "alpha_pattern", "layers_to_transform", "exclude_modules")
"""How these bear on parameters was not held to PEFT."""


@dataclass
class ModuleDelta:
    """What an adapter does to one weight: tensor names in its file, and the scaling of B A.

    Attributes:
        scaling: Of the product.
        parts: ``lora_A`` ... -> tensor in the adapter's file.
        transposed: Whether the checkpoint stores this weight [in, out].
        expert: What of the factors is this weight's, where they are those of all experts.
    """

    scaling: float
    parts: dict[str, str] = field(default_factory=dict)
    transposed: bool = False
    expert: ExpertPart | None = None


@dataclass
class LoraAdapter:
    """An adapter resolved against a checkpoint's tensors.

    Attributes:
        path: Its directory.
        deltas: Checkpoint tensor name -> low-rank change.
        replacements: Checkpoint tensor name -> tensor in the adapter's file that replaces it.
        biases: Checkpoint tensor name -> (tensor in the file added to it, its scaling).
        rows: Checkpoint tensor name -> (tensor in the file, rows of the checkpoint's it replaces).
        resized: Checkpoint tensor name -> rows its replacement has, where they are more.
        obstacles: Why vLLM cannot apply it exactly, one clause each; PEFT itself may.
        quantised: A tensor of the checkpoint that it changes and that cannot be merged into.
    """

    path: str
    deltas: dict[str, ModuleDelta] = field(default_factory=dict)
    replacements: dict[str, str] = field(default_factory=dict)
    biases: dict[str, tuple[str, float]] = field(default_factory=dict)
    rows: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    resized: dict[str, int] = field(default_factory=dict)
    obstacles: list[str] = field(default_factory=list)
    quantised: str | None = None

    @property
    def touched(self) -> set[str]:
        return {*self.deltas, *self.replacements, *self.biases, *self.rows}

    @property
    def transposed(self) -> bool:
        return any(delta.transposed for delta in self.deltas.values())

    def require_mergeable(self) -> None:
        """Raises IncompatibleError where merging would not give what PEFT computes."""
        self.require_applicable()
        if self.quantised is not None:
            raise IncompatibleError(
                f"adapter {self.path}: {self.quantised} of its base is quantised: nothing can be "
                f"merged into it"
            )

    def require_applicable(self) -> None:
        """Raises IncompatibleError where vLLM can neither merge it nor apply it beside."""
        if self.obstacles:
            raise IncompatibleError(f"adapter {self.path}: {self.obstacles[0]}")


def read_lora(
    path: str | Path, layout: Layout, *, tied: bool, base: str | Path | None = None
) -> LoraAdapter:
    """Reads an adapter's configuration and header and matches every tensor with a checkpoint's.

    Args:
        path: PEFT directory.
        layout: Tensor name -> (dtype, shape) of the checkpoint.
        tied: Whether input embeddings and output head share one tensor.
        base: Directory of the checkpoint, to see whether saved tensors are its own.

    Raises:
        IncompatibleError: The adapter does not fit the checkpoint.
        InputError: A file is missing or broken, or holds what nobody can score.
    """
    return _Reader(str(path), layout, tied, base).read()


class _Reader:
    """One adapter against one checkpoint."""

    def __init__(self, path: str, layout: Layout, tied: bool, base: str | Path | None) -> None:
        self._path, self._layout, self._tied, self._base = path, layout, tied, base
        self._config = adapter_config(path)
        self._file = adapter_file(path)
        self._tensors = read_header(self._file)[0]
        self._known = by_core(layout)
        self._made = LoraAdapter(path)
        self._replaced: set[str] = set()  # tensors of the checkpoint that come whole
        self._adapted: dict[str, AdapterName] = {}  # tensor of the checkpoint -> where it has LoRA
        self._experts: dict[str, Experts] = {}  # where experts are adapted as one parameter
        self._fused: dict[str, dict[str, str]] = {}  # wrapped module -> part -> tensor

    def read(self) -> LoraAdapter:
        self._look_at_config()
        check_tensors(self._tensors, self._file)
        seen: dict[tuple[str, str, str], str] = {}
        for name in self._tensors:
            parsed = parse_name(name)
            twin = seen.setdefault((parsed.core, parsed.part, parsed.leaf), name)
            if twin != name:
                # PEFT saves resized embeddings twice, as saved module and as embeddings.
                if parsed.part == "saved" and same_bytes(self._file, twin, name):
                    continue
                raise self._no(f"{twin} and {name} are the same tensor twice")
            if parsed.part in ("lora_A", "lora_B") and module_of(parsed.module) in self._experts:
                self._fused.setdefault(parsed.module, {})[parsed.part] = name
                continue
            self._place(name, parsed)
        for module, parts in self._fused.items():
            self._place_experts(module, parts)
        self._placed().check()
        for target in self._made.deltas:
            self._check_delta(target)
        self._check_magnitudes()
        self._check_merging()
        return self._made

    def _placed(self) -> Placed:
        return Placed(
            path=self._path,
            config=self._config,
            tensors=self._tensors,
            layout=self._layout,
            tied=self._tied,
            depth=None if self._base is None else model_depth(numeric_config(self._base)),
            adapted=self._adapted,
            of_experts={t for t, delta in self._made.deltas.items() if delta.expert is not None},
            replaced=self._replaced,
            experts=self._experts,
        )

    def _no(self, reason: str) -> IncompatibleError:
        return IncompatibleError(f"adapter {self._path}: {reason}")

    def _look_at_config(self) -> None:
        obstacle = check_init(self._config, self._path)
        self._made.obstacles += [] if obstacle is None else [obstacle]
        if self._config.get("kasa_config"):
            raise InputError(
                f"adapter {self._path}: kasa_config: KaSA cuts its base, which cannot be made here "
                f"again; merge it where it was trained"
            )
        self._made.obstacles += [
            f"{key} cannot be merged" for key in _ONLY_PEFT if self._config.get(key)
        ]
        if self._config.get("target_parameters"):
            self._look_at_parameters()

    def _look_at_parameters(self) -> None:
        """Parameters that have LoRA: of experts as one, and matrices by their own name."""
        config = self._config
        family = None if self._base is None else numeric_config(self._base).get("model_type")
        known = experts_of(self._layout)
        if family in FAMILIES and known:
            self._experts = known
        odd = [key for key in _PARAMETERS_NEED_PEFT if config.get(key)]
        for key in config["target_parameters"]:
            module, _, leaf = key.rpartition(".")
            fused = leaf in (GATE_UP, DOWN) and module.rpartition(".")[2] == "experts"
            if odd or (not self._experts if fused else leaf != "weight"):
                why = f" with {odd[0]}" if odd else ""
                self._made.obstacles.append(f"target_parameters: {key} cannot be merged{why}")

    def _place_experts(self, module: str, parts: dict[str, str]) -> None:
        """Gives each expert's matrices their part of factors that are those of all experts."""
        if set(parts) != {"lora_A", "lora_B"}:
            raise self._no(f"{module} has only one of lora_A and lora_B")
        experts = self._experts[module_of(module)]
        shapes = [self._tensors[parts[part]].shape for part in ("lora_A", "lora_B")]
        found = experts.parts(*shapes)
        if found is None:
            raise self._no(
                f"lora_B {list(shapes[1])} x lora_A {list(shapes[0])} of {module} fit neither "
                f"{GATE_UP} nor {DOWN} of {len(experts.gate)} experts of "
                f"{experts.inner} x {experts.outer}"
            )
        rank = self._config.get("r", 8)
        if shapes[0][0] != rank * len(experts.gate):
            raise self._no(f"{parts['lora_A']} has {shapes[0][0]} rows, its rank should be {rank}")
        for target, part in found.items():
            if target in self._made.deltas:
                raise self._no(f"{parts['lora_A']} and another are the LoRA of {target}")
            parsed = parse_name(parts["lora_A"])
            scaling = self._scaling(parsed, target)
            self._made.deltas[target] = ModuleDelta(scaling, dict(parts), expert=part)
            self._adapted[target] = parsed

    def _place(self, name: str, parsed: AdapterName) -> None:
        """Finds out which tensor of the checkpoint one of the adapter belongs to."""
        if parsed.part == "original" or self._is_unchanged(name, parsed):
            return
        target = self._target(name, f"{parsed.module}.{parsed.leaf}")
        if target is None:
            return
        made = self._made
        if parsed.part == "saved":
            self._replaced.add(target)
            made.replacements[target] = name
            shape, own = self._tensors[name].shape, self._layout[target][1]
            if shape != own:
                self._reshaped(name, target, shape, own)
        elif parsed.part == TOKEN_ROWS:
            made.rows[target] = (name, self._rows(name, parsed, self._layout[target][1]))
        elif parsed.leaf == "bias":
            made.biases[target] = (name, self._scaling(parsed, target))
        else:
            delta = made.deltas.setdefault(
                target, ModuleDelta(1.0, transposed=stored_transposed(target, self._layout))
            )
            delta.parts[parsed.part] = name
            self._adapted[target] = parsed
            if parsed.part in ("lora_A", "lora_embedding_A"):
                delta.scaling = self._scaling(parsed, target)
                rank, shape = self._rank(parsed, target), self._tensors[name].shape
                if shape[0] != rank:
                    raise self._no(f"{name} has shape {list(shape)}, its rank should be {rank}")

    def _is_unchanged(self, name: str, parsed: AdapterName) -> bool:
        """Whether a saved tensor is the one that embeddings and head share: trainers save both."""
        if not (self._tied and self._base and parsed.part == "saved"):
            return False
        shared = embeddings_of(self._layout)
        words = parsed.module.split(".")
        if shared is None or words[-1] not in (shared.split(".")[-2], *HEADS):
            return False
        return same_values(self._file, name, self._base, shared)

    def _target(self, name: str, wanted: str) -> str | None:
        """The checkpoint's tensor; None where only PEFT can tell (then merging has an obstacle)."""
        try:
            target = one_of(wanted, self._known)
        except IncompatibleError as error:
            raise self._no(f"{name}: {error}") from None
        if target is not None:
            return target
        module = wanted.rpartition(".")[0]
        last = module.rsplit(".", 1)[-1]
        packed = next(
            (
                own
                for own in self._layout
                if own.endswith(_QUANTISED) and f".{module}." in f".{own}"
            ),
            None,
        )
        if packed is not None:
            self._made.quantised = packed
            return None
        if self._tied and last in HEADS:
            self._made.obstacles.append(
                f"it changes {wanted}, which the checkpoint shares between input embeddings and "
                f"output head; such an adapter cannot be merged"
            )
            return None
        if "expert" in module:  # fused on disk or in the adapter, not in both
            self._made.obstacles.append(f"the checkpoint has no tensor {wanted}: experts are fused")
            return None
        if wanted.endswith(".bias"):
            self._made.obstacles.append(f"the checkpoint has no bias {wanted} to add it to")
            return None
        if self._config.get("layer_replication"):
            return None  # the modules are copies of the base's layers; PEFT makes them
        raise self._no(f"the checkpoint has no tensor {wanted} (for {name})")

    def _reshaped(
        self, name: str, target: str, shape: tuple[int, ...], own: tuple[int, ...]
    ) -> None:
        rows = len(shape) == len(own) == 2 and shape[1] == own[1] and is_vocabulary(target)
        if not rows or shape[0] < own[0]:
            raise self._no(
                f"saved module {name} has shape {list(shape)}, the checkpoint's {target} has "
                f"{list(own)}"
            )
        self._made.resized[target] = shape[0]
        self._made.obstacles.append(
            f"{name} has {shape[0]} rows, the checkpoint's {target} {own[0]}: a resized vocabulary "
            f"cannot be merged into a running engine"
        )

    def _rows(self, name: str, parsed: AdapterName, own: tuple[int, ...]) -> tuple[int, ...]:
        given = self._config.get("trainable_token_indices")
        if isinstance(given, dict):
            given = next((v for k, v in given.items() if parsed.module.endswith(k)), None)
        if not isinstance(given, list) or not all(isinstance(row, int) for row in given):
            raise self._no(f"trainable_token_indices does not say which rows {parsed.module} has")
        shape = self._tensors[name].shape
        if shape != (len(given), *own[1:]):
            raise self._no(
                f"trainable_token_indices names {len(given)} rows of {parsed.module}, {name} has "
                f"shape {list(shape)}"
            )
        if len(set(given)) < len(given):
            raise self._no(
                f"trainable_token_indices names a token of {parsed.module} twice; which of its "
                f"rows counts is not certain"
            )
        if any(row >= own[0] for row in given):
            raise self._no(
                f"trainable_token_indices names token {max(given)}, the checkpoint has {own[0]}"
            )
        return tuple(given)

    def _scaling(self, parsed: AdapterName, target: str) -> float:
        """lora_alpha / r, or / sqrt(r) for rsLoRA; alpha_pattern keys match as in PEFT."""
        config = self._config
        alphas = pattern_values(config.get("alpha_pattern"), _names(parsed, target))
        if len(set(alphas)) > 1:
            # PEFT takes the first, and writes them in the order of the alphabet (0.21).
            given = ", ".join(map(str, alphas))
            raise InputError(
                f"adapter {self._path}: {ADAPTER_CONFIG}, key alpha_pattern: several of its "
                f"patterns mean {parsed.module} ({given}), and which came first when it was "
                f"trained is lost in saving; leave the one that was meant"
            )
        alpha: Any = alphas[0] if alphas else config.get("lora_alpha", 8)
        rank = self._rank(parsed, target)
        try:
            scaling = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
        except (TypeError, ValueError, ZeroDivisionError, OverflowError):
            scaling = math.nan
        if not math.isfinite(scaling) or abs(scaling) > 1e30:
            raise InputError(
                f"adapter {self._path}: lora_alpha {alpha!r} over rank {rank!r} of "
                f"{parsed.module} is not a finite number"
            )
        return scaling

    def _rank(self, parsed: AdapterName, target: str) -> Any:
        rank = pattern_value(self._config.get("rank_pattern"), _names(parsed, target))
        return self._config.get("r", 8) if rank is None else rank

    def _check_delta(self, target: str) -> None:
        delta, shapes = self._made.deltas[target], self._tensors
        embedding = any(part.startswith("lora_embedding") for part in delta.parts)
        a, b = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
        if a not in delta.parts or b not in delta.parts:
            raise self._no(f"{target} has only one of {a} and {b}")
        shape_a, shape_b = shapes[delta.parts[a]].shape, shapes[delta.parts[b]].shape
        dtype, own = self._layout[target]
        if dtype not in MERGED_TYPES:
            self._made.quantised = target
            return
        if delta.expert is not None:
            return  # its shapes were looked at
        if target in self._made.resized:
            own = (self._made.resized[target], *own[1:])
        turned = embedding or delta.transposed
        if len(own) != 2 or len(shape_a) != 2 or len(shape_b) != 2:
            self._made.obstacles.append(f"{target} is not a matrix: it cannot be merged")
            return
        expected = (shape_a[1], shape_b[0]) if turned else (shape_b[0], shape_a[1])
        if shape_b[1] != shape_a[0] or own != expected:
            raise self._no(
                f"{b} {list(shape_b)} x {a} {list(shape_a)} does not fit {target} {list(own)}"
            )

    def _check_magnitudes(self) -> None:
        """DoRA needs a magnitude for each module that can have one, and nothing else has one."""
        for target, delta in self._made.deltas.items():
            has = "lora_magnitude_vector" in delta.parts
            if has != bool(self._config.get("use_dora")):
                what = "no lora_magnitude_vector" if not has else "a lora_magnitude_vector"
                raise InputError(
                    f"adapter {self._path}: use_dora is {bool(self._config.get('use_dora'))} but "
                    f"{target} has {what}; the file and {ADAPTER_WEIGHTS} do not belong together"
                )
            if has and (delta.transposed or "lora_embedding_A" in delta.parts):
                self._made.obstacles.append(f"DoRA on {target} cannot be merged exactly")

    def _check_merging(self) -> None:
        made = self._made
        for target in sorted(made.touched):
            if self._layout[target][0] not in MERGED_TYPES:
                made.quantised = target
            if self._tied and is_vocabulary(target) and target not in made.rows:
                # PEFT changes only one of the two uses; merged, it would change both.
                made.obstacles.append(
                    f"it changes {target}, which the checkpoint shares between input embeddings "
                    f"and output head; such an adapter cannot be merged"
                )


def _names(parsed: AdapterName, target: str) -> tuple[str, ...]:
    """The names of a module that patterns may mean.

    PEFT matches them with the model's own name for it, in full: ``^layers`` does not mean
    ``model.layers``. An adapter that names it otherwise may have been renamed, its patterns or
    not.
    """
    own, here = parsed.module, target.rpartition(".")[0]
    if own in (here, *(f"{inner}.{parsed.core}" for inner in INNER)):
        return (own,)
    return own, here, f"model.{parsed.core}", parsed.core
