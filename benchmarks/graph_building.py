"""How fast crystals are made, labelled, turned into graphs, read from the cache and gathered, on one core.

    python -m benchmarks.graph_building [--structures 500] [--batch 256]

The last line is one JSON object: structures per second of each stage, seconds to load the cached set, and the ratio of
the batches (this project / torch_geometric's collation).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from src.structures.emt import TARGET, emt_alloy
from src.structures.neighbors import GraphSettings, nearest_neighbors
from src.structures.reading import read_crystals


def rate(count: int, work: Callable[[], object], repeats: int = 1) -> float:
    """Returns structures per second; the fastest of several repeats, because the others were disturbed."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return count / min(seconds)


def main() -> None:
    """Measures each stage and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--structures", type=int, default=500)
    parser.add_argument("--batch", type=int, default=256)
    arguments = parser.parse_args()
    count, settings = arguments.structures, GraphSettings()
    alloys: list = []
    result = {"made_and_labelled_per_s": rate(count, lambda: alloys.extend(emt_alloy(0, i) for i in range(count)))}
    arrays = [(atoms.positions, atoms.cell.array) for atoms in alloys]
    result["neighbours_per_s"] = rate(count, lambda: [nearest_neighbors(*pair, settings) for pair in arrays], 3)
    read = partial(read_crystals, lambda atoms: atoms, [TARGET], settings)
    result["checked_graphs_per_s"] = rate(count, lambda: read(alloys), 3)

    import torch  # not before: reading is measured as in a worker, without it
    from torch_geometric.data import Batch, Data

    from src.data.crystals import EMTAlloysDataModule
    from src.data.graphs import load_graphs

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        datamodule = EMTAlloysDataModule(
            folder, count, 0, batch_size=1, val_size=0.1, test_size=0.1, split="random", split_seed=0, seed=0
        )
        catalogue = datamodule.catalogue()
        load_graphs(catalogue, settings, Path(folder))
        result["load_cached_s"] = 1 / rate(1, lambda: load_graphs(catalogue, settings, Path(folder)), 3)
        split, _ = load_graphs(catalogue, settings, Path(folder))
    index = torch.randint(count, (arguments.batch,))
    samples = [split[position].x for position in torch.arange(count).split(1)]
    graphs = [
        Data(z=x["z"], edge_index=x["edge_index"], distance=x["distance"], num_nodes=len(x["z"])) for x in samples
    ]
    chosen = index.tolist()
    result["gathered_per_s"] = rate(arguments.batch, lambda: split[index], 50)
    result["collated_per_s"] = rate(arguments.batch, lambda: Batch.from_data_list([graphs[i] for i in chosen]), 10)
    result["gather_ratio"] = result["gathered_per_s"] / result["collated_per_s"]
    for name, value in result.items():
        print(f"{name:<26} {value:,.4g}")
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main()
