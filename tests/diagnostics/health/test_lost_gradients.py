"""Tensors that got a gradient in training, by the optimiser's own memory, and get none now."""

import copy

import pytest
import torch
from torch import nn

from flowmbpo.diagnostics.health.actor import check_actor
from flowmbpo.diagnostics.health.history import read_history
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.diagnostics.subject import Origin
from flowmbpo.training.optimiser import GuardedOptimiser
from flowmbpo.training.updates import update_actor


@pytest.fixture
def trained(make_subject):
    """A subject whose actor made three real updates, with the moments that they left."""
    subject = make_subject()
    config = subject.config.training
    optimiser = GuardedOptimiser(
        subject.agent.actor.parameters(), lr=1e-4, betas=config.betas, weight_decay=0.0, clip=config.clip.actor
    )
    generator = subject.generator("updates")
    for _ in range(3):
        start, context = subject.starts(subject.batch_size, generator)
        update_actor(subject.agent, start, context, optimiser, config, generator)
    subject.optimisers = {"actor": copy.deepcopy(optimiser.state_dict())}
    subject.origin = Origin(epoch=3)
    return subject


def lost(subject):
    return check_actor(subject, Effort()).figures["tensors_that_lost_their_gradient"]


def named(subject):
    return [finding.name for finding in check_actor(subject, Effort()).findings]


def test_nothing_is_lost_right_after_training(trained):
    assert lost(trained) == []
    assert "actor-without-gradient" not in named(trained)


def test_layers_behind_a_zero_output_layer_have_lost_theirs(trained):
    """By autograd and by finite differences alike their gradient is 0: the comparison of the two is silent."""
    layers = [module for module in trained.agent.actor.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        layers[-1].weight.zero_()
    assert any(name.startswith("velocity.0") for name in lost(trained))
    assert "actor-without-gradient" in named(trained)


def test_layers_before_a_norm_of_gain_zero_have_lost_theirs(trained):
    gains = [module for module in trained.agent.actor.modules() if isinstance(module, nn.LayerNorm)]
    with torch.no_grad():
        gains[-1].weight.zero_()
    assert any(name.startswith("velocity.0") for name in lost(trained))
    assert "actor-without-gradient" in named(trained)


def test_a_gradient_that_shrank_a_hundredfold_is_not_lost(trained):
    """The other side of the threshold: memories 100 times today's gradient are an old policy's."""
    for moments in trained.optimisers["actor"]["state"].values():
        moments["exp_avg_sq"] *= 100.0**2
    assert lost(trained) == []


def test_first_moments_of_zero_beside_second_ones_are_no_training(trained):
    trained.optimisers["actor"]["state"][0]["exp_avg"].zero_()
    history = read_history(trained, "actor", "actor")
    assert history.idle == [next(iter(dict(trained.agent.actor.named_parameters())))]
    assert "actor-without-gradient" in named(trained)


def test_a_learning_rate_of_zero_is_found(trained):
    trained.optimisers["actor"]["param_groups"][0]["lr"] = 0.0
    assert read_history(trained, "actor", "actor").stopped
    assert "actor-without-gradient" in named(trained)


def test_epoch_zero_has_nothing_to_lose(make_subject):
    subject = make_subject()
    subject.optimisers = {"actor": {"state": {}, "param_groups": [{"params": [], "lr": 0.0}]}}
    history = read_history(subject, "actor", "actor")
    assert (history.idle, history.unlisted, history.stopped, history.gradients) == ([], 0, False, {})
    assert lost(subject) == []
