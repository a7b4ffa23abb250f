"""The dynamics' error on real trajectories, against predictors that know nothing of dynamics.

Letters: W steps, B stretches, n blocks, D latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.diagnostics.health.comparison import block_sums
from flowmbpo.diagnostics.health.experience import Stretches, fresh_stretches
from flowmbpo.diagnostics.health.finding import Check, Finding
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.statistics import bootstrap_interval
from flowmbpo.diagnostics.subject import Subject

LENGTHS = (16, 8, 4, 1)  # longest first: the longest that enough stretches have
ENOUGH = 64
ROWS = 2048
JUDGED = 4
# Calibrated on 24 healthy checkpoints: after 4 steps at most 0.73 of the trivial error (a fresh MLP, whose first
# step is 3.8 times as bad as standing still, because it rebuilds the latent from nothing), mostly below 0.3.
WORSE = 1.5


@dataclass(frozen=True)
class StepErrors:
    """Squared latent errors after k steps, mean over the latent: the model's, of standing still, of the mean state."""

    model: Float[Tensor, " B"]
    still: Float[Tensor, " B"]
    mean: Float[Tensor, " B"]

    def ratio(self) -> float:
        """The model's mean error over that of the better trivial predictor; 0 where the latent never moves."""
        trivial = min(float(self.still.double().mean()), float(self.mean.double().mean()))
        return float(self.model.double().mean()) / trivial if trivial > 0.0 else 0.0


@torch.no_grad()  # errors are measured, nothing is learnt
def step_errors(subject: Subject, rows: Stretches) -> list[StepErrors]:
    """Open loop from the encoded first observation with the real actions; stochastic dynamics take their mean."""
    model = subject.agent.world_model
    z = torch.stack([model.latent(subject.encode(obs, rows.task)[0]) for obs in rows.obs])
    centre = z.flatten(0, 1).mean(0)
    state, context = subject.encode(rows.obs[0], rows.task)
    found = []
    for step, action in enumerate(rows.action, start=1):
        state = model.next(state, action, context)
        found.append(
            StepErrors(
                (model.latent(state) - z[step]).square().mean(-1),
                (z[0] - z[step]).square().mean(-1),
                (centre - z[step]).square().mean(-1),
            )
        )
    return found


def check_dynamics(subject: Subject, effort: Effort) -> Check:
    """Errors after 1, 4, 8 and 16 steps on fresh episodes (with exploration). Finding: `dynamics-worse-than-trivial`.

    A single step is no measure by itself: where steps are small, standing still is hard to beat by
    dynamics that are not residual, and says nothing of what they are worth over a horizon.
    """
    generator = subject.generator("dynamics")
    rows = None
    for width in LENGTHS:
        rows = fresh_stretches(subject.episodes, subject.explored, width=width, limit=ROWS, generator=generator)
        if len(rows) >= ENOUGH:
            break
    if rows is None or not len(rows):
        return Check("dynamics", {"judged": "no: no real transition was recorded"})
    errors = step_errors(subject, rows)
    figures: dict[str, Any] = {"stretches": len(rows)}
    for steps in sorted(LENGTHS):
        if steps <= len(errors):
            figures[f"error_over_trivial_{steps}"] = _interval(errors[steps - 1], rows, generator, effort.resamples)
    judged = min(JUDGED, len(errors))
    ratio = errors[judged - 1].ratio()
    findings: tuple[Finding, ...] = ()
    if not ratio <= WORSE:  # a NaN is no good news
        findings = (_worse(judged, ratio),)
    return Check("dynamics", figures, findings)


def _interval(errors: StepErrors, rows: Stretches, generator: torch.Generator, resamples: int) -> dict[str, float]:
    sums = block_sums(torch.stack([errors.model, errors.still, errors.mean], dim=-1).double(), rows.block)

    def ratio(chosen: Tensor) -> float:
        model, still, mean = chosen.sum(0).tolist()
        trivial = min(still, mean)
        return model / trivial if trivial > 0.0 else 0.0

    return bootstrap_interval(sums, ratio, generator, resamples).to_dict()


def _worse(steps: int, ratio: float) -> Finding:
    message = (
        f"After {steps} step(s) on real trajectories the dynamics' latent error is {ratio:.3g} times that of the "
        "better of two trivial predictors (standing still; the mean state). The actor learns in a world that does not "
        "exist: check actions, alignment and the velocity, or train the model longer."
    )
    return Finding("dynamics-worse-than-trivial", "broken", message, {"steps": float(steps), "ratio": ratio})
