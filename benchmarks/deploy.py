"""One model, run five ways: PyTorch as it is, compiled, ONNX, and AOTInductor's package from Python and from C++.

    python -m benchmarks.deploy [--net resnet20] [--size 32] [--batch 64] [--seconds 2] [--rounds 3] [--threads 1]

The net has random weights and two classes. Cold start: a whole process, from its start to the answer on one PNG file.
Throughput: samples of uint8 to probabilities, the ways in turn, the best of the rounds. C++ needs cmake, g++, libpng
and libjpeg. The last line is one JSON object: seconds of the cold start, and images/s of one image and of a batch at a
time.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from src import load
from src.export import main as export
from src.train import main as train

ROOT = Path(__file__).resolve().parents[1]
RUNNER = ROOT / "deploy/portable.py"
EAGER = "import sys; from src import load; m = load(sys.argv[1]); print(m(m.prepare(sys.argv[2])).softmax(1).tolist())"


def trained(folder: Path, net: str, size: int) -> Path:
    """A run of one step on photos of noise."""
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(40):
            picture = Image.fromarray(random.integers(0, 256, (size, size, 3), np.uint8))
            picture.save(folder / f"photos/{label}/{number}.png")
    train(
        [
            *("data=image_folder", f"data.root={folder}/photos", f"data.image_size={size}", f"data.store_size={size}"),
            *(f"model={net}", "trainer=cpu", "trainer.max_epochs=1", "trainer.limit_train_batches=1"),
            *("data.batch_size=8", "logger=none", "pictures=false", f"runs_dir={folder}/runs"),
        ]
    )
    (run,) = (folder / "runs").glob("*/*")
    return run


def built(folder: Path) -> Path:
    """The C++ program."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for words in (["-S", str(ROOT / "deploy/cpp"), "-B", str(folder)], ["--build", str(folder)]):
        subprocess.run(["cmake", *words], env=environment, check=True, stdout=subprocess.DEVNULL)
    return folder / "portable"


def seconds_of(command: list[str]) -> float:
    """How long a process takes."""
    begin = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - begin


def rate(compute: Callable[[], Any], samples: int, seconds: float) -> float:
    """Samples per second."""
    count, begin = 0, time.perf_counter()
    while (took := time.perf_counter() - begin) < seconds:
        compute()
        count += samples
    return count / took


def in_python(run: Path, files: dict[str, Path], pixels: np.ndarray[Any, Any]) -> dict[str, Callable[[], Any]]:
    """The ways that live in this process, each on the same pixels."""
    import onnxruntime
    from torch._inductor import aoti_load_package

    model = load(run)
    scale, shift = (torch.tensor(model.card[name]).view(-1, 1, 1) for name in ("std", "mean"))

    def forward(image: torch.Tensor) -> torch.Tensor:
        return model.net((image / 255 - shift) / scale).softmax(1)

    image = torch.from_numpy(pixels)
    compiled, package = torch.compile(forward), aoti_load_package(str(files["aoti"]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(files["onnx"], options, providers=["CPUExecutionProvider"])
    return {
        "eager": lambda: forward(image),
        "compiled": lambda: compiled(image),
        "onnxruntime": lambda: session.run(None, {"image": pixels}),
        "aoti": lambda: package(image),
    }


def in_cpp(program: Path, package: Path, array: Path, samples: int, seconds: float, guess: float) -> float:
    """Samples per second of the C++ program, which is told how often to compute."""
    repeat = max(1, round(guess * seconds / samples))
    command = [str(program), str(package), str(array), "--repeat", str(repeat)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = re.search(r": ([\d.e+]+) samples/s", done.stderr)
    assert found is not None, done.stderr
    return float(found[1])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="resnet20")
    parser.add_argument("--size", type=int, default=32, help="pixels of a side")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(measure(Path(name), options)))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the cold starts and the rates."""
    run = trained(folder, options.net, options.size)
    suffixes = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".pt2"}
    files = {kind: folder / f"{kind}{suffix}" for kind, suffix in suffixes.items()}
    for kind, file in files.items():
        export([f"ckpt={run}", f"format={kind}", f"output={file}"])
    program, picture = built(folder / "build"), folder / "photos/cat/0.png"
    runner = [sys.executable, "-I", str(RUNNER)]
    cold = {
        "eager": [sys.executable, "-c", EAGER, str(run), str(picture)],
        **{kind: [*runner, str(file), str(picture)] for kind, file in files.items()},
        "cpp": [str(program), str(files["aoti"]), str(picture)],
    }
    best_cold = {way: min(seconds_of(command) for _ in range(options.rounds)) for way, command in cold.items()}
    rates: dict[str, dict[str, float]] = {}
    for samples in (1, options.batch):
        pixels = np.random.default_rng(1).integers(0, 256, (samples, 3, options.size, options.size), np.uint8)
        np.save(array := folder / f"{samples}.npy", pixels)
        found: dict[str, float] = {}
        with torch.inference_mode():
            ways = in_python(run, files, pixels)
            for compute in ways.values():
                compute()
            for _ in range(options.rounds):
                for way, compute in ways.items():
                    found[way] = max(found.get(way, 0.0), rate(compute, samples, options.seconds))
                there = in_cpp(program, files["aoti"], array, samples, options.seconds, found["aoti"])
                found["cpp"] = max(found.get("cpp", 0.0), there)
        rates[f"batch_{samples}"] = {way: round(value, 1) for way, value in found.items()}
    return {
        "size": options.size,
        "threads": options.threads,
        "cold_start_s": {way: round(value, 2) for way, value in best_cold.items()},
        "images_per_s": rates,
    }


if __name__ == "__main__":
    main()
