"""Counted FLOPs against a count by hand, for networks of two layers.

A linear layer of `rows` inputs costs 2 rows in out forward (one multiply and one add each), the same again
backward to its weights, and the same again backward to its inputs. Where nothing that is learned stands
before a layer (the observation before the encoder, the start state before the actor's first step, the
replayed latent before the critic) no gradient to its input is computed: that third share is missing.
"""

import pytest
import torch
from torch import nn

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.compute import measure_compute
from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.envs.make import make_env
from flowmbpo.envs.tasks import task_info
from flowmbpo.models.agent import build_agent
from flowmbpo.parity.cost import FlopCount, estimate_cost
from flowmbpo.spec import EnvSpec

OBS, A = 3, 1  # toy-pendulum-swingup
D, ENCODER, DYNAMICS, REWARD, ACTOR, CRITIC = 16, 10, 12, 14, 18, 20  # widths; every network has one hidden layer
MEMBERS, HORIZON, WINDOWS, STARTS, BATCHES = 3, 4, 6, 8, 2
CONFIG = {
    "name": "two-layers",
    "phase": "test",
    "task": {"name": "toy-pendulum-swingup", "num_envs": 4},
    "model": {
        "latent_dim": D,
        "encoder": {"units": [ENCODER]},
        "dynamics": {"kind": "mlp", "units": [DYNAMICS]},
        "reward": {"kind": "scalar", "units": [REWARD]},
    },
    "actor": {"kind": "gaussian", "units": [ACTOR]},
    "critic": {"units": [CRITIC], "ensemble": MEMBERS},
    "training": {
        "horizon": HORIZON,
        "wm_batch_size": WINDOWS,
        "actor_batch_size": STARTS,
        "critic_batches": BATCHES,
        "wm_buffer_size": 1000,
        "actor_input_gradient": "through",
    },
}


def linear(rows, width_in, width_out):
    """A product of [rows, in] and [in, out]; each of its two derivatives costs as much."""
    return 2 * rows * width_in * width_out


def two_layers(rows, width_in, hidden, width_out):
    return linear(rows, width_in, hidden) + linear(rows, hidden, width_out)


@pytest.fixture(scope="module")
def subject():
    """An untrained two-layer agent whose buffer holds ten random steps of four pendulums."""
    config = ExperimentConfig.model_validate(CONFIG)
    env = make_env(config.task)
    replay = ReplayBuffer(1000, env.num_envs, OBS, A, env.task_ids)
    replay.start(env.reset(0))
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        action = torch.rand(env.num_envs, A, generator=generator) * 2 - 1
        replay.add(action, env.step(action))
    env.close()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        agent = build_agent(config, env.spec).eval()
    return Subject(agent, config, device=torch.device("cpu"), seed=0, make_env=None, replay=replay)


@pytest.fixture(scope="module")
def measured(subject):
    """FLOPs as counted around each update."""
    return {name: update.flops for name, update in measure_compute(subject, Effort()).updates.items()}


def test_model_update_costs_what_its_layers_do(measured):
    targets = two_layers(HORIZON * WINDOWS, OBS, ENCODER, D)  # forward alone: targets carry no gradient
    first = two_layers(WINDOWS, OBS, ENCODER, D)
    encoder = first + first + linear(WINDOWS, ENCODER, D)  # no gradient to the observation
    dynamics = 3 * HORIZON * two_layers(WINDOWS, D + A, DYNAMICS, D)
    reward = 3 * two_layers(HORIZON * WINDOWS, D + A, REWARD, 1)
    assert measured["model"] == targets + encoder + dynamics + reward


def values(rows):
    """The critics' forward pass; LayerNorm's shift is folded into the second bias, one row of it per member."""
    return MEMBERS * (two_layers(rows, D, CRITIC, 1) + linear(1, CRITIC, 1))


def test_actor_update_costs_what_its_layers_do(measured):
    encoded = two_layers(STARTS, OBS, ENCODER, D)
    policy = two_layers(STARTS, D, ACTOR, A)
    # forward, to the weights, to the inputs; the start state takes no gradient, so the first step's first layer
    # passes none on
    actor = 3 * HORIZON * policy - linear(STARTS, D, ACTOR)
    model = 2 * HORIZON * two_layers(STARTS, D + A, DYNAMICS, D)  # forward and to the inputs: its weights are frozen
    reward = 2 * two_layers(HORIZON * STARTS, D + A, REWARD, 1)
    terminal = values(STARTS) + MEMBERS * two_layers(STARTS, D, CRITIC, 1)
    targets = values(HORIZON * STARTS)  # of the critic's update, forward alone
    assert measured["actor"] == encoded + actor + model + reward + terminal + targets


def test_critic_update_costs_what_its_layers_do(measured):
    rows = HORIZON * STARTS // BATCHES
    to_weights = values(rows)
    to_inputs = MEMBERS * (linear(rows, CRITIC, 1) + linear(1, CRITIC, 1))  # the imagined latents take no gradient
    assert measured["critic"] == values(rows) + to_weights + to_inputs


def test_measured_and_estimated_costs_agree(subject, measured):
    cost = estimate_cost(subject.config, EnvSpec((task_info("toy-pendulum-swingup"),)))
    assert measured == {
        "model": cost.model_update.flops,
        "actor": cost.actor_update.flops,
        "critic": cost.critic_update.flops,
    }


@pytest.mark.parametrize(("learned_input", "shares"), [(False, 2), (True, 3)])
def test_first_layer_has_no_input_gradient_unless_its_input_is_learned(learned_input, shares):
    x = torch.ones(5, 7, requires_grad=learned_input)
    layers = nn.Sequential(nn.Linear(7, 11), nn.Linear(11, 2))
    with FlopCount() as count:
        layers(x).sum().backward()
    assert count.flops == shares * linear(5, 7, 11) + 3 * linear(5, 11, 2)
