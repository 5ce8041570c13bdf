"""The tuning stage: adapters and tuned checkpoints for every base and task of a study.

``load_study`` reads a study file, ``plan_jobs`` finds what is missing, ``check_data`` looks at
rows, ``estimate`` says what it costs, ``tune`` trains. Importing this does not import torch.
"""

from finetune.api import TuneEvent, TuneFailure, TuneSummary, tune
from finetune.checkpoints import Missing, resolve_checkpoints
from finetune.checks import DataReport, check_data
from finetune.estimate import Assumption, JobEstimate, estimate, job_bytes
from finetune.faults import DataFault, DataFinding, StudyError, StudyFault, TuningDataError
from finetune.jobs import ADAPTERS_DIR, TUNED_DIR, MixPart, Selection, TuneJob
from finetune.method import MethodSpec
from finetune.plan import TunePlan, plan_jobs
from finetune.reading import load_study, parse_study, study_schema
from finetune.results import TuneConfig, TuneResult
from finetune.study import Study
from finetune.train import TuneWorker

__all__ = [
    "ADAPTERS_DIR",
    "TUNED_DIR",
    "Assumption",
    "DataFault",
    "DataFinding",
    "DataReport",
    "JobEstimate",
    "MethodSpec",
    "Missing",
    "MixPart",
    "Selection",
    "Study",
    "StudyError",
    "StudyFault",
    "TuneConfig",
    "TuneEvent",
    "TuneFailure",
    "TuneJob",
    "TunePlan",
    "TuneResult",
    "TuneSummary",
    "TuneWorker",
    "TuningDataError",
    "check_data",
    "estimate",
    "job_bytes",
    "load_study",
    "parse_study",
    "plan_jobs",
    "resolve_checkpoints",
    "study_schema",
    "tune",
]
