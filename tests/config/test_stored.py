"""A stored configuration with overrides, under the same checks and without the shipped files."""

import copy
import json

import pytest
import yaml

from src.config import ConfigError, apply_overrides, compose, compose_run


@pytest.fixture(scope="module")
def stored():
    cfg = compose(["experiment=mnist_mlp"]).cfg
    cfg["data"]["root"] = "/data/${x}\\${y} é"  # what was resolved once is not resolved again
    return cfg


def refused(*arguments, **keywords) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(*arguments, **keywords)
    return list(caught.value.problems)


def test_nothing_changes_without_overrides(stored, tmp_path):
    before = copy.deepcopy(stored)
    composed = apply_overrides(stored, [], config_dir=tmp_path)
    assert composed.cfg == stored == before
    assert composed.cfg["experiment"] == "mnist_mlp"


def test_a_key_is_set(stored):
    assert apply_overrides(stored, ["data.batch_size=7"]).cfg["data"]["batch_size"] == 7


def test_an_allowed_group_is_replaced(stored):
    composed = apply_overrides(stored, ["data=mnist_subset", "data.batch_size=7"], allowed_groups=["data", "trainer"])
    assert composed.cfg["data"] == compose(["data=mnist_subset", "data.batch_size=7"]).cfg["data"]
    assert composed.cfg["model"] == stored["model"]
    assert composed.cfg["experiment"] == "mnist_mlp"
    assert composed.provenance["data.batch_size"][0].where == "configs/data/mnist_subset.yaml:3"


def test_every_problem_is_listed(stored):
    assert refused(stored, ["model=linear", "trainer.max_epoch=7", "optimizer.lr=-1"], ["data"]) == [
        "model=linear: the stored run keeps its model; these can be replaced: data",
        "optimizer.lr=-1: must be above 0, not -1",
        "trainer.max_epoch=7: lightning.pytorch.Trainer has no argument max_epoch; did you mean trainer.max_epochs?",
    ]


def test_a_misspelt_file_of_an_allowed_group(stored):
    assert refused(stored, ["data=mnst", "seed=-1"], ["data"]) == [
        "data=mnst: there is no data called mnst; did you mean mnist?",
        "seed=-1: must be from 0 to 2**32 - 1, not -1",
    ]


def test_experiment_is_kept(stored):
    assert refused(stored, ["experiment=mnist_linear"]) == [
        "experiment=mnist_linear: the stored run keeps its experiment"
    ]


def test_hostile_target_in_what_was_stored(stored):
    hostile = copy.deepcopy(stored)
    hostile["callbacks"] = {"x": {"_target_": "os.system", "command": "true"}}
    hostile["model"]["net"]["layers"] = [{"_target_": "builtins.eval"}]
    found = refused(hostile, [])
    assert found[1].startswith("callbacks.x._target_: os.system is not an allowed target")
    assert found[0].startswith("model.net.layers: src.nets.linear.MLP has no argument layers")


def test_older_run_reads_as_if_a_newer_key_was_off(stored):
    older = {key: value for key, value in stored.items() if key not in {"compile", "early_stopping"}}
    cfg = apply_overrides(older, []).cfg
    assert cfg["compile"] == {"backend": None, "mode": None}
    assert cfg["early_stopping"]["patience"] is None


def test_hostile_target_at_any_depth(stored):
    hostile = copy.deepcopy(stored)
    free_form = {"_target_": "lightning.pytorch.callbacks.ModelSummary", "others": [{"a": {"_target_": "os.system"}}]}
    hostile["callbacks"] = {"x": free_form}
    [problem] = refused(hostile, [])
    assert problem.startswith("callbacks.x.others.0.a._target_: os.system is not an allowed target")


def test_a_part_of_a_value_that_may_change_on_resume(stored, tmp_path):
    cfg = apply_overrides(stored, ["trainer.max_time={hours: 1}"]).cfg
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(cfg), encoding="utf-8")
    (tmp_path / "status.json").write_text(json.dumps({"state": "finished", "run_id": "x"}), encoding="utf-8")
    resumed = compose_run([f"resume={tmp_path}", "trainer.max_time.hours=2"]).resumed
    assert resumed.changes == {"trainer.max_time.hours": (1, 2)} and resumed.extends
