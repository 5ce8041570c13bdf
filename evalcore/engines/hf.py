"""The oracle: transformers and peft, a plain full forward for each row. Right, not fast."""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evalcore.cluster import pulse
from evalcore.engines.hf_loading import build
from evalcore.engines.protocol import (
    EngineSpec,
    LoadKind,
    LoadReport,
    OneByOne,
    made_by,
    numerics_class,
    resolve_device,
)
from evalcore.engines.text import StopRule, finish, tokenizer_and_ends
from evalcore.errors import EngineError, SubjectError
from evalcore.identity import NumericsClass, weight_files
from evalcore.identity.verify import (
    adapter_files,
    unchanged,
    verify_adapter,
    verify_checkpoint,
)
from evalcore.types import (
    FloatArray,
    GenerateBatch,
    GenerateResult,
    ScoreBatch,
    ScoreResult,
    Subject,
)

_BATCH_TOKENS = 2048
_BATCH_ROWS = 32


def log_probabilities(logits: Any) -> Any:
    """float32 log-softmax of logits [..., V], to the last digits.

    Not ``log_softmax``: on CPUs torch adds up the exponentials of a row in few long chains, and its
    float32 values come out 2e-6 to 4e-6 too high with 50,000 to 130,000 entries, each time with the
    same sign: 1e-4 nats in a text of 50 tokens. ``engines/test_engines`` says when it can go.
    """
    logits = logits.float()
    return logits - logits.logsumexp(-1, keepdim=True)


