"""What the trainer asks of the process it runs in."""

import resource
import sys
from pathlib import Path

import pytest
import torch

from src.engine.trainer import keep_freed_memory
from tests.forked import start_forked, wait_for


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again(tmp_path: Path) -> None:
    """Tensors of 20 MB that come and go cost page faults once, not each time."""

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            first, second = torch.ones(5_000_000), torch.ones(5_000_000)
            del second, first
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def task() -> None:
        keep_freed_memory()
        faults()
        print(faults())

    output = tmp_path / "output"
    assert wait_for(start_forked(task, output)) == 0
    assert int(output.read_text()) < 100
