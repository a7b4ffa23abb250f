"""Predicted and real rewards of the same starts, side by side, and how far their sums are apart.

Letters: T steps, B = N W rows (N episodes of W rows each, episode by episode), R resamples.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowmbpo.data.batch import Batch
from flowmbpo.diagnostics.interface import Diagnosis, Drawing, Effort, Row, draw_band
from flowmbpo.diagnostics.statistics import (
    Fit,
    Interval,
    fit_line,
    mean_interval,
    middle_interval,
    ratio_intervals,
    resample_counts,
)
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.errors import DataError
from flowmbpo.evaluation.episodes import Episodes
from flowmbpo.json_documents import Document
from flowmbpo.models.actors.base import Actor
from flowmbpo.models.agent import Agent
from flowmbpo.models.open_loop import rollout

LONGEST = 200  # steps of an imagined episode: what lies beyond is not compared, and said so
REPLICAS = 8  # imagined rollouts of each start; their mean is compared
UNDEFINED = "no relative gap: the real sum may be 0"


@dataclass(frozen=True)
class Gap(Document):
    """Mean sums of rewards from the same starts, in real reward units, with 95% intervals over episodes.

    `relative` is (model - real) / |real| of the sums over all starts; None where the real sum may be 0 (its bootstrap
    interval holds it, or there is but one episode). Student's t for the sums and the paired gap, a bootstrap for it.
    """

    model: Interval
    real: Interval
    gap: Interval
    relative: Interval | None
    episodes: int
    starts: int
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, with a note where there is no relative gap."""
        return super().to_dict() | ({"note": UNDEFINED} if self.relative is None else {})

    def __str__(self) -> str:
        sums = f"model {self.model}, real {self.real}"
        if self.relative is None:
            return f"{sums}; {UNDEFINED}"
        percent = Interval(*(100.0 * share for share in astuple(self.relative)))
        return f"{sums}; relative gap {percent} %"


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
        model, real = (
            (self.present * rewards)[:steps].double().sum(0).view(self.episodes, -1).mean(-1).cpu()
            for rewards in (self.model, self.real)
        )
        gap, earned, relative = model - real, counts @ real, None
        size = middle_interval(float(real.sum()), earned)
        if self.episodes > 1 and (size.low > 0.0 or size.high < 0.0):
            relative = middle_interval(float(gap.sum() / real.sum().abs()), (counts @ gap) / earned.abs())
        own, true, apart = (mean_interval(sums) for sums in (model, real, gap))
        return Gap(own, true, apart, relative, self.episodes, self.model.shape[1], steps)

    def curve(self, rewards: Float[Tensor, "T B"], counts: Float[Tensor, "R N"]) -> tuple[Interval, ...]:
        """Mean of predicted or real rewards by step; nan where no window reaches it."""
        earned, present = (
            figures.double().view(len(figures), self.episodes, -1).sum(-1).T
            for figures in (self.present * rewards, self.present)
        )
        return tuple(ratio_intervals(earned, present, counts))

    def fits(self) -> tuple[Fit, ...]:
        """The line from predicted (x) to real (y) reward at each step, over rows."""
        steps = zip(self.model, self.real, self.present, strict=True)
        return tuple(fit_line(model[here], real[here]) for model, real, here in steps)


@torch.no_grad()  # rewards are compared, nothing is differentiated
def imagine_rewards(
    agent: Agent, batch: Batch, generator: torch.Generator, replicas: int, *, actor: Actor | None, sampled: bool
) -> Float[Tensor, "T B"]:
    """Play the model from `batch.obs[0]`, under `actor` on imagined latents or (None) the actions really taken.

    Real units times the predicted chance to be alive; where noise is drawn, means of `replicas` rollouts of each row.
    """
    model = agent.world_model
    alone = model.context(batch.task)
    start = model.encode(batch.obs[0], alone)
    replicas = replicas if sampled or model.dynamics.stochastic else 1
    context, noise = alone.repeat(replicas), generator if sampled else None
    actions = batch.action.repeat(1, replicas, 1)

    def controls(step: int, z: Tensor) -> Tensor:
        return actions[step] if actor is None else actor(z, context, noise)

    alive = torch.ones(len(context.discount), device=start.device)
    rewards = []
    for z, action, z_next in rollout(model, start.repeat(replicas, 1), controls, context, len(actions), generator):
        reward = agent.predict_reward(z, action, context)
        rewards.append((reward * alive).double().view(replicas, -1).mean(0))
        alive = alive * model.continuation(z_next, context)
    return torch.stack(rewards)


