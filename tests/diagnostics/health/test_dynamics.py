"""The dynamics against predictors that know nothing."""

import pytest
import torch

from flowmbpo.diagnostics.health.dynamics import StepErrors, check_dynamics
from flowmbpo.diagnostics.interface import Effort

EFFORT = Effort(resamples=100)


def test_the_ratio_is_to_the_better_trivial_predictor():
    errors = StepErrors(torch.tensor([1.0, 3.0]), torch.tensor([4.0, 4.0]), torch.tensor([10.0, 0.0]))
    assert errors.ratio() == 2.0 / 4.0


def test_a_latent_that_never_moves_has_no_ratio():
    assert StepErrors(torch.ones(2), torch.zeros(2), torch.ones(2)).ratio() == 0.0


def test_sound_dynamics_beat_standing_still(load_small):
    check = check_dynamics(load_small(), EFFORT)
    assert not check.findings
    four = check.figures["error_over_trivial_4"]
    assert four["low"] <= four["value"] <= four["high"] < 0.7


@pytest.mark.parametrize("broken", [lambda z: z.roll(1, -1), lambda z: z * torch.nan])
def test_dynamics_worse_than_nothing_are_called_so(broken, load_small, monkeypatch):
    subject = load_small()
    model = subject.agent.world_model
    step = model.next
    monkeypatch.setattr(model, "next", lambda *a: broken(step(*a)))
    (finding,) = check_dynamics(subject, EFFORT).findings
    assert finding.name == "dynamics-worse-than-trivial" and finding.severity == "broken"


def test_dynamics_that_stand_still_are_trivial_and_no_worse(load_small, monkeypatch):
    subject = load_small()
    monkeypatch.setattr(subject.agent.world_model, "next", lambda s, *rest: s)
    check = check_dynamics(subject, EFFORT)
    assert check.figures["error_over_trivial_1"]["value"] == pytest.approx(1.0)
    assert not check.findings
