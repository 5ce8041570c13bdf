"""What an adapter's configuration names: modules, layers, and what its start did to the base."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from evalcore.errors import InputError
from evalcore.identity.adapter_names import AdapterName, core

Layout = Mapping[str, tuple[str, tuple[int, ...]]]

EXPERT = re.compile(r"\.experts\.\d+\.")
ALL_LINEAR = "all-linear"
# What models call the part that their files may leave out of names.
INNER = ("model", "transformer", "gpt_neox", "model.decoder")
_ROUTERS = ("gate", "router", "shared_expert_gate")
# Starts that leave the base as it is ("mica" keeps A at zero until it is trained).
_PLAIN_INIT = ("gaussian", "default", "orthogonal", "eva", "mica", "true", "false")
# Starts that are taken from the base. PEFT makes these two again when it loads them ...
INIT_FROM_BASE = ("pissa", "olora")
# ... a random approximation of the first comes out otherwise each time, and these need data.
_INIT_ONCE = ("pissa_niter_", "corda", "lora_ga")
CONVERT = "evalcore convert ADAPTER -o NEW"


def check_init(config: Mapping[str, Any], path: str) -> str | None:
    """What the start of an adapter did to its base.

    Args:
        config: Its adapter_config.json.
        path: Its directory.

    Returns:
        Why only PEFT can apply it; None where the base is as it was.

    Raises:
        InputError: Nobody can tell from the files what its base became.
    """
    init = config.get("init_lora_weights")
    if not isinstance(init, str) or init.lower() in _PLAIN_INIT:
        return None
    said = f"init_lora_weights={init!r} changed its base"
    if init == "pissa" or init.lower() == "olora":
        return f"{said}; convert it to a plain LoRA ({CONVERT} --base BASE)"
    if init.lower().startswith(_INIT_ONCE):
        raise InputError(
            f"adapter {path}: {said} in a way that cannot be made again; convert it to a plain "
            f"LoRA with what it was before its first step ({CONVERT} --initial FOLDER)"
        )
    if init.lower() == "loftq":
        raise InputError(
            f"adapter {path}: {said} into a quantised one, which only its training has; save that "
            f"model, give it as base (--base-map) and set init_lora_weights to true"
        )
    raise InputError(
        f"adapter {path}: init_lora_weights={init!r} is not known, so neither is what it did to "
        f"its base; known are true, {', '.join((*_PLAIN_INIT[:5], *INIT_FROM_BASE))}"
    )


def unadapted(
    config: Mapping[str, Any],
    layout: Layout,
    adapted: Mapping[str, AdapterName],
    depth: int | None = None,
) -> Iterator[str]:
    """Modules that a configuration names for LoRA and whose tensors the file lacks.

    PEFT would leave them as they began, with a warning at most.

    Args:
        config: Of adapter_config.json.
        layout: Tensors of the checkpoint.
        adapted: Tensors of it that have LoRA -> the module as the adapter names it.
        depth: Layers of its model, if known: files may hold more (heads for several tokens at
            once, which neither library builds).
    """
    meant = _Meant(config, layout, adapted)
    kinds = {EXPERT.sub(".", target) for target in adapted}
    for name, (_, shape) in layout.items():
        module = name.removesuffix(".weight")
        if module == name or len(shape) != 2 or name in adapted:
            continue
        # Fused experts are parameters of one module, which these names do not mean; but where
        # one expert has its own tensors, all have.
        if "expert" in name and EXPERT.sub(".", name) not in kinds:
            continue
        number = layer_of(module)
        if depth is not None and number is not None and number >= depth:
            continue
        if meant.has(module):
            yield module


def unnamed(
    config: Mapping[str, Any], layout: Layout, adapted: Mapping[str, AdapterName]
) -> Iterator[str]:
    """Modules whose LoRA the file has and that a configuration does not name for it.

    PEFT would leave them out of the model, and what the file says of them with them. An adapter
    that names modules otherwise than the model does was renamed after training, its patterns or
    not: of those only the last word has to be named, in a list.

    Args:
        config: Of adapter_config.json.
        layout: Tensors of the checkpoint.
        adapted: Tensors of it that have LoRA -> the module as the adapter names it.
    """
    wanted = config.get("target_modules")
    if wanted is None:
        return  # PEFT has a list of its own for each family
    meant = _Meant(config, layout, adapted)
    parameters = [str(key).rpartition(".")[0] for key in config.get("target_parameters") or ()]
    words = {str(name).rpartition(".")[2] for name in wanted} if isinstance(wanted, list) else set()
    for target, own in adapted.items():
        module, here = own.module.removesuffix(".base_layer"), target.removesuffix(".weight")
        if EXPERT.search(f"{module}.") or is_meant(module, parameters):
            continue
        plain = module in (here, *(f"{inner}.{core(module)}" for inner in INNER))
        named = not words or module.rpartition(".")[2] in words
        if not (meant.has(here) if plain else named):
            yield module


class _Meant:
    """Which modules a configuration means, as PEFT matches names (0.21: tuners_utils)."""

    def __init__(
        self, config: Mapping[str, Any], layout: Layout, adapted: Mapping[str, AdapterName]
    ) -> None:
        wanted = config.get("target_modules")
        if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
            wanted = [module for module in map(_linear, layout) if module]
            wanted += [target.removesuffix(".weight") for target in adapted]
        layers = config.get("layers_to_transform")
        self._wanted, self._not = wanted, config.get("exclude_modules")
        self._saved = [
            re.compile(rf"(^|.*\.){name}($|\..*)") for name in config.get("modules_to_save") or ()
        ]
        self._layers = [layers] if isinstance(layers, int) else layers
        pattern = config.get("layers_pattern") or r"[^.]*"
        self._patterns = [pattern] if isinstance(pattern, str) else list(pattern)
        # How names begin in the checkpoint -> how the adapter's do there: the part of a model that
        # takes images is none of its language part.
        self._before: dict[str, set[str]] = {}
        for target, own in adapted.items():
            here = _beginning(target.removesuffix(".weight"))
            self._before.setdefault(here, set()).add(own.module.removesuffix(own.core))

    def has(self, module: str) -> bool:
        before = self._before.get(_beginning(module), set())
        names = {module, *(own + core(module) for own in before)}
        return (
            _matches(names, self._wanted)
            and not _matches(names, self._not)
            and not any(saved.match(name) for saved in self._saved for name in names)
            and (
                not self._layers
                or self._layer(module) in self._layers
                # A module that a list names in full has LoRA whatever its layer is.
                or (isinstance(self._wanted, list) and not names.isdisjoint(self._wanted))
            )
        )

    def _layer(self, module: str) -> int | None:
        for pattern in self._patterns:
            found = re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", module)
            if found:
                return int(found["idx"])
        return None


def _beginning(module: str) -> str:
    """What stands before the layer list in a module's name."""
    return module.removesuffix(core(module))


