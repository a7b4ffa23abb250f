"""Columns of the action that dynamics or policy have in another place, or do not read at all."""

import pytest
import torch
from torch import nn

from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.health.action_columns import check_action_columns
from flowmbpo.diagnostics.health.experience import fresh_stretches, newest_stretches
from flowmbpo.diagnostics.health.misplaced import misplaced_inputs
from flowmbpo.diagnostics.health.policy_columns import compare_policy_columns
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.envs.contract import EnvStep


def names(subject):
    return [finding.name for finding in check_action_columns(subject, Effort()).findings]


def first_linear(module):
    return next(part for part in module.modules() if isinstance(part, nn.Linear))


@torch.no_grad()
def test_dynamics_blind_to_the_action_ignores_it_and_has_no_columns_exchanged(load_small):
    subject = load_small()
    width = subject.agent.world_model.config.latent_dim
    first_linear(subject.agent.world_model.dynamics).weight[:, width : width + 2] = 0.0
    check = check_action_columns(subject, Effort())
    assert [finding.name for finding in check.findings] == ["action-ignored"]
    assert "no gradient" in check.findings[0].message
    assert check.figures["explored_shuffled_in_model"]["response"] == 0.0


@torch.no_grad()
def test_exchanged_rows_of_the_policys_output_are_found_in_the_replay_buffer(load_small):
    subject = load_small()
    for layer in (subject.agent.actor.start, subject.agent.actor.velocity[-1]):
        layer.weight.copy_(layer.weight.flip(0))
        layer.bias.copy_(layer.bias.flip(0))
    # The network is fed its own actions back, exchanged as well.
    reads = first_linear(subject.agent.actor.velocity).weight
    width = subject.agent.world_model.config.latent_dim
    reads[:, width : width + 2] = reads[:, width : width + 2].flip(1)
    assert names(subject) == ["swapped-action-columns"]


def test_a_policy_wrapped_with_a_turned_sign_is_found(load_small):
    subject = load_small()
    forward = subject.agent.actor.forward
    subject.agent.actor.forward = lambda *args: -forward(*args)
    assert names(subject) == ["swapped-action-columns"]


def test_a_sound_run_has_its_columns_in_place(load_small):
    subject = load_small()
    assert names(subject) == []
    policy = compare_policy_columns(subject, subject.replay, 0.3)
    assert policy.follows and policy.nearest.effect > 0.0


def test_stored_actions_that_no_policy_chose_say_nothing_about_columns(load_small):
    subject = load_small()
    generator = torch.Generator().manual_seed(0)
    subject.replay.action.copy_(torch.rand(subject.replay.action.shape, generator=generator) * 2.0 - 1.0)
    policy = compare_policy_columns(subject, subject.replay, 0.3)
    assert not policy.follows


def test_a_network_without_a_linear_layer_has_no_inputs_to_exchange(load_small):
    subject = load_small()
    subject.agent.world_model.dynamics.network = nn.Identity()
    rows = fresh_stretches(subject.explored, width=1, limit=100, generator=torch.Generator().manual_seed(0))
    assert misplaced_inputs(subject, rows) is None


def test_no_transitions_are_not_judged(load_small):
    subject = load_small()
    subject.explored.length.zero_()
    subject.replay = None
    check = check_action_columns(subject, Effort())
    assert check.findings == () and check.figures["judged"].startswith("no")


def counting_buffer(steps, lanes=2):
    """Observation and action are the number of the step; episodes never end."""
    buffer = ReplayBuffer(100, lanes, 1, 1, torch.zeros(lanes, dtype=torch.long))
    no = torch.zeros(lanes, dtype=torch.bool)
    buffer.start(torch.zeros(lanes, 1))
    for step in range(1, steps + 1):
        obs = torch.full((lanes, 1), float(step))
        buffer.add(obs - 1.0, EnvStep(obs, torch.zeros(lanes), no, no, obs, torch.zeros(lanes)))
    return buffer


@pytest.mark.parametrize("steps", [30, 80])  # the ring of 51 rows not yet full, and gone round
def test_newest_stretches_are_the_newest_transitions_of_every_lane(steps):
    rows = newest_stretches(counting_buffer(steps), 10, torch.Generator().manual_seed(0))
    expected = [float(step) for step in range(steps - 5, steps) for _ in range(2)]
    assert sorted(rows.action.flatten().tolist()) == expected
    assert torch.equal(rows.obs[0], rows.action[0]) and torch.equal(rows.obs[1], rows.obs[0] + 1.0)


def test_an_empty_buffer_has_no_newest_stretches():
    rows = newest_stretches(counting_buffer(0), 10, torch.Generator().manual_seed(0))
    assert len(rows) == 0 and len(rows.block) == 0 and not rows.comparable
