"""Which engines there are, and how each is built: a new engine is one entry here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping

from evalcore.config.engine import Device
from evalcore.engines.protocol import Engine, EngineSpec, numeric_variables
from evalcore.errors import EngineError, InputError
from evalcore.types import Subject


def _hf(spec: EngineSpec) -> Engine:
    from evalcore.engines.hf import HFEngine  # transformers takes seconds to import

    return HFEngine(spec)


def _vllm(spec: EngineSpec) -> Engine:
    if importlib.util.find_spec("vllm") is None:
        raise EngineError(
            "engine vllm: vllm is not installed; pip install 'evalcore[cpu]' or "
            "'evalcore[gpu]', or choose --engine hf"
        )
    # Sets environment variables that vLLM reads while it is imported.
    from evalcore.engines.vllm.environment import prepare

    prepare(spec)
    from evalcore.engines.vllm.engine import VLLMEngine

    return VLLMEngine(spec)


ENGINES: Mapping[str, Callable[[EngineSpec], Engine]] = {"vllm": _vllm, "hf": _hf}
"""Kind -> what builds it."""


def create_engine(spec: EngineSpec) -> Engine:
    """Builds an engine; its first ``load`` starts it.

    Raises:
        EngineError: The library behind the engine is not installed.
        InputError: The spec names an engine that does not exist.
    """
    if spec.kind not in ENGINES:
        raise InputError(f"unknown engine {spec.kind!r}; expected {' or '.join(ENGINES)}")
    numeric_variables()  # before a library sets its own
    return ENGINES[spec.kind](spec)


def warm_up(spec: EngineSpec, busy: int | None = None) -> None:
    """Imports what an engine of this kind needs, in the process that will have it.

    Args:
        spec: Kind, device, threads and number of GPUs; the rest may not be settled yet.
        busy: See :func:`evalcore.engines.vllm.environment.prepare`.
    """
    numeric_variables()
    if spec.kind == "hf":
        import evalcore.engines.hf  # noqa: F401
    elif importlib.util.find_spec("vllm") is not None:
        from evalcore.engines.vllm.environment import prepare

        prepare(spec, busy)
        from evalcore.engines.vllm.compat import probe

        probe()


def merge_reason(spec: EngineSpec, subject: Subject) -> str | None:
    """Why vLLM would merge a subject's adapter though asked to batch; None if it would batch it.

    Read off the adapter's configuration and header: vLLM, which is not loaded for this, may still
    refuse an adapter later.

    Raises:
        EvalcoreError: The adapter does not fit its checkpoint in any way.
    """
    from evalcore.engines.vllm.adapters import reason_to_merge
    from evalcore.identity import weight_layout

    assert subject.adapter is not None
    layout = weight_layout(subject.checkpoint.path)
    device: Device = "cuda" if spec.device == "cuda" else "cpu"
    return reason_to_merge(
        subject.adapter,
        layout,
        spec.max_lora_rank,
        device,
        base=subject.checkpoint.path,
        ask_vllm=False,
    )
