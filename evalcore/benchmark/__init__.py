"""How fast this hardware scores: the sweep behind ``evalcore bench``."""

from evalcore.benchmark.sweep import BenchOptions, BenchOutcome, bench

__all__ = ["BenchOptions", "BenchOutcome", "bench"]
