"""A research template: LightningModules and LightningDataModules, composed by Hydra.

``from src import load`` gives a trained model for a script or a notebook.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    """Imports torch for those who load a model, and for nobody else (PEP 562)."""
    if name == "load":
        from src.engine.prediction import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
