"""The order of the samples: the same whatever the number of processes, and resumable anywhere."""

from itertools import chain

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from src.config import ConfigError
from src.data.sampler import EvalSampler, TrainSampler, derive_seed

WORLDS = (1, 2, 3)
counts = st.one_of(st.sampled_from([5, 7, 1000]), st.integers(1, 300))
seeds = st.integers(0, 2**40)


def steps(sampler: TrainSampler | EvalSampler) -> list[list[int]]:
    return [index.tolist() for index in sampler]


def test_derived_seeds_are_stable_and_depend_on_every_key() -> None:
    assert derive_seed(0, "permutation", 0) == 5323195286080127151
    keys = [(0, "permutation", 0), (0, "permutation", 1), (1, "permutation", 0), (0, "other", 0), (10, 0), (1, 0, 0)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)


def test_order_stays_what_it_is_from_version_to_version() -> None:
    assert steps(TrainSampler(7, 3, seed=0)) == [[4, 1, 5], [3, 2, 6]]


@given(batches=st.integers(1, 40), rest=st.integers(0, 5), seed=seeds, epoch=st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_global_batches_are_equal_on_any_number_of_processes(batches: int, rest: int, seed: int, epoch: int) -> None:
    per_world = []
    for world in WORLDS:
        ranks = [TrainSampler(6 * batches + rest, 6, seed, rank, world) for rank in range(world)]
        for sampler in ranks:
            sampler.set_epoch(epoch)
            assert len(sampler) == batches
        per_world.append([list(chain(*shares)) for shares in zip(*map(steps, ranks), strict=True)])
    assert per_world[0] == per_world[1] == per_world[2]
    seen = list(chain(*per_world[0]))
    assert len(seen) == len(set(seen)) == 6 * batches
    assert set(seen) <= set(range(6 * batches + rest))


def test_every_epoch_and_seed_has_an_order_of_its_own() -> None:
    orders = set()
    for seed in (0, 1, 2):
        sampler = TrainSampler(1000, 1000, seed)
        for epoch in range(5):
            sampler.set_epoch(epoch)
            orders.add(tuple(steps(sampler)[0]))
    assert len(orders) == 15


@given(num_samples=counts, seed=seeds, epoch=st.integers(0, 9), data=st.data())
@settings(max_examples=50, deadline=None)
def test_resumed_epoch_is_the_tail_each_time_it_is_asked(
    num_samples: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    batch_size = data.draw(st.integers(1, num_samples))
    sampler = TrainSampler(num_samples, batch_size, seed)
    sampler.set_epoch(epoch)
    whole = steps(sampler)
    done = data.draw(st.integers(0, len(whole)))
    resumed = TrainSampler(num_samples, batch_size, seed)
    resumed.resume_at(epoch, done)
    assert steps(resumed) == steps(resumed) == whole[done:]
    assert len(resumed) == len(whole)


def test_epochs_after_the_resumed_one_are_whole() -> None:
    sampler = TrainSampler(100, 10, seed=3)
    sampler.resume_at(2, 7)
    assert len(steps(sampler)) == 3
    sampler.set_epoch(3)
    assert len(steps(sampler)) == 10


def test_epoch_may_be_set_after_iter_as_lightning_does() -> None:
    early, late = TrainSampler(50, 5, seed=0), TrainSampler(50, 5, seed=0)
    iterator = iter(late)
    for sampler in (early, late):
        sampler.set_epoch(4)
    assert [index.tolist() for index in iterator] == steps(early)


def test_workers_start_at_the_resumed_position() -> None:
    sampler = TrainSampler(40, 4, seed=1)
    sampler.resume_at(5, 6)
    loader = DataLoader(TensorDataset(torch.arange(40)), batch_size=None, sampler=sampler, num_workers=1)
    assert [batch.tolist() for (batch,) in loader] == steps(sampler)


def test_steps_are_int64_tensors_of_one_process_share() -> None:
    for index in TrainSampler(100, 12, seed=0, rank=2, world_size=3):
        assert index.dtype == torch.int64
        assert index.shape == (4,)


def test_order_does_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    steps(TrainSampler(100, 10, seed=0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "world_size", "message"),
    [
        (1000, 100, 3, "does not divide by 3 processes: the nearest that do are 99 and 102"),
        (1000, 1, 2, "does not divide by 2 processes: the nearest that do are 2"),
        (100, 100, 3, "does not divide by 3 processes: the nearest that do are 99"),
        (2, 2, 3, "does not divide by 3 processes: there are fewer samples than processes"),
        (64, 128, 1, "is larger than the training part of 64 samples"),
    ],
)
def test_unsuitable_batch_size_is_refused(num_samples: int, batch_size: int, world_size: int, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainSampler(num_samples, batch_size, 0, 0, world_size)
    assert str(caught.value) == f"data.batch_size={batch_size}, the batch over all processes, {message}"


@given(num_samples=st.one_of(counts, st.just(0)), batch_size=st.integers(1, 300), world=st.sampled_from([1, 2, 3, 8]))
@settings(max_examples=100, deadline=None)
def test_evaluation_covers_each_sample_once_in_order(num_samples: int, batch_size: int, world: int) -> None:
    ranks = [EvalSampler(num_samples, batch_size, rank, world) for rank in range(world)]
    per_rank = [steps(sampler) for sampler in ranks]
    assert {len(sampler) for sampler in ranks} == {len(batches) for batches in per_rank}
    assert [i for shares in zip(*per_rank, strict=True) for share in shares for i in share] == list(range(num_samples))
    assert max((len(share) for batches in per_rank for share in batches), default=0) <= -(-batch_size // world)


def test_evaluation_rounds_the_share_up_and_leaves_it_empty_where_samples_run_out() -> None:
    assert [steps(EvalSampler(10, 5, rank, 2)) for rank in range(2)] == [[[0, 1, 2], [6, 7, 8]], [[3, 4, 5], [9]]]
    assert [steps(EvalSampler(5, 6, rank, 3)) for rank in range(3)] == [[[0, 1]], [[2, 3]], [[4]]]
    assert [steps(EvalSampler(7, 6, rank, 3)) for rank in range(3)] == [[[0, 1], [6]], [[2, 3], []], [[4, 5], []]]


# --- weighted


def weighted(epoch: int = 0, rank: int = 0, world_size: int = 1, seed: int = 0) -> list[list[int]]:
    weights = torch.tensor([1.0, 0.0, 3.0, 1.0, 1.0] * 8)
    sampler = TrainSampler(40, 8, seed, rank, world_size, weights)
    sampler.set_epoch(epoch)
    return [step.tolist() for step in sampler]


def test_weighted_draws_are_a_function_of_seed_and_epoch_with_replacement() -> None:
    assert weighted() == weighted()
    assert weighted() != weighted(epoch=1) != weighted(epoch=1, seed=1)
    assert [len(step) for step in weighted()] == [8] * 5
    drawn = [position for epoch in range(100) for step in weighted(epoch) for position in step]
    counts = [sum(position % 5 == kind for position in drawn) for kind in range(5)]
    assert counts[1] == 0
    assert 1850 < counts[2] < 2150  # half of 4,000
    assert len(set(drawn[:40])) < 40


def test_weighted_draws_are_the_same_on_any_number_of_processes() -> None:
    shares = [weighted(rank=rank, world_size=4) for rank in range(4)]
    assert [sum(step, []) for step in zip(*shares, strict=True)] == weighted()  # noqa: RUF017


def test_weighted_draws_resume() -> None:
    sampler = TrainSampler(40, 8, 0, weights_N=torch.ones(40))
    whole = [step.tolist() for step in sampler]
    sampler.resume_at(0, 3)
    assert [step.tolist() for step in sampler] == whole[3:]
