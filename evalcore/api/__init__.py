"""What a notebook or a script imports: ``import evalcore as ec``; see docs/python.md."""

from evalcore.api.frame import Frame
from evalcore.api.functions import EvalcoreWarning, finetune, open, prompts, run, score, tasks
from evalcore.api.results import Results

__all__ = [
    "EvalcoreWarning",
    "Frame",
    "Results",
    "finetune",
    "open",
    "prompts",
    "run",
    "score",
    "tasks",
]
