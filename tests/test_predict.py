"""Predictions of our checkpoints and of the CGCNN code's, against the network of the latter written out densely."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.io import write
from ase.neighborlist import neighbor_list
from torch import Tensor
from torch.nn import functional

from src import load
from src.config import ConfigError
from src.evaluate import main as evaluate
from src.nets.cgcnn import CGCNN
from src.predict import main
from tests.conftest import read_csv, status
from tests.fake_crystals import crystals, write_cgcnn_folder

WIDTH = 5
"""Entries of a fake element vector."""

CRYSTALS = {
    "salt": bulk("NaCl", "rocksalt", a=5.64),
    "copper": bulk("Cu", "fcc", a=3.61, cubic=True),
    "sparse": Atoms("HeNe", positions=[[0, 0, 0], [3.0, 0.2, 0.1]], cell=[7.0, 7.5, 7.8], pbc=True),  # < 12 neighbours
}


def vectors() -> dict[str, list[float]]:
    rng = np.random.default_rng(3)
    return {str(z): rng.normal(size=WIDTH).round(3).tolist() for z in range(1, 101)}


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder of CIFs as the CGCNN code reads it."""
    folder = tmp_path / "cifs"
    folder.mkdir()
    for name, atoms in CRYSTALS.items():
        write(folder / f"{name}.cif", atoms)
    (folder / "id_prop.csv").write_text("".join(f"{name},0\n" for name in CRYSTALS), encoding="utf-8")
    (folder / "atom_init.json").write_text(json.dumps(vectors()), encoding="utf-8")
    return folder


def published(
    task: str = "regression", features: int = 6, hidden: int = 4, n_conv: int = 2, n_h: int = 1, **normalizer: Any
) -> dict[str, Any]:
    """What a checkpoint of the CGCNN code holds, with random weights."""
    generator = torch.Generator().manual_seed(5)
    state: dict[str, Tensor] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        state[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) / columns**0.5
        state[f"{name}.bias"] = torch.randn(rows, generator=generator)

    def batch_norm(name: str, size: int) -> None:
        for kind in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{kind}"] = torch.rand(size, generator=generator) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    linear("embedding", features, WIDTH)
    for number in range(n_conv):
        linear(f"convs.{number}.fc_full", 2 * features, 2 * features + 41)
        batch_norm(f"convs.{number}.bn1", 2 * features)
        batch_norm(f"convs.{number}.bn2", features)
    linear("conv_to_fc", hidden, features)
    for number in range(n_h - 1):
        linear(f"fcs.{number}", hidden, hidden)
    linear("fc_out", 2 if task == "classification" else 1, hidden)
    args = {"task": task, "atom_fea_len": features, "h_fea_len": hidden, "n_conv": n_conv, "n_h": n_h}
    score = np.float64(0.25)  # such as that code stores
    return {
        "epoch": 3,
        "state_dict": state,
        "best_mae_error": score,
        "optimizer": {"state": {}, "param_groups": []},
        "normalizer": normalizer or {"mean": torch.tensor(-1.5), "std": torch.tensor(2.0)},
        "args": {**args, "data_options": ["folder"], "cuda": True},
    }