def _linear(name: str) -> str | None:
    """The module of a matrix within a layer; routers of experts are no linear layers."""
    words = name.split(".")
    inside = layer_of(name) is not None and words[-1] == "weight"
    return name.removesuffix(".weight") if inside and words[-2] not in _ROUTERS else None


def _matches(names: set[str], wanted: Any) -> bool:
    if isinstance(wanted, str):
        return any(re.fullmatch(wanted, name) for name in names)
    return any(is_meant(name, wanted or []) for name in names)


def model_depth(config: Mapping[str, Any]) -> int | None:
    """Layers of a model, by its config.json; None where it does not say."""
    text = config.get("text_config")
    for own in (config, text if isinstance(text, dict) else {}):
        for key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
            if isinstance(own.get(key), int):
                return int(own[key])
    return None


def is_meant(module: str, names: list[Any]) -> bool:
    """Whether a module is one of those named, as PEFT matches lists."""
    return any(f".model.{module}".endswith(f".{name}") for name in names)


def is_within(module: str, name: str) -> bool:
    """Whether a module is, or lies in, one that ``modules_to_save`` names.

    PEFT goes by the ends of names, without a dot before (0.21, ``_set_trainable``): ``norm`` means
    ``input_layernorm`` too.
    """
    words = module.split(".")
    return any(".".join(words[:end]).endswith(name) for end in range(1, len(words) + 1))


def layer_of(module: str) -> int | None:
    """The first number in a module's name."""
    return next((int(word) for word in module.split(".") if word.isdigit()), None)
