"""What tuning will cost, before a weight is read: tokens, operations, GPU-hours, memory.

Operations per token follow the usual count for transformers (Kaplan et al. 2020, arXiv 2001.08361):
2 per weight forwards and 4 backwards, half of the latter for the gradients of the weights. Weights
that are frozen need no gradients of their own: 2 + 2. Attention's quadratic part is left out; it is
small while rows are shorter than a few times the model's width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from evalcore.errors import InputError
from evalcore.identity import HubRepository, numeric_config, weight_layout
from evalcore.types import Checkpoint
from finetune.checkpoints import assumed_parameters
from finetune.checks import DataReport, longest_row
from finetune.jobs import TuneJob
from finetune.method import MethodSpec
from finetune.study import Study

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Tensor names of a checkpoint -> (type, shape)."""
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}
FORWARD, BACKWARD_INPUTS, BACKWARD_WEIGHTS = 2, 2, 2
ADAM_BYTES = 16
"""Per trained weight: float32 weight, gradient and both moments."""
ACTIVATION_BYTES = 34
"""Per token, layer and unit of width, in bfloat16 (Korthikanti et al. 2022, arXiv 2205.05198)."""


@dataclass(frozen=True, slots=True)
class Assumption:
    """What a GPU is taken to do.

    Attributes:
        peak_tflops: Its peak in bfloat16 (an A100: 312, an H100: 989).
        mfu: Share of the peak that training reaches.
    """

    peak_tflops: float = 312.0
    mfu: float = 0.3

    def __post_init__(self) -> None:
        if self.peak_tflops <= 0 or not 0 < self.mfu <= 1:
            raise InputError(
                f"an estimate needs a positive peak and a share of it, not {self.peak_tflops} "
                f"TFLOP/s and {self.mfu}"
            )

    @property
    def flops_per_s(self) -> float:
        return self.peak_tflops * 1e12 * self.mfu

    def __str__(self) -> str:
        return f"{self.peak_tflops:g} TFLOP/s x {self.mfu:g}"


@dataclass(frozen=True, slots=True)
class JobEstimate:
    """What one job will cost; None where it cannot be known yet.

    Attributes:
        job: Which.
        rows: Rows of its training set.
        tokens: Tokens run through the model, repeats and all learning rates included.
        flops: Operations.
        gpu_hours: At the assumed speed.
        rough: Whether tokens were guessed from characters, for want of the base's tokenizer.
        disk: Bytes of the finished model.
        state: Bytes that its training checkpoint takes while it is trained; 0 without one.
    """

    job: TuneJob
    rows: int | None
    tokens: int | None
    flops: float | None
    gpu_hours: float | None
    rough: bool = False
    disk: int | None = None
    state: int | None = None


def estimate(
    study: Study,
    jobs: Sequence[TuneJob],
    reports: Mapping[str, DataReport],
    assumption: Assumption,
) -> list[JobEstimate]:
    """Cost of every job; ``reports`` are those of :func:`finetune.checks.check_data`."""
    sizes: dict[str, int | None] = {}
    layouts: dict[str, Layout] = {}
    found = []
    for job in jobs:
        source = job.checkpoint.source
        if source not in sizes:
            path = job.checkpoint.path
            layouts[source] = weight_layout(path) if path else planned_layout(source)
            planned = sum(math.prod(shape) for _, shape in layouts[source].values())
            stated = None if path else assumed_parameters(study, source)
            sizes[source] = stated or planned or None
        report = reports.get(job.id)
        tokens = training_tokens(job, report) if report is not None else None
        per_token = flops_per_token(job.method, sizes[source])
        flops = None if tokens is None or per_token is None else tokens * per_token
        hours = None if flops is None else flops / assumption.flops_per_s / 3600
        rows, rough = (report.rows, not report.by_tokenizer) if report else (None, False)
        disk, state = disk_bytes(job.method, sizes[source], layouts[source])
        found.append(JobEstimate(job, rows, tokens, flops, hours, rough, disk, state))
    return found


def planned_layout(source: str) -> Layout:
    """Tensors of a hub checkpoint whose weights are not at hand, by a config.json in the cache.

    That of the checkpoint, else of another commit of its repository. {} where there is none, or it
    describes no model that is known here.
    """
    repo, _, revision = source.rpartition("@")
    file = HubRepository("model", repo).cached("config.json", revision) if repo else None
    return _layout_of(file.resolve(), file.parent) if file is not None else {}


