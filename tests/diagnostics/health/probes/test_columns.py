"""Columns of the action that dynamics or policy have in another place, or do not read at all."""

import torch
from torch import nn

from flowmbpo.diagnostics.health.experience import fresh_windows
from flowmbpo.diagnostics.health.probes.columns import compare_policy_columns, misplaced_inputs


def first_linear(module):
    return next(part for part in module.modules() if isinstance(part, nn.Linear))


@torch.no_grad()
def test_dynamics_blind_to_the_action_only_ignores_it(load_small, examine):
    subject = load_small()
    width = subject.agent.world_model.config.latent_dim
    first_linear(subject.agent.world_model.dynamics).weight[:, width : width + 2] = 0.0
    figures, (finding,) = examine(subject, "action_columns")
    assert finding.name == "action-ignored" and "no gradient" in finding.message
    assert figures["ignored"]["response"] == 0.0


@torch.no_grad()
def test_exchanged_rows_of_the_policys_output_are_found(load_small, named):
    subject = load_small()
    for layer in (subject.agent.actor.start, subject.agent.actor.velocity[-1]):
        layer.weight.copy_(layer.weight.flip(0))
        layer.bias.copy_(layer.bias.flip(0))
    # The network is fed its own actions back, exchanged as well.
    reads = first_linear(subject.agent.actor.velocity).weight
    width = subject.agent.world_model.config.latent_dim
    reads[:, width : width + 2] = reads[:, width : width + 2].flip(1)
    assert named(subject, "action_columns") == ["swapped-action-columns"]


def test_a_policy_wrapped_with_a_turned_sign_is_found(load_small, named):
    subject = load_small()
    forward = subject.agent.actor.forward
    subject.agent.actor.forward = lambda *args: -forward(*args)
    assert named(subject, "action_columns") == ["swapped-action-columns"]


def test_a_sound_policy_has_its_columns_in_place(sound_health):
    policy = sound_health.checks["action_columns"]["policy_rearranged"]
    assert policy["follows"] and policy["arrangement"] == "[0, 1]" and policy["certain"] == 0.0


def test_stored_actions_that_no_policy_chose_say_nothing_about_columns(load_small):
    subject = load_small()
    generator = torch.Generator().manual_seed(0)
    subject.replay.action.copy_(torch.rand(subject.replay.action.shape, generator=generator) * 2.0 - 1.0)
    assert not compare_policy_columns(subject, subject.replay)["follows"]


def test_a_network_without_a_linear_layer_has_no_inputs_to_exchange(load_small):
    subject = load_small()
    subject.agent.world_model.dynamics.network = nn.Identity()
    rows = fresh_windows(subject.explored, width=1, limit=100, generator=torch.Generator().manual_seed(0))
    assert misplaced_inputs(subject, rows) is None


def test_no_transitions_are_not_judged(load_small, examine):
    subject = load_small()
    subject.explored.length.zero_()
    subject.replay = None
    figures, found = examine(subject, "action_columns")
    assert found == [] and figures["judged"].startswith("no")
