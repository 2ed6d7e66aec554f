"""Every mistake has its message: where, what is wrong, what would be right."""

import re
from dataclasses import fields

import pytest

from src.config.schema import Config

HEADER = "# @package _global_\n"
KEYS = [item.name for item in fields(Config)]

ON_THE_COMMAND_LINE = {
    # keys
    "seeed=1": "seeed=1: there is no key seeed; did you mean seed?",
    "lr=0.1": "lr=0.1: there is no key lr; did you mean optimizer.lr?",
    "epochs=3": "epochs=3: there is no key epochs; did you mean trainer.max_epochs?",
    "optimzer.lr=0.1": "optimzer.lr=0.1: there is no key optimzer; did you mean optimizer.lr?",
    "optimizer.lrr=0.1": "optimizer.lrr=0.1: torch.optim.Adam has no argument lrr; did you mean optimizer.lr?",
    "+optimizer.lrr=0.1": "+optimizer.lrr=0.1: torch.optim.Adam has no argument lrr; did you mean optimizer.lr?",
    "++optimizer.lrr=0.1": "++optimizer.lrr=0.1: torch.optim.Adam has no argument lrr; did you mean optimizer.lr?",
    "monitor.metrik=val/loss": "monitor.metrik=val/loss: there is no key metrik; did you mean monitor.metric?",
    "trainer.max_epoch=3": (
        "trainer.max_epoch=3: lightning.pytorch.Trainer has no argument max_epoch; did you mean trainer.max_epochs?"
    ),
    "optimizer.param_groups.headlr=1": (
        "optimizer.param_groups.headlr=1: there is no key headlr; did you mean optimizer.param_groups.head_lr?"
    ),
    "~optimizer.lrr": "~optimizer.lrr: there is no key optimizer.lrr; did you mean optimizer.lr?",
    "~seeed": "~seeed: there is no key seeed; did you mean seed?",
    "~seed": "seed: missing",
    "scheduler.gamma=0.5": (
        "scheduler.gamma=0.5: no scheduler is chosen that takes gamma; choose one by scheduler=NAME"
    ),
    # choices
    "experiment=mnist_liner": (
        "experiment=mnist_liner: there is no experiment called mnist_liner; did you mean mnist_linear?"
    ),
    "model=mpl": "model=mpl: there is no model called mpl; did you mean mlp?",
    "data=mnst": "data=mnst: there is no data called mnst; did you mean mnist?",
    # types
    "optimizer.lr=fast": "optimizer.lr=fast: expected float, got the text 'fast'",
    "optimizer.lr=true": "optimizer.lr=true: expected float, got true",
    "optimizer.lr='1e-3'": "optimizer.lr='1e-3': expected float, got the text '1e-3'",
    "optimizer.betas=0.9": "optimizer.betas=0.9: expected list, got 0.9",
    "trainer.max_epochs=3.0": "trainer.max_epochs=3.0: expected int or null, got 3.0",
    "logger.mode=onlin": (
        "logger.mode=onlin: expected 'auto' or 'online' or 'offline' or 'disabled', got the text 'onlin'"
    ),
    "trainer.precision=17": (
        "trainer.precision=17: expected 64 or 32 or 16 or 'transformer-engine' or 'transformer-engine-float16' or "
        "'16-true' or '16-mixed' or 'bf16-true' or 'bf16-mixed' or '32-true' or '64-true' or '64' or '32' or '16' or "
        "'bf16' or null, got 17"
    ),
    "seed='3'": "seed='3': expected int, got the text '3'",
    "train=often": "train=often: expected bool, got the text 'often'",
    "checkpoint.every_minutes=soon": ("checkpoint.every_minutes=soon: expected float or null, got the text 'soon'"),
    "data.batch_size=null": "data.batch_size=null: expected int, got null",
    "tags=paper": "tags=paper: expected list[str], got the text 'paper'",
    "monitor.mode=maxi": "monitor.mode=maxi: expected min or max, got the text 'maxi'",
    "early_stopping=null": (
        "early_stopping=null: null is no section; its keys are early_stopping.patience, early_stopping.min_delta"
    ),
    "++tags='\\${x}'": "++tags='\\${x}': expected list[str], got the text '${x}'",
    "tags.first=a": "tags.first=a: tags is the value [], not a section",
    "seed.x=1": "seed.x=1: seed is the value 0, not a section",
    "experiment.x=1": "experiment.x=1: experiment is the value 'mnist_linear', not a section",
    "optimizer.lr=???": "optimizer.lr=???: must be given: optimizer.lr=...",
    # ranges
    "trainer.max_epochs=-3": "trainer.max_epochs=-3: must be at least 1, or -1 for no limit, not -3",
    "data.batch_size=0": "data.batch_size=0: must be at least 1, not 0",
    "data.val_size=0": "data.val_size=0: must be above 0, not 0",
    "optimizer.lr=inf": "optimizer.lr=inf: must be above 0, not inf",
    "optimizer.lr=0": "optimizer.lr=0: must be above 0, not 0",
    "early_stopping.patience=0": "early_stopping.patience=0: must be at least 1, not 0",
    "checkpoint.every_n_steps=0": "checkpoint.every_n_steps=0: must be at least 1, not 0",
    "seed=4294967296": "seed=4294967296: must be from 0 to 2**32 - 1, not 4294967296",
    "seed=-1": "seed=-1: must be from 0 to 2**32 - 1, not -1",
    # what the program fills in
    "model.facts={}": "model.facts={}: comes from the data and is not set here",
    "trainer.callbacks=[]": "trainer.callbacks=[]: comes from the section callbacks and is not set here",
    # targets
    "model.net._target_=os.system": (
        "model.net._target_=os.system: os.system is not an allowed target: those are public names of src., torch.nn., "
        "torch.optim., torchvision.models., torch_geometric.nn., lightning.pytorch.callbacks., "
        "lightning.pytorch.loggers. and what [tool.research-template] allowed-targets in pyproject.toml adds"
    ),
    "optimizer._target_=torch.optim.Adamm": (
        "optimizer._target_=torch.optim.Adamm: torch.optim.Adamm names no class; did you mean torch.optim.Adam?"
    ),
    "optimizer._target_=torch.optim.os": "optimizer._target_=torch.optim.os: torch.optim.os names no class",
    "trainer._target_=os.system": "trainer._target_=os.system: lightning.pytorch.Trainer has no argument _target_",
    "callbacks.mine.depth=1": "callbacks.mine.depth=1: callbacks.mine needs a _target_",
    "callbacks.other={1:2}": "callbacks.other={1:2}: callbacks.other needs a _target_",
    # grammar and interpolation
    "mnist_mlp": "mnist_mlp: an override is written key=value; did you mean experiment=mnist_mlp?",
    "nothing": "nothing: an override is written key=value",
    "optimizer.lr=0.1,0.2": (
        "optimizer.lr=0.1,0.2: several values mean several runs, which python -m src.sweep makes; "
        "one list is written key=[a,b], text with a comma key=\"'a,b'\""
    ),
    "tags=[a": (
        "tags=[a: cannot be read (no viable alternative at input '[a'); text with other characters than letters, "
        "digits and /-.+_ goes in quotes: tags=\"'...'\""
    ),
    "optimizer.lr='${'": "optimizer.lr='${': cannot be read (no viable alternative at input '${')",
    "trainer.max_time={null:1}": "trainer.max_time={null:1}: cannot be read (Incompatible key type 'NoneType')",
    "name=${nobody}": "name=${nobody}: name: cannot be resolved: Interpolation key 'nobody' not found",
    "name=${oc.env:NOBODY_SETS_THIS}": (
        "name=${oc.env:NOBODY_SETS_THIS}: name: cannot be resolved: "
        "\"Environment variable 'NOBODY_SETS_THIS' not found\""
    ),
    "hydra.run.dir=here": "hydra.run.dir=here: there is no key hydra; choices: " + ", ".join(KEYS),
    "data@model=mnist": "data@model=mnist: a group always goes to the section of its name, write it without @",
}

