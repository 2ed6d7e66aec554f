"""Neighbours, batches of graphs, and the file that keeps them."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Batch as PyGBatch
from torch_geometric.data import Data

from src.config import ConfigError
from src.data import graphs as graphs_module
from src.data.graphs import Catalogue, GraphSplit, build_arrays, cached, load_graphs
from src.structures import neighbors as neighbors_module
from src.structures.neighbors import GraphSettings, Neighbors, nearest_neighbors
from tests.conftest import ROOT
from tests.fake_crystals import crystals, imported


def random_crystal(seed: int, num_atoms: int, size: float = 3.0) -> Atoms:
    """A skewed cell of about `size` cubed an atom, in which no two atoms are nearer than half of that."""
    rng = np.random.default_rng(seed)
    edge = size * num_atoms ** (1 / 3)
    cell = edge * (np.eye(3) + np.triu(rng.uniform(-0.4, 0.4, (3, 3)), 1))
    return Atoms(
        rng.choice([13, 28, 29, 46], num_atoms), scaled_positions=rng.random((num_atoms, 3)), cell=cell, pbc=True
    )


def neighbors_of(atoms: Atoms, **changes: Any) -> Neighbors:
    return nearest_neighbors(atoms.positions, atoms.cell.array, GraphSettings(**changes))


def distances(atoms: Atoms) -> np.ndarray:
    """[N, 12], each row ascending."""
    found = neighbors_of(atoms)
    assert (found.degree == 12).all()
    return found.distance.reshape(-1, 12)


# --- neighbours


@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([5.0, 8.0]), st.sampled_from([1, 12, 40]))
@settings(max_examples=40, deadline=None)
def test_neighbours_are_those_of_ase(seed: int, num_atoms: int, cutoff: float, wanted: int) -> None:
    atoms = random_crystal(seed, num_atoms)
    found = neighbors_of(atoms, cutoff=cutoff, num_neighbors=wanted)
    assert found.source.dtype == np.int64
    target, source, distance = neighbor_list("ijd", atoms, cutoff)
    edge = 0
    for atom in range(num_atoms):
        all_distances = distance[target == atom]
        nearest = np.sort(all_distances)[:wanted]
        assert found.degree[atom] == len(nearest)
        mine = slice(edge, edge := edge + len(nearest))
        np.testing.assert_allclose(found.distance[mine], nearest, atol=1e-9)
        for neighbor, length in zip(found.source[mine], found.distance[mine], strict=True):
            assert np.abs(all_distances[source[target == atom] == neighbor] - length).min() < 1e-9
    assert edge == len(found.source) == len(found.distance)


def test_the_growing_radius_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # Atoms exactly as far as the first radius: rounding decides on which side of it each image lies.
    structures = [random_crystal(seed, 4, size=4.0) for seed in range(20)] + [bulk("Po", "sc", a=4.0) * (2, 1, 1)]
    grown = [neighbors_of(atoms) for atoms in structures]
    monkeypatch.setattr(neighbors_module, "FIRST_RADIUS", 8.0)
    for atoms, before in zip(structures, grown, strict=True):
        for part, other in zip(before, neighbors_of(atoms), strict=True):
            np.testing.assert_allclose(part, other, atol=1e-9)


def test_of_equally_far_neighbours_the_first_are_taken() -> None:
    rock_salt = bulk("NaCl", "rocksalt", a=5.64, cubic=True)  # 6 at 2.82, then 12 at 3.99
    found = neighbors_of(rock_salt)
    second_shell = found.source.reshape(-1, 12)[:, 6:]
    sodium = np.flatnonzero(rock_salt.numbers == 11)
    assert second_shell[sodium[0]].tolist() == sorted([*[sodium[1]] * 4, *[sodium[2]] * 2])
    noise = np.random.default_rng(0).normal(0, 1e-11, rock_salt.positions.shape)
    moved = nearest_neighbors(rock_salt.positions + noise, rock_salt.cell.array, GraphSettings())
    assert moved.source.tolist() == found.source.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_do_not_depend_on_how_the_crystal_is_placed(seed: int) -> None:
    atoms, rng = random_crystal(seed, 5), np.random.default_rng(seed)
    expected = neighbors_of(atoms)
    shifted = atoms.copy()
    shifted.positions += rng.normal(size=3) * 10
    turned = atoms.copy()
    turned.rotate(77, rng.normal(size=3), rotate_cell=True)
    wrapped = shifted.copy()
    wrapped.wrap()
    for other in (shifted, turned, wrapped):
        found = neighbors_of(other)
        np.testing.assert_allclose(found.distance, expected.distance, atol=1e-9)
        assert found.source.tolist() == expected.source.tolist()
    order = rng.permutation(5)
    np.testing.assert_allclose(distances(atoms[order]), distances(atoms)[order], atol=1e-9)


def test_a_supercell_has_the_neighbours_of_its_cell() -> None:
    atoms = random_crystal(3, 4)
    supercell = atoms * (2, 1, 3)
    np.testing.assert_allclose(distances(supercell), np.tile(distances(atoms), (6, 1)), atol=1e-9)
    elements = atoms.numbers[neighbors_of(atoms).source].reshape(-1, 12)
    assert supercell.numbers[neighbors_of(supercell).source].tolist() == np.tile(elements, (6, 1)).ravel().tolist()


def test_an_atom_can_have_fewer_neighbours() -> None:
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [2.5, 0, 0]], cell=[20, 20, 20], pbc=True)
    found = neighbors_of(atoms)
    assert (found.source.tolist(), found.distance.tolist(), found.degree.tolist()) == ([1, 0], [2.5, 2.5], [1, 1])


def test_compat_pads_as_the_original_code_does() -> None:
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [2.5, 0, 0]], cell=[20, 20, 20], pbc=True)
    found = neighbors_of(atoms, compat=True, num_neighbors=4)
    assert found.source.tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert found.distance.tolist() == [2.5, 9.0, 9.0, 9.0, 2.5, 9.0, 9.0, 9.0]
    assert found.degree.tolist() == [4, 4]
    alone = neighbors_of(atoms[:1], compat=True)
    assert (alone.source.tolist(), alone.distance.tolist()) == ([0] * 12, [9.0] * 12)
    crowded = random_crystal(0, 5)
    for padded, plain in zip(neighbors_of(crowded, compat=True), neighbors_of(crowded), strict=True):
        assert padded.tolist() == plain.tolist()


# --- batches


def in_memory(structures: list[Atoms], **changes: Any) -> Catalogue:
    """A catalogue whose keys are the structures themselves."""
    names = [f"c{number}" for number in range(len(structures))]
    catalogue = Catalogue(
        "memory", Atoms.copy, structures, names, [f"row {name}" for name in names], ["gap"], "content"
    )
    return replace(catalogue, **changes)


@pytest.fixture(scope="module")
def split() -> GraphSplit:
    isolated_pair = Atoms("Cu2", positions=[[0, 0, 0], [2.5, 0, 0]], cell=[20, 20, 20], pbc=True, info={"gap": 7.0})
    return load_graphs(in_memory([*crystals(10), isolated_pair, *random_labelled(6)]), GraphSettings(), None)[0]


def random_labelled(count: int) -> list[Atoms]:
    made = [random_crystal(seed, 1 + seed) for seed in range(100, 100 + count)]
    for atoms in made:
        atoms.numbers[:], atoms.info["gap"] = 29, len(atoms)
    return [atoms for atoms in made if (atoms.get_all_distances(mic=True) + 9 * np.eye(len(atoms))).min() > 0.5]


def test_a_batch_is_what_pytorch_geometric_collates(split: GraphSplit) -> None:
    index = torch.tensor([10, 3, 3, 0, 7, len(split) - 1])
    batch = split[index]
    graphs = []
    for position in index.tolist():
        x = split[torch.tensor([position])].x
        assert isinstance(x, dict)
        graphs.append(Data(z=x["z"], edge_index=x["edge_index"], distance=x["distance"], num_nodes=len(x["z"])))
    expected = PyGBatch.from_data_list(graphs)
    assert isinstance(batch.x, dict)
    for name in ("z", "edge_index", "distance"):
        torch.testing.assert_close(batch.x[name], expected[name], rtol=0, atol=0)
    assert batch.x["num_nodes"].tolist() == expected.batch.bincount().tolist()
    assert {name: part.dtype for name, part in batch.x.items()} == {
        "z": torch.int64, "edge_index": torch.int64, "distance": torch.float32, "num_nodes": torch.int64
    }  # fmt: skip
    assert torch.equal(batch.y, split.y[index]) and torch.equal(batch.index, index)


def test_one_crystal_is_as_it_was_read(split: GraphSplit) -> None:
    atoms = crystals(10)[4]
    found = neighbors_of(atoms)
    x = split[torch.tensor([4])].x
    assert isinstance(x, dict)
    assert x["z"].tolist() == atoms.numbers.tolist()
    target = np.repeat(np.arange(len(atoms)), 12)
    assert x["edge_index"].tolist() == [found.source.tolist(), target.tolist()]  # from the neighbour to the atom
    assert x["distance"].tolist() == found.distance.astype(np.float32).tolist()


def test_a_batch_can_be_empty(split: GraphSplit) -> None:
    batch = split[torch.empty(0, dtype=torch.int64)]
    assert isinstance(batch.x, dict)
    assert {name: list(part.shape) for name, part in batch.x.items()} == {
        "z": [0], "edge_index": [2, 0], "distance": [0], "num_nodes": [0]
    }  # fmt: skip
    assert len(batch) == 0


def test_a_selection_gathers_as_the_whole_does(split: GraphSplit) -> None:
    positions = torch.tensor([2, 10, 5])
    part, whole = split.select(positions)[torch.tensor([1, 2])], split[positions[[1, 2]]]
    assert isinstance(part.x, dict) and isinstance(whole.x, dict)
    assert all(torch.equal(part.x[name], whole.x[name]) for name in whole.x)
    assert split.select(positions).names == ["c2", "c10", "c5"]


# --- the cache


def test_graphs_are_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = in_memory(crystals(6))
    split, arrays = load_graphs(catalogue, GraphSettings(), tmp_path / "new" / "graphs")
    monkeypatch.setattr(graphs_module, "build_arrays", lambda *_: pytest.fail("built again"))
    again, arrays_again = load_graphs(catalogue, GraphSettings(), tmp_path / "new" / "graphs")
    assert {name: array.tolist() for name, array in arrays.items()} == {
        name: array.tolist() for name, array in arrays_again.items()
    }
    assert torch.equal(split[torch.arange(6)].y, again[torch.arange(6)].y)
    assert sorted(path.suffix for path in (tmp_path / "new" / "graphs").iterdir()) == [".lock", ".npz"]


def test_the_key_depends_on_everything_that_matters() -> None:
    catalogue = in_memory([])
    keys = {
        catalogue.key(GraphSettings()),
        catalogue.key(GraphSettings(cutoff=7.0)),
        catalogue.key(GraphSettings(num_neighbors=11)),
        catalogue.key(GraphSettings(compat=True)),
        replace(catalogue, content="other").key(GraphSettings()),
        replace(catalogue, targets=["volume"]).key(GraphSettings()),
    }
    assert len(keys) == 6
    assert replace(catalogue, what="moved").key(GraphSettings()) in keys


@pytest.mark.parametrize("damage", [lambda raw: raw[:-30], lambda raw: b"", lambda raw: raw.replace(b"\x01", b"\x02")])
def test_a_damaged_file_is_built_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path, arrays = tmp_path / "graphs.npz", {"a": np.ones(1000, np.int64)}
    cached(path, lambda: arrays)
    path.write_bytes(damage(path.read_bytes()))
    assert cached(path, lambda: {"a": np.zeros(3)})["a"].tolist() == [0, 0, 0]
    assert cached(path, lambda: pytest.fail("built again"))["a"].tolist() == [0, 0, 0]


def test_a_pickle_in_its_place_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "graphs.npz"
    np.savez(path, a=np.array([Bomb()], dtype=object))
    assert cached(path, lambda: {"a": np.zeros(2)})["a"].tolist() == [0, 0]


class Bomb:
    """Would end the process when it is unpickled."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_the_bomb_is_one() -> None:
    assert b"_exit" in pickle.dumps(Bomb())


