"""Models that do not fit one device: Lightning's strategy over PyTorch's FSDP2, with checkpoints like any other."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy


class ShardedStrategy(ModelParallelStrategy):
    """Splits the parameters over all processes; rank 0 gathers them for a checkpoint, which is one ordinary file.

    ``BaseModule.configure_model`` says what is split. Lightning's own strategy "fsdp" wraps the net, which would
    change the keys of the checkpoint, and does not run on a CPU.
    """

    def __init__(self) -> None:
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Makes one group of all processes; Lightning's default would be one for each machine."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads without unpickling: Lightning forgets to ask for that where it restores after the setup."""
        return super().load_checkpoint(checkpoint_path, weights_only=True)


def with_strategy(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The Trainer's arguments, with the strategy that ``trainer.strategy=fsdp`` stands for."""
    return {**arguments, "strategy": ShardedStrategy()} if arguments.get("strategy") == "fsdp" else dict(arguments)
