"""The exact optimum of a linear-quadratic problem, and the exact gradient of a linear policy's return.

Letters: S state, A action, H horizon, B a batch of states. Matrices and results are float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

_MAX_ITERATIONS = 100_000
_TOLERANCE = 1e-15  # of the value, relative: the recursion has stopped moving


@dataclass(frozen=True)
class LinearQuadratic:
    """x' = A x + B u, paying x'Qx + u'Ru at every step before it is taken; the return is minus the cost."""

    transition: Float[Tensor, "S S"]
    control: Float[Tensor, "S A"]
    state_cost: Float[Tensor, "S S"]
    action_cost: Float[Tensor, "A A"]


@dataclass(frozen=True)
class FiniteOptimum:
    """u_t = -gains[t] x_t; the optimal return from x at step t is -x' values[t] x. `values[H]` is 0."""

    gains: Float[Tensor, "H A S"]
    values: Float[Tensor, "H+1 S S"]


@dataclass(frozen=True)
class StationaryOptimum:
    """u = -gain x; the optimal discounted return from x is -x' value x."""

    gain: Float[Tensor, "A S"]
    value: Float[Tensor, "S S"]


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
    for _ in range(_MAX_ITERATIONS):
        gain, following = _improve(problem, value, discount)
        size = following.abs().amax().clamp_min(torch.finfo(following.dtype).tiny)  # where nothing costs, it is 0
        moved = (following - value).abs().amax() / size
        value = following
        if moved <= _TOLERANCE:
            return StationaryOptimum(gain, value)
        if not moved.isfinite():
            break
    raise ValueError(f"the linear-quadratic problem has no finite optimum at discount {discount}: its value grows")


def optimal_return(value: Float[Tensor, "S S"], state: Float[Tensor, "B S"]) -> Float[Tensor, " B"]:
    """-x'Px of each state."""
    return -torch.einsum("bi,ij,bj->b", state, value, state)


def linear_return(
    problem: LinearQuadratic,
    gain: Float[Tensor, "A S"],
    state: Float[Tensor, "B S"],
    horizon: int,
    discount: float = 1.0,
) -> Float[Tensor, " B"]:
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
    gain: Float[Tensor, "A S"],
    state: Float[Tensor, "B S"],
    horizon: int,
    discount: float = 1.0,
) -> Float[Tensor, "A S"]:
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


def _improve(
    problem: LinearQuadratic, value: Float[Tensor, "S S"], discount: float
) -> tuple[Float[Tensor, "A S"], Float[Tensor, "S S"]]:
    """The best gain before `value`, and the value with it."""
    weighted = discount * problem.control.T @ value
    gain = torch.linalg.solve(problem.action_cost + weighted @ problem.control, weighted @ problem.transition)
    closed = problem.transition - problem.control @ gain
    following = problem.state_cost + gain.T @ problem.action_cost @ gain + discount * closed.T @ value @ closed
    return gain, (following + following.T) / 2  # symmetric but for rounding
