"""The tuning stage: LoRA adapters for every checkpoint and task of a study.

``load_study`` reads a study file, ``plan_jobs`` finds the adapters that are missing, ``tune``
trains them. Importing this package does not import torch.
"""

from finetune.api import TuneEvent, TuneFailure, TuneSummary, tune
from finetune.plan import TuneJob, TunePlan, plan_jobs, resolve_checkpoints
from finetune.study import Study, load_study, parse_study, study_schema
from finetune.train import TuneConfig, TuneResult, TuneWorker

__all__ = [
    "Study",
    "TuneConfig",
    "TuneEvent",
    "TuneFailure",
    "TuneJob",
    "TunePlan",
    "TuneResult",
    "TuneSummary",
    "TuneWorker",
    "load_study",
    "parse_study",
    "plan_jobs",
    "resolve_checkpoints",
    "study_schema",
    "tune",
]
