"""Figures of each action dimension at real states. Letters: B states, S samples of each, A action, K own dimensions.

`u` is the action before tanh, noise floor included; modes and shape are those of u, because the tanh
makes two modes at -1 and 1 of any wide Gaussian. Modes are looked for dimension by dimension: two that
only two dimensions together tell apart are missed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.diagnostics.actions.modes import CRITICAL_DIP, SAMPLES, dip, negentropy
from flowmbpo.diagnostics.diagnosis import Row
from flowmbpo.diagnostics.statistics import Interval, mean_interval, middle_interval, resample_counts, share_interval
from flowmbpo.models.actors.base import Actor, standard_normal
from flowmbpo.models.actors.flow import FlowActor
from flowmbpo.models.actors.gaussian import GaussianActor
from flowmbpo.models.agent import Agent
from flowmbpo.models.task_context import TaskContext

SATURATED = 0.99


@dataclass(frozen=True)
class DimensionFigures:
    """One action dimension of one task, over `states` real states.

    `mean` and `std_within` are means over states of the policy's mean action and of its standard deviation
    at a state; `std_across` is that of the mean action over states. `saturation` is the share of actions
    beyond +-.99, `preactivation` the mean |u|, `tanh_slope` the mean of 1 - a^2: what is left of a gradient.
    `multimodal` is the share of states at which the dip test calls u multimodal (5% at most are false),
    `negentropy` how far u is from a Gaussian, in nats. `source_ratio` is the std of u within a state over that of
    the noise that the policy draws: below 1 where a flow contracts its noise (1 for a Gaussian; None for
    other policies). `matched_std` is the std of actions within a state of the Gaussian of u's mean and variance.
    """

    task: str
    dimension: int
    states: int
    mean: Interval
    std_within: Interval
    matched_std: Interval
    std_across: Interval
    saturation: Interval
    preactivation: Interval
    tanh_slope: Interval
    multimodal: Interval
    negentropy: Interval
    source_ratio: Interval | None

    def rows(self) -> list[Row]:
        """Two rows: spread, then shape."""
        label = f"{self.task}, dimension {self.dimension}"
        spread = (
            f"mean {self.mean}, std within a state {self.std_within}, across states {self.std_across}; "
            f"|a| > {SATURATED} {self.saturation}, |u| {self.preactivation.value:.3g}, tanh' {self.tanh_slope}"
        )
        source = "" if self.source_ratio is None else f"; std / source noise {self.source_ratio}"
        shape = (
            f"multimodal in {self.multimodal} of states, negentropy {self.negentropy} nats{source}; "
            f"Gaussian of equal moments has std {self.matched_std.value:.3g}  (n {self.states})"
        )
        return [(label, spread), (f"{label}: shape", shape)]


@torch.no_grad()  # the policy is measured, not trained
def draw_preactivations(
    actor: Actor, z: Float[Tensor, "B D"], context: TaskContext, samples: int, generator: torch.Generator
) -> Float[Tensor, "S B A"]:
    """S samples of u at every state."""
    u = actor.preactivation(z.repeat(samples, 1), context.repeat(samples), generator)
    if actor.config.noise_floor > 0.0:
        u = u + actor.config.noise_floor * standard_normal(u, generator)
    return u.view(samples, len(z), -1)


def measure_dimensions(
    agent: Agent,
    u: Float[Tensor, "S B A"],
    matched: Float[Tensor, "S B A"],
    task: Int[Tensor, " B"],
    resamples: int,
    generator: torch.Generator,
) -> tuple[DimensionFigures, ...]:
    """The figures of every dimension that a task has, for every task among the states.

    `matched` are draws of the Gaussian of equal moments. S is `modes.SAMPLES`, which the dip test is calibrated for.
    """
    assert len(u) == SAMPLES
    noise = _source_noise(agent.actor)
    found: list[DimensionFigures] = []
    for one in sorted(set(task.tolist())):
        info = agent.spec.tasks[one]
        rows = task == one
        counts = resample_counts(int(rows.sum()), resamples, generator)
        own = slice(0, info.action_dim)
        across = spread_across(u[:, rows, own].tanh(), counts)
        for dimension in range(info.action_dim):
            std = None if noise is None else float(noise[dimension])
            own_u, own_matched = (draws[:, rows, dimension].double().cpu() for draws in (u, matched))
            found.append(_figures(info.name, dimension, own_u, own_matched, across[dimension], std))
    return tuple(found)


def _figures(
    task: str, dimension: int, u: Tensor, matched: Tensor, across: Interval, noise: float | None
) -> DimensionFigures:
    action = u.tanh()
    samples = u.numpy().astype(np.float64)
    modes = sum(dip(column) > CRITICAL_DIP for column in samples.T)
    shape = torch.from_numpy(negentropy(samples))
    return DimensionFigures(
        task=task,
        dimension=dimension,
        states=u.shape[1],
        mean=mean_interval(action.mean(0)),
        std_within=mean_interval(action.std(0)),
        matched_std=mean_interval(matched.tanh().std(0)),
        std_across=across,
        saturation=mean_interval((action.abs() > SATURATED).double().mean(0)),
        preactivation=mean_interval(u.abs().mean(0)),
        tanh_slope=mean_interval((1.0 - action.square()).mean(0)),
        multimodal=share_interval(modes, u.shape[1]),
        negentropy=mean_interval(shape[~shape.isnan()]),
        source_ratio=None if noise is None else mean_interval(u.std(0) / noise),
    )


def spread_across(action: Float[Tensor, "S B K"], counts: Float[Tensor, "R B"]) -> list[Interval]:
    """Standard deviation over states of the policy's mean action, of each dimension, with bootstrap intervals.

    The mean of S samples is itself noisy: its share of the variance is taken away, which leaves 0 for a policy
    that does the same everywhere.
    """
    mean = action.double().mean(0).cpu()
    noise = (action.double().var(0) / len(action)).cpu()
    mean = mean - mean.mean(0)  # centred: no cancellation in the weighted moments

    def spread(weight: Tensor) -> Tensor:
        n = weight.sum(-1, keepdim=True)
        variance = (weight @ mean.square() / n - (weight @ mean / n).square()) * n / (n - 1.0)
        return (variance - weight @ noise / n).clamp(min=0.0).sqrt()

    values = spread(torch.ones(1, len(mean), dtype=torch.float64))[0].tolist()
    found = spread(counts)
    return [middle_interval(value, found[:, k]) for k, value in enumerate(values)]


def _source_noise(actor: Actor) -> Float[Tensor, " A"] | None:
    """Standard deviation of the noise that the policy draws, before any ODE and without a noise floor."""
    if isinstance(actor, FlowActor):
        return actor.log_noise_std.detach().exp()
    if isinstance(actor, GaussianActor):
        return actor.logstd.detach().exp()
    return None
