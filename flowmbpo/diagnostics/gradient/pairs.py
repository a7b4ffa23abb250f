"""Predicted and real rewards of the same starts, side by side, and how far their sums are apart.

Letters: T steps, B = N W rows (N episodes of W rows each, episode by episode), R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.diagnostics.statistics import (
    Fit,
    Interval,
    fit_line,
    mean_interval,
    middle_interval,
    ratio_intervals,
)

UNDEFINED = "no relative gap: the real sum may be 0"


@dataclass(frozen=True)
class Gap:
    """Mean sums of rewards from the same starts, in real reward units, with 95% intervals over episodes.

    `relative` is (model - real) / |real| of the sums over all starts; None where the real sum may be 0 (its
    bootstrap interval holds it, or a single episode leaves it without one). Student's t for the sums and for the
    paired gap, unbounded for a single episode; a bootstrap for `relative`.
    """

    model: Interval
    real: Interval
    gap: Interval
    relative: Interval | None
    episodes: int
    starts: int
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        figures = {"model": self.model, "real": self.real, "gap": self.gap}
        relative = {"note": UNDEFINED} if self.relative is None else {}
        return {name: figure.to_dict() for name, figure in figures.items()} | {
            "relative": None if self.relative is None else self.relative.to_dict(),
            **relative,
            "episodes": self.episodes,
            "starts": self.starts,
            "steps": self.steps,
        }

    def __str__(self) -> str:
        sums = f"model {self.model}, real {self.real}"
        if self.relative is None:
            return f"{sums}; {UNDEFINED}"
        share = Interval(100.0 * self.relative.value, 100.0 * self.relative.low, 100.0 * self.relative.high)
        return f"{sums}; relative gap {share} %"


@dataclass(frozen=True)
class RewardPairs:
    """`present` marks the steps that count: not those behind a time limit."""

    model: Float[Tensor, "T B"]
    real: Float[Tensor, "T B"]
    present: Bool[Tensor, "T B"]
    episodes: int

    def rows(self, chosen: Bool[Tensor, " N"]) -> RewardPairs:
        """Those of the chosen episodes."""
        kept = chosen.repeat_interleave(self.model.shape[1] // self.episodes)
        return RewardPairs(self.model[:, kept], self.real[:, kept], self.present[:, kept], int(chosen.sum()))

    def gap(self, steps: int, counts: Float[Tensor, "R N"]) -> Gap:
        """Of the sums over the first `steps` steps. `counts` are resamples of the episodes."""
        model, real = (self._per_episode(rewards, steps) for rewards in (self.model, self.real))
        gap = model - real
        relative = None
        earned = counts @ real
        size = middle_interval(float(real.sum()), earned)
        if self.episodes > 1 and (size.low > 0.0 or size.high < 0.0):
            relative = middle_interval(float(gap.sum() / real.sum().abs()), (counts @ gap) / earned.abs())
        return Gap(
            model=mean_interval(model),
            real=mean_interval(real),
            gap=mean_interval(gap),
            relative=relative,
            episodes=self.episodes,
            starts=self.model.shape[1],
            steps=steps,
        )

    def curves(self, counts: Float[Tensor, "R N"]) -> tuple[list[Interval], list[Interval]]:
        """Mean predicted and real reward of each step; nan where no window reaches it."""
        present = self._episode_sums(self.present.double())
        model, real = (
            ratio_intervals(self._episode_sums(self.present * rewards), present, counts)
            for rewards in (self.model, self.real)
        )
        return model, real

    def fits(self) -> list[Fit]:
        """The line from predicted (x) to real (y) reward at each step, over rows."""
        return [
            fit_line(model[here], real[here])
            for model, real, here in zip(self.model, self.real, self.present, strict=True)
        ]

    def _per_episode(self, rewards: Float[Tensor, "T B"], steps: int) -> Float[Tensor, " N"]:
        sums = (self.present * rewards)[:steps].double().sum(0)
        return sums.view(self.episodes, -1).mean(-1).cpu()

    def _episode_sums(self, figures: Float[Tensor, "T B"]) -> Float[Tensor, "N T"]:
        return figures.double().view(len(figures), self.episodes, -1).sum(-1).T
