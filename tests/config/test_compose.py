"""What a composed configuration holds, and that it costs no import of torch."""

import subprocess
import sys

import pytest

from src.config import ConfigError, compose
from src.config.sources import ConfigFolder


def test_default_experiment():
    composed = compose()
    assert composed.cfg["experiment"] == "mnist_linear"
    assert composed.cfg["data"]["_target_"] == "src.data.mnist.MNISTSubsetDataModule"
    assert composed.cfg["optimizer"]["lr"] == 2e-3


@pytest.mark.parametrize(
    "choice",
    [f"{group}={name}" for group in ConfigFolder().groups() for name in ConfigFolder().options(group)],
)
def test_every_shipped_choice_is_right(choice):
    provenance = compose([choice]).provenance
    wheres = {setting.where for settings in provenance.values() for setting in settings}
    assert {setting.where for _, setting in ConfigFolder().settings(choice.replace("=", "/"), "")} <= wheres


@pytest.mark.parametrize("choice", ["scheduler=none", "logger=none", "logger=csv"])
def test_a_choice_that_sets_nothing_takes_the_place_of_another(choice):
    group = choice.partition("=")[0]
    assert (
        compose(["experiment=cifar10_resnet20", choice]).cfg[group]
        == {}
        != compose(["experiment=cifar10_resnet20"]).cfg[group]
    )


VALUES = [
    {
        "optimizer.lr=1e-3": 1e-3,
        "+optimizer.eps=1e-7": 1e-7,
        "trainer.accumulate_grad_batches=2": 2,
        "trainer.precision=16-mixed": "16-mixed",
        "trainer.devices=[0,1]": [0, 1],
        "trainer.max_time={hours: 1}": {"hours": 1},
        "early_stopping.patience=null": None,
        "name=42": "42",
        "notes='quoted'": "quoted",
        "tags=[a,1]": ["a", "1"],
        "seed=0": 0,
        "scheduler=null": {},
        "+experiment=mnist_mlp": "mnist_mlp",
        "runs_dir=/tmp/a=b, c (d)": "/tmp/a=b, c (d)",
        "monitor.mode=min": "min",
        "checkpoint.every_minutes=1": 1.0,
    },
    {
        "optimizer.lr=1": 1,
        "optimizer.eps=1e-7": 1e-7,
        "trainer.precision=32": 32,
        "name=é, ü (2)": "é, ü (2)",
        "notes=${monitor.metric}": "val/acc",
        "group=$x": "$x",
        "~scheduler": {},
        "~experiment": None,
    },
]


@pytest.mark.parametrize("values", VALUES, ids=["some", "others"])
def test_overrides(values):
    cfg = compose(list(values)).cfg
    for override, value in values.items():
        node = cfg
        for part in override.lstrip("+~").partition("=")[0].split("."):
            node = node[part]
        assert node == value, override
        assert type(node) is type(value), override


def test_a_key_can_be_taken_away():
    assert "fused" not in compose(["~optimizer.fused"]).cfg["optimizer"]


def test_environment_sets_folders(monkeypatch):
    monkeypatch.setenv("RUNS_DIR", "/tmp/runs of {me}")
    monkeypatch.setenv("DATA_ROOT", "/tmp/data=here")
    cfg = compose(["data=mnist"]).cfg
    assert (cfg["runs_dir"], cfg["data"]["root"]) == ("/tmp/runs of {me}", "/tmp/data=here")


def test_other_keys_can_refer_to_the_experiment():
    assert compose(["experiment=mnist_mlp", "name=${experiment} again"]).cfg["name"] == "mnist_mlp again"


def test_own_settings_of_a_machine(configs):
    (configs / "local").mkdir()
    (configs / "local/default.yaml").write_text("# @package _global_\ntrainer:\n  accelerator: cpu\n", encoding="utf-8")
    composed = compose([], configs)
    assert composed.cfg["trainer"]["accelerator"] == "cpu"
    assert composed.provenance["trainer.accelerator"][-1].where == "configs/local/default.yaml:3"
    (configs / "local/default.yaml").write_text("# @package _global_\ntrainr:\n  accelerator: cpu\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^configs/local/default.yaml:3: trainr.accelerator: there is no key trainr"):
        compose([], configs)


def test_optional_keys_are_filled_with_what_switches_them_off(configs):
    text = (configs / "train.yaml").read_text(encoding="utf-8")
    (configs / "train.yaml").write_text(text[: text.index("early_stopping:")], encoding="utf-8")
    cfg = compose([], configs).cfg
    assert cfg["early_stopping"] == {"patience": None, "min_delta": 0.0}
    assert cfg["compile"] == {"backend": None, "mode": None}


def test_choices_keep_their_order_of_precedence(configs):
    (configs / "experiment/mine.yaml").write_text(
        "# @package _global_\ndefaults:\n- override /optimizer: sgd\noptimizer:\n  lr: 5.0\n", encoding="utf-8"
    )
    assert compose(["experiment=mine"], configs).cfg["optimizer"]["lr"] == 5.0
    composed = compose(["experiment=mine", "optimizer=adam", "optimizer.lr=7"], configs)
    assert composed.cfg["optimizer"]["_target_"] == "torch.optim.Adam"
    assert [setting.text for setting in composed.provenance["optimizer.lr"]] == ["1.0e-3", "5.0", "7"]


def test_no_torch_is_imported(tmp_path):
    code = """
import sys
from src.config import ConfigError, compose
from src.config.cli import run_entry
from src.config.compose import explain
explain(compose(["experiment=mnist_mlp", "trainer.precision=16-mixed"]), "trainer")
try:
    compose(["optimizer.lr=fast", "model.net._target_=src.nets.linear.Nothing"])
except ConfigError as error:
    assert len(error.problems) == 2, error
heavy = {"torch", "lightning", "torchvision", "numpy", "wandb", "torchmetrics"} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_hydra_is_left_as_it_was():
    from hydra.core.global_hydra import GlobalHydra

    compose()
    assert not GlobalHydra.instance().is_initialized()
