"""The model's actor gradient against the same objective's gradient in the real environment.

Letters: N copies (independent episodes: the units of the bootstrap), P parameters, R resamples.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.diagnostics.esnr_estimate import inner_products
from flowmbpo.diagnostics.gradient.objective import FixedNoise, RealObjective, collect_starts, model_gradient
from flowmbpo.diagnostics.gradient.reference import DELTA, difference_gradient, exact_gradient
from flowmbpo.diagnostics.interface import Diagnosis, Drawing, Effort, Row, draw_band
from flowmbpo.diagnostics.statistics import Interval, mean_interval, middle_interval, resample_counts
from flowmbpo.diagnostics.subject import ENV_SEED_BASE, Subject
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.errors import DataError
from flowmbpo.json_documents import Document
from flowmbpo.training.updates import discount

COPIES, MOMENTS = 16, 4
EXACT_COPIES = 32  # where a start costs one rollout and not one per displacement
DIRECTIONS = 8  # action dimensions up to which every one is displaced; random sign vectors per step beyond
REPLAY_COPIES, REPLAY_MOMENTS, REPLAY_DIRECTIONS = 8, 2, 2  # where a state is reached only by running its episode again
ALIGNED = 0.7  # a cosine from which on the reading calls two gradients one direction
FEWEST_COPIES = 8  # a bootstrap over fewer says nothing
EPISODES = 2  # which episodes: see the offsets in `Subject`
UNRESOLVED = "not distinguishable from noise"
NOTHING = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Alignment(Document):
    """Cosine between model and reference, and |model| / |reference|.

    A squared norm that is estimated without bias comes out <= 0 where noise is all that was measured (or
    nothing is there). The cosine is nan where that holds of either side, the ratio where it holds of the reference.
    """

    cosine: Interval
    norm_ratio: Interval
    model_norm: float
    reference_norm: float

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; null, and a `note`, for what is not distinguishable from noise."""
        told = {name: None for name in ("cosine", "norm_ratio") if math.isnan(getattr(self, name).value)}
        return super().to_dict() | told | ({"note": UNRESOLVED} if "cosine" in told else {})


def told(figure: Interval) -> str:
    """For people."""
    return UNRESOLVED if math.isnan(figure.value) else str(figure)


