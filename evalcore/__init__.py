"""Batch evaluation of checkpoint and adapter grids; see docs/architecture.md for the map."""

__version__ = "0.1.0"
