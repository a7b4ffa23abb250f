"""What the policy does at real states: spread, saturation and modes of its actions, and what its shape is worth.

The last compares returns: the policy, its deterministic actions, and a Gaussian policy of the same mean and standard
deviation at every state. Letters: B states, S samples of each, A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.diagnostics.action_modes import CRITICAL_DIP, SAMPLES, SIGNIFICANCE, dip, negentropy
from flowmbpo.diagnostics.interface import Diagnosis, Drawing, Effort, Row
from flowmbpo.diagnostics.statistics import Interval, mean_interval, middle_interval, resample_counts, share_interval
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.evaluation.episodes import Episodes
from flowmbpo.models.actors.base import Actor
from flowmbpo.models.actors.flow import FlowActor
from flowmbpo.models.actors.gaussian import GaussianActor
from flowmbpo.models.agent import Agent
from flowmbpo.models.task_context import TaskContext
from flowmbpo.nets.noise import standard_normal

MATCH_SAMPLES = 32  # of the policy, at every state that its moment-matched Gaussian acts in
SHOWN = 8  # dimensions in the table
MOSTLY, NARROW = 0.5, 0.01  # share of saturated actions, and std within a state, that the reading names


@dataclass(frozen=True)
class MatchedReturns:
    """Real undiscounted returns of `n` episodes each, from the same starts, and their paired differences.

    `deterministic` actions of a flow are those of zero noise and not the mean: `mean_action` is that of MATCH_SAMPLES
    (None for other policies). An episode that the simulator broke under any of them is left out of all.
    """

    n: int
    sampled: Interval
    deterministic: Interval
    mean_action: Interval | None
    gaussian: Interval
    sampled_minus_deterministic: Interval
    sampled_minus_gaussian: Interval

    def rows(self) -> list[Row]:
        """Returns of every policy, with what sampling earns more."""
        mean, kind = self.mean_action, "" if self.mean_action is None else " (zero noise)"
        least = f"{self.deterministic}; sampled - it: {self.sampled_minus_deterministic}"
        rows = [("real return, sampled", f"{self.sampled}  (n {self.n})"), (f"real return, deterministic{kind}", least)]
        rows += [] if mean is None else [(f"real return, mean of {MATCH_SAMPLES} actions", str(mean))]
        gaussian = f"{self.gaussian}; sampled - it: {self.sampled_minus_gaussian}"
        return [*rows, ("real return, Gaussian of equal mean and std", gaussian)]


@dataclass(frozen=True)
class ActionsDiagnosis(Diagnosis):
    """Figures of every action dimension (of every task), and the returns; None without an environment to run in."""

    name: ClassVar[str] = "actions"
    actor: str
    states: int
    samples: int
    source: str
    dimensions: tuple[DimensionFigures, ...]
    returns: MatchedReturns | None

    @property
    def reading(self) -> str:
        """Dimensions that pass no gradient, then those that explore nothing, then what the policy's shape earns."""
        count = len(self.dimensions)
        stuck = sum(one.saturation.low > MOSTLY for one in self.dimensions)
        if stuck:
            return f"{stuck} of {count} action dimensions are saturated at most states: they pass hardly any gradient."
        narrow = sum(one.std_within.high < NARROW for one in self.dimensions)
        if narrow:
            return f"{narrow} of {count} action dimensions have lost their spread and explore nothing."
        told = "All action dimensions are spread and unsaturated"
        shape = None if self.returns is None else self.returns.sampled_minus_gaussian
        if shape is None:
            return f"{told}."
        if shape.low <= 0.0 <= shape.high:
            return f"{told}; the policy's shape earns no more than a Gaussian's as wide."
        better = "more" if shape.low > 0.0 else "less"
        return f"{told}; by its shape the policy earns {abs(shape.value):.3g} {better} than a Gaussian as wide."

    def rows(self) -> list[Row]:
        """Returns, then the dimensions, the most saturated first where there are many."""
        count, shown = len(self.dimensions), list(self.dimensions)
        judged = f"{self.samples} actions of the {self.actor} policy at {self.states} states of {self.source}"
        rows: list[Row] = [("judged by", judged), *([] if self.returns is None else self.returns.rows())]
        if count > SHOWN:
            shown = sorted(shown, key=lambda one: one.saturation.value, reverse=True)[:SHOWN]
            rows.append(("shown", f"the {SHOWN} most saturated of {count} dimensions; all with --json"))
        for one in shown:
            rows += one.rows()
        several = sum(one.multimodal.low > SIGNIFICANCE for one in self.dimensions)
        told = f"{several} of {count} dimensions (more than {SIGNIFICANCE:.0%} of states, by the interval)"
        return [*rows, ("more than one mode within a state", told)]

    def draw(self, figure: Drawing) -> None:
        """Spread, saturation, shape and returns."""
        (spread, saturation), (modes, earned) = figure.subplots(2, 2)
        at = np.arange(len(self.dimensions))

        def values(name: str) -> list[float]:
            return [getattr(one, name).value for one in self.dimensions]

        spread.bar(at - 0.2, values("std_within"), 0.4, label="within a state")
        spread.bar(at + 0.2, values("std_across"), 0.4, label="across states")
        spread.set(ylabel="std of actions", xlabel="dimension")
        spread.legend()
        saturation.bar(at, values("saturation"), label="|a| > .99")
        saturation.plot(at, values("tanh_slope"), "k.", label="mean slope of tanh")
        saturation.set(ylim=(0.0, 1.05), xlabel="dimension")
        saturation.legend()
        modes.bar(at, values("multimodal"))
        modes.axhline(SIGNIFICANCE, color="grey", linestyle=":")
        modes.set(ylabel="states with several modes", xlabel="dimension")
        for axes in (spread, saturation, modes):
            axes.xaxis.get_major_locator().set_params(integer=True)
        if self.returns is not None:
            every = (self.returns.sampled, self.returns.deterministic, self.returns.gaussian)
            error = [[one.value - one.low for one in every], [one.high - one.value for one in every]]
            earned.errorbar(range(3), [one.value for one in every], error, fmt="o", capsize=4)
            earned.set_xticks(range(3), ["sampled", "deterministic", "Gaussian of\nthe same std"])
            earned.set(ylabel="real return", xlim=(-0.5, 2.5))


