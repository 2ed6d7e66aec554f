"""Sweeps: what is tried, each trial as a run of its own, and what came of it."""
