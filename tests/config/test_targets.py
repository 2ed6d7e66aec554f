"""Nothing outside the allow-list is imported, reached or called."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from src.config import ConfigError, build, resolve_target
from src.config.targets import allowed_targets

HOSTILE = [
    "os.system",
    "builtins.eval",
    "subprocess.Popen",
    "torch.load",
    "torch.nn",
    "torch.nn.functional.torch.os.system",
    "torch.optim.torch.hub.load",
    "src.train.os.system",
    "src.config.targets.import_module",
    "src.config.targets._PUBLIC_NAME",
    "src.config.targets.Path",
    "torch.nn.modules.module.torch",
    "torch.nn._reduction.get_enum",
    "torch.nn.Module.__init__",
    "torch.nn.functional.relu",
    "torch.nn..Linear",
    "torch.nn.Linear ",
    "src.nowhere.Thing",
    "",
    "torch",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("base", [nn.Module, object, type])
def test_hostile_names_are_refused(name, base):
    with pytest.raises(ConfigError):
        resolve_target(name, base)


def test_nothing_is_imported_for_a_refused_name(tmp_path):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    code = "from src.config import *\ntry: resolve_target('trap.Thing', object)\nexcept ConfigError: print('refused')"
    env = {"PYTHONPATH": f"{tmp_path}:."}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "refused\n"


def test_class_of_another_base():
    with pytest.raises(ConfigError, match=r"^_target_ torch.optim.Adam is not a torch.nn.modules.module.Module$"):
        resolve_target("torch.optim.Adam", nn.Module)


def test_factory_only_of_its_own_base():
    assert callable(resolve_target("torchvision.models.resnet18", nn.Module))
    with pytest.raises(ConfigError):
        resolve_target("torchvision.models.resnet18", torch.optim.Optimizer)
    with pytest.raises(ConfigError):
        resolve_target("torchvision.models.get_model", nn.Module)


def test_build():
    layer = build({"_target_": "torch.nn.Linear", "in_features": 2}, nn.Module, out_features=3)
    assert isinstance(layer, nn.Linear)
    assert layer.weight.shape == (3, 2)
    factory = build({"_target_": "torchvision.models.resnet18", "num_classes": 3}, nn.Module)
    assert factory.fc.out_features == 3


def test_build_refuses_what_the_program_fills_in():
    with pytest.raises(ConfigError, match="in_features is set by the program"):
        build({"_target_": "torch.nn.Linear", "in_features": 2}, nn.Module, in_features=3)


def test_build_needs_a_target():
    with pytest.raises(ConfigError, match="no _target_"):
        build({"in_features": 2}, nn.Module)


def test_pyproject_adds_names(tmp_path):
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[tool.research-template]\nallowed-targets = ["timm.models.", "torch.nn"]\n', encoding="utf-8")
    assert allowed_targets(pyproject)[-2:] == ("timm.models.", "torch.nn")
    assert allowed_targets(tmp_path / "none.toml") == allowed_targets()
