"""A picture reaches every logger that can show one."""

from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from src.tracking.figures import log_figure
from src.tracking.local import LocalLogger
from src.tracking.plots import loss_curves, pixels


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_the_pixels_and_the_local_logger_nothing(tmp_path: Path) -> None:
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    figure = loss_curves([{"epoch": 0, "train/loss": 1.0}])
    board = TensorBoardLogger(str(tmp_path), name="", version="tensorboard")
    log_figure([LocalLogger(tmp_path), board], "plots/curves", figure, step=7)
    board.finalize("success")

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (event,) = events.Images("plots/curves")
    (tmp_path / "image.png").write_bytes(event.encoded_image_string)
    assert event.step == 7
    assert np.array_equal(np.asarray(Image.open(tmp_path / "image.png").convert("RGB")), pixels(figure))
    assert not (tmp_path / "metrics.jsonl").exists()
