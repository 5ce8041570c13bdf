"""Faults seeded into loads of a living engine, and what becomes of them; runs in its process.

Each one spoils what vLLM gets or holds after everything was read as it should be: the loader's
stream, the model, the merge, the adapter's slot, the files, the other ranks.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from evalcore.types import Subject

Stream = Iterable[tuple[str, Any]]
Context = Callable[["Scene"], AbstractContextManager[None]]


@dataclass(frozen=True)
class Scene:
    """An engine with ``before`` in place, into which ``target`` is to come."""

    resident: Any
    before: Subject
    target: Subject

    @property
    def runner(self) -> Any:
        core = self.resident._llm.llm_engine.engine_core.engine_core
        return core.model_executor.driver_worker.worker.model_runner

    def old(self) -> dict[str, Any]:
        """Tensors of the checkpoint in place."""
        from safetensors.torch import load_file

        return load_file(Path(self.before.checkpoint.path) / "model.safetensors")


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        guard: Class of the error that refuses it; ``""``: harmless, scores are the oracle's.
        context: Makes the fault while a subject is loaded.
        model: Kind of model.
        target: Which subject is loaded.
        quick: Whether it is part of ``make test``.
        lasting: Whether no load mends it, only a new engine (which a refused swap leads to).
    """

    guard: str
    context: Context
    model: str = "llama-untied"
    target: str = "base 1"
    quick: bool = False
    lasting: bool = False


# -- the loader's stream ---------------------------------------------------------------------------


def streamed(change: Callable[[Scene, Stream], Stream]) -> Context:
    """What vLLM gets is not what was read, traced and hashed."""

    @contextmanager
    def context(scene: Scene) -> Iterator[None]:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        real = GPUModelRunner.reload_weights

        def spoiled(self: Any, weights_iterator: Any = None, **options: Any) -> None:
            real(self, weights_iterator=change(scene, weights_iterator), **options)

        with patch.object(GPUModelRunner, "reload_weights", spoiled):
            yield

    return context


def tensor(part: str, change: Callable[[Any], Any]) -> Context:
    """Tensors whose name has a part are changed."""

    def changed(scene: Scene, stream: Stream) -> Stream:
        for name, value in stream:
            yield name, change(value.clone()) if part in name else value

    return streamed(changed)


def kept(part: str) -> Context:
    """Tensors whose name has a part stay those of the checkpoint before."""

    def changed(scene: Scene, stream: Stream) -> Stream:
        old = scene.old()
        for name, value in stream:
            yield name, old[name] if part in name else value

    return streamed(changed)


def exchanged(one: str, other: str) -> Context:
    """Tensors go to each other's places."""

    def changed(scene: Scene, stream: Stream) -> Stream:
        for name, value in stream:
            if one in name:
                name = name.replace(one, other)
            elif other in name:
                name = name.replace(other, one)
            yield name, value

    return streamed(changed)


def skipped(part: str) -> Context:
    return streamed(lambda scene, stream: ((n, v) for n, v in stream if part not in n))


def reordered(scene: Scene, stream: Stream) -> Stream:
    return reversed(list(stream))


