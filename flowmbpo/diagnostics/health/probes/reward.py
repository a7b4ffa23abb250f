"""The reward head against real rewards, in real units: its fit, its gradient, its response to the action, its scale.

Letters: B rows.
"""

from __future__ import annotations

import math
from dataclasses import asdict

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.diagnostics.health.experience import (
    TransitionWindows,
    block_sums,
    compare_errors,
    fit_regression,
    fresh_windows,
    predict_held_out,
    sampled_windows,
)
from flowmbpo.diagnostics.health.probes import Figures
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.statistics import Interval, bootstrap_interval
from flowmbpo.diagnostics.subject import Subject

ROWS = 4096
LIGHT_ROWS = 256
DRAWN = 512
STEP = 0.01
CONSTANT = 1e-6
FLAT_SLOPE = 0.35
KNOWABLE = 0.3  # of the rewards' variance
SAME_SHAPE = 0.5
# The action matters to real rewards, and the regression that has it beats the head: log error ratio and z.
MATTERS, BEATEN = (0.5, 6.0), (0.3, 3.0)


def measure_reward(subject: Subject, effort: Effort) -> Figures:
    """Predicted against real reward on fresh episodes and on the replay buffer; its gradient; its scale."""
    generator = subject.generator("reward")
    fresh = fresh_windows(subject.episodes, subject.explored, width=1, limit=ROWS, generator=generator)
    sources = {"fresh_episodes": fresh}
    if subject.replay is not None:
        sources["replayed_transitions"] = sampled_windows(subject.replay, 1, ROWS, generator)
    sources = {source: rows for source, rows in sources.items() if rows.comparable}
    if not sources:
        return {"judged": "no: too few real transitions were recorded"}
    figures: Figures = {}
    for source, rows in sources.items():
        real = rows.reward[0]
        predicted, figures[source] = _fit(subject, rows)
        if source == "fresh_episodes":
            correlation, slope = intervals(real, predicted, rows.block, generator, effort.resamples)
            figures |= {"correlation": correlation.to_dict(), "slope": slope.to_dict()}
            figures["curves"] = {"real": real[:DRAWN].tolist(), "predicted": predicted[:DRAWN].tolist()}
        if not figures[source]["varies"]:
            figures["judged"] = f"not on {source.replace('_', ' ')}: their rewards do not vary"
    share = _action_share(subject, generator)
    if share is not None:
        figures["action"] = share
    figures |= gradient_agreement(subject, next(iter(sources.values())), generator)
    figures["stored_over_running_rms"] = stored_scale(subject)
    return figures


@torch.no_grad()  # predictions are looked at, nothing is learnt
def measure_reward_light(subject: Subject, effort: Effort) -> Figures:
    """The spread of predicted over that of real rewards, on replayed transitions."""
    del effort
    batch = subject.windows.sample(LIGHT_ROWS, 1, subject.generator("light reward"))
    state, context = subject.encode(batch.obs[0], batch.task)
    predicted = subject.agent.predict_reward(subject.agent.world_model.latent(state), batch.action[0], context)
    fit = fit_rewards(batch.reward[0], predicted, batch.reward[0])
    return {"spread_over_real": fit["spread_ratio"] if fit["varies"] else None}


@torch.no_grad()  # predictions are measured, nothing is learnt
def _fit(subject: Subject, rows: TransitionWindows) -> tuple[Tensor, Figures]:
    obs, action, real = rows.obs[0], rows.action[0], rows.reward[0]
    state, context = subject.encode(obs, rows.task)
    predicted = subject.agent.predict_reward(subject.agent.world_model.latent(state), action, context)
    reference = predict_held_out(torch.cat([obs, action], dim=-1), real.unsqueeze(-1), rows.half).squeeze(-1)
    return predicted, fit_rewards(real, predicted, reference)


def fit_rewards(real: Float[Tensor, " B"], predicted: Float[Tensor, " B"], reference: Float[Tensor, " B"]) -> Figures:
    """Predicted against real rewards. Ratios are predicted over real; `cosine` is the correlation about 0.

    `slope` is that of the least-squares line of predicted on real. `reference_r2` is the share of the
    rewards' variance that a regression on (observation, action) explains on held-out rows: what a head
    could know at least. Constant rewards or predictions leave ratios and correlations at 0.

    `slope_over_reference` is None where that regression knows too little, `size` and `size_of_slope` (the RMS
    ratio and the slope) where the predictions have not the shape of the rewards.
    """
    real, predicted, reference = real.double(), predicted.double(), reference.double()
    dr, dp = real - real.mean(), predicted - predicted.mean()
    covariance, variance = float(dr @ dp), float(dr @ dr)
    std, rms = float(real.std()), float(real.square().mean().sqrt())
    correlation = _ratio(covariance, float(dr.norm() * dp.norm()))
    slope = _ratio(covariance, variance)
    cosine = _ratio(float(real @ predicted), float(real.norm() * predicted.norm()))
    rms_ratio = _ratio(float(predicted.norm()), float(real.norm()))
    reference_r2 = 1.0 - _ratio(float((reference - real).square().sum()), variance)
    varies = std > CONSTANT * max(rms, CONSTANT)
    followed = slope / reference_r2 if varies and reference_r2 >= KNOWABLE else None
    # A constant has the direction (cosine) of any rewards far from 0, but not their shape.
    alike = correlation if followed is not None and followed < FLAT_SLOPE else max(cosine, correlation)
    return {
        "rows": len(real),
        "real_std": std,
        "real_rms": rms,
        "correlation": correlation,
        "slope": slope,
        "cosine": cosine,
        "spread_ratio": _ratio(float(dp.norm()), float(dr.norm())),
        "rms_ratio": rms_ratio,
        "reference_r2": reference_r2,
        "varies": varies,
        "slope_over_reference": followed,
        "size": rms_ratio if varies and alike >= SAME_SHAPE and rms_ratio > 0.0 else None,
        "size_of_slope": slope if varies and correlation >= SAME_SHAPE else None,
    }


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

    def line(rows: Tensor) -> tuple[float, float]:
        n, sx, sy, sxx, syy, sxy = rows.sum(0).tolist()
        xx, yy, xy = sxx - sx * sx / n, syy - sy * sy / n, sxy - sx * sy / n
        return _ratio(xy, math.sqrt(max(xx, 0.0) * max(yy, 0.0))), _ratio(xy, xx)

    correlation = bootstrap_interval(sums, lambda rows: line(rows)[0], generator, resamples)
    return correlation, bootstrap_interval(sums, lambda rows: line(rows)[1], generator, resamples)


