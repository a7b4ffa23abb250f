"""Whether the objective's gradient reaches the actor, against finite differences and by hand."""

import copy
import math

import pytest
import torch
from torch import nn

from flowmbpo.diagnostics.health.probes.actor import (
    DoubleObjective,
    in_double,
    match_slopes,
    sensitivity_figures,
)
from flowmbpo.diagnostics.health.probes.weights import declared_fixed, read_history
from flowmbpo.diagnostics.subject import Origin
from flowmbpo.training.optimiser import GuardedOptimiser
from flowmbpo.training.updates import update_actor


def test_a_match_weighs_slopes_by_hand():
    match = match_slopes({"a": (0.0, 3.0), "b": (4.0, 4.0), "c": (0.0, 1e-6)})
    assert match["gradient_mismatch"] == pytest.approx(3.0 / 5.0)
    assert match["gradient_arrives"] == pytest.approx(16.0 / 25.0)
    assert match["wrong_tensors"] == ["a"]  # c is too small a share to be judged


def test_a_match_without_any_slope_is_no_mismatch():
    match = match_slopes({"a": (0.0, 0.0)})
    assert match == {"gradient_mismatch": 0.0, "gradient_arrives": 1.0, "wrong_tensors": []}


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
    match = match_slopes(DoubleObjective(subject, 4, "test").slopes(set()))
    assert match["gradient_mismatch"] < 1e-5
    assert match["wrong_tensors"] == []
    joint = match_slopes(DoubleObjective(subject, 4, "test").slopes(set(), joint=True))
    assert joint["gradient_mismatch"] < 1e-4


def test_the_two_choices_of_the_actor_s_input_have_different_gradients(make_subject):
    slopes = [
        DoubleObjective(make_subject(f"training.actor_input_gradient={mode}"), 4, "test").slopes(set())
        for mode in ("through", "detached")
    ]
    pairs = [[each[name][1] for each in slopes] for name in slopes[0]]
    assert any(abs(a - b) > 1e-3 * abs(a) for a, b in pairs)


def test_a_gradient_scaled_on_its_way_arrives_in_that_share(make_subject):
    subject = make_subject("training.actor_input_gradient=detached")
    # With detached inputs every path to the weights passes one action alone, so that a factor there is a factor of all.
    subject.agent.actor.register_forward_hook(lambda module, args, a: 0.25 * a + 0.75 * a.detach())
    match = match_slopes(DoubleObjective(subject, 4, "test").slopes(set()))
    assert match["gradient_arrives"] == pytest.approx(0.25, abs=1e-4)


def test_tensors_that_the_config_fixes_are_no_fault(make_subject, examine):
    subject = make_subject("actor.learn_noise_std=false")
    assert declared_fixed(subject, "actor") == {"log_noise_std"}
    assert examine(subject, "actor")[0]["frozen_tensors"] == []
    subject.agent.actor.start.weight.requires_grad_(False)
    figures, found = examine(subject, "actor")
    assert figures["frozen_tensors"] == ["start.weight"]
    assert "actor-without-gradient" in {finding.name for finding in found}


def test_sensitivity_sees_past_a_detached_actor(make_subject):
    sound = DoubleObjective(make_subject(), 8, "test").sensitivity()["curves"]["action_gradient_norms"]
    subject = make_subject("training.actor_input_gradient=detached")
    subject.agent.actor.register_forward_hook(lambda module, args, a: a.detach())
    cut = DoubleObjective(subject, 8, "test").sensitivity()["curves"]["action_gradient_norms"]
    assert len(sound) == subject.config.training.horizon
    assert sound[-1] == pytest.approx(cut[-1])  # nothing acts after the last action
    assert min(cut) > 0.0


@pytest.mark.parametrize(
    ("norms", "name"),
    [
        ([0.2, 0.1], None),
        ([0.0, 0.0], "actor-without-gradient"),
        ([1e-4, 1e-5], "actor-gradient-vanishes"),
        ([5e3, 1.0], "actor-gradient-explodes"),
        ([0.5, 1e-4], "actor-gradient-explodes"),
        ([math.nan, math.nan], "actor-gradient-explodes"),
    ],
)
def test_the_size_of_the_gradient_is_judged_by_hand(norms, name, found_in):
    returns = torch.tensor([1.0, 3.0, 5.0])  # standard deviation 2
    found = found_in("actor", sensitivity_figures(norms, returns))
    assert found == ([] if name is None else [(name, "broken")])


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


@pytest.fixture
def trained(make_subject):
    """A subject whose actor made three real updates, with the moments that they left."""
    subject = make_subject()
    config = subject.config.training
    optimiser = GuardedOptimiser(
        subject.agent.actor, lr=1e-4, betas=config.betas, weight_decay=0.0, clip=config.clip.actor
    )
    generator = subject.generator("updates")
    for _ in range(3):
        start, context = subject.starts(subject.batch_size, generator)
        update_actor(subject.agent, start, context, optimiser, config, generator)
    subject.optimisers = {"actor": copy.deepcopy(optimiser.state_dict())}
    subject.origin = Origin(epoch=3)
    return subject


def test_nothing_is_lost_right_after_training(trained, examine, named):
    assert examine(trained, "actor")[0]["lost_tensors"] == []
    assert "actor-without-gradient" not in named(trained, "actor")


def test_layers_behind_a_zero_output_layer_have_lost_theirs(trained, examine, named):
    """By autograd and by finite differences alike their gradient is 0: the comparison of the two is silent."""
    layers = [module for module in trained.agent.actor.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        layers[-1].weight.zero_()
    assert any(name.startswith("velocity.0") for name in examine(trained, "actor")[0]["lost_tensors"])
    assert "actor-without-gradient" in named(trained, "actor")


def test_layers_before_a_norm_of_gain_zero_have_lost_theirs(trained, examine, named):
    gains = [module for module in trained.agent.actor.modules() if isinstance(module, nn.LayerNorm)]
    with torch.no_grad():
        gains[-1].weight.zero_()
    assert any(name.startswith("velocity.0") for name in examine(trained, "actor")[0]["lost_tensors"])
    assert "actor-without-gradient" in named(trained, "actor")


def test_a_gradient_that_shrank_a_hundredfold_is_not_lost(trained, examine, named):
    """The other side of the threshold: memories 100 times today's gradient are an old policy's."""
    for moments in trained.optimisers["actor"]["state"].values():
        moments["exp_avg_sq"] *= 100.0**2
    assert examine(trained, "actor")[0]["lost_tensors"] == []


def test_first_moments_of_zero_beside_second_ones_are_no_training(trained, examine, named):
    trained.optimisers["actor"]["state"][0]["exp_avg"].zero_()
    history, _ = read_history(trained, "actor")
    assert history["untrained_tensors"] == [next(iter(dict(trained.agent.actor.named_parameters())))]
    assert "actor-without-gradient" in named(trained, "actor")


def test_a_learning_rate_of_zero_is_found(trained, examine, named):
    trained.optimisers["actor"]["param_groups"][0]["lr"] = 0.0
    assert read_history(trained, "actor")[0]["learning_rate_zero"]
    assert "actor-without-gradient" in named(trained, "actor")


def test_epoch_zero_has_nothing_to_lose(make_subject, examine):
    subject = make_subject()
    subject.optimisers = {"actor": {"state": {}, "param_groups": [{"params": [], "lr": 0.0}]}}
    history, gradients = read_history(subject, "actor")
    assert (history["untrained"], history["learning_rate_zero"], gradients) == (0, False, {})
    assert examine(subject, "actor")[0]["lost_tensors"] == []
