"""A linear-quadratic regulator, its exact optimum, and the exact gradient of a linear policy's return.

Letters: S state, A action, H horizon, B a batch of states. Matrices and results are float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.toy.system import Canvas, ToySystem
from flowmbpo.spec import TaskInfo

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


DT = 0.1  # s
SPRING = 0.5  # 1/s^2, between the carts
DRAG = 0.2  # 1/s
FORCE = 2.0  # m/s^2 at full action
MAX_POSITION, MAX_SPEED = 0.45, 0.2  # of the start


def regulator(dtype: torch.dtype = torch.float64) -> LinearQuadratic:
    """Two equal carts on a line, joined by a spring; explicit Euler, so that x' = A x + B u exactly.

    Left alone the carts neither grow nor settle: the moduli of A's eigenvalues are 1, .995, .995, .98.
    """
    pull = DT * SPRING
    transition = [
        [1.0, 0.0, DT, 0.0],
        [0.0, 1.0, 0.0, DT],
        [-pull, pull, 1.0 - DT * DRAG, 0.0],
        [pull, -pull, 0.0, 1.0 - DT * DRAG],
    ]
    control = [[0.0, 0.0], [0.0, 0.0], [DT * FORCE, 0.0], [0.0, DT * FORCE]]
    return LinearQuadratic(
        transition=torch.tensor(transition, dtype=dtype),
        control=torch.tensor(control, dtype=dtype),
        state_cost=torch.diag(torch.tensor([1.0, 1.0, 0.1, 0.1], dtype=dtype)),
        action_cost=torch.diag(torch.tensor([0.2, 0.2], dtype=dtype)),
    )


class Regulator(ToySystem):
    """State and observation [p1, p2, v1, v2] (m, m/s) of two carts, each with its own action.

    x' = A x + B u and reward -(x'Qx + u'Ru), of the state before the step, with `regulator`'s
    matrices; `riccati` solves it. The action bound is no part of that solution: from these starts the
    discounted optimum never meets it (largest action .94 in 20,000 episodes), the undiscounted one in
    .02% of its steps.
    """

    state_dim = 4

    def __init__(self, task: TaskInfo) -> None:
        super().__init__(task)
        self.problem = regulator()
        self._single = regulator(torch.float32)

    def start(self, rng: np.random.Generator) -> list[float]:
        """p ~ U(-.45, .45), v ~ U(-.2, .2)."""
        bounds = np.array([MAX_POSITION, MAX_POSITION, MAX_SPEED, MAX_SPEED])
        state: list[float] = rng.uniform(-bounds, bounds).tolist()
        return state

    def transition(
        self, state: Float[Tensor, "B 4"], action: Float[Tensor, "B 2"], noise: Float[Tensor, "B K"]
    ) -> tuple[Float[Tensor, "B 4"], Float[Tensor, " B"]]:
        """x' = A x + B u, in float32 or in float64 as the state is."""
        problem = self.problem if state.dtype == torch.float64 else self._single
        # Products and sums per row: a matrix product may round differently in batches of another size.
        reached = (state.unsqueeze(-2) * problem.transition).sum(-1) + (action.unsqueeze(-2) * problem.control).sum(-1)
        cost = (state.square() * problem.state_cost.diagonal()).sum(-1)
        return reached, -(cost + (action.square() * problem.action_cost.diagonal()).sum(-1))

    def draw(self, state: list[float]) -> np.ndarray:
        """Both carts, each above its own mark where it belongs, in a window 2 m high."""
        canvas = Canvas(units_high=2.0)
        canvas.line((0.0, -0.5), (0.0, 0.6), width=0.02, colour=(86, 156, 90))
        for height, position, colour in ((0.3, state[0], (178, 76, 52)), (-0.2, state[1], (40, 40, 40))):
            canvas.line((-1.3, height - 0.1), (1.3, height - 0.1), width=0.02, colour=(120, 120, 120))
            canvas.line((position - 0.08, height), (position + 0.08, height), width=0.16, colour=colour)
        canvas.line((state[0], 0.2), (state[1], -0.2), width=0.02, colour=(120, 120, 120))
        return canvas.frame()
