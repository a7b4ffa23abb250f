"""The reward head against real rewards, in real units: its fit, its gradient, its response to the action, its scale.

Letters: B rows.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.data.batch import Batch
from flowmbpo.diagnostics.health.experience import (
    TransitionWindows,
    compare_errors,
    fresh_windows,
    predict_held_out,
    sources_of_rows,
)
from flowmbpo.diagnostics.health.probes import Figures, ratio
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


def measure_reward(subject: Subject, *, light: bool = False) -> Figures:
    """Predicted against real reward on fresh episodes and on the replay buffer; its gradient; its scale.

    `light`: the spread of predicted over that of real rewards, on replayed transitions, alone.
    """
    if light:
        batch = subject.windows.sample(LIGHT_ROWS, 1, subject.generator("light reward"))
        fit = fit_rewards(batch.reward[0], _predicted(subject, batch, batch.action[0]), batch.reward[0])
        return {"spread_over_real": fit["spread_ratio"] if fit["varies"] else None}
    generator = subject.generator("reward")
    recorded, names = (subject.episodes, subject.explored), ("fresh_episodes", "replayed_transitions")
    sources = sources_of_rows(subject, *recorded, names=names, limit=ROWS, generator=generator)
    if not sources:
        return {"judged": "no: too few real transitions were recorded"}
    figures: Figures = {}
    for source, rows in sources.items():
        obs, action, real = rows.obs[0], rows.action[0], rows.reward[0]
        predicted = _predicted(subject, rows, action)
        reference = predict_held_out((obs, action), real.unsqueeze(-1), rows.block).squeeze(-1)
        figures[source] = fit_rewards(real, predicted, reference)
        if source == "fresh_episodes":
            figures["curves"] = {"real": real[:DRAWN].tolist(), "predicted": predicted[:DRAWN].tolist()}
        if not figures[source]["varies"]:
            figures["judged"] = f"not on {source.replace('_', ' ')}: their rewards do not vary"
    # On explored episodes: there actions are not the state's alone.
    rows = fresh_windows(subject.explored, width=1, limit=ROWS, generator=generator)
    if rows.comparable and float(rows.reward.std()) > CONSTANT * float(rows.reward.abs().amax()):
        other, action = rows.shuffled(generator), rows.action[0]
        own, shuffled = (_predicted(subject, rows, taken) for taken in (action, action[other]))
        figures["action"] = share_of_action(rows, own, shuffled, other)
    figures |= gradient_agreement(subject, next(iter(sources.values())), generator)
    return figures | {"stored_over_running_rms": stored_scale(subject)}


@torch.no_grad()  # predictions are looked at, nothing is learnt
def _predicted(subject: Subject, rows: TransitionWindows | Batch, action: Tensor) -> Float[Tensor, " B"]:
    """Rewards of these actions in real units."""
    state, context = subject.encode(rows.obs[0], rows.task)
    return subject.agent.predict_reward(subject.agent.world_model.latent(state), action, context)


def fit_rewards(real: Float[Tensor, " B"], predicted: Float[Tensor, " B"], reference: Float[Tensor, " B"]) -> Figures:
    """Predicted against real rewards. Ratios are predicted over real; `cosine` is the correlation about 0.

    `slope` is that of the line of predicted on real. `reference_r2` is the share of the rewards' variance that a
    regression explains on held-out rows. Constants leave ratios and correlations at 0. `slope_over_reference` is None
    where that regression knows too little, `size` and `size_of_slope` where the shape of the rewards is another.
    """
    real, predicted, reference = real.double(), predicted.double(), reference.double()
    dr, dp = real - real.mean(), predicted - predicted.mean()
    covariance, variance = float(dr @ dp), float(dr @ dr)
    correlation = ratio(covariance, float(dr.norm() * dp.norm()))
    slope = ratio(covariance, variance)
    cosine = ratio(float(real @ predicted), float(real.norm() * predicted.norm()))
    rms_ratio = ratio(float(predicted.norm()), float(real.norm()))
    reference_r2 = 1.0 - ratio(float((reference - real).square().sum()), variance)
    varies = float(real.std()) > CONSTANT * max(float(real.square().mean().sqrt()), CONSTANT)
    followed = slope / reference_r2 if varies and reference_r2 >= KNOWABLE else None
    # A constant has the direction (cosine) of any rewards far from 0, but not their shape.
    alike = correlation if followed is not None and followed < FLAT_SLOPE else max(cosine, correlation)
    return {
        "correlation": correlation,
        "slope": slope,
        "cosine": cosine,
        "spread_ratio": ratio(float(dp.norm()), float(dr.norm())),
        "rms_ratio": rms_ratio,
        "reference_r2": reference_r2,
        "varies": varies,
        "slope_over_reference": followed,
        "size": rms_ratio if varies and alike >= SAME_SHAPE and rms_ratio > 0.0 else None,
        "size_of_slope": slope if varies and correlation >= SAME_SHAPE else None,
    }


def share_of_action(
    rows: TransitionWindows, predicted: Float[Tensor, " B"], shuffled: Float[Tensor, " B"], other: Tensor
) -> Figures:
    """What the action is to the real rewards, and to the head: its rewards for own actions and those of rows `other`.

    `without_action` is what leaving out the action costs a regression on held-out rows. `response_over_regression` is
    the RMS change of the head's reward where rows are given other rows' actions, over that of the regression's;
    `response` is that where rewards depend on the action beyond doubt (the regression beats the head too), else None.
    The rows' rewards must vary, and be `comparable`.
    """
    obs, action, real = rows.obs[0], rows.action[0], rows.reward[0].double()
    asked = ((obs, action), ()), ((obs, action), (obs, action[other])), ((obs,), ())
    with_action, elsewhere, without = (
        predict_held_out(inputs, real.unsqueeze(-1), rows.block, at=at).squeeze(-1) for inputs, at in asked
    )
    error = (with_action - real).square()
    expected = float((with_action - elsewhere).square().mean().sqrt())
    change = float((predicted.double() - shuffled.double()).square().mean().sqrt())
    matters = compare_errors(error, (without - real).square(), rows.block)
    head = compare_errors(error, (predicted.double() - real).square(), rows.block)
    response = ratio(change, expected, 1.0)
    judged = response if matters.worse(*MATTERS) and head.worse(*BEATEN) else None
    return {"without_action": asdict(matters), "response_over_regression": response, "response": judged}


def gradient_agreement(subject: Subject, rows: TransitionWindows, generator: torch.Generator) -> Figures:
    """Autograd's derivatives of the reward, in z and in the action, against central differences, between random rows.

    `slope` is that of autograd on differences: 1 where they agree, None where predictions do not change.
    """
    model = subject.agent.world_model
    state, context = subject.encode(rows.obs[0], rows.task)
    at = {"z": model.latent(state), "action": rows.action[0]}
    other = rows.shuffled(generator)

    def predicted(at: dict[str, Tensor]) -> Float[Tensor, " B"]:
        return model.reward(at["z"], at["action"], context)

    leaves = {name: x.clone().requires_grad_() for name, x in at.items()}
    total, gradients = predicted(leaves).sum(), tuple(torch.zeros_like(x) for x in leaves.values())
    if total.requires_grad:
        gradients = torch.autograd.grad(total, [*leaves.values()], allow_unused=True, materialize_grads=True)
    figures: Figures = {}
    for (name, x), gradient in zip(at.items(), gradients, strict=True):
        ahead = x[other] - x
        with torch.no_grad():  # values for the differences alone
            plus, minus = (predicted({**at, name: x + h * ahead}) for h in (STEP, -STEP))
        difference = (plus - minus).double() / (2.0 * STEP)
        # Above rounding; a nan is.
        tells = not float(difference.square().mean().sqrt()) <= 1e-5 * float(plus.abs().amax()) / STEP
        slope = ratio(float((gradient * ahead).double().sum(-1) @ difference), float(difference @ difference))
        figures[f"gradient_to_{name}"] = {"slope": slope if tells else None}
    return figures


def stored_scale(subject: Subject) -> float | None:
    """RMS of the stored rewards over that of the running moments; None where most of what these saw is gone."""
    replay, moments = subject.replay, subject.agent.reward_normalizer.moments
    if replay is None or replay.num_transitions < 0.5 * float(moments.count):
        return None
    rows = torch.arange(len(replay.reward), device=replay.device).unsqueeze(1)
    reached = (replay.head - rows) % replay.rows < replay.count
    stored = replay.reward[~replay.closed & reached]
    return ratio(float(stored.double().square().mean().sqrt()), float(moments.rms))
