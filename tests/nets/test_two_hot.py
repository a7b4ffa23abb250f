"""Two-hot targets: what they weigh, what they decode to, and the gradient of their cross-entropy."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowmbpo.nets.two_hot import symexp, symlog, two_hot, two_hot_cross_entropy, two_hot_expectation

BINS = torch.linspace(-10.0, 10.0, 101, dtype=torch.float64)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_symlog_of_known_values():
    torch.testing.assert_close(
        symlog(tensor(0.0, math.e - 1, 1 - math.e, 99.0)), tensor(0.0, 1.0, -1.0, math.log(100.0))
    )


@given(st.floats(-1e4, 1e4))
def test_symexp_undoes_symlog(x):
    assert symexp(symlog(tensor(x))).item() == pytest.approx(x, rel=1e-12, abs=1e-12)


@given(st.floats(-2e4, 2e4))
def test_the_expectation_of_a_target_is_the_encoded_value(x):
    weights = two_hot(tensor(x), BINS)
    assert weights.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert (weights > 0).sum() <= 2
    assert (weights >= 0).all()
    expected = max(-10.0, min(10.0, symlog(tensor(x)).item()))
    assert (weights * BINS).sum().item() == pytest.approx(expected, abs=1e-9)


def test_weights_fall_on_the_two_neighbours():
    # symlog(x) = 0.15 lies a quarter before the middle of bins 0.0 and 0.2.
    weights = two_hot(symexp(tensor(0.15)), BINS)[0]
    assert weights[50].item() == pytest.approx(0.25)
    assert weights[51].item() == pytest.approx(0.75)


@pytest.mark.parametrize(("value", "bin_index"), [(math.expm1(10.0), 100), (1e9, 100), (-1e9, 0), (math.inf, 100)])
def test_values_at_or_past_an_end_go_to_the_end_bin(value, bin_index):
    weights = two_hot(tensor(value), BINS)[0]
    assert weights.argmax().item() == bin_index
    assert weights[bin_index].item() == pytest.approx(1.0, abs=1e-9)


def test_a_reward_that_is_not_a_number_gives_a_loss_that_is_not_a_number():
    loss = two_hot_cross_entropy(torch.zeros(2, 101, dtype=torch.float64), tensor(math.nan, 1.0), BINS)
    assert loss.isnan().tolist() == [True, False]


def test_cross_entropy_is_that_of_the_soft_target():
    logits = torch.randn(3, 101, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = tensor(-3.0, 0.1, 50.0)
    expected = torch.nn.functional.cross_entropy(logits, two_hot(x, BINS), reduction="none")
    torch.testing.assert_close(two_hot_cross_entropy(logits, x, BINS), expected)


def test_equal_logits_get_different_gradients():
    # A squared error of the expectation gives symmetric logits nothing to break; the cross-entropy must.
    logits = torch.zeros(1, 101, dtype=torch.float64, requires_grad=True)
    two_hot_cross_entropy(logits, tensor(1.0), BINS).sum().backward()
    expected = torch.full((1, 101), 1 / 101, dtype=torch.float64) - two_hot(tensor(1.0), BINS)
    torch.testing.assert_close(logits.grad, expected)


def test_descending_the_cross_entropy_decodes_to_the_value():
    logits = torch.zeros(1, 101, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.3)
    for _ in range(200):
        optimiser.zero_grad()
        two_hot_cross_entropy(logits, tensor(7.3), BINS).sum().backward()
        optimiser.step()
    assert symexp(two_hot_expectation(logits, BINS)).item() == pytest.approx(7.3, rel=0.02)
