"""Waiting for what a run leaves in its folder."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path


def wait_for_segments(process: subprocess.Popen, out: Path, count: int) -> None:
    deadline = time.monotonic() + 180
    while len(list((out / "segments").glob("[!.]*.arrow"))) < count:
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