@torch.no_grad()  # predictions are measured, nothing is learnt
def _action_share(subject: Subject, generator: torch.Generator) -> Figures | None:
    """On explored episodes: there actions are not the state's alone. None where these do not tell."""
    rows = fresh_windows(subject.explored, width=1, limit=ROWS, generator=generator)
    if not rows.comparable or float(rows.reward.std()) <= CONSTANT * float(rows.reward.abs().amax()):
        return None
    state, context = subject.encode(rows.obs[0], rows.task)
    z, action = subject.agent.world_model.latent(state), rows.action[0]
    other = torch.randperm(len(rows), generator=generator, device=generator.device).to(action.device)
    predicted, shuffled = (subject.agent.predict_reward(z, each, context) for each in (action, action[other]))
    return share_of_action(rows, predicted, shuffled, other)


def share_of_action(
    rows: TransitionWindows, predicted: Float[Tensor, " B"], shuffled: Float[Tensor, " B"], other: Tensor
) -> Figures:
    """What the action is to the real rewards, and to the head: its rewards for own actions and those of rows `other`.

    `without_action` is what leaving out the action costs a regression of the reward on observation and action, on
    held-out rows, `head_against_regression` the head's error against that regression's. `response_over_regression`
    is the RMS change of the head's reward where rows are given other rows' actions, over that of the regression's.

    `response` is that where rewards depend on the action beyond doubt, else None: a policy's action betrays the
    state, and helps a regression where rewards depend on the state alone; but such rewards the head knows as well as
    the regression does. The rows' rewards must vary, and be `comparable`.
    """
    obs, action, real = rows.obs[0], rows.action[0], rows.reward[0].double()
    own, exchanged = torch.cat([obs, action], dim=-1), torch.cat([obs, action[other]], dim=-1)
    found = torch.empty(3, len(rows), dtype=torch.float64, device=real.device)
    for part in (rows.half, ~rows.half):
        with_action = fit_regression(own[~part], real[~part].unsqueeze(-1))
        without = fit_regression(obs[~part], real[~part].unsqueeze(-1))
        parts = (with_action(own[part]), with_action(exchanged[part]), without(obs[part]))
        found[:, part] = torch.cat(parts, dim=-1).T
    error = (found[0] - real).square()
    expected = float((found[0] - found[1]).square().mean().sqrt())
    change = float((predicted.double() - shuffled.double()).square().mean().sqrt())
    matters = compare_errors(error, (found[2] - real).square(), rows.block)
    head = compare_errors(error, (predicted.double() - real).square(), rows.block)
    response = change / expected if expected > 0.0 else 1.0
    return {
        "without_action": asdict(matters),
        "head_against_regression": asdict(head),
        "response_over_regression": response,
        "response": response if matters.worse(*MATTERS) and head.worse(*BEATEN) else None,
    }


def gradient_agreement(subject: Subject, rows: TransitionWindows, generator: torch.Generator) -> Figures:
    """Autograd's directional derivatives of the reward against central differences along the same directions.

    In z and in the action, along the differences between random rows of the data: `slope` is that of autograd on
    differences (1 where they agree, None where predictions do not change), `rms` the size of the differences.
    """
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
    figures: Figures = {}
    for name, gradient in zip(("z", "action"), gradients, strict=True):
        move = still | {name: ahead[name]}
        with torch.no_grad():  # values for the differences alone
            plus = model.reward(z + STEP * move["z"], action + STEP * move["action"], context)
            minus = model.reward(z - STEP * move["z"], action - STEP * move["action"], context)
        difference = (plus - minus).double() / (2.0 * STEP)
        along = torch.zeros_like(difference) if gradient is None else (gradient * ahead[name]).double().sum(-1)
        slope = _ratio(float(along @ difference), float(difference @ difference))
        rms = float(difference.square().mean().sqrt())
        says_nothing = rms <= 1e-5 * float(plus.abs().amax()) / STEP  # below rounding
        figures[f"gradient_to_{name}"] = {"slope": None, "rms": 0.0} if says_nothing else {"slope": slope, "rms": rms}
    return figures


def stored_scale(subject: Subject) -> float | None:
    """RMS of the stored rewards over that of the running moments; None where most of what these saw is gone."""
    replay, moments = subject.replay, subject.agent.reward_normalizer.moments
    if replay is None or replay.num_transitions < 0.5 * float(moments.count):
        return None
    rows = torch.arange(len(replay.reward), device=replay.device).unsqueeze(1)
    reached = (replay.head - rows) % replay.rows < replay.count
    stored = replay.reward[~replay.closed & reached]
    return _ratio(float(stored.double().square().mean().sqrt()), float(moments.rms))


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0.0 else 0.0