@dataclass(frozen=True)
class Curves(Document):
    """Mean reward of step 0, 1, ... of a window. `open_loop_fit` is real against predicted reward, over windows."""

    real: tuple[Interval, ...]
    open_loop: tuple[Interval, ...]
    closed_loop: tuple[Interval, ...]
    open_loop_fit: tuple[Fit, ...]


@dataclass(frozen=True)
class PolicyGaps(Document):
    """One way of acting. `episodes` are whole (at most `LONGEST` steps); windows start at random steps of them.

    `open_loop` takes the real actions, `closed_loop` and `episodes` let the policy act on imagined latents.
    """

    episodes: Gap
    open_loop: Gap
    closed_loop: Gap
    curves: Curves
    per_task: dict[str, Gap]
    broken: int


@dataclass(frozen=True)
class RewardGapDiagnosis(Diagnosis):
    """Returns in the model against returns in the environment, of the policy as evaluated and as it explores."""

    name: ClassVar[str] = "reward-gap"
    deterministic: PolicyGaps
    sampled: PolicyGaps
    episodes_cut_at: int | None
    resamples: int
    imagined_rollouts_per_start: int = REPLICAS

    @property
    def reading(self) -> str:
        """Whether the model predicts more than the environment pays."""
        gaps, gap = self.deterministic.episodes, self.deterministic.episodes.gap
        if gap.low <= 0.0 <= gap.high:
            told = f"agree as far as {gaps.episodes} episodes can tell ({gap.value:+.3g}"
            return f"The model's return of an episode and the real one {told}, within {gap.low:.3g} to {gap.high:.3g})."
        share = "" if gaps.relative is None else f" ({abs(gaps.relative.value):.0%} of it)"
        more, told = ("more", ": the policy exploits its errors") if gap.low > 0.0 else ("less", "")
        return f"The model predicts {abs(gap.value):.3g} {more} than the environment pays for an episode{share}{told}."

    def rows(self) -> list[Row]:
        """Whole episodes first, then windows."""
        whole = f"the first {LONGEST} steps of episodes" if self.episodes_cut_at else "whole episodes"
        rows: list[Row] = []
        for name, gaps in (("deterministic", self.deterministic), ("sampled", self.sampled)):
            fits = gaps.curves.open_loop_fit
            told = (
                f"step {step}: slope {fits[step].slope:.3g}, correlation {fits[step].correlation:.3g}"
                for step in sorted({0, gaps.open_loop.steps - 1, len(fits) - 1})
            )
            rows += [
                (f"{whole}, {name} policy", str(gaps.episodes)),
                (f"{gaps.closed_loop.steps}-step windows, {name}, imagined actions", str(gaps.closed_loop)),
                (f"{gaps.open_loop.steps}-step windows, {name}, the real actions", str(gaps.open_loop)),
                (f"real reward per predicted, {name}", "; ".join(told)),
            ]
        gaps = self.deterministic
        if len(gaps.per_task) > 1:
            rows += [(f"{task}, deterministic policy", str(gap)) for task, gap in gaps.per_task.items()]
        broken = gaps.broken + self.sampled.broken
        left_out = f" ({broken} broken, left out)" if broken else ""
        measured = f"{gaps.episodes.episodes} episodes and {gaps.closed_loop.starts} windows of each policy{left_out}"
        return [*rows, ("measured on", f"{measured}, real reward units; intervals: 95% over episodes")]

    def draw(self, figure: Drawing) -> None:
        """Mean reward by step into a window, real and predicted, for both policies."""
        axes = figure.subplots(1, 2, sharey=True)
        for axis, title in zip(axes, ("deterministic", "sampled"), strict=True):
            curves: Curves = getattr(self, title).curves
            draw_band(axis, range(len(curves.real)), curves.real, "real", "black")
            draw_band(axis, range(len(curves.open_loop)), curves.open_loop, "real actions", "#4477aa")
            draw_band(axis, range(len(curves.closed_loop)), curves.closed_loop, "imagined actions", "#ee6677")
            axis.set(title=f"{title} policy", xlabel="step", ylabel="mean reward")
        axes[0].legend()