IN_AN_EXPERIMENT = {
    "misspelt section": (
        "optimzer:\n  lr: 0.1\n  eps: 0.1\n",
        "configs/experiment/mine.yaml:4: optimzer: there is no key optimzer; did you mean optimizer?",
    ),
    "misspelt section of one key": (
        "optimzer:\n  lr: 0.1\n",
        "configs/experiment/mine.yaml:3: optimzer.lr: there is no key optimzer; did you mean optimizer.lr?",
    ),
    "misspelt key at the top": (
        "seed: 1\nnmae: x\n",
        "configs/experiment/mine.yaml:3: nmae: there is no key nmae; did you mean name?",
    ),
    "misspelt key in a section": (
        "early_stopping:\n  patiense: 3\n",
        "configs/experiment/mine.yaml:3: early_stopping.patiense: there is no key patiense; "
        "did you mean early_stopping.patience?",
    ),
    "misspelt argument of the optimizer": (
        "optimizer:\n  lr: 0.1\n  weight_decy: 0.1\n",
        "configs/experiment/mine.yaml:4: optimizer.weight_decy: torch.optim.Adam has no argument weight_decy; "
        "did you mean optimizer.weight_decay?",
    ),
    "misspelt argument of the net": (
        "defaults:\n- override /model: mlp\nmodel:\n  net:\n    hidden_size: [3]\n",
        "configs/experiment/mine.yaml:6: model.net.hidden_size: src.nets.linear.MLP has no argument hidden_size; "
        "did you mean model.net.hidden_sizes?",
    ),
    "wrong type": (
        "trainer:\n  max_epochs: many\n",
        "configs/experiment/mine.yaml:3: trainer.max_epochs: expected int or null, got the text 'many'",
    ),
    "a name where a section is expected": (
        "optimizer: adam\n",
        "configs/experiment/mine.yaml:2: optimizer: the text 'adam' is no section; a file of configs/optimizer/ is "
        "chosen by optimizer=NAME, or in a defaults list by override /optimizer: NAME",
    ),
    "no such file in the defaults list": (
        "defaults:\n- override /model: mpl\n",
        "configs/experiment/mine.yaml:3: there is no model called mpl; did you mean mlp?",
    ),
    "no such group in the defaults list": (
        "defaults:\n- override /modle: mlp\n",
        "configs/experiment/mine.yaml:3: there is no group modle; did you mean model?",
    ),
    "not YAML": (
        "optimizer:\n  lr: 0.1\n lr: 0.2\n",
        "configs/experiment/mine.yaml:4: not valid YAML: expected <block end>, but found '<block mapping start>' "
        "(while parsing a block mapping)",
    ),
    "a list": (
        "- optimizer\n",
        "configs/experiment/mine.yaml: expected key: value lines, found a list",
    ),
    "one key twice": (
        "optimizer:\n  lr: 0.1\n  lr: 0.2\n",
        "configs/experiment/mine.yaml:4: not valid YAML: found duplicate key lr (while constructing a mapping)",
    ),
    "bad interpolation": (
        "optimizer:\n  lr: ${nobody}\n",
        "configs/experiment/mine.yaml:3: optimizer.lr: cannot be resolved: Interpolation key 'nobody' not found",
    ),
}