@dataclass(frozen=True)
class GradientDiagnosis(Diagnosis):
    """Agreement of model and reference: of the parameters' gradient, and of dJ/du step by step (a = tanh(u)).

    `through` and `detached` are of both kinds of the model's gradient (`input_gradient` says which trains). `rewards`
    and `reward_actions` leave the value behind the horizon out of both sides: what disagrees there is the model, else
    the critic. Intervals are 95% bootstraps over `copies` independent episodes of `moments` start states each.
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
        partly = "" if cosine.value >= ALIGNED else "but partly "
        where = "against the real gradient" if cosine.high < 0.0 else f"{partly}where the real environment would"
        told = f"The model pulls the policy {where} (cosine {cosine.value:.2g})"
        if math.isnan(cosine.value) or cosine.low <= 0.0 <= cosine.high:
            told = "Whether the model pulls the policy where the real environment would cannot be told"
        if self.rewards.cosine.low > cosine.high:
            told += f"; without the critic's value the cosine is {self.rewards.cosine.value:.2g}"
        return f"{told}."

    def rows(self) -> list[Row]:
        """Cosine and norm ratio first, what they rest on last."""
        trained = self.input_gradient == "through"
        other, alternative = ("detached", self.detached) if trained else ("through", self.through)
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
        marks = sorted({0, self.horizon // 2, self.horizon - 1})
        rows += [(f"... to the action of step {mark}", self.steps[mark].cosine) for mark in marks]
        broken = f", {self.broken} broken" if self.broken else ""
        starts = f"{self.starts} = {self.copies} episodes x {self.moments} moments{broken}, horizon {self.horizon}"
        starts += f"; {self.terminated} end on the way; intervals: 95% bootstrap over episodes"
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

    def draw(self, figure: Drawing) -> None:
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
    with closing(subject.open_env(REPLAY_COPIES)) as env:
        if env.restores_by_replay:
            return compare_gradients(subject, env, effort)
        env.reset(subject.seed)
        copies = COPIES if env.differentiable() is None else EXACT_COPIES
    with closing(subject.open_env(copies)) as env:
        return compare_gradients(subject, env, effort)


def compare_gradients(
    subject: Subject, env: VectorEnv, effort: Effort, *, delta: float = DELTA, exact: bool = True
) -> GradientDiagnosis:
    """`measure_gradient` on an open environment; `exact` False takes differences even where not needed."""
    agent, training, generator = subject.agent, subject.config.training, subject.generator("gradient")
    moments, directions = (REPLAY_MOMENTS, REPLAY_DIRECTIONS) if env.restores_by_replay else (MOMENTS, DIRECTIONS)
    starts = collect_starts(
        lambda obs, task: agent.act(obs, task, generator),
        env,
        moments=moments,
        horizon=subject.actor_horizon,
        seed=ENV_SEED_BASE + (EPISODES << 32) + subject.seed,
        generator=generator,
    )
    seeds = torch.randint(2**31, (starts.horizon, starts.moments), generator=generator, device=generator.device)
    policy = FixedNoise(agent.actor, seeds, starts.copies)
    start, context = subject.encode(starts.obs.flatten(0, 1), starts.task.repeat(starts.moments))
    alone = agent.world_model.context(starts.task)
    # The embeddings belong to the world model: their gradient is not the actor's.
    context, alone = (replace(each, embedding=each.embedding.detach()) for each in (context, alone))
    objective = RealObjective(agent, policy, alone, discount(alone, training), starts.horizon)
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
    real, paid = reference.parameters(objective)[:, :, kept]
    through, detached, rewards = (rows[kept] for rows in (model.through, model.detached, model.rewards))
    if not all(bool(rows.isfinite().all()) for rows in (real, paid, through, detached, rewards)):
        raise DataError(
            "the actor's gradient is not finite although its weights are: the imagined or the real rollout overflows "
            f"within {starts.horizon} steps. `flowmbpo diagnose rollout` shows from which step on"
        )
    counts = resample_counts(int(kept.sum()), effort.resamples, subject.generator("gradient/bootstrap"))

    # Slopes [..., H, G, N, A] of a copy's sound moments, side by side: [..., N, H, G A].
    (mine, mine_paid), (theirs, theirs_paid) = (
        torch.where(sound.unsqueeze(-1), slopes, 0.0).movedim(-2, -4).flatten(-2)[..., kept, :, :]
        for slopes in (model.slopes, reference.slopes)
    )
    imagined, lived = (
        (torch.where(sound, values, 0.0).double().sum(0) / sound.sum(0))[kept]
        for values in (model.returns, reference.returns)
    )
    gap = mean_interval(imagined - lived)
    return GradientDiagnosis(
        reference="autodiff" if autodiff else "differences",
        input_gradient=training.actor_input_gradient,
        through=align_means(through, real, counts),
        detached=align_means(detached, real, counts),
        rewards=align_means(rewards, paid, counts),
        actions=align_rows(mine.flatten(1), theirs.flatten(2), counts),
        reward_actions=align_rows(mine_paid.flatten(1), theirs_paid.flatten(2), counts),
        steps=tuple(align_rows(mine[:, h], theirs[:, :, h], counts) for h in range(starts.horizon)),
        objective={"model": mean_interval(imagined), "real": mean_interval(lived), "gap": gap},
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


def align_means(
    model: Float[Tensor, "N P"], reference: Float[Tensor, "2 N P"], counts: Float[Tensor, "R N"]
) -> Alignment:
    """Of the mean gradients over copies.

    All three inner products are means over the pairs of different copies, whose noise is independent: unbiased for
    those of the expected gradients. Measured with Gaussian noise (N = 8 to 32, ESNR of a copy's gradient .03 to 1) the
    cosine's interval holds the truth in .85 to 1.00, the ratio's in .80 to 1.00; at worst the cosine is .16 too small.
    """
    both = reference.mean(0)
    pairs = ((model, both), (model, model), (both, both))
    grams = torch.stack([inner_products(a, b) for a, b in pairs]).cpu()
    own = grams.diagonal(dim1=1, dim2=2)

    def products(times: Float[Tensor, "R N"]) -> Float[Tensor, "3 R"]:
        square = times.square()
        among = torch.einsum("rn,knm,rm->kr", times, grams, times) - own @ square.T
        number = times.sum(-1).square() - square.sum(-1)
        return torch.where(number > 0.0, among / number, torch.nan)  # one copy, drawn every time, has no pair

    return _alignment(products(torch.ones_like(counts[:1])), products(counts))


def align_rows(
    model: Float[Tensor, "N P"], reference: Float[Tensor, "2 N P"], counts: Float[Tensor, "R N"]
) -> Alignment:
    """Of all rows at once, as one long vector: nothing cancels between start states.

    The inner product of the two estimates in `reference` is its squared norm without measurement noise.
    """
    g, first, second = (rows.double() for rows in (model, *reference))
    products = (g * (first + second) / 2.0, g.square(), first * second)
    sums = torch.stack([product.sum(-1) for product in products]).cpu()
    return _alignment(sums.mean(-1, keepdim=True), sums @ counts.T / counts.sum(-1))


def _alignment(value: Float[Tensor, "3 1"], resampled: Float[Tensor, "3 R"]) -> Alignment:
    """From inner products [model x reference, model^2, reference^2]."""
    own, other = (float(product[0].clamp(min=0.0).sqrt()) for product in value[1:])
    cosine = ratio = NOTHING
    if other > 0.0:
        # The ratio's interval is taken on the angle of the norms, because among its resamples may be infinite ones.
        angles = astuple(middle_interval(float(_angle(value)), _angle(resampled)))
        ratio = Interval(*(math.inf if angle >= math.pi / 2 - 1e-12 else math.tan(angle) for angle in angles))
        if own > 0.0:
            cosine = middle_interval(float(_cosine(value)), _cosine(resampled))
    return Alignment(cosine, ratio, own, other)


def _cosine(products: Float[Tensor, "3 R"]) -> Float[Tensor, " R"]:
    # The inner product's sign where noise makes it larger than a cosine can be, or leaves a side no norm.
    inner, own, other = products
    bound = (own.clamp(min=0.0) * other.clamp(min=0.0)).sqrt()
    beyond = inner.abs() > bound
    return torch.where(beyond & (inner != 0.0), inner.sign(), inner / bound)


def _angle(products: Float[Tensor, "3 R"]) -> Float[Tensor, " R"]:
    _, own, other = products.clamp(min=0.0).sqrt()
    return torch.where((own == 0.0) & (other == 0.0), torch.nan, torch.atan2(own, other))
