"""`python -m src.explain KEY`: the value, who set it, what it replaced."""

import pytest

from src.config import ConfigError
from src.config.sources import CONFIG_DIR
from src.explain import main


def at(file: str, start: str) -> str:
    """`configs/<file>:<line>` of the first line that begins so."""
    lines = (CONFIG_DIR / file).read_text(encoding="utf-8").splitlines()
    return f"configs/{file}:{next(n for n, line in enumerate(lines, 1) if line.strip().startswith(start))}"


CASES = {
    "a file over a file": (
        ["optimizer.lr"],
        "optimizer.lr = 0.002\n"
        f"  {at('experiment/mnist_linear.yaml', 'lr:')}\n"
        f"  replaced 1.0e-3  {at('optimizer/adam.yaml', 'lr:')}",
    ),
    "the command line over files": (
        ["optimizer.lr", "optimizer.lr=1"],
        "optimizer.lr = 1\n"
        "  command line: optimizer.lr=1\n"
        f"  replaced 2.0e-3  {at('experiment/mnist_linear.yaml', 'lr:')}\n"
        f"  replaced 1.0e-3  {at('optimizer/adam.yaml', 'lr:')}",
    ),
    "a default of a class": (["optimizer.betas"], "optimizer.betas = (0.9, 0.999)\n  default of torch.optim.Adam"),
    "a default of the trainer": (
        ["trainer.precision"],
        "trainer.precision = null\n  default of lightning.pytorch.Trainer",
    ),
    "what the program fills in": (["model.facts"], "model.facts\n  comes from the data"),
    "a section": (
        ["model", "model=mlp", "model.net.hidden_sizes=[8]"],
        "model._target_ = src.modules.classification.ClassificationModule\n"
        f"  {at('model/mlp.yaml', '_target_:')}\n"
        "model.net._target_ = src.nets.linear.MLP\n"
        f"  {at('model/mlp.yaml', '_target_: src.nets')}\n"
        "model.net.hidden_sizes = [8]\n"
        "  command line: model.net.hidden_sizes=[8]\n"
        f"  replaced [64, 128, 64]  {at('model/mlp.yaml', 'hidden_sizes:')}\n"
        "model.weights = null\n  default\nmodel.freeze = null\n  default\nmodel.unfreeze_epoch = null\n  default",
    ),
    "a choice": (
        ["experiment", "experiment=mnist_mlp"],
        "experiment = mnist_mlp\n"
        "  command line: experiment=mnist_mlp\n"
        f"  replaced mnist_linear  {at('train.yaml', '- experiment:')}",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_answer(case, capsys):
    arguments, answer = CASES[case]
    assert main(arguments) == answer
    assert capsys.readouterr().out == answer + "\n"


def test_environment(monkeypatch):
    monkeypatch.delenv("DATA_ROOT", raising=False)
    source = f"  {at('data/mnist.yaml', 'root:')}  ${{oc.env:DATA_ROOT,data}}"
    assert main(["data.root", "data=mnist"]) == f"data.root = data\n{source}"
    monkeypatch.setenv("DATA_ROOT", "/sets")
    assert main(["data.root", "data=mnist"]) == f"data.root = /sets\n{source}"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["optimizer.lrr"], "optimizer.lrr: there is no such key; did you mean optimizer.lr?"),
        (["lr"], "lr: there is no such key; did you mean optimizer.lr?"),
        ([], "which key? python -m src.explain KEY [key=value ...], for example optimizer.lr"),
        (["seed", "seeed=1"], "seeed=1: there is no key seeed; did you mean seed?"),
    ],
)
def test_mistakes(arguments, text):
    with pytest.raises(ConfigError) as caught:
        main(arguments)
    assert str(caught.value) == text
