"""Energy distances and scores, and the calibration of event probabilities."""

import math

import pytest
import torch

from flowmbpo.diagnostics.rollout.scores import (
    EDGES,
    calibrate,
    energy_score,
    pair_distances,
    paired_energy,
    sample_energy,
)
from flowmbpo.diagnostics.statistics import resample_counts


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def judged(x, y, seed=0, resamples=200):
    return paired_energy(x, y, resample_counts(len(x), resamples, generator(seed)))


def test_two_pairs_by_hand():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [5.0]])
    kernel, across = pair_distances(x, y)
    # |0 - 5| + |1 - 3| - |0 - 1| - |3 - 5|
    assert kernel.tolist() == [[0.0, 4.0], [4.0, 0.0]]
    assert across == 3.5
    found = judged(x, y)
    assert found.distance.value == 4.0
    assert found.coefficient == pytest.approx(4.0 / 7.0)


def test_equal_distributions_are_at_distance_0_on_average():
    repeats, n = 400, 20
    draws = torch.randn(repeats, 2, n, 3, generator=generator(), dtype=torch.float64)
    found = torch.tensor([float(pair_distances(x, y)[0].sum()) / (n * (n - 1)) for x, y in draws])
    error = float(found.std()) / math.sqrt(repeats)
    assert abs(float(found.mean())) < 4.0 * error
    # The plug-in estimate, whose diagonal counts, is far off by comparison: the test could tell.
    plug_in = torch.tensor([2.0 * float(torch.cdist(x, y).mean()) for x, y in draws]) - torch.tensor(
        [float(torch.cdist(x, x).mean() + torch.cdist(y, y).mean()) for x, y in draws]
    )
    assert float(plug_in.mean()) > 20.0 * error


def test_dependence_within_pairs_leaves_no_bias():
    repeats, n = 400, 20
    x = torch.randn(repeats, n, 1, generator=generator(), dtype=torch.float64)
    y = 0.9 * x + math.sqrt(1 - 0.81) * torch.randn(repeats, n, 1, generator=generator(1), dtype=torch.float64)
    found = torch.tensor([float(pair_distances(a, b)[0].sum()) / (n * (n - 1)) for a, b in zip(x, y, strict=True)])
    assert abs(float(found.mean())) < 4.0 * float(found.std()) / math.sqrt(repeats)


def shifted_distance(shift):
    """Of N(0, 1) and N(shift, 1): E|N(m, 2)| = sqrt(2) sqrt(2/pi) exp(-m^2/4) + m erf(m/2)."""

    def absolute(m):
        return 2.0 / math.sqrt(math.pi) * math.exp(-(m**2) / 4.0) + m * math.erf(m / 2.0)

    return 2.0 * absolute(shift) - 2.0 * absolute(0.0)


def test_shifted_gaussians_have_their_closed_form_inside_the_interval():
    inside = 0
    for seed in range(100):
        rng = generator(seed)
        x = torch.randn(100, 1, generator=rng, dtype=torch.float64)
        y = 1.0 + torch.randn(100, 1, generator=rng, dtype=torch.float64)
        found = judged(x, y, seed).distance
        inside += found.low <= shifted_distance(1.0) <= found.high
    assert inside >= 88  # 95 expected; fewer than 88 of 100 has probability .003


def test_the_interval_of_equal_distributions_holds_0():
    inside = 0
    for seed in range(100):
        x, y = torch.randn(2, 60, 2, generator=generator(seed), dtype=torch.float64)
        found = judged(x, y, seed).distance
        inside += found.low <= 0.0 <= found.high
    assert inside >= 88


def test_a_wider_prediction_is_told_from_the_truth():
    x, y = torch.randn(2, 200, 1, generator=generator(), dtype=torch.float64)
    assert judged(2.0 * x, y).distance.low > 0.0


def test_sample_energy_by_hand():
    x, y = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[[1.0], [4.0]]])
    # 2 (1 + 4 + 1 + 2)/4 - 2 - 3
    assert sample_energy(x, y).tolist() == [-1.0]


def test_energy_score_by_hand():
    samples, outcome = torch.tensor([[[0.0], [2.0]]]), torch.tensor([[3.0]])
    assert energy_score(samples, outcome).tolist() == [2.0 - 1.0]  # mean |x - y| = 2, E|X - X'|/2 = 1
    assert energy_score(samples[:, :1], outcome).tolist() == [3.0]


def test_samples_that_are_not_present_do_not_count():
    samples, outcome = torch.tensor([[[0.0], [99.0], [2.0]]]), torch.tensor([[3.0]])
    assert energy_score(samples, outcome, torch.tensor([[True, False, True]])).tolist() == [2.0 - 1.0]


