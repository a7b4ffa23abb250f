"""A linear-quadratic regulator: two carts joined by a spring. S is the width of the state, A that of the action."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.toy.system import Canvas, Noise, ToySystem, Transition
from flowmbpo.spec import TaskInfo

DT = 0.1  # s
SPRING = 0.5  # 1/s^2, between the carts
DRAG = 0.2  # 1/s
FORCE = 2.0  # m/s^2 at full action
MAX_POSITION, MAX_SPEED = 0.45, 0.2  # of the start


@dataclass(frozen=True)
class LinearQuadratic:
    """x' = A x + B u, paying x'Qx + u'Ru at every step before it is taken; the return is minus the cost."""

    transition: Float[Tensor, "S S"]
    control: Float[Tensor, "S A"]
    state_cost: Float[Tensor, "S S"]
    action_cost: Float[Tensor, "A A"]


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
    matrices = (transition, control, np.diag([1.0, 1.0, 0.1, 0.1]), np.diag([0.2, 0.2]))
    return LinearQuadratic(*(torch.tensor(matrix, dtype=dtype) for matrix in matrices))


class Regulator(ToySystem):
    """State and observation [p1, p2, v1, v2] (m, m/s) of two carts, each with its own action.

    x' = A x + B u and reward -(x'Qx + u'Ru), of the state before the step, with `regulator`'s matrices; a Riccati
    recursion solves it. The action bound is no part of that solution: from these starts the discounted optimum never
    meets it (largest action .94 in 20,000 episodes), the undiscounted one in .02% of its steps.
    """

    state_dim = 4
    units_high = 2.0

    def __init__(self, task: TaskInfo) -> None:
        super().__init__(task)
        self.problem = regulator()
        self._single = regulator(torch.float32)

    def start(self, rng: np.random.Generator) -> list[float]:
        """p ~ U(-.45, .45), v ~ U(-.2, .2)."""
        bounds = np.array([MAX_POSITION, MAX_POSITION, MAX_SPEED, MAX_SPEED])
        state: list[float] = rng.uniform(-bounds, bounds).tolist()
        return state

    def transition(self, state: Float[Tensor, "B 4"], action: Float[Tensor, "B 2"], noise: Noise) -> Transition:
        """x' = A x + B u, in float32 or in float64 as the state is."""
        problem = self.problem if state.dtype == torch.float64 else self._single
        # Products and sums per row: a matrix product may round differently in batches of another size.
        reached = (state.unsqueeze(-2) * problem.transition).sum(-1) + (action.unsqueeze(-2) * problem.control).sum(-1)
        cost = (state.square() * problem.state_cost.diagonal()).sum(-1)
        return reached, -(cost + (action.square() * problem.action_cost.diagonal()).sum(-1))

    def draw(self, canvas: Canvas, state: list[float]) -> None:
        """Both carts, each above its own mark where it belongs, in a window 2 m high."""
        canvas.line((0.0, -0.5), (0.0, 0.6), width=0.02, colour=(86, 156, 90))
        for height, position, colour in ((0.3, state[0], (178, 76, 52)), (-0.2, state[1], (40, 40, 40))):
            canvas.line((-1.3, height - 0.1), (1.3, height - 0.1), width=0.02, colour=(120, 120, 120))
            canvas.line((position - 0.08, height), (position + 0.08, height), width=0.16, colour=colour)
        canvas.line((state[0], 0.2), (state[1], -0.2), width=0.02, colour=(120, 120, 120))
