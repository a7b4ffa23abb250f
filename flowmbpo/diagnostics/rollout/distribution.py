"""Is the distribution of futures the real one? Spread of k-step states and reward sums, probabilities of events.

A deterministic model gets the same figures: its distribution is a point, its probabilities are 0 and 1.
Letters: B windows, M samples, D latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.data.batch import Batch
from flowmbpo.diagnostics.interface import Effort, Row
from flowmbpo.diagnostics.rollout.futures import (
    FUTURE_STEPS,
    ConditionalStep,
    Futures,
    measure_conditional,
    sample_futures,
)
from flowmbpo.diagnostics.rollout.scores import Calibration, EnergyDistance, calibrate, energy_score, paired_energy
from flowmbpo.diagnostics.statistics import Interval, mean_interval, resample_counts
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.json_documents import Document
from flowmbpo.models.open_loop import RealWindows

SAMPLES = 32
"""M: a predicted probability is then known to 0.09 or better."""
EVENT_STEPS = (4, 16)
LEVELS = (0.05, 0.1)  # quantiles of the real reward sum that make it a low one
MARGIN = 0.05  # standard deviations that a low sum may lie above the quantile: a value reached often is not cut in two
THRESHOLD_WINDOWS = 4  # times as many windows as are judged, drawn anew, for the quantiles
LEAST = 8  # complete windows below which a step is left out: its intervals would say nothing


@dataclass(frozen=True)
class StepDistribution:
    """Distributions after `step` transitions, over start states; scores are means over the starts.

    `states` and `rewards` compare one sample per start with what really came of it, as pooled distributions. The energy
    scores `state_score` (of z) and `reward_score` (of the reward sum, in real units: its CRPS) judge each start's own M
    samples. States are those of futures that go on (None where too few do); reward sums are those of all.
    """

    step: int
    states: EnergyDistance | None
    rewards: EnergyDistance
    state_score: Interval | None
    reward_score: Interval


@dataclass(frozen=True)
class EventCalibration:
    """How well the probability of `event` within `step` transitions is predicted."""

    event: str
    step: int
    calibration: Calibration


@dataclass(frozen=True)
class Distribution(Document):
    """All of it. `conditional` is None where no start state can be lived through again with other noise."""

    samples: int
    steps: tuple[StepDistribution, ...]
    events: tuple[EventCalibration, ...]
    conditional: tuple[ConditionalStep, ...] | None

    def rows(self) -> list[Row]:
        """Energy distances, scores, then events."""
        rows: list[Row] = []
        for step in self.steps:
            for what, energy in (("states", step.states), ("reward sums", step.rewards)):
                told = f"fewer than {LEAST} starts whose futures go on that long"
                if energy is not None:
                    told = f"{energy.distance}, coefficient {energy.coefficient:.2g}  (n {energy.n})"
                rows.append((f"energy distance of {what}, step {step.step}", told))
            states = "" if step.state_score is None else f"states {step.state_score}, "
            rows.append((f"energy score, step {step.step}", f"{states}reward sums (CRPS) {step.reward_score}"))
        for event in self.events:
            one = event.calibration
            told = f"happens {one.base_rate}, predicted {one.predicted_rate:.3g}; Brier {one.fair_brier:.3g} (skill "
            told += f"{one.skill:.2g}), ECE {one.ece} (by chance up to {one.ece_if_calibrated:.2g}); n {one.n}"
            rows.append((f"P({event.event}), {event.step} steps", told))
        for truth in self.conditional or ():
            rows.append((f"against {truth.replicas} true futures per start, step {truth.step}", str(truth)))
        if self.conditional is None:
            rows.append(("against true futures of one start", "not possible: no noise to draw anew, or endings"))
        return rows

    def draw(self, axes: Any) -> None:
        """The reliability diagram of every event."""
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
        for event in self.events:
            bins = event.calibration.bins
            predicted, observed = [part.predicted for part in bins], [part.observed.value for part in bins]
            axes.plot(predicted, observed, marker="o", label=f"{event.event}, {event.step} steps")
        axes.set(xlabel="predicted probability", ylabel="observed frequency")
        if self.events:
            axes.legend(fontsize="x-small")


def measure_distribution(subject: Subject, real: RealWindows, effort: Effort) -> Distribution:
    """Draw M futures of every window and compare. One is enough of a model that has no chance in it."""
    model, generator = subject.agent.world_model, subject.generator("distribution")
    members = SAMPLES if model.dynamics.stochastic or model.termination_head is not None else 1
    horizon = min(len(real.batch.action), max(FUTURE_STEPS))
    start, action = real.states[0], real.batch.action[:horizon]
    futures = sample_futures(subject.agent, start, action, real.context, members, generator)
    thresholds = _thresholds(subject, horizon, effort, generator)
    low = {k: float(below[0]) for (k, level), below in thresholds.items() if level == LEVELS[-1]}

    def counts(n: int) -> Float[Tensor, "R n"]:
        return resample_counts(n, effort.resamples, generator)

    return Distribution(
        samples=members,
        steps=_steps(real, futures, counts),
        events=_events(subject, real.batch, futures, thresholds, counts, generator),
        conditional=measure_conditional(subject, low),
    )


def known_outcomes(batch: Batch, step: int) -> Bool[Tensor, " B"]:
    """Windows whose first `step` rewards are known: all recorded, or none to come after the task ended itself.

    Of starts less than `step` before a time limit only those that ended are known: endings count too often.
    """
    ended: Tensor = batch.terminated[:step].any(0)
    return batch.valid[step - 1] | ended


Counts = Callable[[int], Float[Tensor, "R n"]]
"""A bootstrap's resamples of so many rows."""


