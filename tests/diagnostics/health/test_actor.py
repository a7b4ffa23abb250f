"""Whether the objective's gradient reaches the actor, against finite differences and by hand."""

import math

import pytest
import torch

from flowmbpo.diagnostics.health.actor import Match, check_actor, size_findings
from flowmbpo.diagnostics.health.history import declared_fixed
from flowmbpo.diagnostics.health.objective import ActorObjective, Sensitivity, Slope
from flowmbpo.diagnostics.health.precision import in_double
from flowmbpo.diagnostics.interface import Effort


def names(findings):
    return [finding.name for finding in findings]


def test_a_match_weighs_slopes_by_hand():
    slopes = [Slope("a", 0.0, 3.0), Slope("b", 4.0, 4.0), Slope("c", 0.0, 1e-6)]
    match = Match.of(slopes)
    assert match.size == pytest.approx(5.0)
    assert match.mismatch == pytest.approx(3.0 / 5.0)
    assert match.arrives == pytest.approx(16.0 / 25.0)
    assert match.wrong == ["a"]  # c is too small a share to be judged


def test_a_match_without_any_slope_is_no_mismatch():
    assert Match.of([Slope("a", 0.0, 0.0)]) == Match(0.0, 1.0, 0.0, [])


# Central differences with a step of 1e-6 in float64 err by some 1e-6 of the slope (rounding 1e-16 / 1e-6, curvature
# 1e-12); the judgement needs 1e-2.
@pytest.mark.parametrize("mode", ["through", "detached"])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("actor.kind=gaussian",),
        ("model.dynamics.kind=gaussian", "model.dynamics.loss_space=latent"),
        ("model.dynamics.geometry=tangent",),
        ("model.reward.kind=two_hot",),
    ],
)
def test_autograd_equals_finite_differences_of_a_sound_agent(mode, overrides, make_subject):
    base = ("model.dynamics={kind: gaussian}",) if "model.dynamics.kind=gaussian" in overrides else overrides
    subject = make_subject(*base, f"training.actor_input_gradient={mode}")
    match = Match.of(ActorObjective(subject, 4, "test").slopes(set()))
    assert match.mismatch < 1e-5
    assert match.wrong == []
    joint = Match.of(ActorObjective(subject, 4, "test").slopes(set(), joint=True))
    assert joint.mismatch < 1e-4


def test_the_two_choices_of_the_actor_s_input_have_different_gradients(make_subject):
    slopes = [
        ActorObjective(make_subject(f"training.actor_input_gradient={mode}"), 4, "test").slopes(set())
        for mode in ("through", "detached")
    ]
    assert any(abs(a.difference - b.difference) > 1e-3 * abs(a.difference) for a, b in zip(*slopes, strict=True))


def test_a_gradient_scaled_on_its_way_arrives_in_that_share(make_subject):
    subject = make_subject("training.actor_input_gradient=detached")
    # With detached inputs every path to the weights passes one action alone, so that a factor there is a factor of all.
    subject.agent.actor.register_forward_hook(lambda module, args, a: 0.25 * a + 0.75 * a.detach())
    match = Match.of(ActorObjective(subject, 4, "test").slopes(set()))
    assert match.arrives == pytest.approx(0.25, abs=1e-4)


def test_tensors_that_the_config_fixes_are_no_fault(make_subject):
    subject = make_subject("actor.learn_noise_std=false")
    assert declared_fixed(subject, "actor") == {"log_noise_std"}
    assert check_actor(subject, Effort()).figures["frozen_tensors"] == []
    subject.agent.actor.start.weight.requires_grad_(False)
    check = check_actor(subject, Effort())
    assert check.figures["frozen_tensors"] == ["start.weight"]
    assert "actor-without-gradient" in names(check.findings)


def test_sensitivity_sees_past_a_detached_actor(make_subject):
    sound = ActorObjective(make_subject(), 8, "test").sensitivity()
    subject = make_subject("training.actor_input_gradient=detached")
    subject.agent.actor.register_forward_hook(lambda module, args, a: a.detach())
    cut = ActorObjective(subject, 8, "test").sensitivity()
    assert len(sound.norms) == subject.config.training.horizon
    assert sound.norms[-1] == pytest.approx(cut.norms[-1])  # nothing acts after the last action
    assert min(cut.norms) > 0.0


def test_size_findings_by_hand():
    returns = torch.tensor([1.0, 3.0, 5.0])  # standard deviation 2
    assert size_findings(Sensitivity([0.2, 0.1], returns)) == []
    assert names(size_findings(Sensitivity([0.0, 0.0], returns))) == ["actor-without-gradient"]
    assert names(size_findings(Sensitivity([1e-4, 1e-5], returns))) == ["actor-gradient-vanishes"]
    assert names(size_findings(Sensitivity([5e3, 1.0], returns))) == ["actor-gradient-explodes"]
    assert names(size_findings(Sensitivity([0.5, 1e-4], returns))) == ["actor-gradient-explodes"]
    assert names(size_findings(Sensitivity([math.nan, math.nan], returns))) == ["actor-gradient-explodes"]


def test_double_precision_ends_with_the_very_same_tensors(make_subject):
    agent = make_subject().agent
    kept = {name: (p.data_ptr(), p.dtype) for name, p in [*agent.named_parameters(), *agent.named_buffers()]}
    gradient = torch.ones_like(agent.actor.start.weight)
    agent.actor.start.weight.grad = gradient
    with pytest.raises(RuntimeError, match="on purpose"), in_double(agent):
        assert {p.dtype for p in agent.parameters()} == {torch.float64}
        raise RuntimeError("on purpose")
    assert kept == {n: (p.data_ptr(), p.dtype) for n, p in [*agent.named_parameters(), *agent.named_buffers()]}
    assert agent.actor.start.weight.grad is gradient
