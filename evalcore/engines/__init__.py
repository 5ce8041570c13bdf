"""Engines: what runs a model. ``create_engine`` is the door; heavy libraries load behind it."""

from evalcore.engines.protocol import Engine, EngineSpec, LoadReport
from evalcore.engines.registry import create_engine

__all__ = ["Engine", "EngineSpec", "LoadReport", "create_engine"]
