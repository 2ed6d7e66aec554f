"""Lightning's own monitors, for those who want more than the rows of every run say."""

from lightning.pytorch.callbacks import ThroughputMonitor


class Throughput(ThroughputMonitor):
    """Lightning's throughput over a window of steps: samples and batches per second, of a device and of all.

    A net with an attribute ``flops_per_batch`` on its module has operations per second and their share as well.

    Args:
        window_size: Steps of the window.
    """

    def __init__(self, window_size: int = 100) -> None:
        # The sign in the names by which the local files know them: they are no metrics of the model.
        super().__init__(batch_size_fn=len, window_size=window_size, separator="|")
