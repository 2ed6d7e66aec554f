"""Class weights: in the loss of training, and nowhere else."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from src.config import ConfigError
from src.modules.classification import ClassificationModule, balancing_weights

FACTS = {"input_shape": [2], "num_classes": 3, "class_counts": {"train": [10, 40, 50], "val": [1, 1, 1]}}
OUTPUT, TARGET = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 3.0]]), torch.tensor([0, 1, 1])


def module(**arguments: Any) -> ClassificationModule:
    return ClassificationModule(
        net={"_target_": "src.nets.linear.LinearClassifier"},
        facts=FACTS,
        optimizer={},
        scheduler={},
        monitor={},
        **arguments,
    )


def test_auto_is_inverse_to_the_share_of_the_training_samples() -> None:
    assert balancing_weights(FACTS) == [100 / 30, 100 / 120, 100 / 150]
    expected = cross_entropy(OUTPUT, TARGET, weight=torch.tensor([100 / 30, 100 / 120, 100 / 150]))
    assert torch.equal(module(class_weights="auto").train().loss(OUTPUT, TARGET), expected)


def test_a_list_is_taken_as_it_is() -> None:
    loss = module(class_weights=[1.0, 2.0, 0.0]).train().loss(OUTPUT, TARGET)
    assert torch.equal(loss, cross_entropy(OUTPUT, TARGET, weight=torch.tensor([1.0, 2.0, 0.0])))


@pytest.mark.parametrize("weights", [None, "auto", [5, 1, 1]])
def test_losses_of_an_evaluation_are_not_weighted(weights: Any) -> None:
    assert torch.equal(module(class_weights=weights).eval().loss(OUTPUT, TARGET), cross_entropy(OUTPUT, TARGET))


def test_without_weights_training_is_plain_too() -> None:
    assert torch.equal(module().train().loss(OUTPUT, TARGET), cross_entropy(OUTPUT, TARGET))


def test_weights_are_plain_hyper_parameters_and_no_part_of_the_state() -> None:
    weighted = module(class_weights="auto")
    assert weighted.hparams["class_weights"] == "auto"
    assert weighted.state_dict().keys() == module().state_dict().keys()


def test_a_class_without_training_samples_has_no_weight() -> None:
    facts = {"class_names": ["ant", "bee", "cow"], "class_counts": {"train": [10, 0, 50]}}
    with pytest.raises(ConfigError, match="class_weights=auto: no training sample is of class bee; give a list"):
        balancing_weights(facts)


def test_their_number_is_checked() -> None:
    with pytest.raises(ConfigError, match="2 weights for 3 classes"):
        module(class_weights=[1.0, 2.0])
