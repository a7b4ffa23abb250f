"""The same policy's rewards in the model and in the environment, from the same real start states.

Letters: T steps, N episodes, B rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from flowmbpo.data.batch import Batch
from flowmbpo.diagnostics.diagnosis import Diagnosis, Row
from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.episodes import Episodes, run_episodes
from flowmbpo.diagnostics.gradient.imagined import ImaginedRewards
from flowmbpo.diagnostics.gradient.pairs import Gap, RewardPairs
from flowmbpo.diagnostics.statistics import Fit, Interval, resample_counts
from flowmbpo.diagnostics.subject import ENV_SEED_BASE, Subject
from flowmbpo.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 200
"""Steps of an imagined episode: what lies beyond is not compared, and said so."""
REPLICAS = 8  # imagined rollouts of each start; their mean is compared
EPISODES = 3  # which episodes: see the offsets in `Subject`


@dataclass(frozen=True)
class Curves:
    """Mean reward of step 0, 1, ... of a window. `fits` is real against predicted reward, over windows."""

    real: tuple[Interval, ...]
    open_loop: tuple[Interval, ...]
    closed_loop: tuple[Interval, ...]
    fits: tuple[Fit, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "real": [each.to_dict() for each in self.real],
            "open_loop": [each.to_dict() for each in self.open_loop],
            "closed_loop": [each.to_dict() for each in self.closed_loop],
            "open_loop_fit": [fit.to_dict() for fit in self.fits],
        }


@dataclass(frozen=True)
class PolicyGaps:
    """One way of acting. `episodes` are whole (at most `LONGEST` steps); windows start at random steps of them.

    `open_loop` takes the real actions, `closed_loop` and `episodes` let the policy act on imagined latents.
    """

    episodes: Gap
    open_loop: Gap
    closed_loop: Gap
    curves: Curves
    per_task: dict[str, Gap]
    broken: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "episodes": self.episodes.to_dict(),
            "open_loop": self.open_loop.to_dict(),
            "closed_loop": self.closed_loop.to_dict(),
            "curves": self.curves.to_dict(),
            "per_task": {task: gap.to_dict() for task, gap in self.per_task.items()},
            "broken": self.broken,
        }


@dataclass(frozen=True)
class RewardGapDiagnosis(Diagnosis):
    """Returns in the model against returns in the environment, of the policy as evaluated and as it explores."""

    name: ClassVar[str] = "reward-gap"
    deterministic: PolicyGaps
    sampled: PolicyGaps
    cut: bool
    resamples: int

    def to_dict(self) -> dict[str, Any]:
        """`deterministic` and `sampled` policy, each with episodes, windows and curves."""
        return {
            "deterministic": self.deterministic.to_dict(),
            "sampled": self.sampled.to_dict(),
            "episodes_cut_at": LONGEST if self.cut else None,
            "imagined_rollouts_per_start": REPLICAS,
            "resamples": self.resamples,
        }

    def rows(self) -> list[Row]:
        """Whole episodes first, then windows."""
        whole = f"the first {LONGEST} steps of episodes" if self.cut else "whole episodes"
        rows: list[Row] = []
        for name, gaps in (("deterministic", self.deterministic), ("sampled", self.sampled)):
            rows += [
                (f"{whole}, {name} policy", str(gaps.episodes)),
                (f"{gaps.closed_loop.steps}-step windows, {name}, imagined actions", str(gaps.closed_loop)),
                (f"{gaps.open_loop.steps}-step windows, {name}, the real actions", str(gaps.open_loop)),
            ]
            fits = gaps.curves.fits
            rows.append((f"real reward per predicted, {name}", "; ".join(
                f"step {step}: slope {fits[step].slope:.3g}, correlation {fits[step].correlation:.3g}"
                for step in sorted({0, gaps.open_loop.steps - 1, len(fits) - 1})
            )))  # fmt: skip
        if len(self.deterministic.per_task) > 1:
            rows += [(f"{task}, deterministic policy", str(gap)) for task, gap in self.deterministic.per_task.items()]
        gaps = self.deterministic
        broken = self.deterministic.broken + self.sampled.broken
        rows.append(
            (
                "measured on",
                f"{gaps.episodes.episodes} episodes and {gaps.closed_loop.starts} windows of each policy"
                f"{f' ({broken} broken, left out)' if broken else ''}, real reward units; "
                "intervals: 95% over episodes",
            )
        )
        return rows

    def draw(self, figure: Figure) -> None:
        """Mean reward by step into a window, real and predicted, for both policies."""
        axes = figure.subplots(1, 2, sharey=True)
        for axis, title, gaps in zip(
            axes, ("deterministic", "sampled"), (self.deterministic, self.sampled), strict=True
        ):
            curves = (("real", gaps.curves.real, "black"), ("real actions", gaps.curves.open_loop, "#4477aa"))
            for label, curve, colour in (*curves, ("imagined actions", gaps.curves.closed_loop, "#ee6677")):
                at = list(range(len(curve)))
                axis.fill_between(at, [c.low for c in curve], [c.high for c in curve], color=colour, alpha=0.15)
                axis.plot(at, [c.value for c in curve], color=colour, label=label)
            axis.set(title=f"{title} policy", xlabel="step", ylabel="mean reward")
        axes[0].legend()


def measure_reward_gap(subject: Subject, effort: Effort) -> RewardGapDiagnosis:
    """Run the policy both ways and imagine the same. Raises DataError where no episode is sound."""
    env = subject.open_env(subject.episode_count)
    try:
        seed = ENV_SEED_BASE + (EPISODES << 32) + subject.seed
        deterministic = run_episodes(subject.agent.act, env, seed, subject.device)
    finally:
        env.close()
    return RewardGapDiagnosis(
        deterministic=_compare(subject, deterministic, effort, sampled=False),
        sampled=_compare(subject, subject.episodes, effort, sampled=True),
        cut=max(task.episode_length for task in subject.agent.spec.tasks) > LONGEST,
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
    draws = subject.generator(purpose)
    imagined = ImaginedRewards(subject.agent, subject.generator(f"{purpose}/imagined"), REPLICAS)
    limits = torch.tensor([task.episode_length for task in subject.agent.spec.tasks], device=kept.device)
    limit = limits[episodes.task[kept]]

    begin = torch.zeros_like(kept)
    whole = episodes.cut(begin, kept, min(LONGEST, int(limit.max())))
    there = _present(whole, begin, limit)
    played = RewardPairs(imagined.closed_loop(whole, sampled=sampled), whole.reward, there, len(kept))

    each = max(effort.windows // len(kept), 1)
    share = torch.rand(len(kept), each, generator=draws, device=draws.device).to(kept.device)
    start = (share * episodes.length[kept].unsqueeze(-1)).long().flatten()
    windows = episodes.cut(start, kept.repeat_interleave(each), effort.horizon)
    there = _present(windows, start, limit.repeat_interleave(each))
    open_loop = RewardPairs(imagined.open_loop(windows), windows.reward, there, len(kept))
    closed_loop = RewardPairs(imagined.closed_loop(windows, sampled=sampled), windows.reward, there, len(kept))

    counts = resample_counts(len(kept), effort.resamples, draws)
    horizon = min(subject.config.training.longest_actor_horizon, effort.horizon)
    predicted, real = open_loop.curves(counts)
    return PolicyGaps(
        episodes=played.gap(len(played.real), counts),
        open_loop=open_loop.gap(horizon, counts),
        closed_loop=closed_loop.gap(horizon, counts),
        curves=Curves(tuple(real), tuple(predicted), tuple(closed_loop.curves(counts)[0]), tuple(open_loop.fits())),
        per_task=_per_task(subject, played, whole.task, effort, draws),
        broken=int(episodes.broken.sum()),
    )


def _present(batch: Batch, start: Int[Tensor, " B"], limit: Int[Tensor, " B"]) -> Bool[Tensor, "T B"]:
    """Steps before the time limit: those taken, and those that a termination forwent (their real reward is 0)."""
    step = torch.arange(len(batch.action), device=start.device).unsqueeze(1)
    return (batch.valid | (batch.terminated.cumsum(0) > 0)) & (start + step < limit)


def _per_task(
    subject: Subject, played: RewardPairs, task: Int[Tensor, " N"], effort: Effort, generator: torch.Generator
) -> dict[str, Gap]:
    """The whole-episode gap of each task that an episode was run of."""
    gaps = {}
    for number, info in enumerate(subject.agent.spec.tasks):
        pairs = played.rows(task == number)
        if pairs.episodes:
            counts = resample_counts(pairs.episodes, effort.resamples, generator)
            gaps[info.name] = pairs.gap(len(pairs.real), counts)
    return gaps
