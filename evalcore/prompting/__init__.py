"""Prompting: documents -> text -> token ids, once and the same for scoring and tuning."""

from evalcore.identity import load_tokenizer
from evalcore.prompting.checks import check_requests
from evalcore.prompting.encoding import Encoder, encode_pair, encode_training, encode_turns
from evalcore.prompting.example import Border, Example, document_example, example, shown_role
from evalcore.prompting.faults import MergedBorderError, PromptError, PromptFault
from evalcore.prompting.grammar import count_formats, formats
from evalcore.prompting.guarding import control_pattern, holds
from evalcore.prompting.model import PromptDefinition
from evalcore.prompting.rendering import (
    Rendered,
    check_unlike,
    check_variant,
    gold_target,
    render,
    render_question,
    render_targets,
    shown_fields,
    varying_fields,
)
from evalcore.prompting.requests import (
    FLAG_NO_TOKENS,
    FLAG_OVERFLOW,
    FLAG_SHOTS_DROPPED,
    FLAG_TRUNCATED,
    REQUEST_SCHEMA,
    cached_requests,
    encode_task,
    read_requests,
    request_costs,
    same_requests,
)
from evalcore.prompting.selection import parse_selection
from evalcore.prompting.shots import draw_shots, shots_fingerprint
from evalcore.prompting.training import training_pair, training_turns, turns_field
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
    "FLAG_TRUNCATED",
    "RENDERER_VERSION",
    "REQUEST_SCHEMA",
    "Border",
    "Encoder",
    "Example",
    "MergedBorderError",
    "PromptDefinition",
    "PromptError",
    "PromptFault",
    "Rendered",
    "cached_requests",
    "check_requests",
    "check_unlike",
    "check_variant",
    "control_pattern",
    "count_formats",
    "document_example",
    "draw_shots",
    "encode_pair",
    "encode_task",
    "encode_training",
    "encode_turns",
    "example",
    "formats",
    "gold_target",
    "holds",
    "list_groups",
    "list_prompts",
    "load_tokenizer",
    "load_variants",
    "parse_selection",
    "prompts_root",
    "read_prompt",
    "read_requests",
    "render",
    "render_question",
    "render_targets",
    "request_costs",
    "same_requests",
    "shots_fingerprint",
    "shown_fields",
    "shown_role",
    "training_pair",
    "training_turns",
    "turns_field",
    "variant_fingerprint",
    "varying_fields",
    "with_options",
]