@lru_cache(maxsize=8)
def _layout_of(content: Path, folder: Path) -> Layout:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception:  # only an estimate: whatever is wrong is told when the checkpoint is opened
        return {}
    kind = {torch.float16: "F16", torch.bfloat16: "BF16"}.get(config.dtype, "F32")
    return {name: (kind, tuple(tensor.shape)) for name, tensor in model.named_parameters()}


def disk_bytes(
    method: MethodSpec, parameters: int | None, layout: Layout
) -> tuple[int | None, int | None]:
    """(bytes of the finished model, of its training checkpoint); None where it cannot be known.

    A full model has the types of its parent (else float32), an adapter float32
    factors of every linear layer, or of those named. A training checkpoint holds weights and both
    moments of what is trained.
    """
    if method.kind == "full":
        trained = parameters
        size = sum(math.prod(shape) * _BYTES.get(dtype, 4) for dtype, shape in layout.values())
        finished = size or (None if parameters is None else 4 * parameters)
    else:
        trained = _adapter_parameters(method, layout) if layout else None
        finished = None if trained is None else 4 * trained
    state = None if trained is None else 12 * trained
    return finished, state if method.save_every else 0


def _adapter_parameters(method: MethodSpec, layout: Layout) -> int:
    """Numbers in the factors of a LoRA adapter of this model."""
    total = 0
    for name, (_, shape) in layout.items():
        module = name.removesuffix(".weight").rpartition(".")[2]
        inner = not module.startswith(("embed", "lm_head", "wte"))
        every = method.targets == "all-linear" and inner
        if len(shape) == 2 and (every or module in method.targets):
            total += method.rank * sum(shape)
    return total


def training_tokens(job: TuneJob, report: DataReport) -> int | None:
    """Tokens of a job from the mean row.

    With a selection every candidate is trained without the held-out rows and scored on them, and
    the best is trained once more on all.
    """
    if report.rows is None or report.tokens_per_row is None:
        return None
    seen = job.method.rows_seen(report.rows)
    if job.selection is not None:
        held_out = job.selection.rows_of(report.rows)
        candidate = job.method.rows_seen(report.rows - held_out) + held_out
        seen += len(job.selection.learning_rates) * candidate
    return round(seen * report.tokens_per_row)


def flops_per_token(method: MethodSpec, parameters: int | None) -> float | None:
    """Operations of a training step per token."""
    if parameters is None:
        return None
    factor = FORWARD + BACKWARD_INPUTS
    if method.kind == "full":
        factor += BACKWARD_WEIGHTS
    if method.gradient_checkpointing:
        factor += FORWARD
    return float(factor) * parameters


def parameters_of(checkpoint: Checkpoint) -> int | None:
    """Weights of a checkpoint, tied ones once; None if it is not at hand."""
    if not checkpoint.path:
        return None
    return sum(math.prod(shape) for _, shape in weight_layout(checkpoint.path).values())


def job_bytes(job: TuneJob) -> int | None:
    """Memory one job needs on a GPU, roughly; None if its base is not at hand.

    Weights, optimizer state, activations of one batch at its longest, and the logits.
    """
    parameters = parameters_of(job.checkpoint)
    if parameters is None:
        return None
    config, method = numeric_config(Path(job.checkpoint.path)), job.method
    width, layers = int(config.get("hidden_size", 0)), int(config.get("num_hidden_layers", 0))
    vocabulary = int(config.get("vocab_size", 0))
    # LoRA on a square weight of this width, times seven linear layers: an upper bound will do.
    adapter = 7 * layers * 5 * width * method.rank
    trained = parameters if method.kind == "full" else adapter
    weights = parameters * (4 if method.dtype == "float32" else 2)
    tokens = longest_row(job.checkpoint, method) * max(1, method.batch_size // method.devices)
    kept_layers = 2 if method.gradient_checkpointing else layers
    activations = ACTIVATION_BYTES * tokens * width * kept_layers
    logits = 3 * 4 * tokens * vocabulary
    return weights + ADAM_BYTES * trained + activations + logits
