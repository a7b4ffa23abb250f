"""Calibration of event probabilities."""

import pytest
import torch

from flowmbpo.diagnostics.rollout.calibration import EDGES, calibrate
from flowmbpo.diagnostics.statistics import resample_counts


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def judged(p, y, members=1000, seed=0):
    p, y = torch.as_tensor(p, dtype=torch.float64), torch.as_tensor(y, dtype=torch.bool)
    return calibrate(p, y, resample_counts(len(p), 200, generator(seed)), generator(seed + 1), members=members)


def test_four_forecasts_by_hand():
    found = judged([0.0, 0.0, 0.5, 0.5], [0, 1, 1, 0])
    assert found.brier.value == pytest.approx((0 + 1 + 0.25 + 0.25) / 4)
    assert found.reliability == pytest.approx(0.5 * 0.5**2)  # half the forecasts say 0 where half the events happen
    assert found.resolution == pytest.approx(0.0)
    assert found.uncertainty == pytest.approx(0.25)
    assert found.remainder == pytest.approx(0.0, abs=1e-15)
    assert found.ece.value == pytest.approx(0.5 * 0.5)
    assert [(part.low, part.n, part.predicted, part.observed.value) for part in found.bins] == [
        (0.0, 2, 0.0, 0.5),
        (0.4, 2, 0.5, 0.5),
    ]


def test_the_parts_add_up_to_the_brier_score():
    p = torch.rand(300, generator=generator(), dtype=torch.float64)
    y = torch.rand(300, generator=generator(1), dtype=torch.float64) < p**2
    found = judged(p, y)
    member = torch.bucketize(p, torch.tensor(EDGES[1:-1], dtype=torch.float64), right=True)
    within = 0.0
    for part in member.unique().tolist():
        rows = member == part
        dp, dy = p[rows] - p[rows].mean(), y[rows].double() - y[rows].double().mean()
        within += float((dp.square() - 2.0 * dp * dy).sum()) / 300
    assert found.remainder == pytest.approx(within, abs=1e-12)
    assert found.brier.value == pytest.approx(found.reliability - found.resolution + found.uncertainty + within)


@pytest.mark.parametrize("truth", [0.05, None])
def test_true_probabilities_known_by_32_samples_are_called_calibrated(truth):
    """5% of perfect forecasters exceed it by definition, 4 to 8% as measured; 12 of 80 is 3.5 standard deviations
    above 4. A null that takes the shares for the probabilities is exceeded by half of them at .05."""
    exceeded = {"ece": 0, "reliability": 0}
    for seed in range(80):
        rng = generator(seed)
        p = torch.rand(256, generator=rng, dtype=torch.float64) * 0.3 if truth is None else torch.full((256,), truth)
        shares = (torch.rand(32, 256, generator=rng) < p).double().mean(0)
        found = judged(shares, torch.rand(256, generator=rng) < p, members=32, seed=seed)
        exceeded["ece"] += found.ece.value > found.ece_if_calibrated
        exceeded["reliability"] += found.reliability > found.reliability_if_calibrated
    assert all(1 <= number <= 12 for number in exceeded.values())


def test_exact_probabilities_are_called_calibrated():
    within = 0
    for seed in range(60):
        p = torch.rand(200, generator=generator(seed), dtype=torch.float64)
        y = torch.rand(200, generator=generator(seed + 10_000), dtype=torch.float64) < p
        found = judged(p, y, seed=seed, members=10_000)
        within += found.ece.value <= found.ece_if_calibrated
    assert 50 <= within <= 59  # 57 expected, standard deviation 1.7


def test_true_uniform_probabilities_have_a_skill_of_a_third():
    p = torch.rand(20_000, generator=generator(), dtype=torch.float64)
    y = torch.rand(20_000, generator=generator(1), dtype=torch.float64) < p
    # Brier E p(1 - p) = 1/6 against the base rate's 1/4; the standard error here is .003.
    assert judged(p, y).skill == pytest.approx(1.0 / 3.0, abs=0.012)


def test_overconfidence_shows():
    truth = torch.full((500,), 0.3, dtype=torch.float64)
    y = torch.rand(500, generator=generator(), dtype=torch.float64) < truth
    found = judged(torch.full((500,), 0.05, dtype=torch.float64), y)
    assert found.ece.value == pytest.approx(0.25, abs=0.08)  # 4 standard errors
    assert found.ece.low > found.ece_if_calibrated
    assert found.skill < 0.0


def test_few_samples_cost_nothing_in_the_fair_score():
    n = 40_000
    truth = torch.rand(n, generator=generator(), dtype=torch.float64)
    y = torch.rand(n, generator=generator(1), dtype=torch.float64) < truth
    shares = (torch.rand(n, 4, generator=generator(2), dtype=torch.float64) < truth.unsqueeze(1)).double().mean(1)
    found = judged(shares, y, members=4)
    assert found.fair_brier == pytest.approx(1.0 / 6.0, abs=0.006)  # 4 standard errors
    assert found.brier.value > 1.0 / 6.0 + 0.03  # E p(1 - p)/4 = 1/24 too much


def test_a_deterministic_forecast_that_is_right_is_perfect():
    found = judged([0.0, 1.0, 1.0, 0.0], [0, 1, 1, 0], members=1)
    assert (found.brier.value, found.fair_brier, found.ece.value, found.skill) == (0.0, 0.0, 0.0, 1.0)
    assert found.ece_if_calibrated == 0.0


def test_an_event_that_never_happens_has_no_skill():
    found = judged([0.0, 0.0, 0.1], [0, 0, 0])
    assert found.skill != found.skill
    assert found.base_rate.value == 0.0
    assert 0.3 < found.base_rate.high < 0.8  # three trials exclude little: Wilson's bound is .56
