"""A generic job pool: worker processes on this machine or Ray actors, one retry logic.

Knows nothing of models and engines. ``JobPool("package.module:make_worker", config, workers=2)``
``.run(source, on_result, on_failure, should_stop)``; see :class:`JobPool` and
:class:`~evalcore.cluster.protocol.Worker`.
"""

from evalcore.cluster.patience import Patience
from evalcore.cluster.pool import JobPool
from evalcore.cluster.protocol import (
    ErrorInfo,
    Job,
    JobSource,
    ListSource,
    Stop,
    Worker,
    WorkerReply,
    WorkerState,
)
from evalcore.cluster.signals import GRACE_S, StopSignals, any_stop, parse_duration

__all__ = [
    "GRACE_S",
    "ErrorInfo",
    "Job",
    "JobPool",
    "JobSource",
    "ListSource",
    "Patience",
    "Stop",
    "StopSignals",
    "Worker",
    "WorkerReply",
    "WorkerState",
    "any_stop",
    "parse_duration",
]
