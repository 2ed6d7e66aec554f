"""Crystals and their properties: alloys that are made on the machine, and the person's own."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from src.config import ConfigError
from src.data.base import DataModule, Inputs, first_ten, require_int
from src.data.catalogues import cif_files, open_catalogue
from src.data.graphs import Catalogue, GraphSplit, load_graphs, note
from src.data.split import cross_validation, group_split, part_sizes
from src.structures.emt import CARD, TARGET, UNIT, emt_alloy
from src.structures.neighbors import GraphSettings, Integers
from src.structures.reading import MAX_Z, reduced_formula


class CrystalDataModule(DataModule):
    """Crystals as graphs of nearest neighbours, for regression of their properties.

    Args:
        val_size: Validation crystals: a share below 1, or a number.
        test_size: Test crystals, likewise.
        split: `random`; `composition`, where no reduced formula is in two parts, so that a score is one of formulas
            never seen; or `files`: train.txt, val.txt and test.txt beside the data, an id a line.
        cutoff: See `GraphSettings`.
        num_neighbors: See `GraphSettings`.
        compat: See `GraphSettings`.
        cache_dir: Folder for the graphs; None: beside the data.
        on_bad: What to do if crystals cannot be used: `error`, or `skip` to leave them out.
        **rest: See `DataModule`.

    Attributes:
        folder: Where the files are; the graphs are kept there too.
    """

    decisive = ("target_names", "num_classes", "cutoff", "num_neighbors", "compat")
    folder: Path
    card: str
    units: Sequence[str] | None = None

    def __init__(
        self,
        val_size: float,
        test_size: float,
        split: Literal["random", "composition", "files"],
        cutoff: float = 8.0,
        num_neighbors: int = 12,
        compat: bool = False,
        cache_dir: str | None = None,
        on_bad: Literal["error", "skip"] = "error",
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        self.split, self.sizes = split, {"test": test_size, "val": val_size}
        self.settings = GraphSettings(float(cutoff), num_neighbors, compat)
        self.cache_dir, self.on_bad = cache_dir, on_bad

    def catalogue(self) -> Catalogue:
        """Lists the crystals.

        Raises:
            ConfigError: The data set is missing or broken.
        """
        raise NotImplementedError

    def load(self) -> Mapping[str, GraphSplit]:
        """Reads the crystals, or their graphs where those have been built before."""
        catalogue = self.catalogue()
        folder = Path(self.cache_dir).expanduser() if self.cache_dir else self.folder / "graphs"
        crystals, arrays = load_graphs(catalogue, self.settings, folder)
        self.target_names = list(catalogue.targets)
        self.bad_files = list(zip(arrays["bad"].tolist(), arrays["reasons"].tolist(), strict=True))
        if self.bad_files:
            lines = first_ten([f"{name}: {reason}" for name, reason in self.bad_files])
            number = f"{len(self.bad_files)} of {len(catalogue.names)}"
            message = f"{catalogue.what}: {number} crystals cannot be used{lines}"
            if self.on_bad == "error":
                raise ConfigError(f"{message}\n    data.on_bad=skip leaves them out")
            note(message)
        if not len(crystals):
            raise ConfigError(f"{catalogue.what}: no crystal is left")
        twins = np.setdiff1d(np.arange(len(crystals)), np.unique(arrays["digests"], return_index=True)[1])
        if len(twins):
            shown = ", ".join(crystals.names[twin] for twin in twins[:10])
            note(f"{catalogue.what}: there already under another name, with the same target: {len(twins)} ({shown})")
        # Not crystal by crystal: the same one under two names would be in two parts.
        groups = arrays["formulas" if self.split == "composition" else "digests"]
        parts = self._given(crystals.names) if self.split == "files" else self._drawn(groups)
        parts = cross_validation(parts, self.folds, self.split_seed, groups)
        for part, positions in parts.items():
            if not len(positions):
                raise ConfigError(f"data.split={self.split}: no crystals for the part {part}")
        chosen = repr((self.name, catalogue.key(self.settings), [positions.tolist() for positions in parts.values()]))
        self.fingerprint = hashlib.sha256(chosen.encode()).hexdigest()
        return {part: crystals.select(torch.from_numpy(positions)) for part, positions in parts.items()}

    def _drawn(self, groups: NDArray[Any]) -> dict[str, Integers]:
        sizes = part_sizes(self.sizes, len(groups), "crystals")
        train, test, val = group_split(groups, sizes, self.split_seed)
        return {"train": train, "val": val, "test": test}

    def _given(self, names: Sequence[str]) -> dict[str, Integers]:
        part_of, known = dict[str, str](), {*names, *(name for name, _ in self.bad_files)}
        for part in ("train", "val", "test"):
            path = self.folder / f"{part}.txt"
            try:
                listed = path.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"data.split=files: {path} cannot be read: {error}") from error
            for name in filter(None, map(str.strip, listed)):
                if name not in known:
                    raise ConfigError(f"{path}: there is no crystal {name!r}")
                if part_of.setdefault(name, part) != part:
                    raise ConfigError(f"{path}: {name!r} is in {part_of[name]}.txt too")
        parts_S = np.array([part_of.get(name, "") for name in names])
        if left := np.count_nonzero(parts_S == ""):
            note(f"{self.folder}: in none of train.txt, val.txt and test.txt: {left} of {len(names)} crystals")
        return {part: np.flatnonzero(parts_S == part) for part in ("train", "val", "test")}

    def describe(self) -> dict[str, Any]:
        """Returns the facts; mean and deviation of the targets are those of the training part.

        Raises:
            ConfigError: A target is missing throughout the training part, or always the same.
        """
        return {
            **super().describe(),
            **self.describe_targets(self.splits["train"].y),
            "max_z": MAX_Z,
            **asdict(self.settings),
            "split": self.split,
            "fingerprint": self.fingerprint,
            "card": self.card,
        }

    def describe_targets(self, y_ST: Tensor) -> dict[str, Any]:
        """Returns the facts of the task."""
        mean_T = y_ST.double().nanmean(0)
        std_T = (y_ST.double() - mean_T).square().nanmean(0).sqrt()
        for name, mean, std in zip(self.target_names, mean_T.tolist(), std_T.tolist(), strict=True):
            if not std > 1e-9 * abs(mean):
                what = "are all missing" if np.isnan(std) else "are all equal"
                raise ConfigError(f"{self.name}: the values of {name} in the training part {what}")
        return {
            "task": "regression",
            "target_names": self.target_names,
            "target_units": list(self.units or [""] * len(self.target_names)),
            "target_mean": mean_T.tolist(),
            "target_std": std_T.tolist(),
        }

    def read_inputs(self, path: Path) -> Inputs:
        """Reads a CIF file, a folder of them, or what `CrystalsDataModule` reads, without targets.

        Raises:
            ConfigError: There are none.
        """
        catalogue = cif_files(path) or open_catalogue(path, ())
        crystals, arrays = load_graphs(catalogue, self.settings, folder=None)
        good, reasons, problems = crystals.names[::-1], iter(arrays["reasons"].tolist()), dict[int, str]()
        for position, name in enumerate(catalogue.names):  # good and bad ones are each in this order; a name may recur
            if good and good[-1] == name:
                good.pop()
            else:
                problems[position] = next(reasons)
        return Inputs(crystals, catalogue.names, problems)

    def describe_sample(self, split: str, position: int) -> dict[str, str]:
        """Returns the crystal's id and its reduced formula."""
        crystal = self.splits[split].select(torch.tensor([position]))
        return {"id": crystal.names[0], "formula": reduced_formula(crystal.z_N.numpy())}


