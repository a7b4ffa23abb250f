"""The regulator's exact optimum and gradient, against simulation, autograd and closed forms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from flowmbpo.envs.tasks import task_info
from flowmbpo.envs.toy.lqr import LinearQuadratic, Regulator

TASK = task_info("toy-lqr")
SYSTEM = Regulator(TASK)
PROBLEM = SYSTEM.problem
SOME_GAIN = torch.tensor([[0.8, -0.1, 0.5, 0.2], [0.0, 1.1, -0.3, 0.9]], dtype=torch.float64)


@dataclass(frozen=True)
class FiniteOptimum:
    """u_t = -gains[t] x_t; the optimal return from x at step t is -x' values[t] x. `values[H]` is 0."""

    gains: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class StationaryOptimum:
    """u = -gain x; the optimal discounted return from x is -x' value x."""

    gain: torch.Tensor
    value: torch.Tensor


def solve_finite(problem: LinearQuadratic, horizon: int, discount: float = 1.0) -> FiniteOptimum:
    """The Riccati recursion backwards from P_H = 0 (Bertsekas, Dynamic Programming and Optimal Control).

    K_t = g (R + g B'PB)^-1 B'PA and P_t = Q + K'RK + g (A - BK)'P(A - BK), with P = P_t+1 and discount g.
    """
    value = torch.zeros_like(problem.state_cost)
    gains, values = [], [value]
    for _ in range(horizon):
        gain, value = _improve(problem, value, discount)
        gains.append(gain)
        values.append(value)
    return FiniteOptimum(torch.stack(gains[::-1]), torch.stack(values[::-1]))


def solve_discounted(problem: LinearQuadratic, discount: float) -> StationaryOptimum:
    """The fixed point of the same recursion: the infinite-horizon optimum.

    Raises ValueError where it has none (a mode that grows and no action reaches).
    """
    value = torch.zeros_like(problem.state_cost)
    for _ in range(100_000):
        gain, following = _improve(problem, value, discount)
        size = following.abs().amax().clamp_min(torch.finfo(following.dtype).tiny)  # where nothing costs, it is 0
        moved = (following - value).abs().amax() / size
        value = following
        if moved <= 1e-15:  # of the value: the recursion has stopped moving
            return StationaryOptimum(gain, value)
        if not moved.isfinite():
            break
    raise ValueError(f"the linear-quadratic problem has no finite optimum at discount {discount}: its value grows")