LEAVES_SOMETHING_OUT = re.compile(
    r"~seed|\w+=m\w+|early_stopping=|\w+\._target_=|model.net._target_=|seed.x=|tags.first=|optimizer=|name="
)


def rounds() -> list[list[str]]:
    """All overrides in as few compositions as can be: each key once in one, and alone what hides other problems."""
    alone = [[override] for override in ON_THE_COMMAND_LINE if LEAVES_SOMETHING_OUT.match(override)]
    together: list[dict[str, str]] = []
    for override in ON_THE_COMMAND_LINE:
        key = override.lstrip("+~").partition("=")[0]
        if [override] not in alone:
            place = next((found for found in together if key not in found), None)
            if place is None:
                together.append(place := {})
            place[key] = override
    return alone + [list(found.values()) for found in together]


@pytest.mark.parametrize("overrides", rounds(), ids=" ".join)
def test_command_line(overrides, problems):
    """Each problem has its message, however many there are."""
    assert sorted(problems(*overrides)) == sorted(ON_THE_COMMAND_LINE[override] for override in overrides)


@pytest.mark.parametrize("case", IN_AN_EXPERIMENT)
def test_experiment_file(case, problems):
    text, message = IN_AN_EXPERIMENT[case]
    assert problems(experiment=HEADER + text) == [message]