def _steps(real: RealWindows, futures: dict[int, Futures], counts: Counts) -> tuple[StepDistribution, ...]:
    steps = []
    for step, future in futures.items():
        known = known_outcomes(real.batch, step)
        n = int(known.sum())
        if n < LEAST:
            continue
        resampled = counts(n)
        total = real.batch.reward[:step, known].double().sum(0).unsqueeze(-1)
        sums = future.reward_sum[:, known].unsqueeze(-1)
        states, state_score = _compare_states(real, future, step, counts)
        score = mean_interval(energy_score(sums.transpose(0, 1), total))
        steps.append(StepDistribution(step, states, paired_energy(sums[0], total, resampled), state_score, score))
    return tuple(steps)


def _compare_states(
    real: RealWindows, future: Futures, step: int, counts: Counts
) -> tuple[EnergyDistance | None, Interval | None]:
    """Energy distance and score of states that both sides are alive in: an ended future has no state."""
    alive = ~future.ended
    inside = real.batch.valid[step - 1] & ~real.batch.terminated[step - 1] & (alive.sum(0) >= min(len(alive), 2))
    n = int(inside.sum())
    if n < LEAST:
        return None, None
    z, predicted, alive = real.z[step, inside], future.z[:, inside], alive[:, inside]
    first = predicted[alive.int().argmax(0), torch.arange(n, device=alive.device)]
    return paired_energy(first, z, counts(n)), mean_interval(energy_score(predicted.transpose(0, 1), z, alive.T))


def _events(
    subject: Subject,
    batch: Batch,
    futures: dict[int, Futures],
    thresholds: dict[tuple[int, float], Float[Tensor, " tasks"]],
    counts: Counts,
    generator: torch.Generator,
) -> tuple[EventCalibration, ...]:
    events = []

    def judge(event: str, step: int, predicted: Bool[Tensor, "M B"], happened: Bool[Tensor, " B"]) -> None:
        known = known_outcomes(batch, step)
        if (n := int(known.sum())) >= LEAST:
            share = predicted.double().mean(0)[known]
            result = calibrate(share, happened[known], counts(n), generator, members=len(predicted))
            events.append(EventCalibration(event, step, result))

    for step in (step for step in EVENT_STEPS if step in futures):
        total = batch.reward[:step].double().sum(0)
        for level in LEVELS:
            low = thresholds[step, level][batch.task]
            judge(f"reward sum among its lowest {level:.0%}", step, futures[step].reward_sum < low, total < low)
        if any(task.can_terminate for task in subject.agent.spec.tasks):
            judge("termination", step, futures[step].ended, batch.terminated[:step].any(0))
    return tuple(events)


def _thresholds(
    subject: Subject, horizon: int, effort: Effort, generator: torch.Generator
) -> dict[tuple[int, float], Float[Tensor, " tasks"]]:
    """By steps and level, for each task: a quantile of reward sums of other windows, and a margin; -inf without."""
    batch = subject.episodes.sample(THRESHOLD_WINDOWS * effort.windows, horizon, generator)
    thresholds = {}
    for step in (step for step in FUTURE_STEPS if step <= horizon):
        known = known_outcomes(batch, step)
        total, task = batch.reward[:step].double().sum(0)[known], batch.task[known]
        for level in LEVELS:
            low = total.new_full((len(subject.agent.spec.tasks),), -torch.inf)
            for one in sorted(set(task.tolist())):
                own = total[task == one]
                low[one] = torch.quantile(own, level) + MARGIN * own.std(correction=0)
            thresholds[step, level] = low
    return thresholds
