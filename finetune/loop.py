"""The optimisation loop of one job: transformers' Trainer, with the loss where scores are read.

No attention mask is passed: rows are padded on the right, where under causal attention no real
position sees the padding, or packed, where positions say which row a token belongs to. Logits are
computed only at the columns that predict a completion token, which for short answers saves most of
the vocabulary product. (Tests compare the loss with the plain full-sequence one.)

Everything random about a step follows from seed, step and device number, so that a job that is
resumed, or shared by several devices, goes on exactly.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback, TrainingArguments, get_scheduler
from transformers.trainer_callback import PrinterCallback

from evalcore.errors import TrainingError
from evalcore.files import scratch_folder
from finetune.data import TrainingSet, batch_order
from finetune.method import MethodSpec
from finetune.packing import IGNORED, Batch, check_packing, choose_collate, collate, make_row
from finetune.resume import (
    Keeper,
    StepRecord,
    TrainingState,
    restore_optimizer,
    restore_parameters,
    state_tensors,
)

DIVERGENCE_WINDOW = 10
DIVERGENCE_FACTOR = 2.0
DIVERGENCE_MARGIN_NATS = 1.0
OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """What a run of the loop needs beside model, rows and method.

    Attributes:
        steps: Optimizer steps.
        seed: Decides the order of rows and dropout.
        use_cpu: Stay on the CPU even where there is a GPU.
        autocast_bf16: Compute in bfloat16.
        on_step: Called as ``(step, steps, loss)`` after each step.
    """

    steps: int
    seed: int
    use_cpu: bool
    autocast_bf16: bool
    on_step: OnStep | None = None


@dataclass(frozen=True, slots=True)
class LoopResult:
    """How training went.

    Attributes:
        record: Of every step, those before an interruption included.
        earlier_s: Seconds that earlier, interrupted tries took.
        resumed_at: Steps at which training went on after an interruption.
    """

    record: StepRecord
    earlier_s: float
    resumed_at: tuple[int, ...]


def train_model(
    model: Any, rows: TrainingSet, method: MethodSpec, options: LoopOptions, keeper: Keeper
) -> LoopResult:
    """Trains the parameters of ``model`` that want gradients, in place.

    Raises:
        TrainingError: If the loss is not finite or diverges, or memory does not suffice.
        IncompatibleError: If packing is asked for and the model cannot keep rows apart.
    """
    collate_rows = choose_collate(model, method.packing)
    dataset = ordered_rows(rows, method, options)
    if method.packing:
        check_packing(model, dataset)
    state = keeper.load()
    if state is not None:
        restore_parameters(model, state.tensors)
    done = state.step if state is not None else 0
    per_step = method.batch_size * method.gradient_accumulation
    with scratch_folder("tune") as scratch:
        trainer = CompletionTrainer(
            model=model,
            args=_arguments(method, options, options.steps - done, str(scratch)),
            train_dataset=dataset[done * per_step :],
            data_collator=collate_rows,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.begin(method, options, state)
        trainer.add_callback(_Watch(trainer, options, keeper))
        try:
            trainer.train()
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"out of memory at batch_size {method.batch_size}; lower it and raise "
                f"gradient_accumulation, or set gradient_checkpointing to true",
                "out_of_memory",
            ) from None
        finally:
            if method.gradient_checkpointing:
                model.gradient_checkpointing_disable()
    if state is None:
        return LoopResult(trainer.record, 0.0, ())
    return LoopResult(trainer.record, state.elapsed_s, tuple(state.resumed_at))


def ordered_rows(
    rows: TrainingSet, method: MethodSpec, options: LoopOptions
) -> list[dict[str, list[int]]]:
    """Rows of the whole run in the order they are learned, repeats included."""
    lengths = [len(p) + len(c) for p, c in zip(rows.prompts, rows.completions, strict=True)]
    order = batch_order(
        lengths,
        method.batch_size,
        options.steps * method.gradient_accumulation,
        options.seed,
        group_by_length=method.group_by_length,
    )
    made = [make_row(*row) for row in rows.learned()]
    return [made[i] for i in order]


def held_out_loss(model: Any, rows: TrainingSet, batch_size: int, *, autocast_bf16: bool) -> float:
    """Mean loss (nats) per completion token over all rows, without dropout."""
    made = [make_row(*row) for row in rows.learned()]
    made.sort(key=lambda row: len(row["input_ids"]))
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total, tokens = 0.0, 0
    takes_columns = takes_logits_to_keep(model)
    try:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast_bf16):
            for start in range(0, len(made), batch_size):
                batch = collate(made[start : start + batch_size])
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                total += float(completion_loss(model, batch, takes_columns))
                tokens += int((batch["labels"] != IGNORED).sum())
    finally:
        model.train(training)
    return total / tokens


def completion_loss(model: Any, batch: Batch, takes_columns: bool) -> torch.Tensor:
    """Sum of negative log-likelihoods (nats, float32) over all completion tokens of a batch.

    Args:
        model: The model, possibly wrapped.
        batch: ``input_ids``, ``labels`` and, when packed, ``position_ids``; int64 [B, T].
        takes_columns: Whether the model computes logits of some columns only.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    targets = torch.full_like(batch["labels"], IGNORED)
    targets[:, :-1] = batch["labels"][:, 1:]
    keep = (targets != IGNORED).any(dim=0).nonzero()[:, 0]
    if takes_columns:
        logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits
    else:
        logits = model(**inputs, use_cache=False).logits[:, keep]
    targets = targets[:, keep]
    wanted = targets != IGNORED
    return cross_entropy(logits[wanted].float(), targets[wanted], reduction="sum")


