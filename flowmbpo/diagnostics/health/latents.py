"""Whether imagined latents stay where latents can be, and whether they tell states apart.

Letters: B states, D latent.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from flowmbpo.data.batch import Batch
from flowmbpo.diagnostics.health.comparison import Paired, compare_errors
from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.health.velocity import Velocity, errors_as_simnorm, observe_velocity
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.flows.simplex import LogitGeometry, SimplexGeometry
from flowmbpo.nets.simnorm import grouped

STATES = 256
STEPS = 50
# Calibrated on 30 healthy checkpoints. Sums and drifts are rounding (9e-7 after 50 steps) until something adds to
# them; negative parts of unretracted tangent latents reach 0.1, those of SimNorm velocities 0.3 in one step.
ROUNDING = 1e-3
NEGATIVE = 0.5
DEVIATION = 1e-3  # healthy: 1e-6
TRAINED_AS_SIMNORM = (0.5, 6.0)  # log error ratio and z; healthy: up to 0.6, where SimNorm makes a poor model stay put
SURELY_SIMNORM = (3.0, 6.0)  # heads that were trained with one: 4.0 to 6.1; a sound but early model 2.1
ALIKE = 0.05  # SimNorm: rounding
COLLAPSED = 1e-4  # healthy: 4e-3 in episodes of one policy, 5e-2 in replay buffers


@dataclass(frozen=True)
class Walk:
    """What imagined steps do to the simplex, step by step; the largest over all states and groups.

    `sums` is |group sum - 1| of z, `negative` the size of negative parts of z, `drift` the |group mean|
    of centred logits over the size of the largest logit (0 in tangent geometry). `gain` is the mean
    change of a group's sum (of z, or of its logits) per step, `gain_spread` its relative spread over
    groups and states: small where every group gets the same.
    """

    sums: list[float]
    negative: list[float]
    drift: list[float]
    gain: float
    gain_spread: float

    @property
    def violation(self) -> list[float]:
        """The worst of the three, per step."""
        return [max(parts) for parts in zip(self.sums, self.negative, self.drift, strict=True)]

    @property
    def off_sum(self) -> bool:
        """Whether group sums (of z or of centred logits) do not stay what they are."""
        return max(self.sums) > ROUNDING or max(self.drift) > ROUNDING


@torch.no_grad()  # states are looked at, nothing is learnt
def walk(subject: Subject, geometry: SimplexGeometry, generator: torch.Generator) -> Walk:
    """Imagination by the policy, as training does it, for `STEPS` macro steps."""
    agent = subject.agent
    state, context = subject.starts(STATES, generator)
    sums, negative, drift = [], [], []
    first = grouped(state, geometry.group).sum(-2)
    logits = isinstance(geometry, LogitGeometry)
    for step in range(STEPS + 1):
        z = agent.world_model.latent(state)
        rows, parts = grouped(z, geometry.group), grouped(state, geometry.group)
        sums.append(float((rows.sum(-2) - 1.0).abs().amax()))
        negative.append(float((-rows).clamp(min=0.0).amax()))
        size = float(state.abs().amax().clamp(min=1.0))
        drift.append(float(parts.mean(-2).abs().amax()) / size if logits else 0.0)
        if step < STEPS:
            state = agent.world_model.next(state, agent.actor(z, context, generator), context, generator)
    gained = (grouped(state, geometry.group).sum(-2) - first) / STEPS
    gain = float(gained.mean())
    spread = float(gained.std()) / abs(gain) if gain != 0.0 else 0.0
    return Walk(sums, negative, drift, gain, spread)


def check_latents(subject: Subject, effort: Effort) -> Check:
    """Simplex violation over 50 imagined steps, the shape of the velocity, and the spread of encoded states.

    Needs no environment where there is a replay buffer. Findings: `simnorm-velocity`,
    `latents-leave-simplex`, `latent-collapse`.
    """
    del effort  # 256 states show it; more would not show more
    generator = subject.generator("latents")
    model = subject.agent.world_model
    batch = subject.windows.sample(STATES, 1, generator)
    state, context = subject.encode(batch.obs[0], batch.task)
    velocity = observe_velocity(model, state, batch.action[0], context)
    figures: dict[str, Any] = {"velocity": asdict(velocity)}
    findings = _velocity_findings(velocity)
    errors = errors_as_simnorm(model, state, batch.action[0], context, _next_latent(subject, batch))
    if errors is not None:
        plain, normalised = errors
        rows = torch.arange(len(state), device=state.device)
        trained_as = compare_errors(plain, normalised, rows)
        figures["error_with_simnorm_head"] = trained_as.to_dict()
        # SimNorm makes any velocity small: beside a poor model it wins by hardly moving at all.
        staying = (model.latent(state) - _next_latent(subject, batch)).square().mean(-1)
        moves = compare_errors(staying, normalised, rows).better(*TRAINED_AS_SIMNORM)
        surely = trained_as.better(*SURELY_SIMNORM)
        if (surely or (moves and trained_as.better(*TRAINED_AS_SIMNORM))) and not findings:
            findings.append(_trained_as_simnorm(trained_as))
    curves: dict[str, list[float]] = {}
    if isinstance(model.geometry, SimplexGeometry):
        walked = walk(subject, model.geometry, generator)
        figures |= {
            "largest_sum_error": max(walked.sums),
            "largest_negative_part": max(walked.negative),
            "largest_logit_drift": max(walked.drift),
            "sum_gained_per_step": walked.gain,
        }
        curves["violation"] = walked.violation
        findings += _walk_findings(walked, named=bool(findings))
    if any(True for _ in model.encoder.parameters()):  # an observation that is the state cannot collapse
        share = spread_share(model.latent(state))
        figures["spread_share"] = share
        if share < COLLAPSED:
            findings.append(_collapse(share))
    return Check("latents", figures, tuple(findings), curves)


def _next_latent(subject: Subject, batch: Batch) -> Tensor:
    state, _ = subject.encode(batch.obs[1], batch.task)
    return subject.agent.world_model.latent(state)


def spread_share(z: Tensor) -> float:
    """Variance of the latent over states (summed over coordinates), as a share of its mean square."""
    z = z.double()
    size = float(z.square().sum(-1).mean())
    return float(z.var(0, correction=0).sum()) / size if size > 0.0 else 0.0


def _velocity_findings(velocity: Velocity) -> list[Finding]:
    shapes = [shape for shape in (velocity.output, velocity.displacement) if shape is not None]
    ends_in_softmax = any(shape.on_simplex for shape in shapes)
    deviation = velocity.deviation or 0.0
    if not ends_in_softmax and deviation <= DEVIATION:
        return []
    figures = {"smallest": min(shape.smallest for shape in shapes), "total": shapes[0].total}
    figures |= {"total_spread": shapes[0].total_spread, "deviation": deviation}
    if ends_in_softmax:
        said = (
            f"The dynamics' velocity is never negative and always sums to {figures['total']:.3g}: it ends in a softmax "
            "(SimNorm), though a displacement is signed and sums to 0 per group"
        )
    else:
        said = (
            f"The dynamics' velocity is not what its linear head puts out (off by {100.0 * deviation:.2g}% of "
            "its size): something like SimNorm stands behind the head"
        )
    return [Finding("simnorm-velocity", "broken", f"{said}. Give it a plain linear head and train anew.", figures)]


def _trained_as_simnorm(trained_as: Paired) -> Finding:
    message = (
        f"With a SimNorm behind its linear head the dynamics predicts better (log error ratio {trained_as.effect:.2f}, "
        f"z {trained_as.z:.1f}): the velocity was trained with one. Give it a plain linear head and train anew."
    )
    return Finding("simnorm-velocity", "broken", message, trained_as.to_dict())


def _walk_findings(walked: Walk, *, named: bool) -> list[Finding]:
    """`named`: the cause is known already."""
    figures = {
        "largest_sum_error": max(walked.sums),
        "largest_negative_part": max(walked.negative),
        "largest_logit_drift": max(walked.drift),
        "sum_gained_per_step": walked.gain,
        "gain_spread": walked.gain_spread,
    }
    found = []
    if walked.off_sum and not named and walked.gain > 0.0 and walked.gain_spread < ALIKE:
        message = (
            f"Every imagined step adds {walked.gain:.3g} to the sum of every group of the latent: a velocity that ends "
            "in SimNorm does that. Give it a plain linear head and train anew."
        )
        found.append(Finding("simnorm-velocity", "broken", message, figures))
    if walked.off_sum or max(walked.negative) > NEGATIVE:
        message = (
            f"Within {STEPS} imagined steps latents leave the simplex: group sums by {max(walked.sums):.3g}, negative "
            f"parts of {max(walked.negative):.3g}, mean logits by {max(walked.drift):.3g} of their size. Rewards and "
            "values are read where nothing was learnt: check the velocity's projection, or set dynamics.retraction."
        )
        found.append(Finding("latents-leave-simplex", "broken", message, figures))
    return found


def _collapse(share: float) -> Finding:
    message = (
        f"The encoder maps all states to nearly one latent: their variance is {share:.2g} of its mean square. Nothing "
        "downstream can tell states apart: check the encoder's last layer and the weight of the reward loss."
    )
    return Finding("latent-collapse", "broken", message, {"spread_share": share})
