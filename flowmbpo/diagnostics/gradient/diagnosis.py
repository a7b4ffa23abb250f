"""The model's actor gradient against the same objective's gradient in the real environment."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.diagnostics.gradient.agreement import Alignment, align_means, align_rows, told
from flowmbpo.diagnostics.gradient.objective import FixedNoise, RealObjective, collect_starts, model_gradient
from flowmbpo.diagnostics.gradient.reference import DELTA, difference_gradient, exact_gradient
from flowmbpo.diagnostics.interface import Diagnosis, Effort, Row, draw_band
from flowmbpo.diagnostics.statistics import Interval, mean_interval, resample_counts
from flowmbpo.diagnostics.subject import ENV_SEED_BASE, Subject
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.errors import DataError
from flowmbpo.training.updates import discount

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COPIES, MOMENTS = 16, 4
EXACT_COPIES = 32  # where a start costs one rollout and not one per displacement
DIRECTIONS = 8
"""Action dimensions up to which every one is displaced; random sign vectors per step beyond."""
REPLAY_COPIES, REPLAY_MOMENTS, REPLAY_DIRECTIONS = 8, 2, 2
"""The same where a saved state is reached again only by running its episode up to it."""
ALIGNED = 0.7  # a cosine from which on the reading calls two gradients one direction
FEWEST_COPIES = 8  # a bootstrap over fewer says nothing
EPISODES = 2  # which episodes: see the offsets in `Subject`


@dataclass(frozen=True)
class GradientDiagnosis(Diagnosis):
    """Agreement of model and reference: of the parameters' gradient, and of dJ/du step by step (a = tanh(u)).

    `gradient` is of the gradient as the config trains (`input_gradient`), `through` and `detached`
    of both kinds; the reference is always the total derivative. `rewards` and `reward_actions` leave the
    value behind the horizon out of both sides: what disagrees there is the model, what disagrees only
    with it is the critic, whose slopes between real encodings nothing trains. Intervals are 95% bootstraps over
    `copies` independent episodes of `moments` start states each.
    """

    derived = ("gradient", "starts", "horizon", "reading")
    name: ClassVar[str] = "gradient"
    reference: str
    input_gradient: str
    through: Alignment
    detached: Alignment
    rewards: Alignment
    actions: Alignment
    reward_actions: Alignment
    steps: tuple[Alignment, ...]
    objective: dict[Literal["model", "real", "gap"], Interval]
    copies: int
    moments: int
    model_noise_replicas: int
    directions: int | None
    delta: float | None
    bend: float | None
    broken: int
    terminated: int
    resamples: int

    @property
    def gradient(self) -> Alignment:
        """Of the gradient that training uses."""
        return self.through if self.input_gradient == "through" else self.detached

    @property
    def starts(self) -> int:
        """Start states, those that broke left out."""
        return self.copies * self.moments - self.broken

    @property
    def horizon(self) -> int:
        """Imagined steps."""
        return len(self.steps)

    @property
    def reading(self) -> str:
        """Where the model's gradient pulls the policy, and whether the critic turns it."""
        cosine = self.gradient.cosine
        if math.isnan(cosine.value) or cosine.low <= 0.0 <= cosine.high:
            told = "Whether the model pulls the policy where the real environment would cannot be told"
        elif cosine.high < 0.0:
            told = f"The model pulls the policy against the real gradient (cosine {cosine.value:.2g})"
        elif cosine.value >= ALIGNED:
            told = f"The model pulls the policy where the real environment would (cosine {cosine.value:.2g})"
        else:
            told = f"The model pulls the policy but partly where the real environment would (cosine {cosine.value:.2g})"
        if self.rewards.cosine.low > cosine.high:
            told += f"; without the critic's value the cosine is {self.rewards.cosine.value:.2g}"
        return f"{told}."

    def rows(self) -> list[Row]:
        """Cosine and norm ratio first, what they rest on last."""
        other, alternative = "detached", self.detached
        if self.input_gradient == "detached":
            other, alternative = "through", self.through
        rows = [
            (f"cosine to the real gradient ({self.input_gradient}, as trained)", self.gradient.cosine),
            ("norm, model / real", self.gradient.norm_ratio),
            (f"cosine of the {other} gradient", alternative.cosine),
            (f"norm of the {other} gradient, model / real", alternative.norm_ratio),
            ("cosine without the critic's value at the end", self.rewards.cosine),
            ("norm without it, model / real", self.rewards.norm_ratio),
            ("cosine of the gradients to the actions", self.actions.cosine),
            ("... without the critic's value", self.reward_actions.cosine),
        ]
        marks = sorted({0, len(self.steps) // 2, len(self.steps) - 1})
        rows += [(f"... to the action of step {mark}", self.steps[mark].cosine) for mark in marks]
        starts = f"{self.starts} = {self.copies} episodes x {self.moments} moments"
        starts += f", {self.broken} broken" if self.broken else ""
        starts += (
            f", horizon {len(self.steps)}; {self.terminated} end on the way; intervals: 95% bootstrap over episodes"
        )
        reference = "exact: backpropagation through the environment, under the noise that was drawn"
        if self.reference != "autodiff":
            kind = f"{self.directions} random sign vectors per step" if self.directions else "every action dimension"
            reference = f"antithetic differences, delta {self.delta:g} before tanh, {kind}; bend {self.bend:.3g}"
        return [
            *((name, told(figure)) for name, figure in rows),
            ("objective in the model", str(self.objective["model"])),
            ("objective in the environment", str(self.objective["real"])),
            ("reference", reference),
            ("start states", starts),
        ]

    def draw(self, figure: Figure) -> None:
        """Cosine and norms of the gradients to the actions, step by step."""
        left, right = figure.subplots(1, 2)
        at = list(range(len(self.steps)))
        draw_band(left, at, [step.cosine for step in self.steps], "actions", "#4477aa")
        used = self.gradient.cosine
        if not math.isnan(used.value):
            left.axhspan(used.low, used.high, color="#ee6677", alpha=0.15)
            left.axhline(used.value, color="#ee6677", label="parameters")
        left.axhline(0.0, color="black", linewidth=0.5)
        left.set(xlabel="step", ylabel="cosine, model to real", ylim=(-1.05, 1.05))
        left.legend()
        right.plot(at, [step.reference_norm for step in self.steps], color="black", label="real")
        right.plot(at, [step.model_norm for step in self.steps], color="#4477aa", label="model")
        right.set(xlabel="step", ylabel="norm of dJ/du", ylim=(0.0, None))
        right.legend()


def measure_gradient(subject: Subject, effort: Effort) -> GradientDiagnosis:
    """Exact where the environment is differentiable, by finite differences elsewhere.

    Raises DataError where the environment broke in nearly every episode, or a gradient is not finite.
    """
    env = subject.open_env(REPLAY_COPIES)
    try:
        if not env.restores_by_replay:
            env.reset(subject.seed)
            copies = COPIES if env.differentiable() is None else EXACT_COPIES
            env.close()
            env = subject.open_env(copies)
        return compare_gradients(subject, env, effort)
    finally:
        env.close()


def compare_gradients(
    subject: Subject, env: VectorEnv, effort: Effort, *, delta: float = DELTA, exact: bool = True
) -> GradientDiagnosis:
    """`measure_gradient` on an open environment; `exact` False takes differences even where not needed."""
    agent, training = subject.agent, subject.config.training
    generator = subject.generator("gradient")
    starts = collect_starts(
        lambda obs, task: agent.act(obs, task, generator),
        env,
        moments=REPLAY_MOMENTS if env.restores_by_replay else MOMENTS,
        horizon=subject.actor_horizon,
        seed=ENV_SEED_BASE + (EPISODES << 32) + subject.seed,
        generator=generator,
    )
    shape = (starts.horizon, starts.moments)
    seeds = torch.randint(2**31, shape, generator=generator, device=generator.device)
    policy = FixedNoise(agent.actor, seeds, starts.copies)
    start, context = subject.encode(starts.obs.flatten(0, 1), starts.task.repeat(starts.moments))
    alone = agent.world_model.context(starts.task)
    # The embeddings belong to the world model: their gradient is not the actor's.
    context, alone = (replace(each, embedding=each.embedding.detach()) for each in (context, alone))
    objective = RealObjective(agent, policy, alone, discount(alone, training), starts.horizon)
    directions = REPLAY_DIRECTIONS if env.restores_by_replay else DIRECTIONS
    autodiff = exact and env.differentiable() is not None
    if autodiff:
        reference = exact_gradient(objective, env, starts)
    else:
        reference = difference_gradient(objective, env, starts, directions=directions, generator=generator, delta=delta)
    sound = reference.sound
    model = model_gradient(agent, policy, start, context, sound, training, starts.horizon, generator)

    kept = sound.any(0)
    if int(kept.sum()) < FEWEST_COPIES:
        raise DataError(
            f"the gradient needs {FEWEST_COPIES} sound episodes and {int(kept.sum())} of {starts.copies} are: the "
            "simulator broke, or its derivatives are not finite, in the others. Train on, or look at the policy's "
            "actions (flowmbpo diagnose actions)"
        )
    real, paid = (
        reference.parameters(objective, slopes)[:, kept] for slopes in (reference.slopes, reference.reward_slopes)
    )
    through, detached, rewards = (rows[kept] for rows in (model.through, model.detached, model.rewards))
    if not all(bool(rows.isfinite().all()) for rows in (real, paid, through, detached, rewards)):
        raise DataError(
            "the actor's gradient is not finite although its weights are: the imagined or the real rollout overflows "
            f"within {starts.horizon} steps. `flowmbpo diagnose rollout` shows from which step on"
        )
    counts = resample_counts(int(kept.sum()), effort.resamples, subject.generator("gradient/bootstrap"))

    def by_copy(slopes: Float[Tensor, "*K H G N A"]) -> Float[Tensor, "*K N H X"]:
        """Slopes of a copy's sound moments, side by side."""
        alone = torch.where(sound.unsqueeze(-1), slopes, 0.0)
        return alone.movedim(-2, -4).flatten(-2)[..., kept, :, :]

    mine, mine_paid, theirs, theirs_paid = map(
        by_copy, (model.slopes, model.reward_slopes, reference.slopes, reference.reward_slopes)
    )
    imagined, lived = (
        (torch.where(sound, values, 0.0).double().sum(0) / sound.sum(0))[kept]
        for values in (model.returns, reference.returns)
    )
    return GradientDiagnosis(
        reference="autodiff" if autodiff else "differences",
        input_gradient=training.actor_input_gradient,
        through=align_means(through, real, counts),
        detached=align_means(detached, real, counts),
        rewards=align_means(rewards, paid, counts),
        actions=align_rows(mine.flatten(1), theirs.flatten(2), counts),
        reward_actions=align_rows(mine_paid.flatten(1), theirs_paid.flatten(2), counts),
        steps=tuple(align_rows(mine[:, h], theirs[:, :, h], counts) for h in range(starts.horizon)),
        objective={
            "model": mean_interval(imagined),
            "real": mean_interval(lived),
            "gap": mean_interval(imagined - lived),
        },
        copies=starts.copies,
        moments=starts.moments,
        model_noise_replicas=model.replicas,
        directions=None if autodiff else directions if directions < env.spec.action_dim else 0,
        delta=None if autodiff else delta,
        bend=None if autodiff else reference.bend,
        broken=int((~sound).sum()),
        terminated=int((reference.terminated & sound).sum()),
        resamples=effort.resamples,
    )
