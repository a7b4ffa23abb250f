"""Running statistics against numpy, on data where a shortcut would show."""

import math

import numpy as np
import pytest
import torch

from flowmbpo.nets.running import ObservationNormalizer, RunningMoments, RunningStd


def test_moments_equal_numpy_over_everything_seen():
    rng = np.random.default_rng(0)
    batches = [rng.normal(3.0, 2.0, size=shape) for shape in ((4, 5), (7,), (2, 3, 4))]
    moments = RunningMoments()
    for batch in batches:
        moments.update(torch.tensor(batch))
    seen = np.concatenate([batch.ravel() for batch in batches])
    assert moments.mean.item() == pytest.approx(seen.mean(), rel=1e-6)
    assert moments.std.item() == pytest.approx(seen.std(), rel=1e-6)
    assert moments.rms.item() == pytest.approx(np.sqrt((seen**2).mean()), rel=1e-6)


def test_moments_before_data_and_of_constants_are_usable_as_scales():
    moments = RunningMoments()
    assert (moments.mean.item(), moments.std.item(), moments.rms.item()) == (0.0, 1.0, 1.0)
    moments.update(torch.zeros(10))
    assert (moments.mean.item(), moments.std.item(), moments.rms.item()) == (0.0, 1.0, 1.0)
    moments = RunningMoments()
    moments.update(torch.full((10,), -4.0))
    assert (moments.mean.item(), moments.std.item(), moments.rms.item()) == (-4.0, 1.0, 4.0)


def test_the_first_batch_gives_its_own_standard_deviation():
    x = torch.tensor(np.random.default_rng(0).normal([5.0, -1.0], [3.0, 0.1], size=(64, 2)))
    running = RunningStd(2, decay=0.99)
    running.update(x)
    np.testing.assert_allclose(running.std.numpy(), x.numpy().std(axis=0), rtol=1e-5)


def test_std_equals_that_of_exponentially_weighted_rows():
    rng = np.random.default_rng(1)
    batches = [rng.normal(size=(16, 3)) * (k + 1) + k for k in range(5)]
    running = RunningStd(3, decay=0.9)
    for batch in batches:
        running.update(torch.tensor(batch))
    weights = np.array([0.9 ** (len(batches) - 1 - k) for k in range(len(batches))])
    weights /= weights.sum()
    mean = sum(w * batch.mean(0) for w, batch in zip(weights, batches, strict=True))
    square = sum(w * (batch**2).mean(0) for w, batch in zip(weights, batches, strict=True))
    np.testing.assert_allclose(running.std.numpy(), np.sqrt(square - mean**2), rtol=1e-5)


def test_std_of_nothing_and_of_a_constant_is_one():
    running = RunningStd(2, decay=0.9)
    assert running.std.tolist() == [1.0, 1.0]
    running.update(torch.tensor([[1.0, 7.0], [3.0, 7.0]]))
    assert running.std.tolist() == [1.0, 1.0]  # the first feature's really is
    running.update(torch.tensor([[10.0, 7.0], [30.0, 7.0]]))
    assert running.std[0] > 5.0
    assert running.std[1] == 1.0


def test_a_small_spread_on_a_large_mean_is_resolved():
    x = 100.0 + 0.05 * torch.randn(4096, 1, generator=torch.Generator().manual_seed(0))
    running = RunningStd(1, decay=0.99)
    for _ in range(3):
        running.update(x)
    assert running.std.item() == pytest.approx(x.double().std(correction=0).item(), rel=1e-3)


def test_rows_that_are_not_finite_leave_no_trace():
    clean, dirty = RunningStd(2, decay=0.9), RunningStd(2, decay=0.9)
    rows = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    clean.update(rows)
    dirty.update(torch.cat([rows, torch.tensor([[math.nan, 0.0], [0.0, math.inf]])]))
    dirty.update(torch.full((2, 2), math.nan))
    assert dirty.std.tolist() == clean.std.tolist()
    assert dirty.weight.item() == clean.weight.item()


def test_statistics_travel_in_the_state_dict():
    source, copy = RunningStd(2, decay=0.9), RunningStd(2, decay=0.9)
    source.update(torch.tensor([[1.0, 2.0], [3.0, 9.0]]))
    copy.load_state_dict(source.state_dict())
    assert copy.std.tolist() == source.std.tolist() != [1.0, 1.0]


def test_padding_rows_are_left_out():
    clean, padded = RunningStd(2, decay=0.9), RunningStd(2, decay=0.9)
    rows = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    clean.update(rows)
    padded.update(torch.cat([rows, torch.zeros(2, 2)]), torch.tensor([True, True, False, False]))
    assert padded.std.tolist() == clean.std.tolist()


def test_observations_are_normalised_by_the_first_ones_alone():
    rng = np.random.default_rng(0)
    seen = rng.normal([5.0, -1.0, 2.0], [3.0, 0.1, 0.0], size=(64, 3))
    normalizer = ObservationNormalizer(3, samples=60)
    for part in (seen[:32], seen[32:], np.full((8, 3), 100.0)):
        normalizer.update(torch.tensor(part, dtype=torch.float32))
    std = seen.std(axis=0)
    std[2] = 1.0  # a feature that does not vary is centred only
    found = normalizer(torch.tensor(seen, dtype=torch.float32))
    np.testing.assert_allclose(found.numpy(), (seen - seen.mean(axis=0)) / std, atol=1e-4)


def test_normalised_observations_are_clipped_and_untouched_before_any_data():
    normalizer = ObservationNormalizer(1, samples=10)
    obs = torch.tensor([[3.0]])
    assert torch.equal(normalizer(obs), obs)
    normalizer.update(torch.tensor([[-1.0], [1.0]]))
    assert normalizer(torch.tensor([[50.0], [-50.0]])).tolist() == [[10.0], [-10.0]]


def test_weight_is_one_scalar_in_checkpoints():
    std = RunningStd(3, 0.9)
    std.update(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    state = std.state_dict()
    assert state["weight"].shape == ()
    other = RunningStd(3, 0.9)
    other.load_state_dict(state)
    assert torch.equal(other.std, std.std) and torch.equal(other.weight, std.weight)