@pytest.mark.parametrize("members", [2, 16])
def test_energy_score_does_not_depend_on_the_number_of_samples(members):
    samples = torch.randn(4000, members, 1, generator=generator(), dtype=torch.float64)
    outcome = torch.randn(4000, 1, generator=generator(1), dtype=torch.float64)
    found = energy_score(samples, outcome)
    # Of a true standard normal forecast: E|X - Y| / 2 = 1/sqrt(pi).
    assert float(found.mean()) == pytest.approx(
        1.0 / math.sqrt(math.pi), abs=4.0 * float(found.std()) / math.sqrt(4000)
    )


def test_the_true_forecast_scores_best():
    outcome = torch.randn(2000, 1, generator=generator(1), dtype=torch.float64)
    draws = torch.randn(2000, 16, 1, generator=generator(), dtype=torch.float64)
    scores = [
        float(energy_score(scale * draws + shift, outcome).mean()) for scale, shift in ((1, 0), (0.3, 0), (1, 0.7))
    ]
    assert scores[0] == min(scores)


def calibrated(p, y, members=1000, seed=0, resamples=200):
    p, y = torch.as_tensor(p, dtype=torch.float64), torch.as_tensor(y, dtype=torch.bool)
    return calibrate(p, y, resample_counts(len(p), resamples, generator(seed)), generator(seed + 1), members=members)


def test_four_forecasts_by_hand():
    found = calibrated([0.0, 0.0, 0.5, 0.5], [0, 1, 1, 0])
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
    found = calibrated(p, y)
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
        found = calibrated(shares, torch.rand(256, generator=rng) < p, members=32, seed=seed)
        exceeded["ece"] += found.ece.value > found.ece_if_calibrated
        exceeded["reliability"] += found.reliability > found.reliability_if_calibrated
    assert all(1 <= number <= 12 for number in exceeded.values())


def test_exact_probabilities_are_called_calibrated():
    within = 0
    for seed in range(60):
        p = torch.rand(200, generator=generator(seed), dtype=torch.float64)
        y = torch.rand(200, generator=generator(seed + 10_000), dtype=torch.float64) < p
        found = calibrated(p, y, seed=seed, members=10_000)
        within += found.ece.value <= found.ece_if_calibrated
    assert 50 <= within <= 59  # 57 expected, standard deviation 1.7


def test_true_uniform_probabilities_have_a_skill_of_a_third():
    p = torch.rand(20_000, generator=generator(), dtype=torch.float64)
    y = torch.rand(20_000, generator=generator(1), dtype=torch.float64) < p
    # Brier E p(1 - p) = 1/6 against the base rate's 1/4; the standard error here is .003.
    assert calibrated(p, y, resamples=10).skill == pytest.approx(1.0 / 3.0, abs=0.012)


def test_overconfidence_shows():
    truth = torch.full((500,), 0.3, dtype=torch.float64)
    y = torch.rand(500, generator=generator(), dtype=torch.float64) < truth
    found = calibrated(torch.full((500,), 0.05, dtype=torch.float64), y)
    assert found.ece.value == pytest.approx(0.25, abs=0.08)  # 4 standard errors
    assert found.ece.low > found.ece_if_calibrated
    assert found.skill < 0.0


def test_few_samples_cost_nothing_in_the_fair_score():
    n = 40_000
    truth = torch.rand(n, generator=generator(), dtype=torch.float64)
    y = torch.rand(n, generator=generator(1), dtype=torch.float64) < truth
    shares = (torch.rand(n, 4, generator=generator(2), dtype=torch.float64) < truth.unsqueeze(1)).double().mean(1)
    found = calibrated(shares, y, members=4, resamples=10)
    assert found.fair_brier == pytest.approx(1.0 / 6.0, abs=0.006)  # 4 standard errors
    assert found.brier.value > 1.0 / 6.0 + 0.03  # E p(1 - p)/4 = 1/24 too much


def test_a_deterministic_forecast_that_is_right_is_perfect():
    found = calibrated([0.0, 1.0, 1.0, 0.0], [0, 1, 1, 0], members=1)
    assert (found.brier.value, found.fair_brier, found.ece.value, found.skill) == (0.0, 0.0, 0.0, 1.0)
    assert found.ece_if_calibrated == 0.0


def test_an_event_that_never_happens_has_no_skill():
    found = calibrated([0.0, 0.0, 0.1], [0, 0, 0])
    assert found.skill != found.skill
    assert found.base_rate.value == 0.0
    assert 0.3 < found.base_rate.high < 0.8  # three trials exclude little: Wilson's bound is .56
