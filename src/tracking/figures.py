"""Pictures to the loggers that can show them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_figure(loggers: Iterable[Logger], key: str, figure: "Figure", step: int) -> None:
    """Shows a figure as the image `key` in W&B and TensorBoard; other loggers have no place for one."""
    from src.tracking.plots import pixels

    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [pixels(figure)], step=step)
        elif isinstance(logger, TensorBoardLogger):
            # Not add_figure, which imports pyplot and with it whatever window system is around.
            logger.experiment.add_image(key, pixels(figure), step, dataformats="HWC")
