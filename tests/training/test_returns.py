"""TD(lambda) targets and discounted returns against tables worked by hand and the defining sums."""

import pytest
import torch

from flowmbpo.training.returns import discounted_return, td_lambda

REWARDS = (1.0, 2.0, 4.0)
VALUES = (8.0, 16.0, 32.0)  # of z_1, z_2, z_3


def column(*values):
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def segment_return(rewards, values, continues, gamma, start, steps):
    """R_k of the segment from `start`: k rewards, then the value, weighted by survival. One column."""
    total, weight = 0.0, 1.0
    for i in range(steps):
        total += weight * rewards[start + i]
        weight *= gamma * continues[start + i]
    return total + weight * values[start + steps - 1]


def direct_td_lambda(rewards, values, continues, gamma, lam):
    """The double sum as it is written, element by element."""
    targets = torch.zeros_like(rewards)
    horizon, batch = rewards.shape
    for b in range(batch):
        for start in range(horizon):
            steps = horizon - start
            columns = (rewards[:, b], values[:, b], continues[:, b], gamma[b], start)
            targets[start, b] = sum(
                (1 - lam) * lam ** (k - 1) * segment_return(*columns, k) for k in range(1, steps)
            ) + lam ** (steps - 1) * segment_return(*columns, steps)
    return targets


def random_case(horizon=7, batch=5):
    generator = torch.Generator().manual_seed(3)
    draw = lambda *shape: torch.rand(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    continues = draw(horizon, batch)
    continues[:, 0] = 1.0
    continues[2, 1] = 0.0
    continues[-1, 2] = 0.0
    return draw(horizon, batch) - 0.5, 10 * draw(horizon, batch), continues, 0.9 + 0.1 * draw(batch)


@pytest.mark.parametrize(
    ("continues", "expected"),
    [
        # gamma = lam = 1/2: G_2 = 4 + 32/2; G_1 = 2 + (16 + 20)/4; G_0 = 1 + (8 + 11)/4
        ((1.0, 1.0, 1.0), (5.75, 11.0, 20.0)),
        # the task ends on transition 1: nothing behind it counts, what starts behind is its own segment
        ((1.0, 0.0, 1.0), (3.5, 2.0, 20.0)),
        # it ends exactly on the last transition: the reward stays, the value goes
        ((1.0, 1.0, 0.0), (4.75, 7.0, 4.0)),
        # half a chance of ending on transition 1: G_1 = 2 + (16 + 20)/8; G_0 = 1 + (8 + 6.5)/4
        ((1.0, 0.5, 1.0), (4.625, 6.5, 20.0)),
    ],
)
def test_td_lambda_matches_the_hand_computed_table(continues, expected):
    targets = td_lambda(column(*REWARDS), column(*VALUES), column(*continues), gamma=0.5, lam=0.5)
    assert targets.flatten().tolist() == list(expected)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_td_lambda_equals_the_double_sum_for_every_start_and_gamma(lam):
    rewards, values, continues, gamma = random_case()
    expected = direct_td_lambda(rewards, values, continues, gamma, lam)
    assert (td_lambda(rewards, values, continues, gamma, lam) - expected).abs().max() < 1e-12


def test_td_lambda_at_lambda_one_is_the_monte_carlo_return():
    rewards, values, continues, gamma = random_case()
    targets = td_lambda(rewards, values, continues, gamma, lam=1.0)
    for start in range(len(rewards)):
        expected = discounted_return(rewards[start:], values[-1], continues[start:], gamma)
        torch.testing.assert_close(targets[start], expected, rtol=0, atol=1e-12)


def test_td_lambda_at_lambda_zero_is_the_one_step_target():
    rewards, values, continues, gamma = random_case()
    targets = td_lambda(rewards, values, continues, gamma, lam=0.0)
    torch.testing.assert_close(targets, rewards + gamma * continues * values, rtol=0, atol=1e-12)


def test_td_lambda_without_an_end_looks_further_than_one_step():
    """An imagined rollout has no environment; its targets must still mix all segment lengths."""
    rewards, values, _, gamma = random_case()
    alive = torch.ones_like(rewards)
    one_step = rewards + gamma * values
    targets = td_lambda(rewards, values, alive, gamma, lam=0.95)
    torch.testing.assert_close(targets[-1], one_step[-1])
    assert (targets[:-1] - one_step[:-1]).abs().min() > 1e-3


def test_float_and_per_column_gamma_agree():
    rewards, values, continues, _ = random_case()
    gammas = torch.full((rewards.shape[1],), 0.97, dtype=torch.float64)
    assert torch.equal(
        td_lambda(rewards, values, continues, 0.97, 0.95), td_lambda(rewards, values, continues, gammas, 0.95)
    )


@pytest.mark.parametrize(
    ("continues", "expected"),
    [
        ((1.0, 1.0, 1.0), 1 + 2 / 2 + 4 / 4 + 32 / 8),  # the value is discounted gamma^H, H = 3
        ((1.0, 1.0, 0.0), 1 + 2 / 2 + 4 / 4),
        ((0.0, 1.0, 1.0), 1.0),
        ((1.0, 0.5, 1.0), 1 + 2 / 2 + 4 / 8 + 32 / 16),
    ],
)
def test_discounted_return_matches_the_hand_computed_sum(continues, expected):
    value = torch.tensor([VALUES[-1]], dtype=torch.float64)
    assert discounted_return(column(*REWARDS), value, column(*continues), 0.5).item() == expected


def test_discounted_return_uses_each_column_s_own_gamma():
    rewards = torch.zeros(4, 2, dtype=torch.float64)
    value, gamma = torch.ones(2, dtype=torch.float64), torch.tensor([0.5, 0.9], dtype=torch.float64)
    result = discounted_return(rewards, value, torch.ones_like(rewards), gamma)
    torch.testing.assert_close(result, gamma**4)


def test_discounted_return_passes_gradcheck():
    rewards, values, continues, gamma = random_case(horizon=4, batch=3)
    inputs = [tensor.clone().requires_grad_() for tensor in (rewards, values[-1], continues, gamma)]
    assert torch.autograd.gradcheck(discounted_return, inputs)


def test_shapes_that_do_not_fit_are_refused_instead_of_broadcast():
    rewards, values, continues, gamma = random_case()
    with pytest.raises(AssertionError):
        td_lambda(rewards, values[:, :1], continues, gamma, 0.95)
