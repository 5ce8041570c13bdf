"""The whole flow: score(), study(), demo(), report(), export()."""

from evalcore.app.blocks import prompt_blocks
from evalcore.app.outcome import ScoreOutcome
from evalcore.app.report import (
    MadeReport,
    export,
    open_results,
    report,
    scores,
    write_scores_csv,
)
from evalcore.app.score import score
from evalcore.app.status import Status, status
from evalcore.app.study import (
    StudyOptions,
    StudyOutcome,
    demo,
    finetune,
    finetune_plan,
    pocket_study_file,
    study,
    study_plan,
)
from evalcore.app.tuning import collect_loss_curves, tuned_lines, tuned_status

__all__ = [
    "MadeReport",
    "ScoreOutcome",
    "Status",
    "StudyOptions",
    "StudyOutcome",
    "collect_loss_curves",
    "demo",
    "export",
    "finetune",
    "finetune_plan",
    "open_results",
    "pocket_study_file",
    "prompt_blocks",
    "report",
    "score",
    "scores",
    "status",
    "study",
    "study_plan",
    "tuned_lines",
    "tuned_status",
    "write_scores_csv",
]