def measure_reward_gap(subject: Subject, effort: Effort) -> RewardGapDiagnosis:
    """Run the policy both ways and imagine the same. Raises DataError where no episode is sound."""
    deterministic = subject.run(subject.agent.act, offset=3)
    longest = max(task.episode_length for task in subject.agent.spec.tasks)
    return RewardGapDiagnosis(
        deterministic=_compare(subject, deterministic, effort, sampled=False),
        sampled=_compare(subject, subject.episodes, effort, sampled=True),
        episodes_cut_at=LONGEST if longest > LONGEST else None,
        resamples=effort.resamples,
    )


def _compare(subject: Subject, episodes: Episodes, effort: Effort, *, sampled: bool) -> PolicyGaps:
    kept = (~episodes.broken & (episodes.length > 0)).nonzero().flatten()
    if not len(kept):
        raise DataError(
            f"reward-gap: the simulator broke in all {len(episodes.length)} episodes, so that there is no real return "
            "to compare with; try another --seed"
        )
    purpose = f"reward-gap/{'sampled' if sampled else 'deterministic'}"
    draws, noise = subject.generator(purpose), subject.generator(f"{purpose}/imagined")
    agent, tasks = subject.agent, subject.agent.spec.tasks

    def pairs(batch: Batch, start: Int[Tensor, " B"], limit: Int[Tensor, " B"], actor: Actor | None) -> RewardPairs:
        """Steps before the time limit: those taken, and those that a termination forwent (their real reward is 0)."""
        mine = imagine_rewards(agent, batch, noise, REPLICAS, actor=actor, sampled=sampled and actor is not None)
        step = torch.arange(len(batch.action), device=start.device).unsqueeze(1)
        present = (batch.valid | (batch.terminated.cumsum(0) > 0)) & (start + step < limit)
        return RewardPairs(mine, batch.reward, present, len(kept))

    limits = torch.tensor([task.episode_length for task in tasks], device=kept.device)
    limit = limits[episodes.task[kept]]
    begin = torch.zeros_like(kept)
    whole = episodes.cut(begin, kept, min(LONGEST, int(limit.max())))
    played = pairs(whole, begin, limit, agent.actor)

    each = max(effort.windows // len(kept), 1)
    share = torch.rand(len(kept), each, generator=draws, device=draws.device).to(kept.device)
    start = (share * episodes.length[kept].unsqueeze(-1)).long().flatten()
    windows = episodes.cut(start, kept.repeat_interleave(each), effort.horizon)
    open_loop, closed_loop = (
        pairs(windows, start, limit.repeat_interleave(each), actor) for actor in (None, agent.actor)
    )

    counts = resample_counts(len(kept), effort.resamples, draws)
    horizon = min(subject.config.training.longest_actor_horizon, effort.horizon)
    real, acted = (open_loop.curve(rewards, counts) for rewards in (open_loop.real, open_loop.model))
    per_task = {}
    for number, info in enumerate(tasks):
        own = played.rows(whole.task == number)
        if own.episodes:
            per_task[info.name] = own.gap(len(own.real), resample_counts(own.episodes, effort.resamples, draws))
    return PolicyGaps(
        episodes=played.gap(len(played.real), counts),
        open_loop=open_loop.gap(horizon, counts),
        closed_loop=closed_loop.gap(horizon, counts),
        curves=Curves(real, acted, closed_loop.curve(closed_loop.model, counts), open_loop.fits()),
        per_task=per_task,
        broken=int(episodes.broken.sum()),
    )
