"""The reward head against real rewards, in real units, and the scale that it learns in.

Letters: B rows, n blocks, D latent, A action.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.diagnostics.health.comparison import block_sums
from flowmbpo.diagnostics.health.experience import Stretches, fresh_stretches, sampled_stretches
from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.health.regression import predict_held_out
from flowmbpo.diagnostics.health.reward_action import ActionShare, flat_in_action, share_of_action
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.statistics import Interval, bootstrap_interval
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.models.heads import TwoHotReward
from flowmbpo.models.task_context import TaskContext
from flowmbpo.nets.two_hot import symexp

ROWS = 4096
SHOWN = 512
STEP = 0.01
# Calibrated on 24 checkpoints of 14 trained runs, early ones among them: slopes 0.75 to 1.04, RMS ratios 0.81 to
# 1.07, cosines 0.96 and more, gradients within 1e-4 of finite differences, stored RMS within 4% of the moments.
FLAT_SLOPE = 0.35
KNOWABLE = 0.3
SAME_SHAPE = 0.5
SCALE = 3.0
GRADIENT = 2.0
STORED_SCALE = 2.0
CONSTANT = 1e-6


@dataclass(frozen=True)
class RewardFit:
    """Predicted against real rewards. Ratios are predicted over real; `cosine` is the correlation about 0.

    `slope` is that of the least-squares line of predicted on real. `reference_r2` is the share of the
    rewards' variance that a regression on (observation, action) explains on held-out rows: what a head
    could know at least. Constant rewards or predictions leave ratios and correlations at 0.
    """

    rows: int
    real_std: float
    real_rms: float
    correlation: float
    slope: float
    cosine: float
    spread_ratio: float
    rms_ratio: float
    reference_r2: float

    @property
    def varies(self) -> bool:
        """Whether the real rewards differ at all."""
        return self.real_std > CONSTANT * max(self.real_rms, CONSTANT)


def fit_rewards(real: Float[Tensor, " B"], predicted: Float[Tensor, " B"], reference: Float[Tensor, " B"]) -> RewardFit:
    """The figures of one set of rows."""
    real, predicted, reference = real.double(), predicted.double(), reference.double()
    dr, dp = real - real.mean(), predicted - predicted.mean()
    covariance, variance = float(dr @ dp), float(dr @ dr)
    return RewardFit(
        rows=len(real),
        real_std=float(real.std()),
        real_rms=float(real.square().mean().sqrt()),
        correlation=_ratio(covariance, float(dr.norm() * dp.norm())),
        slope=_ratio(covariance, variance),
        cosine=_ratio(float(real @ predicted), float(real.norm() * predicted.norm())),
        spread_ratio=_ratio(float(dp.norm()), float(dr.norm())),
        rms_ratio=_ratio(float(predicted.norm()), float(real.norm())),
        reference_r2=1.0 - _ratio(float((reference - real).square().sum()), variance),
    )


def predict_real_reward(
    subject: Subject, z: Float[Tensor, "B D"], action: Float[Tensor, "B A"], context: TaskContext
) -> Float[Tensor, " B"]:
    """The head's reward in the environment's units."""
    model = subject.agent.world_model
    learning = model.reward(z, action, context)
    if isinstance(model.reward_head, TwoHotReward) and model.reward_head.config.decode == "symlog":
        learning = symexp(learning)  # the config hands the actor the compressed value; the head knows this one
    real: Tensor = subject.agent.reward_normalizer.inverse(learning)
    return real


def check_reward(subject: Subject, effort: Effort) -> Check:
    """Predicted against real reward on fresh episodes and on the replay buffer; its gradient; its scale.

    Findings: `flat-reward-head` (predictions that do not follow the real rewards, are the same for every
    action, or have a gradient that does not follow them) and `reward-scale` (the right shape at the wrong
    size, or a running scale that is not that of the stored rewards).
    """
    generator = subject.generator("reward")
    fresh = fresh_stretches(subject.episodes, subject.explored, width=1, limit=ROWS, generator=generator)
    figures: dict[str, Any] = {}
    findings: list[Finding] = []
    sources = {"fresh episodes": fresh}
    if subject.replay is not None:
        sources["replayed transitions"] = sampled_stretches(subject.replay, 1, ROWS, generator)
    sources = {source: rows for source, rows in sources.items() if rows.comparable}
    if not sources:
        return Check("reward", {"judged": "no: too few real transitions were recorded"})
    curves: dict[str, list[float]] = {}
    for source, rows in sources.items():
        predicted, fit = _fit(subject, rows)
        figures[source.replace(" ", "_")] = asdict(fit)
        if source == "fresh episodes":
            real = rows.reward[0]
            correlation, slope = intervals(real, predicted, rows.block, generator, effort.resamples)
            figures |= {"correlation": correlation.to_dict(), "slope": slope.to_dict()}
            curves = {"real": real[:SHOWN].tolist(), "predicted": predicted[:SHOWN].tolist()}
        if not fit.varies:
            figures["judged"] = f"not on {source}: their rewards do not vary"
            continue
        findings += _fit_findings(source, fit)
    share = _action_share(subject, generator)
    if share is not None:
        figures["action"] = share.to_dict()
        findings += [flat_in_action(share)] if share.ignored else []
    agreement = gradient_agreement(subject, next(iter(sources.values())), generator)
    figures |= {f"gradient_to_{name}": asdict(each) for name, each in agreement.items()}
    findings += [_wrong_gradient(name, each) for name, each in agreement.items() if not each.follows]
    figures["stored_over_running_rms"] = ratio = stored_scale(subject)
    if ratio is not None and not 1.0 / STORED_SCALE <= ratio <= STORED_SCALE:
        findings.append(_wrong_running_scale(ratio))
    return Check("reward", figures, tuple(_one_per_name(findings)), curves)


@torch.no_grad()  # predictions are measured, nothing is learnt
def _fit(subject: Subject, rows: Stretches) -> tuple[Tensor, RewardFit]:
    obs, action, real = rows.obs[0], rows.action[0], rows.reward[0]
    state, context = subject.encode(obs, rows.task)
    predicted = predict_real_reward(subject, subject.agent.world_model.latent(state), action, context)
    inputs = torch.cat([obs, action], dim=-1)
    reference = predict_held_out(inputs, real.unsqueeze(-1), rows.block % 2 == 0, seed=0).squeeze(-1)
    return predicted, fit_rewards(real, predicted, reference)


@torch.no_grad()  # predictions are measured, nothing is learnt
def _action_share(subject: Subject, generator: torch.Generator) -> ActionShare | None:
    """On explored episodes: there actions are not the state's alone. None where these do not tell."""
    rows = fresh_stretches(subject.explored, width=1, limit=ROWS, generator=generator)
    if not rows.comparable or float(rows.reward.std()) <= CONSTANT * float(rows.reward.abs().amax()):
        return None
    state, context = subject.encode(rows.obs[0], rows.task)
    z, action = subject.agent.world_model.latent(state), rows.action[0]
    other = torch.randperm(len(rows), generator=generator, device=generator.device).to(action.device)
    predicted, shuffled = (predict_real_reward(subject, z, each, context) for each in (action, action[other]))
    return share_of_action(rows, predicted, shuffled, other)


