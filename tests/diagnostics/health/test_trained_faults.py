"""Runs that were trained with a broken piece, and whose checkpoints are judged by the sound program."""

import pytest
import torch

from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.health.engine import measure_health
from flowmbpo.diagnostics.interface import Effort
from flowmbpo.models.dynamics.residual import ResidualDynamics
from flowmbpo.models.heads import ScalarReward
from flowmbpo.models.reward_normalizer import RewardNormalizer
from flowmbpo.models.world_model import WorldModel
from flowmbpo.nets.simnorm import simnorm
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.subjects import load_subject
from flowmbpo.runs.train import train
from flowmbpo.training import updates

pytestmark = pytest.mark.slow


def misalign(monkeypatch):
    """Every action is stored with the transition after its own."""
    add = ReplayBuffer.add
    before = {}

    def late(self, action, step):
        add(self, before.get(id(self), torch.zeros_like(action)), step)
        before[id(self)] = action.clone()

    monkeypatch.setattr(ReplayBuffer, "add", late)


def swap_stored_columns(monkeypatch):
    """The replay buffer stores the action columns in reverse."""
    add = ReplayBuffer.add
    monkeypatch.setattr(ReplayBuffer, "add", lambda self, action, step: add(self, action.flip(-1), step))


def inflate_moments(monkeypatch):
    """The normaliser sees every reward a hundredfold."""
    update = RewardNormalizer.update
    monkeypatch.setattr(RewardNormalizer, "update", lambda self, reward: update(self, 100.0 * reward))


def freeze_encoder(monkeypatch):
    """No gradient reaches the encoder."""
    encode = WorldModel.encode
    monkeypatch.setattr(WorldModel, "encode", lambda self, obs, context: encode(self, obs, context).detach())


def end_in_simnorm(monkeypatch):
    """The displacement is what a SimNorm makes of the head's output, before the projection."""

    def forward(self, s, action, task, generator=None):
        return self.geometry.move(s, simnorm(self.network(torch.cat([s, task, action], dim=-1)), self.dims.simnorm_dim))

    monkeypatch.setattr(ResidualDynamics, "forward", forward)


def cut_actor(monkeypatch):
    """The imagined return carries no gradient; the penalty on pre-activations still trains the actor."""
    objective = updates.actor_objective

    def cut(*args, **named):
        found = objective(*args, **named)
        return updates.ActorObjective(found.loss.detach(), found.returns, found.imagination, found.context, found.gamma)

    monkeypatch.setattr(updates, "actor_objective", cut)


def kill_critic(monkeypatch):
    """The critic learns the mean of its targets and nothing else."""
    targets = updates.critic_targets

    def level(agent, objective, config):
        found = targets(agent, objective, config)
        return found._replace(target=found.target.mean().expand_as(found.target))

    monkeypatch.setattr(updates, "critic_targets", level)


def flatten_reward(monkeypatch):
    """The reward head learns the mean reward of its batch and nothing else."""
    loss = ScalarReward.loss
    monkeypatch.setattr(
        ScalarReward, "loss", lambda self, inputs, reward: loss(self, inputs, reward.mean().expand_as(reward))
    )


@pytest.mark.parametrize(
    ("broken_piece", "finding"),
    [
        (misalign, "off-by-one-replay"),
        (swap_stored_columns, "swapped-action-columns"),
        (inflate_moments, "reward-scale"),
        (end_in_simnorm, "simnorm-velocity"),
        (freeze_encoder, "frozen-encoder"),
        (cut_actor, "actor-without-gradient"),
        (kill_critic, "dead-critic"),
        (flatten_reward, "flat-reward-head"),
    ],
)
def test_a_run_trained_with_a_broken_piece_is_called_broken(broken_piece, finding, small_overrides, tmp_path):
    with pytest.MonkeyPatch.context() as monkeypatch:
        broken_piece(monkeypatch)
        train(load_experiment("quickstart-residual", small_overrides), out=tmp_path, console=False)
    subject = load_subject(tmp_path, task=None, device="cpu", seed=0, episodes=8)
    found = {f.name for f in measure_health(subject, Effort()).findings if f.severity == "broken"}
    assert finding in found
