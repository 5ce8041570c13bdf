"""Tasks of lm-evaluation-harness as they are: loaded, written and measured by lm-eval itself.

Only this package imports lm-eval, and only when one of its tasks is asked for.
"""

from evalcore.lm_eval.building import GROUP, Asked, Built, build, generation_settings
from evalcore.lm_eval.harness import FEWSHOT_SEED, VERSION, chat_renderer, require
from evalcore.lm_eval.loading import Loaded, LoadedTask, load
from evalcore.lm_eval.names import PREFIX, is_lm_eval, split_selection
from evalcore.lm_eval.results import COLUMNS, Outcome, Value, aggregate_groups, evaluate
from evalcore.lm_eval.trust import refuse_code, with_includes

__all__ = [
    "COLUMNS",
    "FEWSHOT_SEED",
    "GROUP",
    "PREFIX",
    "VERSION",
    "Asked",
    "Built",
    "Loaded",
    "LoadedTask",
    "Outcome",
    "Value",
    "aggregate_groups",
    "build",
    "chat_renderer",
    "evaluate",
    "generation_settings",
    "is_lm_eval",
    "load",
    "refuse_code",
    "require",
    "split_selection",
    "with_includes",
]
