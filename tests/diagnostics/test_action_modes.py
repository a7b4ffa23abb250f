"""The dip test and negentropy: by definition, by closed forms, and how often they are right."""

import math

import numpy as np
import pytest
from scipy.optimize import linprog

from flowmbpo.diagnostics.action_modes import CRITICAL_DIP, SAMPLES, SIGNIFICANCE, dip, negentropy


def dip_by_definition(sample):
    """Least d at which a function convex below some data point and concave above it stays within d: a linear program.

    It may jump at that point. At data point i it has to lie between (i + 1)/n - d and i/n + d, with the jump before
    or behind it.
    """
    x = np.sort(sample)
    n = len(x)
    best = math.inf
    for mode in range(n):
        # Variables: left values at 0..mode, right values at mode..n-1, d.
        left = [*range(mode + 1)]
        right = {i: mode + 1 + i - mode for i in range(mode, n)}
        size = n + 2
        rows, bounds = [], []

        def require(terms, bound, rows=rows, bounds=bounds, size=size):
            row = np.zeros(size)
            for index, factor in terms:
                row[index] += factor
            rows.append(row)
            bounds.append(bound)

        d = size - 1
        for i in left:
            require([(i, 1), (d, -1)], i / n)
            if i < mode:
                require([(i, -1), (d, -1)], -(i + 1) / n)
        for i, at in right.items():
            require([(at, -1), (d, -1)], -(i + 1) / n)
            if i > mode:
                require([(at, 1), (d, -1)], i / n)
        require([(left[mode], 1), (right[mode], -1)], 0.0)
        # On the jump both ends stay within d of the step.
        require([(left[mode], -1), (d, -1)], -mode / n)
        require([(right[mode], 1), (d, -1)], (mode + 1) / n)
        for chain, sign in ((left, 1.0), ([right[i] for i in range(mode, n)], -1.0)):
            first = 0 if sign > 0 else mode
            for k in range(len(chain) - 1):
                require([(chain[k], 1), (chain[k + 1], -1)], 0.0)
            for k in range(1, len(chain) - 1):
                before, behind = x[first + k] - x[first + k - 1], x[first + k + 1] - x[first + k]
                a, b, c = chain[k - 1], chain[k], chain[k + 1]
                require(
                    [
                        (a, -sign / before),
                        (b, sign / before + sign / behind),
                        (c, -sign / behind),
                    ],
                    0.0,
                )
        cost = np.zeros(size)
        cost[d] = 1.0
        solved = linprog(cost, A_ub=np.array(rows), b_ub=bounds, bounds=[(0, 1)] * size)
        best = min(best, solved.fun)
    return best


@pytest.mark.parametrize("seed", range(12))
def test_dip_is_the_distance_to_the_nearest_unimodal_function(seed):
    rng = np.random.default_rng(seed)
    sample = rng.random(9) if seed % 2 else np.where(rng.random(9) < 0.5, 0.0, 3.0) + 0.5 * rng.random(9)
    assert dip(sample) == pytest.approx(dip_by_definition(sample), abs=1e-9)


def test_even_spacing_dips_least_and_two_heaps_most():
    assert dip(np.arange(10.0)) == pytest.approx(1 / 20)
    assert dip(np.array([0.0, 1e-9, 2e-9, 1.0, 1.0 + 1e-9, 1.0 + 2e-9])) == pytest.approx(1 / 4, abs=1e-6)
    assert dip(np.full(8, 3.0)) == 1 / 16


def test_dip_knows_no_units():
    sample = np.random.default_rng(0).standard_normal(50)
    assert dip(-3.0 * sample + 7.0) == pytest.approx(dip(sample))


def called_multimodal(draw, repeats=400):
    return np.mean([dip(draw()) > CRITICAL_DIP for _ in range(repeats)])


def test_one_mode_is_seldom_called_two():
    rng = np.random.default_rng(0)
    # The uniform is the worst case: 5% +- 4 standard errors of 1.1%. The others dip less.
    assert abs(called_multimodal(lambda: rng.random(SAMPLES)) - SIGNIFICANCE) < 0.044
    assert called_multimodal(lambda: rng.standard_normal(SAMPLES)) <= SIGNIFICANCE
    assert called_multimodal(lambda: rng.exponential(size=SAMPLES)) <= SIGNIFICANCE


def test_two_modes_five_standard_deviations_apart_are_found():
    rng = np.random.default_rng(0)
    assert called_multimodal(lambda: rng.choice([-2.5, 2.5], SAMPLES) + rng.standard_normal(SAMPLES)) > 0.95


def test_negentropy_of_a_gaussian_is_0_on_average():
    found = negentropy(5.0 + 0.1 * np.random.default_rng(1).standard_normal((SAMPLES, 3000)))
    assert abs(found.mean()) < 4.0 * found.std() / math.sqrt(3000) + 0.002  # the bias itself is known to .001


def test_negentropy_of_a_uniform_is_its_closed_form():
    found = negentropy(np.random.default_rng(1).random((SAMPLES, 1000)))
    # log sqrt(2 pi e) - log sqrt(12); spacings at the ends of a bounded interval are worth .02 here.
    assert found.mean() == pytest.approx(0.5 * math.log(2 * math.pi * math.e / 12.0), abs=0.03)


def test_negentropy_of_a_constant_is_not_a_number():
    assert np.isnan(negentropy(np.ones((SAMPLES, 1)))).all()