def optimal_return(value: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """-x'Px of each state."""
    return -torch.einsum("bi,ij,bj->b", state, value, state)


def linear_return(
    problem: LinearQuadratic,
    gain: torch.Tensor,
    state: torch.Tensor,
    horizon: int,
    discount: float = 1.0,
) -> torch.Tensor:
    """The H-step return of u = -K x from each state, step by step; differentiable in K."""
    total = torch.zeros(len(state), dtype=state.dtype)
    for step in range(horizon):
        action = -state @ gain.T
        cost = (state @ problem.state_cost * state).sum(-1) + (action @ problem.action_cost * action).sum(-1)
        total = total - discount**step * cost
        state = state @ problem.transition.T + action @ problem.control.T
    return total


def return_gradient(
    problem: LinearQuadratic,
    gain: torch.Tensor,
    state: torch.Tensor,
    horizon: int,
    discount: float = 1.0,
) -> torch.Tensor:
    """d/dK of the H-step return of u = -K x, meant over the states, in closed form.

    -2 sum_t g^t (R K - g B' P_t+1 (A - BK)) X_t, where X_t is the mean of x_t x_t' and P_t the cost
    matrix of this policy's remaining steps, P_t = Q + K'RK + g (A - BK)'P_t+1(A - BK), P_H = 0
    (after Fazel et al. 2018, lemma 1, for a finite horizon).
    """
    closed = problem.transition - problem.control @ gain
    paid = problem.state_cost + gain.T @ problem.action_cost @ gain
    values = [torch.zeros_like(paid)]
    for _ in range(horizon - 1):
        values.append(paid + discount * closed.T @ values[-1] @ closed)
    moment = state.T @ state / len(state)
    gradient = torch.zeros_like(gain)
    for step, value in enumerate(reversed(values)):
        advantage = problem.action_cost @ gain - discount * problem.control.T @ value @ closed
        gradient = gradient - 2.0 * discount**step * advantage @ moment
        moment = closed @ moment @ closed.T
    return gradient


def _improve(problem: LinearQuadratic, value: torch.Tensor, discount: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The best gain before `value`, and the value with it."""
    weighted = discount * problem.control.T @ value
    gain = torch.linalg.solve(problem.action_cost + weighted @ problem.control, weighted @ problem.transition)
    closed = problem.transition - problem.control @ gain
    following = problem.state_cost + gain.T @ problem.action_cost @ gain + discount * closed.T @ value @ closed
    return gain, (following + following.T) / 2  # symmetric but for rounding


def starts(count: int) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.tensor([SYSTEM.start(rng) for _ in range(count)], dtype=torch.float64)


def scalar(a: float, b: float, q: float, r: float) -> LinearQuadratic:
    return LinearQuadratic(*(torch.tensor([[value]], dtype=torch.float64) for value in (a, b, q, r)))


def simulate(state: torch.Tensor, actions: list[torch.Tensor], discount: float = 1.0) -> torch.Tensor:
    """The return of an action sequence through the system itself."""
    total = torch.zeros(len(state), dtype=state.dtype)
    for step, action in enumerate(actions):
        state, reward = SYSTEM.transition(state, action, torch.empty(len(state), 0))
        total = total + discount**step * reward
    return total


def optimal_actions(state: torch.Tensor, gains: torch.Tensor) -> list[torch.Tensor]:
    actions = []
    for gain in gains:
        actions.append(-state @ gain.T)
        state, _ = SYSTEM.transition(state, actions[-1], torch.empty(len(state), 0))
    return actions


def test_step_is_the_hand_computed_one():
    state, action = torch.tensor([[1.0, 0.0, 0.0, 2.0]]).double(), torch.tensor([[1.0, -1.0]]).double()
    reached, reward = SYSTEM.transition(state, action, torch.empty(1, 0))
    assert reached[0].tolist() == pytest.approx([1.0, 0.2, -0.05 + 0.2, 0.05 + 1.96 - 0.2])
    assert reward.item() == pytest.approx(-(1.0 + 0.4 + 0.4))


def test_left_alone_the_carts_neither_grow_nor_settle():
    moduli = torch.linalg.eigvals(PROBLEM.transition).abs().sort().values
    assert moduli.tolist() == pytest.approx([0.98, math.sqrt(0.99), math.sqrt(0.99), 1.0])


def test_scalar_optimum_is_the_golden_ratio():
    # a = b = q = r = 1: P = 1 + P/(1 + P), K = P/(1 + P).
    optimum = solve_discounted(scalar(1, 1, 1, 1), 1.0)
    golden = (1 + math.sqrt(5)) / 2
    assert optimum.value.item() == pytest.approx(golden, rel=1e-14)
    assert optimum.gain.item() == pytest.approx(golden - 1, rel=1e-14)


def test_scalar_recursion_is_the_hand_computed_one():
    finite = solve_finite(scalar(2, 1, 1, 3), 2, discount=0.5)
    # Backwards: K_1 = 0, P_1 = 1; K_0 = .5 * 2/(3 + .5) = 2/7, P_0 = 1 + 3 (2/7)^2 + .5 (12/7)^2.
    assert finite.gains[:, 0, 0].tolist() == pytest.approx([2 / 7, 0.0])
    assert finite.values[:, 0, 0].tolist() == pytest.approx([1 + 12 / 49 + 72 / 49, 1.0, 0.0])


def test_stationary_optimum_is_the_limit_of_the_finite_one():
    finite = solve_finite(PROBLEM, 2000, TASK.discount)
    optimum = solve_discounted(PROBLEM, TASK.discount)
    torch.testing.assert_close(optimum.gain, finite.gains[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(optimum.value, finite.values[0], rtol=0, atol=1e-12)


def test_a_mode_that_grows_unreached_has_no_optimum():
    with pytest.raises(ValueError, match=r"no finite optimum at discount 1\.0"):
        solve_discounted(scalar(1.2, 0.0, 1.0, 1.0), 1.0)


@pytest.mark.parametrize("growth", [0.5, 1.2])
def test_free_states_make_doing_nothing_best(growth):
    optimum = solve_discounted(scalar(growth, 1.0, 0.0, 1.0), 0.9)
    assert optimum.value.item() == 0.0
    assert optimum.gain.item() == 0.0


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_the_value_is_the_simulated_return_of_the_optimal_policy(discount):
    state, horizon = starts(10), TASK.episode_length
    finite = solve_finite(PROBLEM, horizon, discount)
    found = simulate(state, optimal_actions(state, finite.gains), discount)
    torch.testing.assert_close(found, optimal_return(finite.values[0], state), rtol=0, atol=1e-12)


def test_no_change_of_the_optimal_actions_helps():
    state, horizon = starts(4), 12
    finite = solve_finite(PROBLEM, horizon)
    actions = [action.requires_grad_() for action in optimal_actions(state, finite.gains)]
    best = simulate(state, actions)
    for slope in torch.autograd.grad(best.sum(), actions):
        assert slope.abs().max().item() < 1e-12
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        other = [action + 0.1 * torch.randn(4, 2, generator=rng, dtype=torch.float64) for action in actions]
        assert (simulate(state, other) < best).all()


@pytest.mark.parametrize("discount", [1.0, 0.95])
@pytest.mark.parametrize("horizon", [1, 2, 7, 50])
def test_gradient_is_that_of_autograd(horizon, discount):
    state, gain = starts(6), SOME_GAIN.clone().requires_grad_()
    found = return_gradient(PROBLEM, SOME_GAIN, state, horizon, discount)
    through = linear_return(PROBLEM, gain, state, horizon, discount).mean()
    torch.testing.assert_close(found, torch.autograd.grad(through, gain)[0], rtol=0, atol=1e-10)
    reached, total = state, torch.zeros((), dtype=torch.float64)
    for step in range(horizon):  # and through the system that the agent meets
        reached, reward = SYSTEM.transition(reached, -reached @ gain.T, torch.empty(6, 0))
        total = total + discount**step * reward.mean()
    torch.testing.assert_close(found, torch.autograd.grad(total, gain)[0], rtol=0, atol=1e-10)


def test_gradient_vanishes_at_the_stationary_optimum():
    optimum = solve_discounted(PROBLEM, TASK.discount)
    assert return_gradient(PROBLEM, optimum.gain, starts(6), 1500, TASK.discount).abs().max().item() < 1e-12
    assert return_gradient(PROBLEM, SOME_GAIN, starts(6), 1500, TASK.discount).abs().max().item() > 1e-2


@pytest.mark.parametrize(("discount", "share"), [(TASK.discount, 0.0), (1.0, 5e-4)])
def test_the_optimal_policy_seldom_meets_the_action_bound(discount, share):
    state = starts(4000)
    gains = (
        solve_finite(PROBLEM, TASK.episode_length).gains
        if discount == 1.0
        else solve_discounted(PROBLEM, discount).gain.expand(TASK.episode_length, 2, 4)
    )
    largest = torch.stack(optimal_actions(state, gains)).abs().amax(dim=-1)
    assert (largest > 1).double().mean().item() <= share
    assert largest.max().item() > 0.8
