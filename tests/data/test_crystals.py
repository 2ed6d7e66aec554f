"""Crystals: readers, what is said of bad input, splits, facts, and the alloys that are made on the machine."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import ConfigError
from src.data import graphs as graphs_module
from src.data.base import Inputs
from src.data.crystals import CrystalDataModule, CrystalsDataModule, EMTAlloysDataModule
from src.data.graphs import build_arrays
from src.data.mnist import MNISTDataModule
from src.data.split import group_split
from src.structures.emt import PURE, emt_alloy, formation_energy
from tests.conftest import refusal_of
from tests.fake_crystals import crystals, write_cgcnn_folder

COMMON = {"batch_size": 4, "val_size": 0.25, "test_size": 0.25, "split": "random", "split_seed": 0, "seed": 0}


def crystals_of(root: Path, **changes: Any) -> CrystalsDataModule:
    datamodule = CrystalsDataModule(str(root), **{**COMMON, **changes})
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def read_inputs(path: Path, **changes: Any) -> Inputs:
    return CrystalsDataModule("nowhere", **{**COMMON, **changes}).read_inputs(path)


def alloys(root: Path, count: int = 40, **changes: Any) -> EMTAlloysDataModule:
    datamodule = EMTAlloysDataModule(str(root), count, **{"dataset_seed": 0, **COMMON, **changes})
    datamodule.setup()
    return datamodule


def refusal(root: Path, **changes: Any) -> str:
    return refusal_of(crystals_of, root, **changes)


def targets_by_name(datamodule: CrystalDataModule) -> dict[str, list[float]]:
    every = datamodule.splits.values()
    return {name: y for split in every for name, y in zip(split.names, split.y.tolist(), strict=True)}


def write_xyz(path: Path, structures: list[Atoms]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ase.io.write(path, structures, format="extxyz")
    return path


def write_db(path: Path, structures: list[Atoms]) -> Path:
    with ase.db.connect(path) as database:
        for atoms in structures:
            database.write(atoms, **{name: float(value) for name, value in atoms.info.items()})
    return path


# --- readers


def test_cgcnn_folder(tmp_path: Path) -> None:
    structures = crystals(12)
    data = crystals_of(write_cgcnn_folder(tmp_path, structures), units=["eV"])
    assert targets_by_name(data) == {
        f"c{number}": [pytest.approx(atoms.info["gap"])] for number, atoms in enumerate(structures)
    }
    train = data.splits["train"]
    assert data.facts.pop("target_mean") == pytest.approx([float(train.y.double().mean())], abs=1e-12)
    assert data.facts.pop("target_std") == pytest.approx([float(train.y.double().std(correction=0))], abs=1e-12)
    assert len(data.facts.pop("fingerprint")) == 64
    assert data.facts == {
        "name": "crystals",
        "task": "regression",
        "target_names": ["target"],
        "target_units": ["eV"],
        "num_samples": {"train": 6, "val": 3, "test": 3},
        "max_z": 100,
        "cutoff": 8.0,
        "num_neighbors": 12,
        "compat": False,
        "batch_size": 4,
        "split": "random",
        "split_seed": 0,
        "card": f"Crystals of {tmp_path}; their labels are as given there.",
    }
    number = int(train.names[0][1:])
    assert train.z_N[: len(structures[number])].tolist() == structures[number].numbers.tolist()


def test_loaders_serve_whole_batches(tmp_path: Path) -> None:
    data = crystals_of(write_cgcnn_folder(tmp_path, crystals(12)), batch_size=2)
    batches = list(data.train_dataloader())
    assert [len(batch) for batch in batches] == [2, 2, 2]
    assert sorted(torch.cat([batch.index for batch in batches]).tolist()) == list(range(6))
    assert [len(batch) for batch in data.test_dataloader()] == [2, 1]
    assert all(int(batch.x["num_nodes"].sum()) == len(batch.x["z"]) for batch in batches)


def test_a_header_names_the_targets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = ["id,gap,remark,bulk", *(f"c{number},0.{number},new,{number}" for number in range(6))]
    folder = write_cgcnn_folder(tmp_path, crystals(6), rows)
    data = crystals_of(folder, targets=["bulk", "gap"])
    assert targets_by_name(data)["c3"] == pytest.approx([3, 0.3])
    assert data.facts["target_names"] == ["bulk", "gap"]
    assert f"{folder}/id_prop.csv: row 1 is taken as a header" in caplog.text
    assert refusal(folder, targets=["gaps"]) == (
        f"data.targets: {folder}/id_prop.csv has no column gaps; did you mean gap?"
    )
    assert "    c0: row 2: remark is 'new', not a finite number\n" in refusal(folder)


def test_names_of_targets_that_are_no_names(tmp_path: Path) -> None:
    rows = ["id,gap,gap", *(f"c{number},{number},0" for number in range(6))]
    folder = write_cgcnn_folder(tmp_path, crystals(6), rows)
    assert refusal(folder) == f"{folder}/id_prop.csv: two columns have the same name: gap, gap"
    for targets in ([], ["gap", "gap"]):
        assert refusal(folder, targets=targets) == f"data.targets={targets}: name at least one, and each once"


def test_a_file_of_two_crystals_and_a_hidden_one(tmp_path: Path) -> None:
    folder = write_cgcnn_folder(tmp_path, crystals(2))
    text = (folder / "c0.cif").read_text() + (folder / "c1.cif").read_text()
    (folder / "both.cif").write_text(text.replace("data_", "data_x", 1))
    (folder / "._c0.cif").write_text("")
    inputs = read_inputs(folder / "*.cif")
    assert list(inputs.names) == ["both", "c0", "c1"]
    assert inputs.problems == {0: "both.cif: it describes 2 crystals"}


def test_blank_lines_spaces_and_a_byte_order_mark_mean_nothing(tmp_path: Path) -> None:
    rows = ["\ufeffc0 , 1", "", "c1,2", " , ", 'c2,"3"', "", "c3,4"]
    data = crystals_of(write_cgcnn_folder(tmp_path, crystals(4), rows))
    assert targets_by_name(data) == {"c0": [1.0], "c1": [2.0], "c2": [3.0], "c3": [4.0]}


def test_of_several_targets_some_may_be_missing(tmp_path: Path) -> None:
    rows = ["c0,1,", "c1,,2", "c2,3,nan", "c3,5,6", "c4,7,8", "c5,9,10"]
    data = crystals_of(write_cgcnn_folder(tmp_path, crystals(6), rows), split_seed=1)
    there = targets_by_name(data)
    np.testing.assert_equal(there["c0"] + there["c1"] + there["c2"], [1, np.nan, np.nan, 2, 3, np.nan])
    train = data.splits["train"].y.double().numpy()
    assert data.facts["target_names"] == ["target_1", "target_2"]
    assert data.facts["target_mean"] == pytest.approx(np.nanmean(train, 0).tolist())
    assert data.facts["target_std"] == pytest.approx(np.nanstd(train, 0).tolist())
    assert data.splits["train"][torch.arange(2)].y.shape == (2, 2)


def test_extended_xyz(tmp_path: Path) -> None:
    structures = crystals(8)
    for number, atoms in enumerate(structures):
        atoms.calc = SinglePointCalculator(atoms, energy=-float(number))
    path = write_xyz(tmp_path / "my set" / "all.extxyz", structures)
    for root in (path, path.parent):
        data = crystals_of(root, targets=["energy", "gap"])
        assert data.folder == path.parent
        assert targets_by_name(data) == {
            str(n): [-n, pytest.approx(atoms.info["gap"])] for n, atoms in enumerate(structures)
        }
    assert refusal(path) == f"data.targets must say what of {path} is to be learnt; there are energy, gap"
    structures[0].info |= {"label": 1, "remark": "new"}
    write_xyz(path, structures)
    assert refusal(path).endswith("is to be learnt; there are energy, gap, label")


def test_ase_database(tmp_path: Path) -> None:
    structures = crystals(8)
    structures[0].calc = SinglePointCalculator(structures[0], energy=-3.0)
    path = write_db(tmp_path / "all.db", structures)
    data = crystals_of(path, targets=["gap"])
    assert targets_by_name(data) == {
        str(n): [pytest.approx(atoms.info["gap"])] for n, atoms in enumerate(structures, 1)
    }
    assert refusal(tmp_path) == f"data.targets must say what of {path} is to be learnt; there are energy, gap"


def test_all_readers_give_the_same_graphs(tmp_path: Path) -> None:
    structures = crystals(12)
    for atoms in structures:  # as many digits as a CIF has
        atoms.set_scaled_positions(atoms.get_scaled_positions().round(4))
    sets = [
        crystals_of(write_cgcnn_folder(tmp_path / "folder", structures)),
        crystals_of(write_xyz(tmp_path / "all.xyz", structures), targets=["gap"]),
        crystals_of(write_db(tmp_path / "all.db", structures), targets=["gap"]),
    ]
    for split in ("train", "val", "test"):
        first, *others = (data.splits[split] for data in sets)
        for other in others:
            torch.testing.assert_close(first.y, other.y)
            torch.testing.assert_close(first.source_E, other.source_E)
            torch.testing.assert_close(first.distance_E, other.distance_E, rtol=0, atol=1e-4)


def test_what_is_no_data_set(tmp_path: Path) -> None:
    layouts = "it must be a folder with id_prop.csv and CIF files, or one file *.extxyz, *.xyz or *.db"
    assert refusal(tmp_path / "no") == f"crystals in {tmp_path}/no: no such file or folder; {layouts}"
    assert refusal(tmp_path) == f"crystals in {tmp_path}: none; {layouts}"
    write_xyz(tmp_path / "a.xyz", crystals(1))
    write_xyz(tmp_path / "b.extxyz", crystals(1))
    assert refusal(tmp_path) == f"crystals in {tmp_path}: several; {layouts}"
    (tmp_path / "a.db").write_text("not a database")
    assert refusal(tmp_path / "a.db").startswith(f"{tmp_path}/a.db is no database of ASE: ")
    (tmp_path / "a.xyz").write_text("2\n\nCu 0 0 0\nCu 1 1 1\nCu 2 2 2\n")
    assert refusal(tmp_path / "a.xyz").startswith(f"{tmp_path}/a.xyz: line 5 is not the number of atoms of a frame: ")
    (tmp_path / "a.xyz").write_text("\n")
    assert refusal(tmp_path / "a.xyz") == f"{tmp_path}/a.xyz has no crystals"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "id_prop.csv").write_text("\n\n")
    assert refusal(tmp_path / "folder") == f"{tmp_path}/folder/id_prop.csv has no rows"
    (tmp_path / "folder" / "id_prop.csv").write_bytes(b"\xff\xfe,1")
    assert refusal(tmp_path / "folder").startswith(f"{tmp_path}/folder/id_prop.csv cannot be read: ")


@pytest.mark.parametrize("first", ['"c0,0.0', 'c0,"0.0'])
def test_a_quote_that_is_not_closed(tmp_path: Path, first: str) -> None:
    rows = [first, *(f"c{number},0.{number}" for number in range(1, 99))]  # all one row, and a cell of it a long name
    assert "1 of 1 crystals cannot be used" in refusal(write_cgcnn_folder(tmp_path, crystals(2), rows))
    message = refusal(write_cgcnn_folder(tmp_path, crystals(2), [first, "x" * 200_000]))
    assert message == f"{tmp_path}/id_prop.csv cannot be read: field larger than field limit (131072)"


def test_inputs_for_a_prediction(tmp_path: Path) -> None:
    structures = crystals(4)
    write_cgcnn_folder(tmp_path / "cifs", structures, rows=["anything"])
    inputs = read_inputs(tmp_path / "cifs")
    assert inputs.names == ["c0", "c1", "c2", "c3"] and inputs.split.y.shape == (4, 0) and not inputs.problems
    one = read_inputs(tmp_path / "cifs" / "c2.cif", num_neighbors=3)
    assert one.names == ["c2"] and len(one.split.distance_E) == 3 * len(structures[2])
    assert read_inputs(write_xyz(tmp_path / "all.xyz", structures)).names == ["0", "1", "2", "3"]
    for name in ("b", "c10", "d"):
        (tmp_path / "cifs" / f"{name}.cif").write_text("")
    bad = read_inputs(tmp_path / "cifs")
    assert bad.names == ["b", "c0", "c1", "c10", "c2", "c3", "d"] and bad.split.names == ["c0", "c1", "c2", "c3"]
    assert bad.problems == {
        0: "b.cif: it is no CIF: no line begins with data_",
        3: "c10.cif: it is no CIF: no line begins with data_",
        6: "d.cif: it is no CIF: no line begins with data_",
    }
    assert not list(tmp_path.rglob("graphs*"))


# --- bad input

CIF = """data_x
_cell_length_a 3.9
_cell_length_b 3.9
_cell_length_c 3.9
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'P 1'
loop_
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Cu 0 0 0 1.0
Au 0.5 0.5 0.5 1.0
"""

BAD_CIFS = {
    "": "it is no CIF: no line begins with data_",
    "some text": "it is no CIF: no line begins with data_",
    CIF.replace("Cu 0", "Zz 0"): "it cannot be read (KeyError: 'Zz')",
    CIF.replace("_a 3.9", "_a x"): "it cannot be read (ValueError: could not convert string to float: 'x')",
    CIF.replace("_cell_length_a 3.9\n", ""): "it has no cell",
    CIF.replace("_a 3.9", "_a 0"): "its cell has a length of 0",
    CIF.replace("_c 3.9", "_c 0.000(2)"): "its cell has a length of 0",
    CIF.replace("_gamma 90", "_gamma 0.001"): "its cell has a volume of 0.00104 cubic angstrom",
    CIF.replace("_a 3.9", "_a 0.05"): "its cell has a side of 0.05 angstrom",
    CIF.replace("_gamma 90", "_gamma 0.1").replace(
        "_c 3.9", "_c 900"
    ): "its cell is nearly flat: 0.00681 angstrom high",
    CIF.replace("_b 3.9", "_b 1000000"): "its cell has a side of 1e+06 angstrom",
    CIF.replace("0.5 0.5 0.5", "0.01 0 0"): "atoms 0 and 1 overlap: they are 0.039 angstrom apart",
    CIF.replace("3.9", "40"): "atom 0 has no neighbour within 8 angstrom",
    CIF.replace("Au", "Lr"): "atom 1 is Lr, element 103: the table has 1 to 100",
    CIF.replace("0.5 0.5 0.5 1.0", "0 0 0 0.5").replace("0 0 0 1.0", "0 0 0 0.5"): (
        "site 0 is disordered: Cu 0.5, Au 0.5"
    ),
    CIF.replace("0.5 1.0", "0.5 0.75"): "site 1 is disordered: Au 0.75",
}


@pytest.mark.parametrize("cif", BAD_CIFS)
def test_bad_cif(tmp_path: Path, cif: str) -> None:
    folder = write_cgcnn_folder(tmp_path, crystals(4))
    (folder / "c2.cif").write_text(cif)
    assert refusal(folder) == (
        f"{folder}: 1 of 4 crystals cannot be used\n"
        f"    c2: row 3: {BAD_CIFS[cif]}\n"
        "    data.on_bad=skip leaves them out"
    )


def test_the_good_cif_is_good(tmp_path: Path) -> None:
    (tmp_path / "x.cif").write_text(CIF)
    assert read_inputs(tmp_path).split.z_N.tolist() == [29, 79]


BAD_ROWS = {
    "c2": "it has 1 columns, not 2 (id, target)",
    "c2,1,2": "it has 3 columns, not 2 (id, target)",
    "c2,": "target is missing (empty or nan)",
    "c2,nan": "target is missing (empty or nan)",
    "c2,inf": "target is 'inf', not a finite number",
    "c2,1e999": "target is '1e999', not a finite number",
    "c2,wide": "target is 'wide', not a finite number",
    "c9,1": "there is no file c9.cif",
    "c1,1": "the id stands in row 2 already",
    "../c2,1": "its id is no file name",
    ",1": "its id is no file name",
}


@pytest.mark.parametrize("row", BAD_ROWS)
def test_bad_row(tmp_path: Path, row: str) -> None:
    folder = write_cgcnn_folder(tmp_path, crystals(4), ["c0,0.1", "c1,0.2", row, "c3,0.4"])
    assert refusal(folder) == (
        f"{folder}: 1 of 4 crystals cannot be used\n"
        f"    {row.partition(',')[0]}: row 3: {BAD_ROWS[row]}\n"
        "    data.on_bad=skip leaves them out"
    )


def edited(**changes: Any) -> Callable[[Atoms], None]:
    def edit(atoms: Atoms) -> None:
        for name, value in changes.items():
            setattr(atoms, name, value)

    return edit


BAD_FRAMES = {
    "it has no cell": edited(cell=np.zeros((3, 3)), pbc=False),
    "it is not periodic along all three vectors": edited(pbc=(True, True, False)),
    "its cell has a volume of 0 cubic angstrom": edited(cell=[[3, 0, 0], [6, 0, 0], [0, 0, 3]]),
    "a coordinate is not a finite number": edited(positions=[[np.nan] * 3, [0, 0, 1]]),
    "atom 0 is X, element 0: the table has 1 to 100": edited(numbers=[0, 11]),
    "gap is missing (empty or nan)": edited(info={}),
    "gap is 'x', not a finite number": edited(info={"gap": "x"}),
    "gap is array([1, 2]), not a finite number": edited(info={"gap": np.array([1, 2])}),
}


@pytest.mark.parametrize("reason", BAD_FRAMES)
def test_bad_frame(tmp_path: Path, reason: str) -> None:
    structures = [bulk("NaCl", "rocksalt", a=5.6 + number / 10) for number in range(4)]
    for number, atoms in enumerate(structures):
        atoms.info["gap"] = number / 10
    BAD_FRAMES[reason](structures[1])
    path = write_xyz(tmp_path / "all.xyz", structures)
    assert refusal(path, targets=["gap"]).splitlines()[1] == f"    1: frame 1: {reason}"


def test_a_truncated_file_has_a_bad_frame(tmp_path: Path) -> None:
    path = write_xyz(tmp_path / "all.xyz", crystals(4))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert "3: frame 3: it cannot be read (XYZError: " in refusal(path, targets=["gap"])


def test_crystals_that_are_there_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    structures = crystals(6)
    structures[4] = structures[1].copy()
    folder = write_cgcnn_folder(tmp_path / "equal", structures, [f"c{n},{n % 3 / 2}" for n in range(6)])
    for seed in range(8):
        data = crystals_of(folder, split_seed=seed, val_size=1, test_size=2)
        assert sum({"c1", "c4"} <= set(split.names) for split in data.splits.values()) == 1  # never in two parts
    assert f"{folder}: there already under another name, with the same target: 1 (c4)" in caplog.text
    folder = write_cgcnn_folder(tmp_path / "other", structures, [f"c{n},{n}" for n in range(6)])
    assert refusal(folder).splitlines()[1] == (
        "    c4: row 5: it is the same structure as c1, with other targets: [4.0], not [1.0]"
    )


def test_bad_crystals_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"c{number},{number}" for number in range(30)]
    folder = write_cgcnn_folder(tmp_path, crystals(16), rows)
    (folder / "c3.cif").write_text("")
    message = refusal(folder).splitlines()
    assert message[0] == f"{folder}: 15 of 30 crystals cannot be used"
    assert message[1:3] == [
        "    c3: row 4: it is no CIF: no line begins with data_",
        "    c16: row 17: there is no file c16.cif",
    ]
    assert message[10:] == [
        "    c24: row 25: there is no file c24.cif",
        "    and 5 more",
        "    data.on_bad=skip leaves them out",
    ]
    caplog.clear()
    data = crystals_of(folder, on_bad="skip")
    assert sorted(targets_by_name(data)) == sorted(f"c{number}" for number in range(16) if number != 3)
    assert data.bad_files[:2] == [
        ("c3", "row 4: it is no CIF: no line begins with data_"),
        ("c16", "row 17: there is no file c16.cif"),
    ]
    assert len(data.bad_files) == 15
    assert "15 of 30 crystals cannot be used" in caplog.text
    assert "to read" not in caplog.text  # what was found out is kept


def test_nothing_is_left(tmp_path: Path) -> None:
    folder = write_cgcnn_folder(tmp_path, [], ["a,1", "b,2"])
    assert refusal(folder, on_bad="skip") == f"{folder}: no crystal is left"


def test_a_change_of_a_file_is_seen(tmp_path: Path) -> None:
    structures = crystals(8)
    folder = write_cgcnn_folder(tmp_path, structures)
    first = crystals_of(folder).facts["fingerprint"]
    assert crystals_of(folder, seed=3).facts["fingerprint"] == first
    assert crystals_of(folder, split_seed=1).facts["fingerprint"] != first
    structures[2].set_cell(structures[2].cell * 1.01, scale_atoms=True)
    structures[2].write(folder / "c2.cif", format="cif")
    assert crystals_of(folder).facts["fingerprint"] != first


def test_the_graphs_can_be_kept_elsewhere(tmp_path: Path) -> None:
    folder = write_cgcnn_folder(tmp_path / "data", crystals(8))
    crystals_of(folder, cache_dir=str(tmp_path / "cache"))
    assert not (folder / "graphs").exists() and len(list((tmp_path / "cache").glob("graphs-*.npz"))) == 1


def test_compat_accepts_what_the_original_accepts(tmp_path: Path) -> None:
    folder = write_cgcnn_folder(tmp_path, crystals(4))
    (folder / "c2.cif").write_text(CIF.replace("3.9", "40"))
    data = crystals_of(folder, compat=True)
    (split,) = (split for split in data.splits.values() if "c2" in split.names)
    batch = split[torch.tensor([split.names.index("c2")])]
    assert isinstance(batch.x, dict)
    assert batch.x["distance"].tolist() == [9.0] * 24
    assert batch.x["edge_index"].tolist() == [[0] * 24, [0] * 12 + [1] * 12]


# --- facts


def test_classes(tmp_path: Path) -> None:
    rows = [f"c{number},{number % 3}" for number in range(12)]
    folder = write_cgcnn_folder(tmp_path, crystals(12), rows)
    data = crystals_of(folder, task="classification")
    batch = data.splits["train"][torch.arange(4)]
    assert batch.y.dtype == torch.int64 and batch.y.shape == (4,)
    names = data.splits["train"].names[:4]
    assert batch.y.tolist() == [int(name[1:]) % 3 for name in names]
    assert (data.facts["task"], data.facts["num_classes"]) == ("classification", 3)
    assert data.facts["class_names"] == ["0", "1", "2"] and "target_mean" not in data.facts
    assert np.sum(list(data.facts["class_counts"].values()), 0).tolist() == [4, 4, 4]
    write_cgcnn_folder(folder, crystals(12), ["c0,0.5", *rows[1:]])
    assert refusal(folder, task="classification") == (
        "data.task=classification: the class of c0 is 0.5, not one of 0, 1, 2, ..."
    )
    write_cgcnn_folder(folder, crystals(12), [f"{row},1" for row in rows])
    assert refusal(folder, task="classification") == (
        "data.task=classification needs one target; data.targets chooses it"
    )


def test_vectors_of_the_elements(tmp_path: Path) -> None:
    folder = write_cgcnn_folder(tmp_path, crystals(8))
    assert "atom_features" not in crystals_of(folder).facts
    vectors = crystals_of(folder, atom_features=True).facts["atom_features"]
    assert len(vectors) == 101 and vectors[0] == [0.0, 0.0] and vectors[17] == [1.0, 1.0]
    path = folder / "atom_init.json"
    path.write_text(json.dumps({"11": [1], "17": [2], "12": [0], "8": [1], "14": [3]}))
    assert refusal(folder, atom_features=True) == f"{path} has no vector for Ge"
    path.write_text(json.dumps({"11": [1], "17": [2, 3]}))
    assert refusal(folder, atom_features=True).startswith(f"{path} must hold a vector for each element, all of one")
    path.unlink()
    assert refusal(folder, atom_features=True) == (
        f"data.atom_features: {path} cannot be read: No such file or directory"
    )


def test_targets_that_cannot_be_standardised(tmp_path: Path) -> None:
    folder = write_cgcnn_folder(tmp_path, crystals(8), [f"c{number},0.1" for number in range(8)])
    assert refusal(folder) == "crystals: the values of target in the training part are all equal"
    write_cgcnn_folder(folder, crystals(8), [f"c{number},{number}," for number in range(8)])
    assert refusal(folder) == "crystals: the values of target_2 in the training part are all missing"
    assert refusal(folder, targets=["a", "b"], units=["eV"]) == "data.units=['eV']: one for each target is needed: a, b"


def test_a_model_is_not_used_on_other_graphs_or_targets(tmp_path: Path) -> None:
    folder = write_cgcnn_folder(tmp_path, crystals(8))
    data = crystals_of(folder)
    data.adopt({**data.facts, "target_mean": [7.0]})
    with pytest.raises(ConfigError) as caught:
        data.adopt({**data.facts, "name": "emt_alloys", "cutoff": 6.0})
    assert str(caught.value) == (
        "data: the model was trained on emt_alloys, this is crystals\n"
        "    cutoff of the model: 6.0\n    cutoff of the data: 8.0"
    )
    with pytest.raises(ConfigError, match="target_names of the model: None"):
        data.adopt({"name": "mnist"})


# --- splits


@given(st.lists(st.sampled_from("abcdefghijkl"), min_size=1, max_size=60), st.integers(0, 9), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_groups_stay_together(groups: list[str], seed: int, size: int) -> None:
    parts = group_split(groups, [size, size // 2], seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(groups)))
    members = [{groups[position] for position in part} for part in parts]
    assert not (members[0] & members[1] or members[0] & members[2] or members[1] & members[2])
    assert len(parts[1]) <= size and len(parts[2]) <= size // 2
    assert [part.tolist() for part in parts] == [p.tolist() for p in group_split(groups, [size, size // 2], seed)]


def test_groups_of_one_fill_every_part_and_their_names_decide_nothing() -> None:
    train, test, val = group_split([f"{number}" for number in range(100)], [20, 10], seed=3)
    assert (len(train), len(test), len(val)) == (70, 20, 10)
    renamed = group_split([f"{-number:04}" for number in range(100)], [20, 10], seed=3)
    assert [part.tolist() for part in renamed] == [train.tolist(), test.tolist(), val.tolist()]
    assert group_split([f"{number}" for number in range(100)], [20, 10], seed=4)[1].tolist() != test.tolist()


def test_no_formula_is_on_both_sides(tmp_path: Path) -> None:
    def formulas(data: CrystalDataModule) -> dict[str, set[str]]:
        alloy = {str(index): emt_alloy(0, index) for index in range(120)}
        return {
            part: {alloy[name].symbols.formula.reduce()[0].format("hill") for name in split.names}
            for part, split in data.splits.items()
        }

    held_out = formulas(alloys(tmp_path, 120, split="composition"))
    assert not (held_out["train"] & (held_out["val"] | held_out["test"]) or held_out["val"] & held_out["test"])
    assert all(held_out.values())
    drawn = formulas(alloys(tmp_path, 120))
    assert drawn["train"] & drawn["test"]


def test_given_parts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_cgcnn_folder(tmp_path, crystals(8))
    (folder / "train.txt").write_text("c4\n\n c1 \nc2\nc0\r\n")
    (folder / "val.txt").write_text("c5\nc6")
    assert refusal(folder, split="files").startswith(f"data.split=files: {folder}/test.txt cannot be read: ")
    (folder / "test.txt").write_text("c3\n")
    data = crystals_of(folder, split="files")
    assert {part: split.names for part, split in data.splits.items()} == {
        "train": ["c0", "c1", "c2", "c4"], "val": ["c5", "c6"], "test": ["c3"]
    }  # fmt: skip
    assert f"{folder}: in none of train.txt, val.txt and test.txt: 1 of 8 crystals" in caplog.text
    caplog.clear()
    (folder / "test.txt").write_text("c3\nc7\n")
    crystals_of(folder, split="files")
    assert "in none of" not in caplog.text
    (folder / "test.txt").write_text("c3\nc8\n")
    assert refusal(folder, split="files") == f"{folder}/test.txt: there is no crystal 'c8'"
    (folder / "test.txt").write_text("c3\nc5\n")
    assert refusal(folder, split="files") == f"{folder}/test.txt: 'c5' is in val.txt too"
    (folder / "test.txt").write_text("")
    assert refusal(folder, split="files") == "data.split=files: no crystals for the part test"


@pytest.mark.parametrize("size", [0.01, 1.5, 0.0, -1])
def test_sizes_that_make_no_sense(tmp_path: Path, size: float) -> None:
    folder = write_cgcnn_folder(tmp_path, crystals(8))
    assert refusal(folder, val_size=size) == (
        f"data.val_size={size}: must be a number of crystals, or below 1 a share of the 8 that is one at least"
    )


def test_sizes_that_leave_nothing(tmp_path: Path) -> None:
    folder = write_cgcnn_folder(tmp_path, crystals(8))
    for size in (6, 8, 9):
        assert refusal(folder, val_size=size) == "data.split=random: no crystals for the part train"


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert EMTAlloysDataModule("~/sets", 4, **{"dataset_seed": 0, **COMMON}).folder == tmp_path / "sets/emt_alloys"
    assert MNISTDataModule("~/sets", batch_size=12, val_size=30, split_seed=0, seed=3).root == tmp_path / "sets"


# --- alloys


def test_alloys_are_what_they_were() -> None:
    first = emt_alloy(0, 7)
    assert first.get_chemical_formula() == FORMULA
    np.testing.assert_allclose(first.cell.lengths(), LENGTHS, rtol=1e-9)
    np.testing.assert_allclose(first.positions[-1], LAST, rtol=1e-9)
    assert first.info["formation_energy"] == pytest.approx(ENERGY, abs=1e-9)


FORMULA, ENERGY = "Al4", 0.036671890901
LENGTHS = [3.9215214638, 3.8061182208, 3.8743271116]
LAST = [1.899685301, 1.8456305923, -0.0377128697]


def test_alloys_of_a_larger_set_begin_with_those_of_a_smaller(tmp_path: Path) -> None:
    small, large = targets_by_name(alloys(tmp_path, 10)), targets_by_name(alloys(tmp_path, 20))
    assert {name: large[name] for name in small} == small
    assert targets_by_name(alloys(tmp_path, 10, dataset_seed=1)) != small


def test_alloys_made_in_parallel_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = alloys(tmp_path, 40)
    serial = build_arrays(data.catalogue(), data.settings)
    monkeypatch.setattr(graphs_module, "SERIAL", 0)
    parallel = build_arrays(data.catalogue(), data.settings)
    assert {name: array.tolist() for name, array in serial.items()} == {
        name: array.tolist() for name, array in parallel.items()
    }


def test_labels_are_emt_against_relaxed_metals() -> None:
    for symbol, (lattice_constant, energy) in PURE.items():
        metal = bulk(symbol, "fcc", a=lattice_constant)
        metal.calc = EMT()
        assert metal.get_potential_energy() == pytest.approx(energy, abs=1e-11)
        for change in (-1e-3, 1e-3):  # a minimum
            strained = bulk(symbol, "fcc", a=lattice_constant + change)
            strained.calc = EMT()
            assert strained.get_potential_energy() > energy
    alloy = bulk("Ni", "fcc", a=3.6, cubic=True)
    alloy.symbols[0] = "Al"
    alloy.calc = EMT()
    expected = (alloy.get_potential_energy() - PURE["Al"][1] - 3 * PURE["Ni"][1]) / 4
    assert formation_energy(alloy) == pytest.approx(expected, abs=1e-12)
    assert expected > 0  # as the card says: the real Ni3Al is stable


def test_alloys_are_as_the_card_says(tmp_path: Path) -> None:
    made = [emt_alloy(0, index) for index in range(150)]
    energies = np.array([atoms.info["formation_energy"] for atoms in made])
    assert energies.max() <= 0.8
    assert 0.10 < energies.mean() < 0.16 and 0.08 < energies.std() < 0.15
    assert {symbol for atoms in made for symbol in atoms.symbols} == set(PURE)
    assert {len(atoms) for atoms in made} == {1, 2, 3, 4, 8}
    facts = alloys(tmp_path, 40, split="composition").facts
    assert facts["target_names"] == ["formation_energy"] and facts["target_units"] == ["eV/atom"]
    assert "EMT is a toy" in facts["card"] and "Ni3Al" in facts["card"]


def test_notes_are_for_people(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alloys(tmp_path)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "emt_alloys: 40 crystals to read, once")
    ]
