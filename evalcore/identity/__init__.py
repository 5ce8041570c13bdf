"""Identity is content: fingerprints of checkpoints, adapters, tokenizers, documents and cells."""

from evalcore.identity.adapter import (
    adapter_config,
    adapter_fingerprint,
    adapter_is_zero,
    adapter_rank,
    numeric_adapter_config,
)
from evalcore.identity.applying import Applied, check_adapter
from evalcore.identity.away import away_at, bring
from evalcore.identity.bases import check_base, quantisation
from evalcore.identity.cache import cache_dir
from evalcore.identity.cells import (
    CELL_KEY_VERSION,
    KeyMaker,
    NumericsClass,
    cell_key,
    data_fingerprint,
    differences,
    rows_fingerprint,
)
from evalcore.identity.checkpoint import (
    checkpoint_fingerprint,
    numeric_config,
    weight_digests,
)
from evalcore.identity.hashing import canonical_json, document_id, text_fingerprint
from evalcore.identity.header import read_header
from evalcore.identity.hub import (
    HubError,
    HubRepository,
    is_as_named,
    is_commit,
)
from evalcore.identity.layout import shares_embeddings
from evalcore.identity.lora import LoraAdapter, ModuleDelta, read_lora
from evalcore.identity.lora_names import Layout
from evalcore.identity.provenance import (
    PROVENANCE_FILE,
    UNFINISHED_FILE,
    Provenance,
    read_provenance,
    write_provenance,
)
from evalcore.identity.readings import asked_as, reading_of
from evalcore.identity.resolve import Resolved, resolve_subjects
from evalcore.identity.search import Problem, find_adapters, find_tuned, search
from evalcore.identity.sources import describe_checkpoint, open_checkpoint, step_of
from evalcore.identity.templates import (
    chat_template,
    parse_template_args,
    parse_template_date,
    template_values,
    turn_end,
)
from evalcore.identity.tokenizer import (
    TokenizerFacts,
    end_token_ids,
    load_tokenizer,
    special_tokens,
    tokenizer_facts,
    tokenizer_fingerprint,
)
from evalcore.identity.unasked import is_offline, unasked
from evalcore.identity.weights import (
    safetensors_names,
    weight_files,
    weight_layout,
    weight_names,
)

__all__ = [
    "CELL_KEY_VERSION",
    "PROVENANCE_FILE",
    "UNFINISHED_FILE",
    "Applied",
    "HubError",
    "HubRepository",
    "KeyMaker",
    "Layout",
    "LoraAdapter",
    "ModuleDelta",
    "NumericsClass",
    "Problem",
    "Provenance",
    "Resolved",
    "TokenizerFacts",
    "adapter_config",
    "adapter_fingerprint",
    "adapter_is_zero",
    "adapter_rank",
    "asked_as",
    "away_at",
    "bring",
    "cache_dir",
    "canonical_json",
    "cell_key",
    "chat_template",
    "check_adapter",
    "check_base",
    "checkpoint_fingerprint",
    "data_fingerprint",
    "describe_checkpoint",
    "differences",
    "document_id",
    "end_token_ids",
    "find_adapters",
    "find_tuned",
    "is_as_named",
    "is_commit",
    "is_offline",
    "load_tokenizer",
    "numeric_adapter_config",
    "numeric_config",
    "open_checkpoint",
    "parse_template_args",
    "parse_template_date",
    "quantisation",
    "read_header",
    "read_lora",
    "read_provenance",
    "reading_of",
    "resolve_subjects",
    "rows_fingerprint",
    "safetensors_names",
    "search",
    "shares_embeddings",
    "special_tokens",
    "step_of",
    "template_values",
    "text_fingerprint",
    "tokenizer_facts",
    "tokenizer_fingerprint",
    "turn_end",
    "unasked",
    "weight_digests",
    "weight_files",
    "weight_layout",
    "weight_names",
    "write_provenance",
]
