"""What leaves the project computes the same elsewhere, in Python without the source and in C++, or is not written."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from src import load
from src.config import ConfigError
from src.engine.checkpoint import AtomicCheckpointIO
from src.export import main
from src.portable.programs import Head
from tests.conftest import QUICK, ROOT, metric_rows
from tests.cpp import NEEDED, lacking, values
from tests.fakes import write_image_folder

RUNNER = ROOT / "deploy/portable.py"
SPEC = importlib.util.spec_from_file_location("portable", RUNNER)
assert SPEC is not None and SPEC.loader is not None
portable: Any = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(portable)

PHOTOS = ["data=image_folder", "data.image_size=32", "data.store_size=36", "data.batch_size=16"]
MODELS = {
    "linear": [],
    "resnet20": [*PHOTOS, "model=resnet20"],
    "resnet18": [*PHOTOS, "model=resnet18"],
    "cgcnn": ["experiment=emt_cgcnn", "data.num_structures=60", "data.split=random", "data.batch_size=8"],
}
FILES = {"onnx": "model.onnx", "pt2": "model.pt2", "aoti": "model-aoti.pt2"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run folder of each model, trained for a few steps when it is asked for."""
    from src.train import main as train

    runs: dict[str, Path] = {}

    def run_of(model: str) -> Path:
        if model not in runs:
            torch.set_num_threads(1)
            folder = tmp_path_factory.mktemp(model)
            overrides = [*MODELS[model], f"runs_dir={folder}/runs", "trainer.max_epochs=2", "black_box=false"]
            if "data=image_folder" in overrides:
                overrides.append(f"data.root={write_image_folder(folder / 'photos', 32)}")
            if model == "cgcnn":
                overrides.append(f"data.root={folder}")
            train([*QUICK, *overrides])
            (runs[model],) = (folder / "runs").glob("*/*")
        return runs[model]

    return run_of


