"""Prompting: documents -> text -> token ids, once and the same for scoring and tuning."""

from evalcore.prompting.encoding import Encoder, encode_pair, encode_training
from evalcore.prompting.model import PromptDefinition
from evalcore.prompting.rendering import (
    Rendered,
    check_variant,
    gold_target,
    render,
    render_question,
    render_targets,
)
from evalcore.prompting.requests import (
    FLAG_NO_TOKENS,
    FLAG_OVERFLOW,
    FLAG_SHOTS_DROPPED,
    REQUEST_SCHEMA,
    cached_requests,
    encode_task,
    read_requests,
)
from evalcore.prompting.shots import draw_shots
from evalcore.prompting.tokenizers import load_tokenizer
from evalcore.prompting.training import example, training_pair
from evalcore.prompting.variants import (
    RENDERER_VERSION,
    list_groups,
    list_prompts,
    load_variants,
    prompts_root,
    read_prompt,
    variant_fingerprint,
    with_options,
)

__all__ = [
    "FLAG_NO_TOKENS",
    "FLAG_OVERFLOW",
    "FLAG_SHOTS_DROPPED",
    "RENDERER_VERSION",
    "REQUEST_SCHEMA",
    "Encoder",
    "PromptDefinition",
    "Rendered",
    "cached_requests",
    "check_variant",
    "draw_shots",
    "encode_pair",
    "encode_task",
    "encode_training",
    "example",
    "gold_target",
    "list_groups",
    "list_prompts",
    "load_tokenizer",
    "load_variants",
    "prompts_root",
    "read_prompt",
    "read_requests",
    "render",
    "render_question",
    "render_targets",
    "training_pair",
    "variant_fingerprint",
    "with_options",
]