def slow_build(count: Path) -> dict[str, np.ndarray]:
    with open(count, "a") as file:
        file.write("built\n")
    time.sleep(0.5)
    return {"a": np.arange(5)}


def take(path: Path, count: Path) -> None:
    assert cached(path, partial(slow_build, count))["a"].tolist() == [0, 1, 2, 3, 4]


def test_of_two_processes_one_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=take, args=(tmp_path / "graphs.npz", tmp_path / "count")) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "count").read_text() == "built\n"


def test_a_build_that_was_killed_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "graphs.npz"

    def die(descriptor: int) -> None:
        raise KeyboardInterrupt  # half-way: the bytes are there, the name is not

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        with pytest.raises(KeyboardInterrupt):
            cached(path, lambda: {"a": np.arange(3)})
    assert not path.exists()
    assert cached(path, lambda: {"a": np.arange(4)})["a"].tolist() == [0, 1, 2, 3]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["graphs.lock", "graphs.npz"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        cached(tmp_path / "file" / "graphs.npz", lambda: {})
    assert str(caught.value).startswith(f"the graphs cannot be kept in {tmp_path}/file: ")
    assert str(caught.value).endswith("; data.cache_dir names another")


# --- worker processes


def test_parallel_is_serial(monkeypatch: pytest.MonkeyPatch) -> None:
    twins = crystals(70)
    twins[5].info["gap"] = "wide"
    serial = build_arrays(in_memory(twins), GraphSettings())
    monkeypatch.setattr(graphs_module, "SERIAL", 0)
    parallel = build_arrays(in_memory(twins), GraphSettings())
    assert serial.keys() == parallel.keys()
    for name, array in serial.items():
        assert array.dtype == parallel[name].dtype and array.tolist() == parallel[name].tolist(), name
    assert parallel["reasons"].tolist() == ["row c5: gap is 'wide', not a finite number"]


def test_workers_do_not_import_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "SERIAL", 0)
    heavy = in_memory([], reader=imported, keys=[["numpy", "torch", "lightning", "hydra"]] * 2)
    heavy = replace(heavy, names=["a", "b"], places=["row 1", "row 2"])
    assert build_arrays(heavy, GraphSettings())["reasons"].tolist() == ["row 1: numpy", "row 2: numpy"]


UNGUARDED = """
import torch
from functools import partial
from src.data.graphs import _parallel
from src.structures.neighbors import GraphSettings
from src.structures.reading import read_crystals
from tests.fake_crystals import imported

print("script", flush=True)
print(*_parallel(partial(read_crystals, imported, (), GraphSettings()), [[["numpy", "torch"]]] * 3))
"""


def test_workers_do_not_import_the_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=True, env=environment
    )
    assert (done.stdout, done.stderr) == ("script\n['numpy'] ['numpy'] ['numpy']\n", "")


SLOW_PARENT = """
import time

from src.data import graphs

for part in graphs._parallel(time.sleep, [0.01, 600, 600]):
    print("part", flush=True)
"""


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(SLOW_PARENT)
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert parent.stdout is not None
    while parent.stdout.readline() != "part\n":
        pass
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert workers
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert psutil.wait_procs(workers, timeout=60)[1] == []
