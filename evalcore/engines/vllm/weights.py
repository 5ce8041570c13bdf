"""Streams complete checkpoint-format tensors into a live model.

Never a subset of a fused layer: vLLM's layerwise reload leaves the shards that do not come
uninitialised, which gives finite garbage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evalcore.cluster import pulse
from evalcore.engines.vllm import compat, derived
from evalcore.engines.vllm.lora import Merger, open_adapter
from evalcore.engines.vllm.merging import MergeCheck
from evalcore.engines.vllm.objects import Config, Runner
from evalcore.engines.vllm.proof import Traces
from evalcore.engines.vllm.traces import is_finite
from evalcore.errors import EngineError, EvalcoreError, SubjectError
from evalcore.identity import read_header, weight_files, weight_layout
from evalcore.identity.adapter import adapter_file
from evalcore.identity.verify import (
    adapter_files,
    unchanged,
    verify_adapter,
    verify_checkpoint,
)
from evalcore.identity.weights import tensor_digest
from evalcore.types import Subject

_HASHERS = 2  # threads that hash what streams by


@dataclass
class Loaded:
    """What a load did.

    Attributes:
        traces: Of the tensors that should be in place.
        changed_weights: Numbers an adapter changed (0 without one).
    """

    traces: Traces
    changed_weights: int = 0


class Digests:
    """Digests of tensors as they stream by, computed beside the loading."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_HASHERS)
        self._digests: dict[str, Future[str]] = {}

    def add(self, name: str, info: Any, tensor: Any) -> None:
        """Takes a tensor in, as it was read (on the CPU)."""
        import torch

        data = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else b""
        self._digests[name] = self._pool.submit(tensor_digest, name, info, data)

    def finish(self) -> dict[str, str]:
        """Tensor name -> digest of all that came."""
        digests = {name: future.result() for name, future in self._digests.items()}
        self._pool.shutdown()
        return digests


def stream(path: str, device: Any, digests: Digests | None = None) -> Iterator[tuple[str, Any]]:
    """All tensors of a checkpoint directory, file by file, on ``device``."""
    from safetensors import safe_open

    for file in weight_files(Path(path)):
        header = read_header(file)[0]
        with safe_open(str(file), framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                tensor = tensors.get_tensor(name)
                if digests is not None:
                    digests.add(name, header[name], tensor)
                yield name, tensor.to(device)
                pulse.tick()


class Reading:
    """A subject's tensors on their way: hashed, merged, traced."""

    def __init__(self, subject: Subject, vllm_config: Config, model: Any, device: Any) -> None:
        """Opens the adapter, if there is one.

        Raises:
            IncompatibleError: The adapter cannot be merged.
            NodeError: The adapter holds other bytes than planned.
            SubjectError: It holds numbers that are none.
        """
        self._subject, self._device = subject, device
        self._dtype = vllm_config.model_config.dtype
        tied = is_tied(vllm_config)
        layout = weight_layout(subject.checkpoint.path)
        self.traces = Traces(model, self._dtype, layout, tied=tied, packs=str(device) == "cpu")
        self._merger = self._check = None
        if subject.adapter is not None:
            verify_adapter(subject.adapter)
            require_finite(subject, _nonfinite(subject.adapter.path), "the adapter")
            opened = open_adapter(
                subject.adapter.path, layout, tied=tied, base=subject.checkpoint.path
            )
            self._merger, self._check = Merger(opened), MergeCheck(opened)

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """The tensors that should be in place; afterwards all that was read is checked.

        Nothing is raised before the last one went by: a model is never left half loaded.
        """
        adapter, path = self._subject.adapter, self._subject.checkpoint.path
        files = [Path(path) / "config.json", *weight_files(Path(path))]
        digests = Digests()
        self.error: EvalcoreError | None = None
        try:
            with unchanged(files), unchanged(adapter_files(adapter)) if adapter else nullcontext():
                for name, tensor in stream(path, self._device, digests):
                    merged = tensor
                    if self._merger is not None and self._check is not None:
                        total = self._merger.sum(name, tensor)
                        merged = self._merger.cast(name, tensor, total, self._dtype)
                        self._check(name, tensor, total, merged)
                    self.traces.add(name, merged)
                    yield name, merged
        except EvalcoreError as error:
            self.error = error
        try:
            verify_checkpoint(self._subject.checkpoint, digests.finish())
        except EvalcoreError as error:
            self.error = error

    def finish(self) -> int:
        """Numbers the adapter changed (0 without one).

        Raises:
            NodeError: Other bytes were read than planned.
            IncompatibleError: Part of the adapter was not applied.
            SubjectError: Something read is no number.
            ProofError: The merge gave something else than checkpoint and adapter say.
        """
        if self.error is not None:
            raise self.error
        what = "the checkpoint" if self._merger is None else "the checkpoint with the adapter"
        require_finite(self._subject, self.traces.verdict.nonfinite, what)
        if self._merger is None or self._check is None:
            return 0
        self._merger.finish()
        self._check.finish(self._subject.label)
        return self._merger.changed_weights


def require_finite(subject: Subject, names: Iterable[str], whose: str) -> None:
    """Raises SubjectError if there are tensors with numbers that are none."""
    names = sorted(names)
    if names:
        raise SubjectError(
            f"{subject.label}: {whose} holds NaN or infinite numbers in {names[0]}"
            + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")
            + "; it diverged in training or its file is damaged"
        )


def _nonfinite(path: str) -> Iterator[str]:
    """Tensors of an adapter with numbers that are none."""
    from safetensors import safe_open

    with safe_open(str(adapter_file(path)), framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (not a dict)
            if not is_finite(tensors.get_tensor(name)):
                yield name


def reload(
    runner: Runner,
    vllm_config: Config,
    subject: Subject,
    buffers: Mapping[str, Any],
    *,
    remedy: bool = True,
) -> Loaded:
    """Puts a checkpoint, with an adapter merged, into the running model.

    Args:
        runner: vLLM's model runner.
        vllm_config: Its configuration.
        subject: Its checkpoint has the names, shapes and numeric configuration of the one there.
        buffers: Checksums at the start (see derived.buffer_sums).
        remedy: Whether derived state is made anew (False only in the test of the traps).

    Raises:
        EvalcoreError: As :class:`Reading`; either nothing was changed, or everything was loaded
            and the next load mends it.
        EngineError: It stopped half way: the engine must not go on.
    """
    model = runner.get_model()
    reading = Reading(subject, vllm_config, model, runner.device)
    with compat.current_config(vllm_config):
        if remedy:
            derived.before_reload(model)
        try:
            runner.reload_weights(weights_iterator=reading.tensors())
        except Exception as error:
            raise EngineError(f"reload stopped half way: {error}") from error
        if remedy:
            derived.after_reload(model)
    reading.traces.keep(buffers, derived.buffer_sums(model))
    return Loaded(reading.traces, reading.finish())


def read_again(runner: Runner, vllm_config: Config, subject: Subject) -> Loaded:
    """Traces of a subject's files, for a model that vLLM loaded by itself.

    Raises:
        EvalcoreError: As :class:`Reading`.
    """
    reading = Reading(subject, vllm_config, runner.get_model(), runner.device)
    for _ in reading.tensors():
        pass
    return Loaded(reading.traces, reading.finish())


def is_tied(vllm_config: Config) -> bool:
    """Whether input embeddings and output head share one tensor."""
    config = vllm_config.model_config.hf_text_config
    return bool(getattr(config, "tie_word_embeddings", False))
