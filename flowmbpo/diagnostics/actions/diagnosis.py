"""What the policy does at real states: spread, saturation and modes of its actions, and what its shape is worth.

The last compares returns: the policy, its deterministic actions, and a Gaussian policy that has the
same mean and standard deviation at every state. What a flow policy gains over that Gaussian it owes to its
shape; the rest is noise of a certain size. Letters: B states, S samples of each, A action.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.diagnostics.actions.figures import DimensionFigures, draw_preactivations, measure_dimensions
from flowmbpo.diagnostics.actions.modes import SAMPLES, SIGNIFICANCE
from flowmbpo.diagnostics.diagnosis import Diagnosis, Row
from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.statistics import Interval, mean_interval
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.models.actors.base import Actor, standard_normal
from flowmbpo.models.task_context import TaskContext

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MATCH_SAMPLES = 32  # of the policy, at every state that its moment-matched Gaussian acts in
SHOWN = 8  # dimensions in the table


@dataclass(frozen=True)
class MatchedReturns:
    """Real undiscounted returns of `n` episodes each, from the same starts, and their paired differences.

    An episode that the simulator broke under any of the three is left out of all.
    """

    n: int
    sampled: Interval
    deterministic: Interval
    gaussian: Interval
    sampled_minus_deterministic: Interval
    sampled_minus_gaussian: Interval


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

    def to_dict(self) -> dict[str, Any]:
        """Every dimension of every task."""
        return {
            "actor": self.actor,
            "states": self.states,
            "samples": self.samples,
            "source": self.source,
            "dimensions": [asdict(dimension) for dimension in self.dimensions],
            "returns": None if self.returns is None else asdict(self.returns),
        }

    def rows(self) -> list[Row]:
        """Returns, then the dimensions, the most saturated first where there are many."""
        found: list[Row] = [
            ("judged by", f"{self.samples} actions of the {self.actor} policy at {self.states} states of {self.source}")
        ]
        if self.returns is not None:
            found += _return_rows(self.returns)
        shown = list(self.dimensions)
        if len(shown) > SHOWN:
            shown = sorted(shown, key=lambda one: one.saturation.value, reverse=True)[:SHOWN]
            found.append(("shown", f"the {SHOWN} most saturated of {len(self.dimensions)} dimensions; all with --json"))
        for one in shown:
            found += one.rows()
        several = sum(one.multimodal.low > SIGNIFICANCE for one in self.dimensions)
        told = (
            f"{several} of {len(self.dimensions)} dimensions (more than {SIGNIFICANCE:.0%} of states, by the interval)"
        )
        return [*found, ("more than one mode within a state", told)]

    def draw(self, figure: Figure) -> None:
        """Spread, saturation, shape and returns."""
        axes = figure.subplots(2, 2)
        at = range(len(self.dimensions))
        axes[0, 0].bar(
            [k - 0.2 for k in at], [one.std_within.value for one in self.dimensions], 0.4, label="within a state"
        )
        axes[0, 0].bar(
            [k + 0.2 for k in at], [one.std_across.value for one in self.dimensions], 0.4, label="across states"
        )
        axes[0, 0].set(ylabel="std of actions", xlabel="dimension")
        axes[0, 0].legend()
        axes[0, 1].bar(at, [one.saturation.value for one in self.dimensions], label="|a| > .99")
        axes[0, 1].plot(at, [one.tanh_slope.value for one in self.dimensions], "k.", label="mean slope of tanh")
        axes[0, 1].set(ylim=(0.0, 1.05), xlabel="dimension")
        axes[0, 1].legend()
        axes[1, 0].bar(at, [one.multimodal.value for one in self.dimensions])
        axes[1, 0].axhline(SIGNIFICANCE, color="grey", linestyle=":")
        axes[1, 0].set(ylabel="states with several modes", xlabel="dimension")
        for part in (axes[0, 0], axes[0, 1], axes[1, 0]):
            part.xaxis.get_major_locator().set_params(integer=True)
        if self.returns is not None:
            every = (self.returns.sampled, self.returns.deterministic, self.returns.gaussian)
            error = [[one.value - one.low for one in every], [one.high - one.value for one in every]]
            axes[1, 1].errorbar(range(3), [one.value for one in every], error, fmt="o", capsize=4)
            axes[1, 1].set_xticks(range(3), ["sampled", "deterministic", "Gaussian of\nthe same std"])
            axes[1, 1].set(ylabel="real return", xlim=(-0.5, 2.5))


def _return_rows(returns: MatchedReturns) -> list[Row]:
    return [
        ("real return, sampled", f"{returns.sampled}  (n {returns.n})"),
        ("real return, deterministic", f"{returns.deterministic}; sampled - it: {returns.sampled_minus_deterministic}"),
        (
            "real return, Gaussian of equal mean and std",
            f"{returns.gaussian}; sampled - it: {returns.sampled_minus_gaussian}",
        ),
    ]


def measure_actions(subject: Subject, effort: Effort) -> ActionsDiagnosis:
    """Sample the policy at `effort.rows` real states, and run its three variants in the environment.

    Raises DataError where no real state is there to act in.
    """
    generator = subject.generator("actions")
    batch = subject.windows.sample(effort.rows, 1, generator)
    state, context = subject.encode(batch.obs[0], batch.task)
    z = subject.agent.world_model.latent(state)
    u = draw_preactivations(subject.agent.actor, z, context, SAMPLES, generator)
    matched = match_gaussian(u, SAMPLES, generator)
    return ActionsDiagnosis(
        actor=subject.config.actor.kind,
        states=effort.rows,
        samples=SAMPLES,
        source=subject.windows_source,
        dimensions=measure_dimensions(subject.agent, u, matched, batch.task, effort.resamples, generator),
        returns=_compare_returns(subject) if subject.make_env is not None and subject.episode_count > 1 else None,
    )


def match_gaussian(u: Float[Tensor, "S B A"], count: int, generator: torch.Generator) -> Float[Tensor, "M B A"]:
    """`count` draws from the Gaussian of the samples' mean and variance at each state, before the tanh.

    The mean of S samples varies by a share 1/S of their variance; the draws have that much less, so that their
    variance about the policy's own mean is the policy's.
    """
    mean, variance = u.mean(0), u.var(0) * (1.0 - 1.0 / len(u))
    return mean + variance.sqrt() * standard_normal(mean.expand(count, *mean.shape), generator)


@torch.no_grad()  # episodes are run, nothing is learnt
def act_matched(
    actor: Actor, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator
) -> Float[Tensor, "B A"]:
    """An action of the moment-matched Gaussian policy."""
    u = draw_preactivations(actor, z, context, MATCH_SAMPLES, generator)
    return match_gaussian(u, 1, generator).squeeze(0).tanh() * context.action_mask


def _compare_returns(subject: Subject) -> MatchedReturns:
    agent, generator = subject.agent, subject.generator("matched policy")

    def matched(obs: Tensor, task: Tensor) -> Tensor:
        state, context = subject.encode(obs, task)
        return act_matched(agent.actor, agent.world_model.latent(state), context, generator)

    every = [subject.episodes, subject.run(agent.act, offset=0), subject.run(matched, offset=0)]
    sound = ~torch.stack([episodes.broken for episodes in every]).any(0)
    sampled, deterministic, gaussian = (episodes.returns[sound] for episodes in every)
    return MatchedReturns(
        n=int(sound.sum()),
        sampled=mean_interval(sampled),
        deterministic=mean_interval(deterministic),
        gaussian=mean_interval(gaussian),
        sampled_minus_deterministic=mean_interval(sampled - deterministic),
        sampled_minus_gaussian=mean_interval(sampled - gaussian),
    )