def dense(content: dict[str, Any], atoms: Atoms) -> Tensor:
    """The network of the paper on [N, 12] neighbours, atom 0 at 9 Å standing in where there are fewer."""
    w = {name: tensor.double() for name, tensor in content["state_dict"].items()}

    def affine(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        scale = w[f"{name}.weight"] / (w[f"{name}.running_var"] + 1e-5).sqrt()
        return (x - w[f"{name}.running_mean"]) * scale + w[f"{name}.bias"]

    table = vectors()
    x = affine("embedding", torch.tensor([table[str(z)] for z in atoms.numbers], dtype=torch.float64))
    centre, neighbour, distance = neighbor_list("ijd", atoms, 8.0)
    index, length = torch.zeros(len(atoms), 12, dtype=torch.int64), torch.full((len(atoms), 12), 9.0).double()
    for atom in range(len(atoms)):
        nearest = sorted((round(d, 6), j) for i, j, d in zip(centre, neighbour, distance, strict=True) if i == atom)[
            :12
        ]
        for column, (d, j) in enumerate(nearest):
            index[atom, column], length[atom, column] = int(j), float(d)
    edge = torch.exp(-(((length[..., None] - 0.2 * torch.arange(41)) / 0.2) ** 2))
    for number in range(content["args"]["n_conv"]):
        z = torch.cat([x[:, None].expand(-1, 12, -1), x[index], edge], dim=2)
        gate, core = norm(f"convs.{number}.bn1", affine(f"convs.{number}.fc_full", z)).chunk(2, dim=2)
        summed = (gate.sigmoid() * functional.softplus(core)).sum(1)
        x = functional.softplus(x + norm(f"convs.{number}.bn2", summed))
    h = functional.softplus(affine("conv_to_fc", functional.softplus(x.mean(0))))
    for number in range(content["args"]["n_h"] - 1):
        h = functional.softplus(affine(f"fcs.{number}", h))
    return affine("fc_out", h)


def save(content: dict[str, Any], path: Path, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


# --- checkpoints of the CGCNN code


@pytest.mark.parametrize(
    ("sizes", "zipped"),
    [({}, True), ({"features": 8, "hidden": 16, "n_conv": 3, "n_h": 2, "mean": 0.5, "std": 0.25}, False)],
)
def test_published_regression(
    sizes: dict[str, Any], zipped: bool, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = published(**sizes)
    path, output = save(content, tmp_path / "energy.pth.tar", zipped), tmp_path / "out.csv"
    assert main([f"ckpt={path}", f"inputs={inputs}", f"output={output}"]) == output
    header, *rows = read_csv(output)
    mean, std = float(content["normalizer"]["mean"]), float(content["normalizer"]["std"])
    expected = {name: float(dense(content, atoms)) * std + mean for name, atoms in CRYSTALS.items()}
    assert header == ["id", "prediction", "problem"]
    assert {name: float(value) for name, value, _ in rows} == pytest.approx(expected, abs=1e-5)
    assert [(name, problem) for name, _, problem in rows] == [(name, "") for name in sorted(CRYSTALS)]
    assert capsys.readouterr().out == f"written: {output} (3 predictions)\n"


def test_published_classification(inputs: Path, tmp_path: Path) -> None:
    content = published("classification", n_h=2)
    output = tmp_path / "out.csv"
    main([f"ckpt={save(content, tmp_path / 'metal.pth.tar')}", f"inputs={inputs}", f"output={output}"])
    header, *rows = read_csv(output)
    assert header == ["id", "class", "p(0)", "p(1)", "problem"]
    for name, label, *probabilities, problem in rows:
        expected = dense(content, CRYSTALS[name]).softmax(0)
        assert [float(value) for value in probabilities] == pytest.approx(expected.tolist(), abs=1e-5)
        assert (label, problem) == (str(int(expected.argmax())), "")


def test_crystals_that_cannot_be_used_have_a_row(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = save(published(), tmp_path / "energy.pth.tar"), tmp_path / "out.csv"
    arguments = [f"ckpt={path}", f"inputs={inputs}", f"output={output}"]
    good = read_csv(main(arguments))
    lines = (inputs / "copper.cif").read_text(encoding="utf-8").splitlines(keepends=True)
    (inputs / "a.cif").write_text("".join(line for line in lines if "_cell_" not in line), encoding="utf-8")
    (inputs / "zinc.cif").write_bytes(b"")
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    rows = read_csv(output)
    assert rows[:1] + rows[2:-1] == good
    assert rows[1][:3] == ["a", "", "a.cif: it has no cell"]
    assert rows[-1] == ["zinc", "", "zinc.cif: it is no CIF: no line begins with data_"]
    assert capsys.readouterr().err.endswith(
        f"error: inputs that cannot be used: 2; the last column of {output} says why\n"
    )
    for name in CRYSTALS:
        (inputs / f"{name}.cif").unlink()
    assert read_csv(main([*arguments, "on_bad=skip"])) == [rows[0], rows[1], rows[-1]]
    assert capsys.readouterr().out == f"written: {output} (0 predictions, 2 of 2 inputs cannot be used)\n"


def test_crystals_by_pattern(inputs: Path, tmp_path: Path) -> None:
    path, output = save(published(), tmp_path / "energy.pth.tar"), tmp_path / "out.csv"
    every = read_csv(main([f"ckpt={path}", f"inputs={inputs}", f"output={output}"]))
    (row,) = read_csv(main([f"ckpt={path}", f"inputs={inputs}/cop*.cif", f"output={output}"]))[1:]
    (expected,) = [row for row in every if row[0] == "copper"]
    assert row[0] == "copper" and float(row[1]) == pytest.approx(float(expected[1]), rel=1e-5)
    with pytest.raises(ConfigError, match="no such file or folder"):
        main([f"ckpt={path}", f"inputs={inputs}/none*.cif", f"output={output}"])
    with pytest.raises(ConfigError, match=r"trainer\.limit_predict_batches: every input gets its row"):
        main([f"ckpt={path}", f"inputs={inputs}", f"output={output}", "trainer.limit_predict_batches=1"])


def test_published_weights_start_a_net_warm(tmp_path: Path) -> None:
    from src.nets.cgcnn import CGCNN

    content = published()
    net = CGCNN(["energy"], atom_features=[[0.0] * WIDTH] * 101, **CGCNN.import_arguments(content))
    weights = CGCNN.import_weights(content)
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }
    with pytest.raises(ValueError, match="not a checkpoint of the CGCNN code"):
        CGCNN.import_weights({"state_dict": {}})


def test_what_published_weights_lack(inputs: Path, tmp_path: Path) -> None:
    path = save(published(), tmp_path / "energy.pth.tar")
    with pytest.raises(ConfigError, match=r"weights of the CGCNN code can only predict: python -m src\.predict"):
        evaluate([f"ckpt={path}", f"data.root={inputs}"])
    known = {z: vector for z, vector in vectors().items() if z != "29"}
    (inputs / "atom_init.json").write_text(json.dumps(known), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"atom_init\.json has no vector for Cu"):
        main([f"ckpt={path}", f"inputs={inputs}"])
    (inputs / "atom_init.json").unlink()
    with pytest.raises(ConfigError, match=r"cifs/atom_init\.json cannot be read: No such file"):
        main([f"ckpt={path}", f"inputs={inputs}"])
    save({"state_dict": {}, "args": {}}, path)
    with pytest.raises(ConfigError, match="neither a checkpoint of this project nor of the CGCNN code"):
        main([f"ckpt={path}", f"inputs={inputs}"])


# --- checkpoints of ours


def test_our_checkpoint(
    train: Callable[..., dict[str, float]], run_folders: Callable[[], list[Path]], inputs: Path, tmp_path: Path
) -> None:
    sizes = ["data.num_structures=60", "data.val_size=10", "data.test_size=10", "data.batch_size=20"]
    sizes += ["model.net.hidden_channels=8", "trainer.max_epochs=2"]
    train("experiment=emt_cgcnn", f"data.root={tmp_path / 'sets'}", *sizes)
    (folder,) = run_folders()
    assert evaluate(["ckpt=last"]) == pytest.approx(status(folder)["metrics"], abs=1e-6)
    header, *rows = read_csv(main(["ckpt=last", f"inputs={inputs / 'copper.cif'}"]))
    assert read_csv(folder / "predictions.csv") == [header, *rows]
    assert header == ["id", "formation_energy (eV/atom)", "problem"]
    model = load(folder)
    assert model(model.prepare(inputs / "copper.cif")).item() == pytest.approx(float(rows[0][1]))
    assert (model.card["target_units"], model.card["metric"]) == (["eV/atom"], "val/mae")
    moved = tmp_path / "moved.ckpt"  # the file alone is enough: neither run folder nor data set
    moved.write_bytes((folder / "checkpoints" / "best.ckpt").read_bytes())
    arguments = [f"ckpt={moved}", f"inputs={inputs}", f"output={tmp_path / 'out.csv'}"]
    again, in_ones = read_csv(main(arguments)), read_csv(main([*arguments, "data.batch_size=1"]))
    assert [row[0] for row in again] == [row[0] for row in in_ones] == ["id", "copper", "salt", "sparse"]
    assert float(again[1][1]) == pytest.approx(float(rows[0][1]))
    assert [float(row[1]) for row in in_ones[1:]] == pytest.approx([float(row[1]) for row in again[1:]], abs=1e-6)


# --- the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "ckpt=last|RUN_DIR|FILE: say which checkpoint predicts"),
        (["ckpt=x.ckpt"], "inputs=PATH: say on what"),
        (["ckpt=x.ckpt", "inputs=nowhere"], "inputs=nowhere: there is no such file or folder"),
        (["ckpt=x.ckpt", "inputs=src", "on_bad=skp"], "on_bad=skp: expected error or skip"),
        (["ckpt=x.ckpt", "inputs=src", "output=src"], "output=src: is a folder or a device, not a file"),
        (["ckpt=x.ckpt", "inputs=src", "output=/dev/null"], "output=/dev/null: is a folder or a device, not a file"),
        (["ckpt=x.ckpt", "inputs=src", "output=/no/x.csv"], "output=/no/x.csv: /no is no folder"),
        (["ckpt=x.ckpt", "inputs=src"], "x.ckpt: there is no such file"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        main(arguments)
    assert str(caught.value) == message


def test_a_pickle_that_runs_code_is_refused(inputs: Path, tmp_path: Path) -> None:
    save({"state_dict": {}, "args": print}, tmp_path / "evil.pth.tar")
    with pytest.raises(ConfigError, match="refused: it holds more than tensors and plain values"):
        main([f"ckpt={tmp_path / 'evil.pth.tar'}", f"inputs={inputs}"])


def test_training_goes_on_from_published_weights(train: Callable[..., dict[str, float]], tmp_path: Path) -> None:
    folder = write_cgcnn_folder(tmp_path / "crystals", crystals(24))
    (folder / "atom_init.json").write_text(json.dumps(vectors()), encoding="utf-8")
    torch.save(published(), tmp_path / "formation-energy.pth.tar")
    words = [
        "data=crystals",
        f"data.root={folder}",
        "data.atom_features=true",
        "data.batch_size=4",
        "data.split=random",
    ]
    words += ["model=cgcnn_paper", f"model.weights={tmp_path}/formation-energy.pth.tar", "model.net.hidden_channels=6"]
    words += ["model.net.num_layers=2", "model.net.head_sizes=[4]", "monitor.metric=val/mae", "monitor.mode=min"]
    theirs = CGCNN.import_weights(published())
    for lr, stays in (("1e-12", True), ("0.01", False)):
        train(*words, f"optimizer.lr={lr}", "trainer.max_epochs=1", f"runs_dir={tmp_path}/{lr}")
        (run,) = (tmp_path / lr).glob("*/*")
        ours = load(run).net.state_dict()
        same = [torch.allclose(ours[f"{name}"], theirs[name], atol=1e-6) for name in theirs if name.endswith("weight")]
        assert all(same) if stays else not any(same)
