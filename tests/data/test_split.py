"""Stratified splits: exact sizes, proportional classes, the same on every machine."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from src.config import ConfigError
from src.data.split import stratified_split

NAMES = ("cat", "dog", "owl")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_parts_are_disjoint_exact_and_proportional(data: st.DataObject) -> None:
    counts = np.array(data.draw(st.lists(st.integers(20, 60), min_size=3, max_size=3)))
    labels = np.random.default_rng(data.draw(st.integers(0, 9))).permutation(np.repeat(np.arange(3), counts))
    sizes = [data.draw(st.integers(10, 25)), data.draw(st.integers(10, 25))]
    parts = stratified_split(labels, sizes, data.draw(st.integers(0, 2**32)), NAMES)
    assert [len(part) for part in parts] == sizes
    assert len(set(np.concatenate(parts).tolist())) == sum(sizes)
    for part, size in zip(parts, sizes, strict=True):
        assert (np.diff(part) > 0).all()
        assert np.abs(np.bincount(labels[part], minlength=3) - counts * size / counts.sum()).max() < 2


def test_folds_that_use_up_the_data_cover_it() -> None:
    labels = np.arange(23) % 3
    folds = stratified_split(labels, [6, 6, 6, 5], seed=0, class_names=NAMES)
    assert sorted(np.concatenate(folds).tolist()) == list(range(23))


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    labels = np.arange(300) % 3
    state = np.random.get_state(legacy=False)["state"]["key"].tolist()
    first, again, other = (stratified_split(labels, [150], seed, NAMES)[0].tolist() for seed in (1, 1, 2))
    assert first == again != other
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == state


def test_largest_remainders_get_the_left_over_samples() -> None:
    labels = np.repeat([0, 1, 2], [6, 9, 5])  # 7 of 20: quotas 2.1, 3.15, 1.75
    (part,) = stratified_split(labels, [7], 0, NAMES)
    assert np.bincount(labels[part]).tolist() == [2, 3, 2]


def test_a_class_too_small_for_every_part_is_refused() -> None:
    labels = np.repeat([0, 1, 2], [50, 50, 1])
    with pytest.raises(ConfigError) as caught:
        stratified_split(labels, [91, 10], 0, NAMES)
    assert str(caught.value) == (
        "a part of 10 samples gets none of class 'owl', which has 1 of 101: choose other sizes, or add samples"
    )


def test_more_than_there_is_cannot_be_cut() -> None:
    with pytest.raises(ConfigError, match=r"parts of 8 \+ 3 samples cannot be cut from 10"):
        stratified_split(np.zeros(10, np.int64), [8, 3], 0, NAMES)
