"""What a run is told: ``ScoreConfig(subjects, grid, engine, cluster, run)``.

Each field is defined once, in its part (:mod:`evalcore.config.option`); the command line, the study
file's ``evaluation`` block with its JSON schema, the checks of values from Python, the run's record
and docs/configuration.md are made from the definitions.
"""

from evalcore.config.cluster import ClusterConfig
from evalcore.config.engine import EngineConfig
from evalcore.config.grid import GridConfig
from evalcore.config.option import Option, check_value, options_of
from evalcore.config.run import RunConfig
from evalcore.config.subjects import SubjectsConfig
from evalcore.config.tree import PARTS, ScoreConfig, all_options, option_named, study_keys

__all__ = [
    "PARTS",
    "ClusterConfig",
    "EngineConfig",
    "GridConfig",
    "Option",
    "RunConfig",
    "ScoreConfig",
    "SubjectsConfig",
    "all_options",
    "check_value",
    "option_named",
    "options_of",
    "study_keys",
]
