"""A generic job pool: worker processes on this machine or Ray actors, one retry logic.

Knows nothing of models and engines. ``JobPool("package.module:make_worker", config, workers=2)``
``.run(source, on_result, on_failure, should_stop)``; see :class:`JobPool` and
:class:`~evalcore.cluster.protocol.Worker`.
"""

from evalcore.cluster.pool import JobPool
from evalcore.cluster.protocol import (
    Job,
    JobSource,
    ListSource,
    Stop,
    Worker,
    WorkerReply,
    WorkerState,
)
from evalcore.cluster.signals import StopSignals, any_stop, parse_duration

__all__ = [
    "Job",
    "JobPool",
    "JobSource",
    "ListSource",
    "Stop",
    "StopSignals",
    "Worker",
    "WorkerReply",
    "WorkerState",
    "any_stop",
    "parse_duration",
]
