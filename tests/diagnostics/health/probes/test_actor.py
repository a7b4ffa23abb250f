"""Whether the gradient reaches the actor, by finite differences and by hand; saturation; episodes that end early."""

import copy
import math

import pytest
import torch
from torch import nn

from flowmbpo.diagnostics.health.probes.actor import (
    DoubleObjective,
    in_double,
    match_slopes,
    measure_saturation,
    sensitivity_figures,
)
from flowmbpo.diagnostics.health.probes.weights import declared_fixed, read_history
from flowmbpo.diagnostics.subject import Origin
from flowmbpo.evaluation.episodes import Episodes
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


def saturation_of(action, make_subject, monkeypatch):
    """Saturation of a policy that gives these actions, a row per state."""
    rows, width = action.shape
    subject = make_subject(f"task.name={'toy-pendulum-swingup' if width == 1 else 'toy-two-goals'}")
    starts = subject.starts(rows, subject.generator("test"))
    monkeypatch.setattr(subject, "starts", lambda *args: starts)
    monkeypatch.setattr(subject.agent.actor, "forward", lambda *args: action)
    return measure_saturation(subject)


def columns(*shares):
    """100 states: per dimension, how many have the value given beside their share, in turn; the rest 0.6."""
    action = torch.full((100, len(shares)), 0.6)
    for dimension, parts in enumerate(shares):
        at = 0
        for value, count in parts:
            action[at : at + count, dimension] = value
            at += count
    return action


@pytest.mark.parametrize(
    ("shares", "found"),
    [
        (([(0.995, 10)], [(-0.995, 20)]), []),
        (([(0.995, 92)], [(0.995, 50)]), []),  # one dimension bang-bang, the other not
        (([(0.995, 95)], [(-0.995, 90)]), [("policy-nearly-saturated", "note")]),
        (([(1.0, 90)], [(-1.0, 90)]), [("saturated-policy", "broken")]),
        (([(1.0, 30)], [(1.0, 30)]), [("saturated-policy", "broken")]),
        (([(0.9999, 100)], [(0.1, 100)]), [("saturated-policy", "broken")]),
    ],
)
def test_saturation_is_judged_by_how_deep_it_is(shares, found, make_subject, monkeypatch, found_in):
    assert found_in("policy", saturation_of(columns(*shares), make_subject, monkeypatch)) == found


def test_one_lost_dimension_is_named(make_subject, monkeypatch):
    figures = saturation_of(columns([(0.1, 100)], [(1.0, 60)]), make_subject, monkeypatch)
    assert figures["lost_dimensions"] == [1]


def test_saturation_of_a_constant_policy_is_measured_exactly(make_subject):
    subject = make_subject("actor.kind=gaussian", "actor.init_logstd=-1.427")
    with torch.no_grad():
        subject.agent.actor.mean[-1].weight.zero_()
        subject.agent.actor.mean[-1].bias.fill_(-3.0)
        subject.agent.actor.logstd.fill_(-20.0)  # as good as no noise: a = tanh(-3)
    found = measure_saturation(subject)
    assert found["saturated_share"] == 1.0
    assert found["deeply_saturated_share"] == 0.0
    # float32 rounds a = tanh(-3) to 6e-8, and 1 - a^2 = 1e-2 with it
    assert found["tanh_slope"] == pytest.approx(1.0 - math.tanh(3.0) ** 2, rel=1e-4)


def falling(subject, steps, *, ended):
    """Four episodes of a pendulum that last `steps`."""
    subject.__dict__["episodes"] = Episodes(
        obs=torch.zeros(steps + 1, 4, 3),
        action=torch.zeros(steps, 4, 1),
        reward=torch.ones(steps, 4),
        length=torch.full((4,), steps),
        terminated=torch.full((4,), ended),
        broken=torch.zeros(4, dtype=torch.bool),
        task=torch.zeros(4, dtype=torch.long),
    )
    return subject


@pytest.mark.parametrize(
    ("steps", "ended", "epoch", "found"),
    [
        (7, True, 15_000, [("episodes-end-early", "broken")]),
        (7, True, 1, [("episodes-end-early", "note")]),  # a young run may fall
        (7, False, 15_000, []),  # a short time limit is no fall
        (24, True, 15_000, []),
    ],
)
def test_episodes_that_the_task_ends_early_are_found(steps, ended, epoch, found, make_subject, examine):
    subject = falling(make_subject(), steps, ended=ended)  # the limit is 40
    subject.origin = Origin(epoch=epoch)
    _, findings = examine(subject, "endings")
    assert [(finding.name, finding.severity) for finding in findings] == found
