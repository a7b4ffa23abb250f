"""The action's columns in another order: which order predicts best, step by step.

Letters: B rows, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.diagnostics.health.comparison import Paired, compare_errors
from flowmbpo.diagnostics.health.experience import Stretches
from flowmbpo.diagnostics.subject import Subject

Z = 5.0


@dataclass(frozen=True)
class Arrangement:
    """Columns of the action in another order, each with a sign."""

    order: tuple[int, ...]
    signs: tuple[float, ...]

    def apply(self, action: Float[Tensor, "B A"]) -> Float[Tensor, "B A"]:
        """The rearranged actions."""
        return action[:, list(self.order)] * action.new_tensor(self.signs)

    def exchanged(self, i: int, j: int) -> Arrangement:
        """Columns i and j exchanged."""
        order = list(self.order)
        order[i], order[j] = order[j], order[i]
        return replace(self, order=tuple(order))

    def turned(self, i: int) -> Arrangement:
        """The sign of column i turned."""
        return replace(self, signs=tuple(-sign if k == i else sign for k, sign in enumerate(self.signs)))

    def __str__(self) -> str:
        return "[" + ", ".join(f"{'-' if s < 0 else ''}{i}" for i, s in zip(self.order, self.signs, strict=True)) + "]"


Error = Callable[[Tensor], Tensor]
"""Squared errors of the rows for actions [B, A]."""


def neighbours(arrangement: Arrangement) -> list[Arrangement]:
    """One exchange or one turned sign away."""
    width = len(arrangement.order)
    turned = [arrangement.turned(i) for i in range(width)]
    return turned + [arrangement.exchanged(i, j) for i, j in combinations(range(width), 2)]


def improve(
    action: Float[Tensor, "B A"], error: Error, block: Int[Tensor, " B"], effect: float
) -> tuple[Arrangement, Paired, Paired]:
    """Exchange and turn columns as long as one step more is better beyond doubt (by `effect` and z 5).

    Returns the arrangement reached and its comparison with the columns as they are, then the comparison
    of the first step that came closest to being better: what a healthy model's margin is.
    """
    width = action.shape[-1]
    here = start = Arrangement(tuple(range(width)), (1.0,) * width)
    baseline = first = error(action)
    nearest: Paired | None = None
    for _ in range(2 * width):
        tried = [(option, error(option.apply(action))) for option in neighbours(here)]
        compared = [(option, found, compare_errors(baseline, found, block)) for option, found in tried]
        option, found, paired = min(compared, key=lambda each: each[2].effect)
        nearest = nearest or paired
        if not paired.better(effect, Z):
            break
        here, baseline = option, found
    assert nearest is not None
    reached = compare_errors(first, baseline, block) if here != start else Paired(0.0, 0.0, nearest.n)
    return here, reached, nearest


def dynamics_error(subject: Subject, rows: Stretches) -> Error:
    """One-step latent errors; stochastic dynamics take their mean."""
    model = subject.agent.world_model
    state, context = subject.encode(rows.obs[0], rows.task)
    target = model.latent(subject.encode(rows.obs[1], rows.task)[0])
    return lambda action: (model.latent(model.next(state, action, context)) - target).square().mean(-1)


def reward_error(subject: Subject, rows: Stretches) -> Error:
    """Errors of the predicted learning reward."""
    model = subject.agent.world_model
    state, context = subject.encode(rows.obs[0], rows.task)
    z, reward = model.latent(state), subject.agent.reward_normalizer(rows.reward[0])
    return lambda action: (model.reward(z, action, context) - reward).square()