def inputs_and_outputs(run: Path, count: int, tmp_path: Path) -> tuple[dict[str, NDArray[Any]], Tensor]:
    """Inputs of an exported program made by hand, and what the module in this process makes of the same samples."""
    model = load(run)
    facts: dict[str, Any] = model.card
    if "cutoff" in facts:
        from ase.build import bulk
        from ase.io import write

        for number in range(count):
            write(tmp_path / f"{number:02d}.cif", bulk(("Cu", "Ag", "Au")[number % 3], cubic=number % 2 == 0))
        x = model.prepare(tmp_path)
        with torch.no_grad():
            return {name: tensor.numpy() for name, tensor in x.items()}, model(x)
    pixels = np.random.default_rng(count).integers(0, 256, (count, *facts["input_shape"]), np.uint8)
    mean, std = (torch.tensor(facts[name]).view(-1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        return {"image": pixels}, model((torch.from_numpy(pixels) / 255 - mean) / std).softmax(1)


def elsewhere(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the copied runner in a folder from which nothing of this project can be imported."""
    shutil.copy(RUNNER, folder)
    command = [sys.executable, "-I", "portable.py", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)


def save(arrays: dict[str, NDArray[Any]], folder: Path) -> str:
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return str(folder)


def check(run: Path, file: Path, tmp_path: Path, say: Callable[[str], None] = print) -> None:
    """Runs a file on 1, 2 and 7 samples, far from this project."""
    (tmp_path / "far").mkdir()
    moved = Path(shutil.copy(file, tmp_path / "far"))
    folders, expected = [], []
    for count in (1, 2, 7):
        (tmp_path / f"made-{count}").mkdir()
        arrays, outputs = inputs_and_outputs(run, count, tmp_path / f"made-{count}")
        folders.append(save(arrays, tmp_path / str(count)))
        expected.append(outputs)
    done = elsewhere(tmp_path / "far", moved.name, *folders, "--top", "2", "--save", "outputs.npz")
    assert (done.returncode, done.stderr) == (0, "")
    found = np.load(tmp_path / "far/outputs.npz")
    values = torch.from_numpy(found["prediction" if "prediction" in found else "probabilities"])
    difference = float((values - torch.cat(expected)).abs().max())
    say(f"{file.name}: {difference:.1e}")
    assert difference < 1e-4
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["1", "2[0]", "2[1]", *(f"7[{number}]" for number in range(7))]
    card = load(run).card
    for line, row in zip(lines, values, strict=True):
        if "prediction" in found:
            assert line[1] == "formation_energy (eV/atom)" and float(line[2]) == pytest.approx(float(row), abs=1e-6)
        else:
            best = row.argsort(descending=True)[:2].tolist()
            assert line[1::2] == [card["class_names"][label] for label in best]
            assert [float(text) for text in line[2::2]] == pytest.approx(row[best].tolist(), abs=1e-6)


def test_onnx_by_the_command(trained: Callable[[str], Path], tmp_path: Path, command: Callable[..., Any]) -> None:
    run = trained("linear")
    done = command("src.export", f"ckpt={run}", "format=onnx")
    assert done.returncode == 0 and done.stderr == ""
    first, second = done.stdout.splitlines()
    assert first.startswith("largest difference from PyTorch, 64 samples: probabilities ")
    assert second.startswith(f"written: {run}/model.onnx (")
    check(run, run / "model.onnx", tmp_path)
    model = onnx.load(run / "model.onnx")
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["class_names"] == "\n".join("0123456789") and properties["task"] == "classification"
    card = json.loads(properties["card"])
    assert card["mean"] == load(run).card["mean"] and card["score"] == load(run).card["score"] is not None
    (image,) = model.graph.input
    dims = image.type.tensor_type.shape.dim
    assert (image.name, image.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert dims[0].dim_param and [dim.dim_value for dim in dims[1:]] == [1, 28, 28]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_in_every_format(
    model: str, kind: str, trained: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(model)
    output = tmp_path / FILES[kind]
    assert main([f"ckpt={run}", f"format={kind}", f"output={output}"]) == output
    with capsys.disabled():
        check(run, output, tmp_path, say=lambda text: print(f"\n{model} {text}"))


@pytest.mark.slow
def test_channels_can_come_last(trained: Callable[[str], Path], tmp_path: Path) -> None:
    run = trained("resnet20")
    output = main([f"ckpt={run}", "format=onnx", "layout=hwc", f"output={tmp_path}/m.onnx"])
    pixels, expected = inputs_and_outputs(run, 3, tmp_path)
    found = portable.Portable(output)(image=pixels["image"].transpose(0, 2, 3, 1))
    torch.testing.assert_close(torch.from_numpy(found["probabilities"]), expected, rtol=0, atol=1e-4)
    with pytest.raises(portable.PortableError, match=r"takes \[samples, 32, 32, 3\] \(height, width, channels\)"):
        portable.Portable(output)(image=pixels["image"])


@pytest.mark.parametrize("count", [1, 3])
def test_samples_can_be_given(
    count: int, trained: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("linear")
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"in/{number}.png")
    main([f"ckpt={run}", "format=onnx", f"output={tmp_path}/a=(1).onnx", f"inputs={tmp_path}/in"])
    assert f"largest difference from PyTorch, {max(count, 2)} samples: " in capsys.readouterr().out
    assert (tmp_path / "a=(1).onnx").is_file()


# What must not be written.


@pytest.fixture
def refused(trained: Callable[[str], Path], tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Exports the linear model's checkpoint after a change, and returns the message; no file may be there after."""
    (tmp_path / "out").mkdir()

    def refuse(*words: str, change: Callable[[dict[str, Any]], object] = lambda content: None) -> str:
        content = torch.load(trained("linear") / "checkpoints/best.ckpt", weights_only=True)
        change(content)
        AtomicCheckpointIO().save_checkpoint(content, tmp_path / "changed.ckpt")
        given = [word.partition("=")[0] for word in words]
        defaults = {"ckpt": tmp_path / "changed.ckpt", "format": "onnx", "output": tmp_path / "out/model.onnx"}
        with pytest.raises(ConfigError) as caught:
            main([*words, *(f"{name}={value}" for name, value in defaults.items() if name not in given)])
        assert list((tmp_path / "out").rglob("*")) == []
        return str(caught.value)

    yield refuse


def test_arguments(refused: Callable[..., str], tmp_path: Path) -> None:
    assert refused("format=onx") == "format=onx: there is no such format; did you mean onnx?"
    assert refused("layout=z") == "layout=z: there is no such layout; choices: chw, hwc"
    assert refused("optimizer.lr=1") == "optimizer.lr=1: a checkpoint is exported as it is"
    assert refused("ckpt=") == "ckpt=last|RUN_DIR|FILE: say which checkpoint to export"
    assert refused(f"output={tmp_path}") == f"output={tmp_path}: is a folder or a device, not a file"
    assert refused(f"output={tmp_path}/no/m.onnx").endswith(f"{tmp_path}/no is no folder")
    assert refused(f"output={tmp_path}/out/m.pt2").endswith("the name of format=onnx must end in .onnx")
    assert refused(f"ckpt={RUNNER}").startswith(f"{RUNNER}: ")


def test_another_version_of_the_net(refused: Callable[..., str]) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["state_dict"]["net.tail.weight"] = content["state_dict"].pop("net.head.weight")

    assert "written by another version of src.modules.classification.ClassificationModule" in refused(change=rename)


def test_a_missing_card(refused: Callable[..., str]) -> None:
    said = refused(change=lambda content: content["hyper_parameters"]["facts"].pop("class_names"))
    assert said.endswith("changed.ckpt: its card lacks class_names: nobody could tell what the outputs mean")
    assert "its card lacks name, task, class_names" in refused(change=lambda c: c["hyper_parameters"].pop("facts"))


def test_missing_data_can_be_replaced(refused: Callable[..., str], tmp_path: Path) -> None:
    def elsewhere(content: dict[str, Any]) -> None:
        content["config"]["data"] |= {"_target_": "src.data.mnist.MNISTDataModule", "root": str(tmp_path / "gone")}
        content["config"]["data"].pop("test_size")

    said = refused(change=elsewhere)
    assert str(tmp_path / "gone") in said and said.endswith("or give some samples to compare on: inputs=PATH")


def test_samples_that_cannot_be_used(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "in/a.png")
    (tmp_path / "in/b.png").write_text("junk")
    assert refused(f"inputs={tmp_path}/in") == "b.png: is no image of a known format"


def test_where_nothing_can_be_written(refused: Callable[..., str]) -> None:
    assert refused("output=/proc/model.onnx").startswith("output=/proc/model.onnx: ")
    assert refused(f"output={'a' * 300}.onnx").endswith(".onnx: File name too long")


def test_sigterm_leaves_nothing(trained: Callable[[str], Path], tmp_path: Path) -> None:
    words = ["-m", "src.export", f"ckpt={trained('linear')}", "format=onnx", f"output={tmp_path}/m.onnx"]
    with subprocess.Popen([sys.executable, *words], cwd=ROOT) as process:
        while not list(tmp_path.glob(".export-*")):
            time.sleep(0.01)
            assert process.poll() is None
        process.terminate()
        assert process.wait(60) == 143
    assert not list(tmp_path.glob("*export*")) and not (tmp_path / "m.onnx").exists()


def test_the_score_is_that_of_the_checkpoint(trained: Callable[[str], Path]) -> None:
    run = trained("linear")
    rows = metric_rows(run)
    scores = [row["val/acc"] for row in rows if "val/acc" in row]
    for name, score in (("best", max(scores)), ("last", scores[-1])):
        assert load(run / f"checkpoints/{name}.ckpt").card["score"] == pytest.approx(score)


def test_no_compiler(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    from torch._inductor.cpp_builder import get_cpp_compiler

    getattr(get_cpp_compiler, "cache_clear", lambda: None)()
    said = refused("format=aoti", f"output={tmp_path}/out/m.pt2")
    assert said == "format=aoti: needs a C++ compiler: install g++, or name another one with CXX=..."


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_other_results(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    monkeypatch.setattr(Head, "outputs", lambda self, x: (self.net(x).softmax(1) + error, self.net(x)))
    said = refused()
    assert said.startswith("format=onnx: differs from PyTorch: probabilities ")
    assert said.endswith("at most 0.0001 is right: not written")


class Airy(nn.Module):
    """An operator that ONNX does not know."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.airy_ai(self.net(x))


class Branch(Airy):
    """A decision that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) if x.sum() > 0 else -self.net(x)


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (Airy, "format=onnx: no translation of aten.special_airy_ai; format=pt2 has no such limit"),
        (Branch, "Branch cannot be exported: "),
    ],
)
def test_what_cannot_be_expressed(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, net: type[Airy], said: str
) -> None:
    from src.portable import export

    def restored(checkpoint: Any, path: Path) -> Any:
        module = restore(checkpoint, path)
        module.net = net(module.net)
        return module.eval()

    restore = export.restore_module
    monkeypatch.setattr(export, "restore_module", restored)
    assert refused().startswith(said)


# The runner checks what programs do not.

IMAGES = {"task": "classification", "inputs": "image samples,1,2,3", "outputs": "probabilities\nlogits",
          "layout": "chw", "class_names": "a\nb"}  # fmt: skip
CRYSTALS = {"task": "regression", "outputs": "prediction", "layout": "", "target_names": "gap", "target_units": "",
            "inputs": "z atoms\nedge_index 2,edges\ndistance edges\nnum_nodes samples"}  # fmt: skip


def runner(card: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    (tmp_path / "m.onnx").touch()
    monkeypatch.setattr(portable, "open_onnx", lambda path: (card, lambda arrays: [None, None]))
    return portable.Portable(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "the model takes image, not nothing"),
        ({"image": np.zeros((1, 1, 2, 3), np.float32)}, "image: has the type float32, the model takes uint8"),
        (
            {"image": np.zeros((1, 2, 3, 1), np.uint8)},
            "image: has the shape [1, 2, 3, 1], the model takes [samples, 1, 2",
        ),
        (
            {"image": np.zeros((1, 2, 3), np.uint8)},
            "image: has the shape [1, 2, 3], the model takes [samples, 1, 2, 3]",
        ),
        ({"image": np.zeros((0, 1, 2, 3), np.uint8)}, "there are no samples"),
    ],
)
def test_images_are_checked(
    arrays: dict[str, NDArray[Any]], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(portable.PortableError) as caught:
        runner(IMAGES, monkeypatch, tmp_path)(**arrays)
    assert str(caught.value).startswith(said)


CRYSTAL: dict[str, NDArray[Any]] = {
    "z": np.array([1, 2, 3]), "edge_index": np.array([[0, 1], [1, 0]]), "distance": np.array([1.0, 2.0], np.float32),
    "num_nodes": np.array([2, 1]),
}  # fmt: skip
BAD_CRYSTALS: list[tuple[str, NDArray[Any], str]] = [
    *(
        ("num_nodes", np.array(nodes), "num_nodes: each crystal has an atom at least, and together they have those of")
        for nodes in ([2, 2], [3, 0], [5, 2**63 - 1, 2**63 - 1], [2**61] * 8 + [3])
    ),
    ("z", np.array([1, 0, 3]), "z: atomic numbers go from 1 to 100, there is 0 and 3"),
    ("z", np.array([1, 2, 101]), "z: atomic numbers go from 1 to 100, there is 1 and 101"),
    ("edge_index", np.array([[0, 3], [1, 0]]), "edge_index: atoms are 0 to 2"),
    ("edge_index", np.array([[0, 2], [1, 0]]), "edge_index: an edge leads from one crystal to another"),
    ("edge_index", np.array([[0], [1]]), "distance: has the shape [2], the model takes [edges]"),
    ("distance", np.array([1.0, 0.0], np.float32), "distance: must be above 0 and finite, in angstrom"),
    ("distance", np.array([1.0, np.nan], np.float32), "distance: must be above 0 and finite, in angstrom"),
    ("distance", np.array([1.0, 2.0]), "distance: has the type float64, the model takes float32"),
]


@pytest.mark.parametrize(("name", "array", "said"), BAD_CRYSTALS)
def test_crystals_are_checked(
    name: str, array: NDArray[Any], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = runner(CRYSTALS, monkeypatch, tmp_path)
    model.check(CRYSTAL)
    with pytest.raises(portable.PortableError) as caught:
        model(**CRYSTAL | {name: array})
    assert str(caught.value).startswith(said)


def test_a_file_without_a_card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(portable.PortableError, match=r"has no card \(no inputs, layout\): not written by src.export"):
        runner({"task": "regression", "outputs": "x"}, monkeypatch, tmp_path)


HEADERS = {
    f"header-{number}.npy": f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({shape}), }}"
    for number, shape in enumerate(
        [
            "0, 9223372036854775807, 9223372036854775807",
            "2 9, 1",
            "9" * 30,
            "-1, 3",
            "2000000000, 1, 28, 28",
            "1," * 3000,
        ]
    )
} | {
    "open.npy": "{'descr': '|u1', 'fortran_order': False, 'shape': (1,)",
    "long.npy": f"{{'descr': '{'a' * 60000}', 'fortran_order': False, 'shape': (1,)}}",
    "empty.npy": "",
}
"""Headers that promise what is not there, or nothing that can be."""


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": "image"}, {"inputs": "image samples,1,2"}, {"inputs": "image samples,1,two,3"}, {"layout": "wh"},
        {"inputs": "image samples,2,2,3"}, {"inputs": "picture samples,1,2,3"}, {"outputs": "logits"},
        {"task": "regression"}, {"class_names": ""}, {"layout": ""},
    ],
)  # fmt: skip
def test_a_damaged_card(change: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(portable.PortableError, match=r"its card is damaged"):
        runner(IMAGES | change, monkeypatch, tmp_path)


def test_outputs_of_another_width(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = runner(IMAGES | {"class_names": "a\nb\nc"}, monkeypatch, tmp_path)
    model.compute = lambda arrays: [np.zeros((1, 2))] * 2
    with pytest.raises(portable.PortableError, match="the card does not fit the program"):
        model(image=np.zeros((1, 1, 2, 3), np.uint8))


def bad_pictures(folder: Path, size: tuple[int, int], layout: str = "chw") -> dict[str, str]:
    """Writes pictures that no model takes; what is said of each begins with these words."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    image.save(folder / "cut.png")
    image.save(folder / "cut.jpg")
    for name in ("cut.png", "cut.jpg"):
        os.truncate(folder / name, (folder / name).stat().st_size // 2)
    Image.fromarray(pixels[:-1]).save(folder / "small.png")
    Image.fromarray(pixels[:-1]).save(folder / "small.jpg")
    image.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    (folder / "text.png").write_text("hello")
    (folder / "empty.jpg").touch()
    for name in ("turned.jpg", "turned.png"):
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(folder / name, exif=exif)
    Image.fromarray(np.zeros((3000, 3000), np.uint8)).resize((30000, 6000)).save(folder / "bomb.png")
    os.mkfifo(folder / "pipe.npy")
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    for name, header in HEADERS.items():
        text = header.encode().ljust(118)
        (folder / name).write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    np.save(folder / "object.npy", np.array([{}]), allow_pickle=True)
    np.save(folder / "float.npy", pixels[None].astype(np.float32))
    wrong = pixels if layout == "chw" else pixels.transpose(2, 0, 1).copy()
    np.save(folder / "order.npy", wrong)
    np.save(folder / "cut.npy", np.zeros((1, 3, size[1], size[0]), np.uint8))
    os.truncate(folder / "cut.npy", (folder / "cut.npy").stat().st_size - 1)
    sides = f"is {size[0]} x {size[1] - 1}, the model takes {size[0]} x {size[1]}"
    return {
        "cut.png": "", "cut.jpg": "", "small.png": sides, "small.jpg": sides,
        "alpha.png": "is transparent; lay it on a background first",
        "deep.png": "has more than 8 bits a channel; convert it to RGB first",
        "cmyk.jpg": "is CMYK; convert it to RGB first", "text.png": "is n", "empty.jpg": "is n",
        "gone.png": "cannot be read",
        **dict.fromkeys(("turned.jpg", "turned.png"), "is to be turned, by its EXIF data; turn its pixels first"),
        **dict.fromkeys(("pipe.npy", "pipe.png", "loop.png"), "cannot be read"),
        **dict.fromkeys(HEADERS, ""), "bomb.png": "",
        "object.npy": "", "float.npy": "image: has the type float32, the model takes uint8",
        "order.npy": f"image: has the shape {[1, *wrong.shape]}, the model takes [samples, ", "cut.npy": "",
    }  # fmt: skip


def test_the_runner_refuses_bad_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner(IMAGES | {"inputs": "image samples,3,8,6"}, monkeypatch, tmp_path)
    for name, said in bad_pictures(tmp_path, (6, 8)).items():
        assert portable.main([str(tmp_path / "m.onnx"), str(tmp_path / name)]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith(f"error: {tmp_path / name}: {said}"), printed.err
        assert printed.err.count("\n") == 1
    for model in ("gone.onnx", "text.png"):
        assert portable.main([str(tmp_path / model), str(tmp_path / "small.png")]) == 2
    monkeypatch.undo()
    assert portable.main([str(tmp_path / "m.onnx"), str(tmp_path / "small.png")]) == 2
    assert "onnxruntime cannot load it" in capsys.readouterr().err


# C++


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ program, built by the commands of deploy/README.md."""
    if lacking():
        pytest.skip(f"{NEEDED}: {lacking()}")
    folder = tmp_path_factory.mktemp("build")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for words in (
        ["cmake", "-S", str(ROOT / "deploy/cpp"), "-B", str(folder)],
        ["cmake", "--build", str(folder), "-j2"],
    ):
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stdout + done.stderr
    return folder / "portable"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("model", MODELS)
def test_cpp(
    model: str, program: Path, trained: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(model)
    layout = "hwc" if model == "resnet20" else "chw"
    package = main([f"ckpt={run}", "format=aoti", f"layout={layout}", f"output={tmp_path}/m.pt2"])

    def cpp(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(program), str(package), *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)

    (tmp_path / "made").mkdir()
    arrays, expected = inputs_and_outputs(run, 5, tmp_path / "made")
    if layout == "hwc":
        arrays["image"] = arrays["image"].transpose(0, 2, 3, 1).copy()
    done = cpp(save(arrays, tmp_path / "raw"), "--top", "100")
    assert (done.returncode, done.stderr) == (0, "")
    found = values(done.stdout)
    card = load(run).card
    names = card.get("class_names") or ["formation_energy (eV/atom)"]
    raw = torch.tensor([[found[f"raw[{number}]"][name] for name in names] for number in range(5)])
    difference = float((raw - expected).abs().max())
    with capsys.disabled():
        print(f"\n{model} C++, raw tensors: {difference:.1e}")
    assert difference < 1e-4
    if model == "cgcnn":
        for name, array, said in BAD_CRYSTALS:
            save(CRYSTAL | {name: array}, tmp_path / "bad")
            done = cpp("bad")
            shutil.rmtree(tmp_path / "bad")
            assert (done.returncode, done.stdout) == (2, "") and said.partition(": ")[2][:12] in done.stderr, (
                said,
                done.stderr,
            )
        return
    check_pictures(model, layout, cpp, run, tmp_path, capsys)


def check_pictures(
    model: str, layout: str, cpp: Callable[..., Any], run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures of every kind that both take, against the module in this process; and those that nothing takes."""
    loaded = load(run)
    channels, *size = loaded.card["input_shape"]
    pixels = np.random.default_rng(3).integers(0, 256, (*size, 3), np.uint8)
    kinds = {"rgb.png": "RGB", "grey.png": "L", "bits.png": "1", "rgb.jpg": "RGB", "grey.jpg": "L", "palette.png": "P"}
    largest = {".png": 0.0, ".jpg": 0.0}
    for name, mode in kinds.items():
        Image.fromarray(pixels).convert(mode).save(folder / name)
        done = cpp(name, "--top", "100")
        assert (done.returncode, done.stderr) == (0, "")
        array = np.asarray(Image.open(folder / name).convert("RGB" if channels == 3 else "L")).reshape(*size, channels)
        mean, std = (torch.tensor(loaded.card[key]) for key in ("mean", "std"))
        with torch.no_grad():
            x = ((torch.from_numpy(array.copy()) / 255 - mean) / std).permute(2, 0, 1)
            expected = loaded(x.unsqueeze(0)).softmax(1)[0]
        found = values(done.stdout)[name]
        gap = max(abs(found[label] - float(p)) for label, p in zip(loaded.card["class_names"], expected, strict=True))
        largest[name[-4:]] = max(largest[name[-4:]], gap)
    with capsys.disabled():
        print(f"\n{model} C++, PNG: {largest['.png']:.1e}, JPEG: {largest['.jpg']:.1e}")
    assert largest[".png"] < 1e-4 and largest[".jpg"] < 0.05  # decoders of JPEG may differ by a level or two
    for name, said in bad_pictures(folder, (size[1], size[0]), layout).items():
        done = cpp(name)
        assert (done.returncode, done.stdout) == (2, ""), name
        assert done.stderr.startswith(f"error: {name}: ") and done.stderr.count("\n") == 1
        if channels == 3 or name != "order.npy":
            assert said.partition(": ")[2 if ": " in said else 0][:20] in done.stderr, (name, done.stderr)
    for words in ([], ["rgb.png", "--top", "0"], ["rgb.png", "--tops", "1"], ["rgb.png", "--top"]):
        assert cpp(*words).returncode == 2


@pytest.mark.slow
def test_cpp_refuses_other_files(program: Path, trained: Callable[[str], Path], tmp_path: Path) -> None:
    saved = main([f"ckpt={trained('linear')}", "format=pt2", f"output={tmp_path}/saved.pt2"])
    (tmp_path / "text.pt2").write_text("hello")
    for model, said in (
        (saved, "is no package of format=aoti"),
        (tmp_path / "text.pt2", "is no package of format=aoti"),
        (tmp_path / "gone.pt2", "there is no such file"),
        (tmp_path, "there is no such file"),
        (RUNNER, "the name of a package ends in .pt2"),
    ):
        done = subprocess.run([str(program), str(model), "x.png"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "") and f"{model}: {said}" in done.stderr