def takes_logits_to_keep(model: Any) -> bool:
    """Whether ``forward`` can leave out the logits of other columns."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


class CompletionTrainer(Trainer):
    """Trainer whose loss is the mean over the completion tokens of an optimizer step."""

    loss_is_scaled_for_ga = True
    lr_scheduler: Any

    def begin(self, method: MethodSpec, options: LoopOptions, state: TrainingState | None) -> None:
        """Sets where training starts: at the beginning, or where ``state`` was saved."""
        self._method = method
        self._options = options
        self._state = state
        self._takes_columns = takes_logits_to_keep(self.model)
        self._start = time.perf_counter()
        self.record = state.record if state is not None else StepRecord()

    @property
    def steps_before(self) -> int:
        """Steps done before this process began."""
        return self._state.step if self._state is not None else 0

    def elapsed_s(self) -> float:
        """Seconds of training so far, earlier tries included."""
        before = self._state.elapsed_s if self._state is not None else 0.0
        return before + time.perf_counter() - self._start

    def training_state(self, step: int) -> TrainingState:
        """What a training checkpoint after ``step`` has to hold."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # without accelerate
        resumed_at = self._state.resumed_at if self._state is not None else []
        tensors = state_tensors(self.model, optimizer)
        return TrainingState(step, self.record, self.elapsed_s(), resumed_at, tensors)

    def create_optimizer(self, model: Any = None) -> Any:
        fresh = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if fresh and self._state is not None:
            restore_optimizer(self.model, optimizer, self._state.tensors)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the whole run, put forward to where this process begins."""
        if self.lr_scheduler is None:
            steps = self._options.steps
            scheduler: Any = get_scheduler(
                self._method.schedule,
                self.optimizer if optimizer is None else optimizer,
                num_warmup_steps=math.ceil(self._method.warmup_ratio * steps),
                num_training_steps=steps,
            )
            if self._state is not None:
                scheduler.last_epoch = self.steps_before
                groups = scheduler.optimizer.param_groups
                for group, rate, factor in zip(
                    groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
                ):
                    group["lr"] = rate * factor(self.steps_before)
            self.lr_scheduler = scheduler
        return self.lr_scheduler

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Counts the completion tokens of the coming optimizer step, whatever the model accepts."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        own = sum(int((b["labels"] != IGNORED).sum()) for b in batches)
        self._step_tokens = max(1, int(self._sum_over_devices(own)))
        self._step_loss: Any = 0.0
        return batches, count

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        loss = completion_loss(model, inputs, self._takes_columns)
        # Gradients are averaged over devices; the loss is a sum over their rows.
        return loss * self.accelerator.num_processes / self._step_tokens

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._step_loss = self._step_loss + loss / self.accelerator.num_processes
        if self.accelerator.sync_gradients:
            self.record.losses.append(float(self._sum_over_devices(self._step_loss)))
            self.record.completion_tokens.append(self._step_tokens)
        return loss

    def _sum_over_devices(self, value: Any) -> Any:
        if self.accelerator.num_processes == 1:
            return value
        tensor = torch.as_tensor(value, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(tensor, "sum")


class _Watch(TrainerCallback):
    """Seeds every step, stops a job whose loss says that going on is a waste, keeps checkpoints."""

    def __init__(self, trainer: CompletionTrainer, options: LoopOptions, keeper: Keeper) -> None:
        self._trainer = trainer
        self._options = options
        self._keeper = keeper

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = self._trainer.steps_before + state.global_step
        device = self._trainer.accelerator.process_index
        torch.manual_seed(step_seed(self._options.seed, step, device))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        record = self._trainer.record
        check_losses(record.losses)
        record.learning_rates.append(float(kwargs["optimizer"].param_groups[0]["lr"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = self._trainer.steps_before + state.global_step
        if self._keeper.due(step, self._options.steps):
            self._keeper.save(self._trainer.training_state(step))
        if self._options.on_step is not None:
            self._options.on_step(step, self._options.steps, self._trainer.record.losses[-1])


def step_seed(seed: int, step: int, device: int) -> int:
    """Seed of dropout in one step on one device."""
    words = np.random.SeedSequence([seed, 4, step, device]).generate_state(2, np.uint32)
    return int(words[0]) << 31 | int(words[1]) >> 1


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
            f"broken weights in the base",
            "loss_not_finite",
        )
    if step < 2 * DIVERGENCE_WINDOW:
        return
    first = sum(losses[:DIVERGENCE_WINDOW]) / DIVERGENCE_WINDOW
    last = sum(losses[-DIVERGENCE_WINDOW:]) / DIVERGENCE_WINDOW
    if last > first * DIVERGENCE_FACTOR and last > first + DIVERGENCE_MARGIN_NATS:
        raise TrainingError(
            f"the loss diverges: {first:.2f} nats at the start, {last:.2f} at step {step}; lower "
            f"method.learning_rate",
            "loss_diverges",
        )


def _arguments(
    method: MethodSpec, options: LoopOptions, steps: int, scratch: str
) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=scratch,
        max_steps=steps,
        per_device_train_batch_size=method.batch_size // method.devices,
        gradient_accumulation_steps=method.gradient_accumulation,
        learning_rate=method.learning_rate,
        weight_decay=method.weight_decay,
        max_grad_norm=method.max_grad_norm or 0.0,  # transformers clips above 0 only
        optim="adamw_torch",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        seed=options.seed,
        use_cpu=options.use_cpu,
        bf16=options.autocast_bf16,
        gradient_checkpointing=method.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        ddp_find_unused_parameters=False if method.devices > 1 else None,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
    )
    if method.devices == 1 and arguments.n_gpu > 1:
        arguments._n_gpu = 1  # Trainer would split batches over every GPU it sees
    return arguments