def at(index: Any, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A change of a part of a tensor."""

    def changed(value: Any) -> Any:
        value[index] = change(value[index])
        return value

    return changed


def rounded(value: Any) -> Any:
    import torch

    return value.to(torch.bfloat16).to(value.dtype)


def last_bit(value: Any) -> Any:
    import torch

    value.view(torch.int32)[..., 0] ^= 1
    return value


# -- the model after the load ----------------------------------------------------------------------


def afterwards(change: Callable[[Any], None]) -> Context:
    """The model is changed after vLLM has loaded it, before it is looked at."""

    @contextmanager
    def context(scene: Scene) -> Iterator[None]:
        from evalcore.engines.vllm import derived

        real = derived.after_reload

        def spoiled(model: Any) -> None:
            real(model)
            change(model)

        with patch.object(derived, "after_reload", spoiled):
            yield

    return context


@contextmanager
def heads_left(scene: Scene) -> Iterator[None]:
    from evalcore.engines.vllm import derived

    with patch.object(derived, "after_reload", lambda model: None):
        yield


@contextmanager
def experts_not_repacked(scene: Scene) -> Iterator[None]:
    from evalcore.engines.vllm import derived

    with patch.object(derived, "before_reload", lambda model: None):
        yield


def rotary(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "cos_sin_cache"):
            module.cos_sin_cache.mul_(1.01)
            return
    raise AssertionError("no rotary table")


def nothing_in(part: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        values = [value for name, value in model.named_parameters() if part in name]
        assert values, part
        for value in values:
            value.data.zero_()

    return change


# -- merges ----------------------------------------------------------------------------------------


def merge(change: Callable[[Any, Any], Any]) -> Context:
    """The low-rank change of every tensor is another: (weight, merged) -> merged."""

    @contextmanager
    def context(scene: Scene) -> Iterator[None]:
        from evalcore.engines.vllm.lora import Merger

        real = Merger._merge

        def spoiled(self: Any, weight: Any, delta: Any, device: Any) -> Any:
            return change(weight, real(self, weight, delta, device))

        with patch.object(Merger, "_merge", spoiled):
            yield

    return context


def without_part(part: str) -> Context:
    """The merger does not see a part of an adapter."""

    @contextmanager
    def context(scene: Scene) -> Iterator[None]:
        from evalcore.engines.vllm.lora import Merger

        real = Merger._merge

        def spoiled(self: Any, weight: Any, delta: Any, device: Any) -> Any:
            parts = {k: v for k, v in delta.parts.items() if k != part}
            return real(self, weight, type(delta)(delta.scaling, parts, delta.transposed), device)

        with patch.object(Merger, "_merge", spoiled):
            yield

    return context


@contextmanager
def another_adapter(scene: Scene) -> Iterator[None]:
    """The merger reads the file of another adapter of the same shape."""
    from safetensors import safe_open

    from evalcore.engines.vllm.lora import Merger

    assert scene.target.adapter is not None
    other = Path(scene.target.adapter.path).with_name("other") / "adapter_model.safetensors"
    real = Merger.__init__

    def spoiled(self: Any, adapter: Any) -> None:
        real(self, adapter)
        self._tensors._file = safe_open(str(other), framework="pt")

    with patch.object(Merger, "__init__", spoiled):
        yield


# -- files and ranks -------------------------------------------------------------------------------


def file_changed(name: str, *, adapter: bool = False, during: bool = False) -> Context:
    """A byte of a file is another than when the run was planned; or while it is read."""

    @contextmanager
    def context(scene: Scene) -> Iterator[None]:
        owner = scene.target.adapter if adapter else scene.target.checkpoint
        assert owner is not None
        file = Path(owner.path) / name
        before = file.read_bytes()

        def spoil() -> None:
            file.write_bytes(before[:-2] + bytes([before[-2] ^ 1]) + before[-1:])

        def late(scene: Scene, stream: Stream) -> Stream:
            for number, item in enumerate(stream):
                if number == 3:
                    file.touch()
                yield item

        with contextlib.ExitStack() as stack:
            if during:
                stack.enter_context(streamed(late)(scene))
            else:
                spoil()
            try:
                yield
            finally:
                file.write_bytes(before)
                os.utime(file)

    return context


def answers(change: Callable[[list[Any]], list[Any]]) -> Context:
    """What the ranks answer to a load is changed on its way."""

    @contextmanager
    def context(scene: Scene) -> Iterator[None]:
        llm, real = scene.resident._llm, scene.resident._llm.collective_rpc
        with patch.object(llm, "collective_rpc", lambda *a, **k: change(real(*a, **k))):
            yield

    return context


@contextmanager
def cache_kept(scene: Scene) -> Iterator[None]:
    from evalcore.engines.vllm import resident

    with patch.object(resident, "reset_cache", lambda llm: None):
        yield


# -- adapters beside the weights -------------------------------------------------------------------


def slot(change: Callable[[Any, int], None]) -> Context:
    """vLLM's slot of an adapter holds something else: (manager, slot) are changed."""

    @contextmanager
    def context(scene: Scene) -> Iterator[None]:
        from evalcore.engines.vllm import slots

        real = slots.require_slot

        def spoiled(runner: Any, subject: Subject, number: int, *, tied: bool) -> None:
            manager = runner.lora_manager._adapter_manager
            if number not in manager.lora_index_to_id:
                manager.activate_adapter(number)
            change(manager, manager.lora_index_to_id.index(number))
            real(runner, subject, number, tied=tied)

        with patch.object(slots, "require_slot", spoiled):
            yield

    return context


def every_layer(change: Callable[[Any, Any, int], None]) -> Callable[[Any, int], None]:
    """Changes (A, B) of the first part of each layer's slot."""

    def changed(manager: Any, index: int) -> None:
        for module in manager.modules.values():
            change(module.lora_a_stacked[0], module.lora_b_stacked[0], index)

    return changed


def one_layer(change: Callable[[Any, Any, int], None]) -> Callable[[Any, int], None]:
    def changed(manager: Any, index: int) -> None:
        module = next(m for n, m in manager.modules.items() if "0.self_attn.qkv" in n)
        change(module.lora_a_stacked[0], module.lora_b_stacked[0], index)

    return changed


def stale(manager: Any, index: int) -> None:
    """As if another adapter were still there."""
    generator = itertools.count(1)
    for module in manager.modules.values():
        for a in module.lora_a_stacked:
            a[index] = a[index].roll(next(generator), -1)