def measure_actions(subject: Subject, effort: Effort) -> ActionsDiagnosis:
    """Sample the policy at `effort.rows` real states, and run its three variants in the environment.

    Raises DataError where no real state is there to act in.
    """
    agent, generator = subject.agent, subject.generator("actions")
    batch = subject.windows.sample(effort.rows, 1, generator)
    state, context = subject.encode(batch.obs[0], batch.task)
    u = draw_preactivations(agent.actor, agent.world_model.latent(state), context, SAMPLES, generator)
    matched = match_gaussian(u, SAMPLES, generator)
    return ActionsDiagnosis(
        actor=subject.config.actor.kind,
        states=effort.rows,
        samples=SAMPLES,
        source=subject.windows_source,
        dimensions=measure_dimensions(agent, u, matched, batch.task, effort.resamples, generator),
        returns=_compare_returns(subject) if subject.make_env is not None and subject.episode_count > 1 else None,
    )


def match_gaussian(u: Float[Tensor, "S B A"], count: int, generator: torch.Generator) -> Float[Tensor, "M B A"]:
    """`count` draws from the Gaussian of the samples' mean and variance (less their mean's own) before the tanh."""
    mean, variance = u.mean(0), u.var(0) * (1.0 - 1.0 / len(u))
    return mean + variance.sqrt() * standard_normal(mean.expand(count, *mean.shape), generator)


def act_matched(
    actor: Actor, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator
) -> Float[Tensor, "B A"]:
    """An action of the moment-matched Gaussian policy."""
    u = draw_preactivations(actor, z, context, MATCH_SAMPLES, generator)
    return match_gaussian(u, 1, generator).squeeze(0).tanh() * context.action_mask


def act_mean(
    actor: Actor, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator
) -> Float[Tensor, "B A"]:
    """The mean of sampled actions."""
    return draw_preactivations(actor, z, context, MATCH_SAMPLES, generator).tanh().mean(0) * context.action_mask


