"""Identity of cells: what decides a score, and nothing about speed."""

from __future__ import annotations

from dataclasses import dataclass

from evalcore.identity.hashing import text_fingerprint
from evalcore.types import EncodingSettings, Subject, Task, Variant, generation_of

CELL_KEY_VERSION = 2
# The parts of a task's definition that decide which documents there are and what they mean.
# Descriptions, metrics and table groups are not among them: metrics are computed from the store.
_DATA_KEYS = ("source", "splits", "fields", "choices", "gold", "references")


@dataclass(frozen=True, slots=True)
class NumericsClass:
    """Runs of one class may be compared number by number.

    Attributes:
        engine: Engine kind (``vllm``, ``hf``).
        dtype: Type of weights and activations.
        head_dtype: Type in which logits are computed.
        device: Device family (``cpu``, ``cuda``).
        adapters: How adapters are applied (``merged``, ``batched``). It counts outside float32
            only, where merging rounds the weights.
    """

    engine: str
    dtype: str
    head_dtype: str
    device: str
    adapters: str | None = None

    @property
    def label(self) -> str:
        """Text form; equal labels are the same class."""
        parts = [self.engine, self.dtype, f"head-{self.head_dtype}", self.device]
        if self.dtype != "float32" and self.adapters is not None:
            parts.append(self.adapters)
        return "/".join(parts)


def data_fingerprint(task: Task) -> str:
    """32 hex digits over the part of a task's definition that decides its documents."""
    return text_fingerprint({key: task.spec.get(key) for key in _DATA_KEYS})


def cell_key(
    subject: Subject,
    task: Task,
    variant: Variant,
    encoding: EncodingSettings,
    numerics: NumericsClass,
    *,
    shots: str | None = None,
) -> str:
    """Content identity of a cell (32 hex digits).

    It covers weights, tokenizer, data definition, prompt variant (template, shots, chat, renderer
    version), the shots that were drawn, token settings, how text is generated, and the numerics
    class. Documents are keyed one by one, so that a larger limit adds examples to the same cell.

    Args:
        shots: Fingerprint of the worked examples in their order; None where there are none.
    """
    settings = generation_of(task, variant)
    generation = settings and [settings.max_tokens, list(settings.stops), settings.run_on]
    return text_fingerprint(
        {
            "cell": CELL_KEY_VERSION,
            "checkpoint": subject.checkpoint.fingerprint,
            "adapter": subject.adapter.fingerprint if subject.adapter else None,
            "tokenizer": subject.checkpoint.tokenizer_fingerprint,
            "task": [task.name, task.version, task.output_type, data_fingerprint(task)],
            "variant": variant.fingerprint,
            "shots": shots,
            "generation": generation,
            "unconditional": "acc_mutual_info" in task.metrics,
            "encoding": [encoding.max_length, encoding.add_bos, encoding.overflow],
            "numerics": numerics.label,
        }
    )
