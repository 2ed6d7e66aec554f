"""The nearest neighbours of every atom of a crystal. Worker processes import this: it must stay free of torch."""

import sys
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

if "torch" in sys.modules:
    from vesin import NeighborList  # type: ignore[import-untyped]
else:  # vesin imports torch where it is installed, which would cost every worker seconds and 200 MB for nothing
    sys.modules["torch"] = None  # type: ignore[assignment]  # makes that import fail, for which vesin is prepared
    from vesin import NeighborList

    del sys.modules["torch"]

FIRST_RADIUS = 4.0  # angstrom: enough for 12 neighbours in most solids, at a tenth of the pairs within 8
GROWTH = 1.3
DECIMALS = 8  # of a distance in angstrom: equal up to here is equal by symmetry, the rest is rounding

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class GraphSettings:
    """What decides the graph of a crystal.

    Args:
        cutoff: Radius in angstrom beyond which there are no neighbours.
        num_neighbors: Edges of an atom: that many nearest neighbours, or fewer where the cutoff holds fewer.
        compat: Atoms with fewer neighbours get edges to atom 0 at `cutoff` + 1, as in the original code of CGCNN
            (Xie & Grossman 2018): for weights that were trained with it.
    """

    cutoff: float = 8.0
    num_neighbors: int = 12
    compat: bool = False


class Neighbors(NamedTuple):
    """Edges from neighbours to atoms, atom by atom, the nearest first.

    Attributes:
        source: [E] atom at the other end of each edge.
        distance: [E] length of each edge in angstrom.
        degree: [N] number of edges of each atom.
    """

    source: Integers
    distance: Floats
    degree: Integers

    @property
    def target(self) -> Integers:
        """[E] atom that each edge leads to."""
        return np.repeat(np.arange(len(self.degree)), self.degree)


def nearest_neighbors(positions_N3: Floats, cell_33: Floats, settings: GraphSettings) -> Neighbors:
    """Finds the nearest neighbours of every atom, periodic images included.

    The radius grows until all atoms have enough. Of several at the same distance those of the lowest index are taken,
    so that the choice does not depend on how the crystal is placed or on the last digits of a distance.

    Args:
        positions_N3: Cartesian, in angstrom.
        cell_33: Lattice vectors as rows, in angstrom.
        settings: How far and how many.
    """
    num_atoms, wanted = len(positions_N3), settings.num_neighbors
    radius = min(FIRST_RADIUS, settings.cutoff)
    while True:
        target, source, distance = _within(radius, positions_N3, cell_33)
        # What is as far as the radius may have images on its other side.
        found_N = np.bincount(target[distance < radius - 10.0**-DECIMALS], minlength=num_atoms)
        if radius == settings.cutoff or found_N.min() >= wanted:
            break
        radius = min(radius * GROWTH, settings.cutoff)
    order = np.lexsort((source, distance.round(DECIMALS), target))
    found_N = np.bincount(target, minlength=num_atoms)
    rank = np.arange(len(order)) - np.repeat(found_N.cumsum() - found_N, found_N)
    nearest = order[rank < wanted]
    neighbors = Neighbors(source[nearest], distance[nearest], np.minimum(found_N, wanted))
    return _padded(neighbors, settings) if settings.compat else neighbors


def _within(radius: float, positions_N3: Floats, cell_33: Floats) -> tuple[Integers, Integers, Floats]:
    target, source, distance = _neighbor_list(radius).compute(positions_N3, cell_33, True, "ijd")
    return target.astype(np.int64), source.astype(np.int64), distance  # they come unsigned


@cache
def _neighbor_list(radius: float) -> NeighborList:
    return NeighborList(cutoff=radius, full_list=True, n_threads=1)


def _padded(neighbors: Neighbors, settings: GraphSettings) -> Neighbors:
    shape = len(neighbors.degree), settings.num_neighbors
    source_NK, distance_NK = np.zeros(shape, np.int64), np.full(shape, settings.cutoff + 1)
    there_NK = np.arange(shape[1]) < neighbors.degree[:, None]
    source_NK[there_NK], distance_NK[there_NK] = neighbors.source, neighbors.distance
    return Neighbors(source_NK.ravel(), distance_NK.ravel(), np.full(shape[0], shape[1]))