def _compare_returns(subject: Subject) -> MatchedReturns:
    agent, generator = subject.agent, subject.generator("matched policy")

    def run(act: Callable[[Actor, Tensor, TaskContext, torch.Generator], Tensor]) -> Episodes:
        def behaviour(obs: Tensor, task: Tensor) -> Tensor:
            state, context = subject.encode(obs, task)
            return act(agent.actor, agent.world_model.latent(state), context, generator)

        return subject.run(behaviour, offset=0)

    every = [subject.episodes, subject.run(agent.act, offset=0), run(act_matched)]
    every += [run(act_mean)] if isinstance(agent.actor, FlowActor) else []
    sound = ~torch.stack([episodes.broken for episodes in every]).any(0)
    sampled, deterministic, gaussian, *mean = (episodes.returns[sound] for episodes in every)
    return MatchedReturns(
        n=int(sound.sum()),
        sampled=mean_interval(sampled),
        deterministic=mean_interval(deterministic),
        mean_action=mean_interval(mean[0]) if mean else None,
        gaussian=mean_interval(gaussian),
        sampled_minus_deterministic=mean_interval(sampled - deterministic),
        sampled_minus_gaussian=mean_interval(sampled - gaussian),
    )


SATURATED = 0.99


@dataclass(frozen=True)
class DimensionFigures:
    """One action dimension of one task, over `states` real states.

    `mean`, `std_within` and (of the Gaussian of u's mean and variance) `matched_std` are means over states of the mean
    action and of its standard deviation at a state; `std_across` is that of the mean action over states. `saturation`
    is the share of actions beyond +-.99, `preactivation` the mean |u|, `tanh_slope` that of 1 - a^2. `multimodal` is
    the share of states at which the dip test calls u multimodal (5% at most are false), `negentropy` how far u is from
    a Gaussian, in nats. `source_ratio` is the std of u within a state over that of the noise that the policy draws.
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
    """Figures of every dimension of every task; `matched` are draws of the Gaussian of equal moments."""
    assert len(u) == SAMPLES  # the dip test is calibrated for it
    noise = _source_noise(agent.actor)
    figures: list[DimensionFigures] = []
    for one in sorted(set(task.tolist())):
        info, rows = agent.spec.tasks[one], task == one
        states = int(rows.sum())
        counts = resample_counts(states, resamples, generator)
        for dimension, across in enumerate(spread_across(u[:, rows, : info.action_dim].tanh(), counts)):
            own, other = (draws[:, rows, dimension].double().cpu() for draws in (u, matched))
            action, samples = own.tanh(), own.numpy()
            modes = sum(dip(column) > CRITICAL_DIP for column in samples.T)
            shape = torch.from_numpy(negentropy(samples))
            figures.append(
                DimensionFigures(
                    task=info.name,
                    dimension=dimension,
                    states=states,
                    mean=mean_interval(action.mean(0)),
                    std_within=mean_interval(action.std(0)),
                    matched_std=mean_interval(other.tanh().std(0)),
                    std_across=across,
                    saturation=mean_interval((action.abs() > SATURATED).double().mean(0)),
                    preactivation=mean_interval(own.abs().mean(0)),
                    tanh_slope=mean_interval((1.0 - action.square()).mean(0)),
                    multimodal=share_interval(modes, states),
                    negentropy=mean_interval(shape[~shape.isnan()]),
                    source_ratio=None if noise is None else mean_interval(own.std(0) / float(noise[dimension])),
                )
            )
    return tuple(figures)


def spread_across(action: Float[Tensor, "S B K"], counts: Float[Tensor, "R B"]) -> list[Interval]:
    """Standard deviation over states of the policy's mean action, of each dimension, with bootstrap intervals.

    The noise of the mean of S samples is taken away: 0 for a policy that does the same everywhere.
    """
    mean = action.double().mean(0).cpu()
    noise = (action.double().var(0) / len(action)).cpu()
    mean = mean - mean.mean(0)  # centred: no cancellation in the weighted moments

    def spread(weight: Tensor) -> Tensor:
        n = weight.sum(-1, keepdim=True)
        variance = (weight @ mean.square() / n - (weight @ mean / n).square()) * n / (n - 1.0)
        return (variance - weight @ noise / n).clamp(min=0.0).sqrt()

    values = spread(torch.ones(1, len(mean), dtype=torch.float64))[0].tolist()
    resampled = spread(counts)
    return [middle_interval(value, resampled[:, k]) for k, value in enumerate(values)]


def _source_noise(actor: Actor) -> Float[Tensor, " A"] | None:
    """Standard deviation of the noise that the policy draws, before any ODE and without a noise floor."""
    if isinstance(actor, FlowActor):
        return actor.log_noise_std.detach().exp()
    if isinstance(actor, GaussianActor):
        return actor.logstd.detach().exp()
    return None