def intervals(
    real: Float[Tensor, " B"],
    predicted: Float[Tensor, " B"],
    block: Int[Tensor, " B"],
    generator: torch.Generator,
    resamples: int,
) -> tuple[Interval, Interval]:
    """Correlation and slope of predicted on real with bootstrap intervals over blocks of dependent rows."""
    x, y = real.double() - real.double().mean(), predicted.double() - predicted.double().mean()
    sums = block_sums(torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y], dim=-1), block)

    def moments(rows: Tensor) -> tuple[float, float, float]:
        n, sx, sy, sxx, syy, sxy = rows.sum(0).tolist()
        return sxx - sx * sx / n, syy - sy * sy / n, sxy - sx * sy / n

    def correlation(rows: Tensor) -> float:
        xx, yy, xy = moments(rows)
        return _ratio(xy, math.sqrt(max(xx, 0.0) * max(yy, 0.0)))

    def slope(rows: Tensor) -> float:
        xx, _, xy = moments(rows)
        return _ratio(xy, xx)

    return (
        bootstrap_interval(sums, correlation, generator, resamples),
        bootstrap_interval(sums, slope, generator, resamples),
    )


@dataclass(frozen=True)
class Agreement:
    """Autograd's directional derivatives of the reward against central differences along the same directions.

    `slope` is that of autograd on differences (1 where they agree), `rms` the size of the differences:
    how much the predicted reward changes between two random rows, to first order.
    """

    slope: float
    rms: float

    @property
    def follows(self) -> bool:
        """Whether the gradient is that of the predictions, as far as they change at all."""
        return self.rms == 0.0 or 1.0 / GRADIENT <= self.slope <= GRADIENT


