"""`python -m src.explain KEY`: the value, who set it, what it replaced."""

import pytest

from src.config import ConfigError
from src.explain import main

CASES = {
    "a file over a file": (
        ["optimizer.lr"],
        "optimizer.lr = 0.002\n"
        "  configs/experiment/mnist_linear.yaml:9\n"
        "  replaced 1.0e-3  configs/optimizer/adam.yaml:2",
    ),
    "the command line over files": (
        ["optimizer.lr", "optimizer.lr=1"],
        "optimizer.lr = 1\n"
        "  command line: optimizer.lr=1\n"
        "  replaced 2.0e-3  configs/experiment/mnist_linear.yaml:9\n"
        "  replaced 1.0e-3  configs/optimizer/adam.yaml:2",
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
        "  configs/model/mlp.yaml:2\n"
        "model.net._target_ = src.nets.linear.MLP\n"
        "  configs/model/mlp.yaml:4\n"
        "model.net.hidden_sizes = [8]\n"
        "  command line: model.net.hidden_sizes=[8]\n"
        "  replaced [64, 128, 64]  configs/model/mlp.yaml:5",
    ),
    "a choice": (
        ["experiment", "experiment=mnist_mlp"],
        "experiment = mnist_mlp\n  command line: experiment=mnist_mlp\n  replaced mnist_linear  configs/train.yaml:12",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_answer(case, capsys):
    arguments, answer = CASES[case]
    assert main(arguments) == answer
    assert capsys.readouterr().out == answer + "\n"


def test_environment(monkeypatch, capsys):
    monkeypatch.delenv("DATA_ROOT", raising=False)
    assert (
        main(["data.root", "data=mnist"])
        .splitlines()[1]
        .endswith("${oc.env:DATA_ROOT,data}, the default, as nothing sets the environment variable DATA_ROOT")
    )
    monkeypatch.setenv("DATA_ROOT", "/sets")
    value, source = main(["data.root", "data=mnist"]).splitlines()
    assert value == "data.root = /sets"
    assert source.endswith("${oc.env:DATA_ROOT,data}, the value of the environment variable DATA_ROOT")


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
