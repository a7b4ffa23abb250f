"""Energy distance and energy score, against values by hand and closed forms."""

import math

import pytest
import torch

from flowmbpo.diagnostics.rollout.energy import energy_score, pair_distances, paired_energy, sample_energy
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