def gradient_agreement(subject: Subject, rows: Stretches, generator: torch.Generator) -> dict[str, Agreement]:
    """Of the reward in z and in the action, along the differences between random rows of the data."""
    model, action = subject.agent.world_model, rows.action[0]
    state, context = subject.encode(rows.obs[0], rows.task)
    z = model.latent(state)
    other = torch.randperm(len(z), generator=generator, device=generator.device).to(z.device)
    still = {"z": torch.zeros_like(z), "action": torch.zeros_like(action)}
    ahead = {"z": z[other] - z, "action": action[other] - action}
    at_z, at_action = z.clone().requires_grad_(), action.clone().requires_grad_()
    total = model.reward(at_z, at_action, context).sum()
    gradients: list[Tensor | None] = [None, None]
    if total.requires_grad:
        gradients = list(torch.autograd.grad(total, [at_z, at_action], allow_unused=True))
    found = {}
    for name, gradient in zip(("z", "action"), gradients, strict=True):
        move = still | {name: ahead[name]}
        with torch.no_grad():  # values for the differences alone
            plus = model.reward(z + STEP * move["z"], action + STEP * move["action"], context)
            minus = model.reward(z - STEP * move["z"], action - STEP * move["action"], context)
        difference = (plus - minus).double() / (2.0 * STEP)
        along = torch.zeros_like(difference) if gradient is None else (gradient * ahead[name]).double().sum(-1)
        slope = _ratio(float(along @ difference), float(difference @ difference))
        # Differences below rounding say nothing.
        rounding = 1e-5 * float(plus.abs().amax()) / STEP
        rms = float(difference.square().mean().sqrt())
        found[name] = Agreement(slope, 0.0 if rms <= rounding else rms)
    return found


def stored_scale(subject: Subject) -> float | None:
    """RMS of the stored rewards over that of the running moments; None where most of what these saw is gone."""
    replay, moments = subject.replay, subject.agent.reward_normalizer.moments
    if replay is None or replay.num_transitions < 0.5 * float(moments.count):
        return None
    stored = replay.reward[~replay.closed & _reached(replay.reward, replay.head, replay.count, replay.rows)]
    return _ratio(float(stored.double().square().mean().sqrt()), float(moments.rms))


def _reached(like: Tensor, head: Tensor, count: Tensor, rows: int) -> Tensor:
    age = (head - torch.arange(len(like), device=like.device).unsqueeze(1)) % rows
    return age < count


def _fit_findings(source: str, fit: RewardFit) -> list[Finding]:
    figures = {key: float(value) for key, value in asdict(fit).items()}
    found = []
    flat = fit.reference_r2 >= KNOWABLE and fit.slope < FLAT_SLOPE * fit.reference_r2
    if flat:
        message = (
            f"On {source} the predicted reward hardly follows the real one: slope {fit.slope:.2g}, correlation "
            f"{fit.correlation:.2g}, spread {fit.spread_ratio:.2g} times the real one's, where a regression explains "
            f"{100.0 * fit.reference_r2:.0f}% of its variance. The actor has nothing to follow: check the reward "
            "head's loss, its last layer and model.reward.kind."
        )
        found.append(Finding("flat-reward-head", "broken", message, figures))
    off = not 1.0 / SCALE <= fit.rms_ratio <= SCALE
    steep = fit.correlation >= SAME_SHAPE and not 1.0 / SCALE <= fit.slope <= SCALE
    # A constant has the direction (cosine) of any rewards far from 0, but not their shape.
    alike = fit.correlation if flat else max(fit.cosine, fit.correlation)
    if (off and alike >= SAME_SHAPE and fit.rms_ratio > 0.0) or steep:
        message = (
            f"On {source} the predicted reward has the shape of the real one (correlation {fit.correlation:.2f}, "
            f"cosine {fit.cosine:.2f}) but {fit.rms_ratio:.3g} times its size (slope {fit.slope:.3g}): check the "
            "reward normaliser's moments and what scales rewards before and after the head."
        )
        found.append(Finding("reward-scale", "broken", message, figures))
    return found


def _wrong_gradient(name: str, agreement: Agreement) -> Finding:
    message = (
        f"The reward's gradient to {'the latent' if name == 'z' else 'the action'} is {agreement.slope:.3g} times what "
        "its predictions change by: something between head and actor cuts or scales it (a detach, a hook)."
    )
    return Finding("flat-reward-head", "broken", message, {"slope": agreement.slope, "rms": agreement.rms})


def _wrong_running_scale(ratio: float) -> Finding:
    message = (
        f"The stored rewards are {ratio:.3g} times the size that the reward normaliser's moments say: rewards were "
        "scaled on one of the two ways, or the moments were changed. The head learns in a wrong unit."
    )
    return Finding("reward-scale", "broken", message, {"stored_over_running_rms": ratio})


def _one_per_name(findings: list[Finding]) -> list[Finding]:
    """The first of each name: on fresh episodes where both sources show it."""
    return list({finding.name: finding for finding in reversed(findings)}.values())[::-1]


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0.0 else 0.0
