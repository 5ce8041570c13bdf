"""The optimisation loop of one adapter: transformers' Trainer, with the loss where scores are read.

Rows are padded on the right and no attention mask is passed: under causal attention no real
position sees what follows it, and padded positions have no loss. Logits are computed only at the
columns that predict a completion token, which for short answers saves most of the vocabulary
product. (Tests compare the loss with the plain full-sequence one.)
"""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from evalcore.errors import EvalcoreError
from finetune.data import TrainingSet, batch_order
from finetune.study import MethodSpec

IGNORED = -100
DIVERGENCE_WINDOW = 10
DIVERGENCE_FACTOR = 2.0
DIVERGENCE_MARGIN_NATS = 1.0

Row = dict[str, list[int]]
OnStep = Callable[[int, int, float], None]


class TrainingError(EvalcoreError):
    """Training went wrong (loss not finite or diverging); the adapter is not written."""

    exit_status = 1


class StepRecord:
    """Loss, learning rate and completion tokens of every optimizer step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.learning_rates: list[float] = []
        self.completion_tokens: list[int] = []


def train_adapter(
    model: Any,
    rows: TrainingSet,
    method: MethodSpec,
    *,
    steps: int,
    seed: int,
    use_cpu: bool,
    autocast_bf16: bool,
    on_step: OnStep | None = None,
) -> StepRecord:
    """Trains the parameters of ``model`` that want gradients, in place.

    Args:
        model: A PeftModel.
        rows: What is learned.
        method: Hyper-parameters.
        steps: Optimizer steps.
        seed: Decides the order of rows and dropout.
        use_cpu: Stay on the CPU even where there is a GPU.
        autocast_bf16: Compute in bfloat16.
        on_step: Called as ``(step, steps, loss)`` after each step.

    Raises:
        TrainingError: If the loss is not finite or diverges.
    """
    lengths = [len(p) + len(c) for p, c in zip(rows.prompts, rows.completions, strict=True)]
    order = batch_order(
        lengths,
        method.batch_size,
        steps * method.gradient_accumulation,
        seed,
        group_by_length=method.group_by_length,
    )
    dataset = [_row(rows.prompts[i], rows.completions[i]) for i in order]
    record = StepRecord()
    with tempfile.TemporaryDirectory(prefix="evalcore-tune-") as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=steps,
            per_device_train_batch_size=method.batch_size,
            gradient_accumulation_steps=method.gradient_accumulation,
            learning_rate=method.learning_rate,
            lr_scheduler_type=method.schedule,
            warmup_steps=math.ceil(method.warmup_ratio * steps),
            weight_decay=method.weight_decay,
            max_grad_norm=method.max_grad_norm,
            optim="adamw_torch",
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            seed=seed,
            use_cpu=use_cpu,
            bf16=autocast_bf16,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            dataloader_num_workers=0,
        )
        trainer = CompletionTrainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            data_collator=collate,
            callbacks=[_Watch(record, on_step)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.record = record
        trainer.train()
    return record


def collate(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """Pads on the right: ``input_ids`` and ``labels`` int64 [B, T]; labels are not shifted."""
    longest = max(len(row["input_ids"]) for row in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        input_ids[i, :n] = torch.tensor(row["input_ids"])
        labels[i, :n] = torch.tensor(row["labels"])
    return {"input_ids": input_ids, "labels": labels}


def completion_loss(model: Any, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of negative log-likelihoods (nats, float32) over all completion tokens of a batch."""
    targets = torch.full_like(labels, IGNORED)
    targets[:, :-1] = labels[:, 1:]
    keep = (targets != IGNORED).any(dim=0).nonzero()[:, 0]
    if _takes_logits_to_keep(model):
        logits = model(input_ids=input_ids, use_cache=False, logits_to_keep=keep).logits
    else:
        logits = model(input_ids=input_ids, use_cache=False).logits[:, keep]
    targets = targets[:, keep]
    wanted = targets != IGNORED
    return cross_entropy(logits[wanted].float(), targets[wanted], reduction="sum")


class CompletionTrainer(Trainer):
    """Trainer whose loss is the mean over the completion tokens of an optimizer step."""

    loss_is_scaled_for_ga = True
    record: StepRecord

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        loss = completion_loss(model, inputs["input_ids"], inputs["labels"])
        return loss / self._step_tokens

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Counts the completion tokens of the coming optimizer step, whatever the model accepts."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        self._step_tokens = max(1, sum(int((b["labels"] != IGNORED).sum()) for b in batches))
        self._step_loss = 0.0
        return batches, count

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._step_loss += float(loss)
        if self.accelerator.sync_gradients:
            self.record.losses.append(self._step_loss)
            self.record.completion_tokens.append(self._step_tokens)
        return loss


class _Watch(TrainerCallback):
    """Stops a job whose loss says that going on is a waste."""

    def __init__(self, record: StepRecord, on_step: OnStep | None) -> None:
        self._record = record
        self._on_step = on_step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        check_losses(self._record.losses)
        self._record.learning_rates.append(float(kwargs["optimizer"].param_groups[0]["lr"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._on_step is not None:
            self._on_step(state.global_step, state.max_steps, self._record.losses[-1])


def check_losses(losses: Sequence[float]) -> None:
    """Judges the losses of the steps so far.

    Diverging: the mean of the last 10 is above twice the mean of the first 10 and more than one
    nat above it.

    Raises:
        TrainingError: If the last loss is not finite, or the losses diverge.
    """
    step = len(losses)
    if not math.isfinite(losses[-1]):
        raise TrainingError(
            f"the loss is {losses[-1]} at step {step}; lower method.learning_rate, or look for "
            f"broken weights in the base"
        )
    if step < 2 * DIVERGENCE_WINDOW:
        return
    first = sum(losses[:DIVERGENCE_WINDOW]) / DIVERGENCE_WINDOW
    last = sum(losses[-DIVERGENCE_WINDOW:]) / DIVERGENCE_WINDOW
    if last > first * DIVERGENCE_FACTOR and last > first + DIVERGENCE_MARGIN_NATS:
        raise TrainingError(
            f"the loss diverges: {first:.2f} nats at the start, {last:.2f} at step {step}; lower "
            f"method.learning_rate"
        )


def _row(prompt: list[int], completion: list[int]) -> Row:
    return {"input_ids": prompt + completion, "labels": [IGNORED] * len(prompt) + completion}


def _takes_logits_to_keep(model: Any) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters
