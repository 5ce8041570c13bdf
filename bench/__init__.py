"""Benchmark and proof scripts of the repository; not installed."""