class EMTAlloysDataModule(CrystalDataModule):
    """Random alloys labelled with ASE's EMT, made on this machine: the same everywhere, nothing to download.

    Args:
        root: Folder of the data sets; the graphs are kept in `<root>/emt_alloys`.
        num_structures: How many to make; the first of a larger set are those of a smaller one.
        dataset_seed: Which alloys are made.
        **options: See `CrystalDataModule`.
    """

    name = "emt_alloys"
    card = CARD
    units = (UNIT,)

    def __init__(self, root: str, num_structures: int, dataset_seed: int, **options: Any) -> None:
        super().__init__(**options)
        self.folder = Path(root).expanduser() / self.name
        self.num_structures = require_int("data.num_structures", num_structures, minimum=1)
        self.dataset_seed = require_int("data.dataset_seed", dataset_seed, minimum=0)

    def catalogue(self) -> Catalogue:
        """Lists the alloys, which are made as they are read."""
        names = [str(index) for index in range(self.num_structures)]
        content = f"{self.name} {self.num_structures} {self.dataset_seed}"
        reader = partial(emt_alloy, self.dataset_seed)
        return Catalogue(self.name, reader, range(self.num_structures), names, names, [TARGET], content)


class CrystalsDataModule(CrystalDataModule):
    """The person's own crystals: the folder of the CGCNN code, an extended XYZ file or an ASE database.

    Args:
        root: The folder or the file.
        targets: What to learn: columns of the table, or properties in the file; None: all columns.
        units: Of the targets, for tables and plots.
        task: `regression`, or `classification` of one target that holds the class as a number from 0 on.
        atom_features: Gives the model the vectors of the folder's atom_init.json.
        **options: See `CrystalDataModule`.
    """

    name = "crystals"

    def __init__(
        self,
        root: str,
        targets: list[str] | None = None,
        units: list[str] | None = None,
        task: Literal["regression", "classification"] = "regression",
        atom_features: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.path, self.targets, self.units, self.task = Path(root).expanduser(), targets, units, task
        self.folder = self.path.parent if self.path.is_file() else self.path
        self.atom_features = atom_features
        self.card = f"Crystals of {self.path}; their labels are as given there."

    def catalogue(self) -> Catalogue:
        """Lists the crystals."""
        if self.targets is not None and len({*self.targets}) < max(1, len(self.targets)):
            raise ConfigError(f"data.targets={self.targets}: name at least one, and each once")
        return open_catalogue(self.path, self.targets)

    def load(self) -> Mapping[str, GraphSplit]:
        """Reads the crystals; classes become whole numbers."""
        splits = super().load()
        if self.units is not None and len(self.units) != len(self.target_names):
            raise ConfigError(f"data.units={self.units}: one for each target is needed: {', '.join(self.target_names)}")
        if self.task == "classification":
            for split in splits.values():
                split.y = _classes(split)
        return splits

    def describe(self) -> dict[str, Any]:
        """Returns the facts, with the vectors of the elements if they are asked for."""
        facts = super().describe()
        return {**facts, "atom_features": self._atom_features(self.splits.values())} if self.atom_features else facts

    def describe_targets(self, y: Tensor) -> dict[str, Any]:
        """Returns the facts of the task."""
        if self.task == "regression":
            return super().describe_targets(y)
        num_classes = 1 + max(int(split.y.max()) for split in self.splits.values())
        counts = {part: split.y.bincount(minlength=num_classes).tolist() for part, split in self.splits.items()}
        return {
            "task": self.task,
            "num_classes": num_classes,
            "class_names": [str(number) for number in range(num_classes)],
            "class_counts": counts,
        }

    def read_inputs(self, path: Path) -> Inputs:
        """Reads crystals, and beside `root` the vectors of their elements, where the model comes without."""
        inputs = super().read_inputs(path)
        if self.atom_features and "atom_features" not in self.facts:
            self.facts["atom_features"] = self._atom_features([inputs.split])
        return inputs

    def _atom_features(self, splits: Iterable[GraphSplit]) -> list[list[float]]:
        """A vector for each atomic number from 0 to `MAX_Z`; zeros where the file has none."""
        path = self.folder / "atom_init.json"
        try:
            vectors = {int(z): [*map(float, vector)] for z, vector in json.loads(path.read_bytes()).items()}
            (length,) = {len(vector) for vector in vectors.values()}
        except OSError as error:
            raise ConfigError(f"data.atom_features: {path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} must hold a vector for each element, all of one length: {error}") from error
        there = np.unique(np.concatenate([split.z_N for split in splits])).tolist()
        if lacking := [chemical_symbols[z] for z in there if z not in vectors]:
            raise ConfigError(f"{path} has no vector for {', '.join(lacking)}")
        return [vectors.get(z, [0.0] * length) for z in range(MAX_Z + 1)]


def _classes(split: GraphSplit) -> Tensor:
    if split.y.shape[1] != 1:
        raise ConfigError("data.task=classification needs one target; data.targets chooses it")
    for name, value in zip(split.names, split.y[:, 0].tolist(), strict=True):
        if value < 0 or value != int(value):
            raise ConfigError(f"data.task=classification: the class of {name} is {value:g}, not one of 0, 1, 2, ...")
    return split.y[:, 0].long()