class HFEngine(OneByOne):
    """transformers' AutoModelForCausalLM, with peft's own (unmerged) adapter on top."""

    def __init__(self, spec: EngineSpec) -> None:
        import torch

        self._spec = spec
        self._device = resolve_device(spec)
        if spec.threads:
            torch.set_num_threads(spec.threads)
        self._subject: Subject | None = None
        self._model: Any = None
        self._report: LoadReport | None = None  # of the subject in place
        self._stats = {"loads": 0.0, "load_s": 0.0, "computed_tokens": 0.0}

    @property
    def numerics(self) -> NumericsClass:
        return numerics_class(self._spec, self._device)

    def load(self, subject: Subject) -> LoadReport:
        """Loads checkpoint and adapter afresh: nothing of the subject before remains.

        Raises:
            IncompatibleError: If transformers or peft refuse the files.
            NodeError: If they hold other bytes than planned.
        """
        if self._report is not None and self._subject and self._subject.weights == subject.weights:
            self._subject = subject  # perhaps asked through another tokenizer
            return dataclasses.replace(self._report, kind="none", load_s=0.0)
        begin = time.perf_counter()
        kind: LoadKind = "start" if self._subject is None else "swap"
        self._model = self._subject = self._report = None
        gc.collect()
        adapter = subject.adapter
        files = [*weight_files(Path(subject.checkpoint.path))]
        files += adapter_files(adapter) if adapter is not None else []
        with unchanged(files):
            verify_checkpoint(subject.checkpoint)
            if adapter is not None:
                verify_adapter(adapter)
            self._model = self._build(subject)
        self._subject = subject
        load_s = time.perf_counter() - begin
        self._stats["loads"] += 1
        self._stats["load_s"] += load_s
        # Loaded from disk into fresh modules: there is no swap to prove.
        self._report = LoadReport(
            kind,
            load_s,
            0.0,
            True,
            proven_share=1.0,
            canaries="loaded afresh",
            strategy="plain",
            adapter="" if subject.adapter is None else "unmerged",
        )
        return self._report

    def _build(self, subject: Subject) -> Any:
        model = build(subject, self._spec.dtype, trust_remote_code=self._spec.trust_remote_code)
        return model.to(self._device).eval()

    def score(self, batch: ScoreBatch) -> ScoreResult:
        """One full forward per (context + continuation but its last token, which predicts nothing).

        Log-softmax is in float32.
        """
        values, greedy, _ = self._rows(batch)
        lengths = np.diff(batch.continuation_offsets)
        contexts = np.diff(batch.context_offsets)[batch.continuation_context]
        computed = np.zeros(batch.num_contexts, dtype=np.int64)
        np.add.at(computed, batch.continuation_context, lengths + contexts - 1)
        self._stats["computed_tokens"] += float(computed.sum())
        hit = (
            np.logical_and.reduceat(greedy, batch.continuation_offsets[:-1])
            if len(lengths)
            else greedy
        )
        return ScoreResult(values, hit, computed, np.zeros_like(computed))

    def margins(self, batch: ScoreBatch) -> FloatArray:
        """float64 [T_continuation]: gap between the two largest log-probabilities at each row."""
        return self._rows(batch)[2]

    def _rows(self, batch: ScoreBatch) -> tuple[FloatArray, npt.NDArray[np.bool_], FloatArray]:
        """(log-probability, is arg max, margin) of every continuation token."""
        import torch

        model = self._require()
        count = len(batch.continuation_tokens)
        values, margins = np.zeros(count), np.zeros(count)
        greedy = np.zeros(count, dtype=bool)
        rows = [
            np.concatenate([batch.context(int(owner)), batch.continuation(i)[:-1]])
            for i, owner in enumerate(batch.continuation_context)
        ]
        for chosen in _by_length(rows, turns(model.config)):
            width = max(len(rows[i]) for i in chosen)
            ids = np.zeros((len(chosen), width), dtype=np.int64)
            mask = np.zeros_like(ids)
            for row, i in enumerate(chosen):
                ids[row, : len(rows[i])] = rows[i]
                mask[row, : len(rows[i])] = 1
            with torch.inference_mode():
                logits = model(
                    input_ids=torch.from_numpy(ids).to(self._device),
                    attention_mask=torch.from_numpy(mask).to(self._device),
                ).logits
                for row, i in enumerate(chosen):
                    start, stop = batch.continuation_offsets[i : i + 2]
                    end = len(rows[i])
                    part = log_probabilities(logits[row, end - (stop - start) : end])
                    tokens = batch.continuation(i).astype(np.int64)
                    target = torch.from_numpy(tokens).to(self._device)
                    values[start:stop] = part.gather(1, target[:, None])[:, 0].cpu().numpy()
                    greedy[start:stop] = (part.argmax(-1) == target).cpu().numpy()
                    top = part.topk(2, dim=-1).values
                    margins[start:stop] = (top[:, 0] - top[:, 1]).cpu().numpy()
        self._require_finite(values)
        return values, greedy, margins

    def generate(self, batch: GenerateBatch) -> GenerateResult:
        """Greedy ``generate`` of transformers, left-padded, ended by the shared rule.

        Raises:
            InputError: If the checkpoint has no tokenizer.
        """
        model, subject = self._require(), self._subject
        assert subject is not None
        tokenizer, ends = tokenizer_and_ends(subject.checkpoint)
        contexts = [batch.context(i) for i in range(batch.num_contexts)]
        endings: list[Any] = [None] * len(contexts)
        turn = turns(model.config)
        for chosen in _by_length(contexts, turn and max(0, turn - batch.settings.max_tokens)):
            for i, ids in zip(
                chosen,
                self._continue(model, [contexts[i] for i in chosen], batch, tokenizer, ends),
                strict=True,
            ):
                endings[i] = finish(ids, tokenizer, ends, batch.settings)
        computed = np.diff(batch.context_offsets).astype(np.int64)
        self._stats["computed_tokens"] += float(computed.sum())
        return GenerateResult(
            [e.text for e in endings],
            [e.token_count for e in endings],
            [e.finish_reason for e in endings],
            computed,
            np.zeros_like(computed),
        )

    def _continue(
        self,
        model: Any,
        contexts: list[npt.NDArray[np.int32]],
        batch: GenerateBatch,
        tokenizer: Any,
        ends: tuple[int, ...],
    ) -> list[list[int]]:
        import torch
        from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

        width = max(len(c) for c in contexts)
        ids = torch.zeros((len(contexts), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, context in enumerate(contexts):
            ids[row, width - len(context) :] = torch.from_numpy(context.astype(np.int64))
            mask[row, width - len(context) :] = 1

        rule = StopRule.of(tokenizer, ends, batch.settings)

        class StopStrings(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
                done = [rule.ended(row, tokenizer) for row in input_ids[:, width:].tolist()]
                return torch.tensor(done, device=input_ids.device)

        # A fresh configuration; what it leaves open comes from the model's, which is blank.
        config = GenerationConfig(
            max_new_tokens=batch.settings.max_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=list(ends) or None,
            pad_token_id=ends[0] if ends else 0,
        )
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids.to(self._device),
                attention_mask=mask.to(self._device),
                generation_config=config,
                stopping_criteria=StoppingCriteriaList([StopStrings()]),
            )
        return [list(map(int, row)) for row in out[:, width:].tolist()]

    def _require(self) -> Any:
        if self._model is None:
            raise EngineError("engine hf: load a subject before asking for scores")
        return self._model

    def _require_finite(self, values: FloatArray) -> None:
        if np.isfinite(values).all():
            return
        assert self._subject is not None
        what = "NaN" if np.isnan(values).any() else "infinite"
        raise SubjectError(
            f"{self._subject.label}: {int((~np.isfinite(values)).sum())} of {len(values)} "
            f"log-probabilities are {what}; its weights are broken or overflow in "
            f"{self._spec.dtype} (try --dtype float32)"
        )

    def forget(self) -> None:
        """Nothing is kept between calls."""

    def made_by(self) -> dict[str, Any]:
        return made_by(self._spec, self._device, self._report)

    def stats(self) -> dict[str, float]:
        return dict(self._stats)

    def close(self) -> None:
        self._model = self._subject = self._report = None
        gc.collect()


def turns(config: Any) -> int | None:
    """Longest text that transformers reads with longrope's short factors; None without longrope.

    It takes the long ones for a whole batch as soon as one of its rows is longer.
    """
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    first = [
        part.get("original_max_position_embeddings")
        for part in parts
        if part.get("rope_type") == "longrope"
    ]
    return next((length for length in first if isinstance(length, int)), None)


def _by_length(rows: list[npt.NDArray[np.int32]], turn: int | None = None) -> Iterator[list[int]]:
    """Row numbers in groups of similar length: at most 2,048 padded tokens or one row, 32 rows.

    No group has both rows of up to ``turn`` tokens and longer ones.
    """
    group: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        full = (len(group) + 1) * len(rows[i]) > _BATCH_TOKENS or len(group) == _BATCH_ROWS
        turned = turn is not None and group and len(rows[group[0]]) <= turn < len(rows[i])
        if group and (full or turned):
            yield group
            pulse.tick()
            group = []
        group.append(i)
    if group:
        yield group
