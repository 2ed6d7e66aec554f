"""Averaged weights."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging


class EMA(EMAWeightAveraging):
    """Lightning's moving average of the weights, except that it also tests what it has saved.

    A checkpoint holds the average as its state and the weights of the last step beside it. Lightning's callback takes
    the latter up whenever a checkpoint is loaded; that is right where training goes on, and there alone.
    """

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restores both sets of weights for training on."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