def test_ten_faults_at_once(problems):
    """Each is found although the others are there, in the file as on the command line."""
    found = problems(
        "model=mpl",
        "model.net.hidden_sizes=[3]",  # not judged: which model is meant is not known
        "~nothing",
        "tags=[a",
        "seeed=1",
        "data.batch_size=0",
        "optimizer.lr=fast",
        "name=${nobody}",
        "callbacks.mine._target_=os.system",
        experiment=HEADER + "trainer:\n  max_epochs: -3\n  devicse: 2\n",
    )
    starts = [
        "model=mpl: there is no model",
        "~nothing: there is no key",
        "tags=[a: cannot be read",
        "seeed=1: there is no key",
        "data.batch_size=0: must be",
        "optimizer.lr=fast: expected float",
        "name=${nobody}: name: cannot be resolved",
        "callbacks.mine._target_=os.system: os.system is not an allowed target",
        "configs/experiment/mine.yaml:3: trainer.max_epochs: must be",
        "configs/experiment/mine.yaml:4: trainer.devicse: lightning.pytorch.Trainer has no argument",
    ]
    assert len(found) == len(starts)
    assert all(any(problem.startswith(start) for problem in found) for start in starts), found


def test_faults_of_a_broken_file_do_not_hide_others(problems):
    found = problems("seeed=1", experiment="a: [\n")
    assert [problem.partition(":")[0] for problem in found] == ["configs/experiment/mine.yaml", "seeed=1"]


def test_header_of_an_experiment_is_missing(problems):
    assert problems(experiment="optimizer:\n  lr: 0.1\n") == [
        "configs/experiment/mine.yaml: its first line must be '# @package _global_'"
    ]


def test_primary_file_is_broken(problems, configs):
    (configs / "train.yaml").write_text("seed: [\n", encoding="utf-8")
    assert problems() == [
        "configs/train.yaml:2: not valid YAML: expected the node content, but found '<stream end>' "
        "(while parsing a flow node)"
    ]


def test_broken_file_of_a_group_is_named(problems, configs):
    (configs / "optimizer/adam.yaml").write_text("lr: 'open\n", encoding="utf-8")
    broken = "not valid YAML: found unexpected end of stream (while scanning a quoted scalar)"
    assert problems("seeed=1") == [
        f"configs/optimizer/adam.yaml:2: {broken}",
        "seeed=1: there is no key seeed; did you mean seed?",
    ]


def test_arguments_that_a_factory_passes_on(problems):
    assert problems("model.net._target_=torchvision.models.resnet18", "model.net.zero_init_residua=true") == [
        "model.net.zero_init_residua=true: torchvision.models.resnet18 has no argument zero_init_residua; "
        "did you mean model.net.zero_init_residual?"
    ]


def test_missing_argument_of_a_target(problems):
    assert problems("scheduler=step", "~scheduler.step_size") == [
        "configs/scheduler/step.yaml:2: torch.optim.lr_scheduler.StepLR needs scheduler.step_size"
    ]


def test_data_group_is_needed(problems):
    assert problems("~model") == ["model: missing; choose one by model=NAME"]


def test_broken_files_leave_their_group_out(problems, configs):
    """What depends on a broken file is not judged; all else is."""
    (configs / "trainer/default.yaml").write_text("defaults: [cpu]\n", encoding="utf-8")
    (configs / "local").mkdir()
    (configs / "local/default.yaml").write_text("seed: 1\n", encoding="utf-8")
    (configs / "optimizer/adam.yaml").write_bytes(b"lr: 1 # \xff\n")
    assert problems("tags=[${x},${y}]", "trainer.nonsense=1", "seed=-1") == [
        "configs/optimizer/adam.yaml: cannot be read: 'utf-8' codec can't decode byte 0xff in position 8: "
        "invalid start byte",
        "configs/trainer/cpu.yaml:1: trainer/default asks for itself",
        "configs/local/default.yaml: its first line must be '# @package _global_'",
        "tags=[${x},${y}]: tags: cannot be resolved: Interpolation key 'x' not found",
        "seed=-1: must be from 0 to 2**32 - 1, not -1",
    ]
