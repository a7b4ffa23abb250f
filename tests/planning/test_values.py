"""What a sequence of actions is worth."""

import pytest
import torch

from flowmbpo.config.actors import GaussianActorConfig
from flowmbpo.models.actors.base import Actor
from flowmbpo.planning.values import critic_objective
from flowmbpo.training.imagination import imagine
from flowmbpo.training.returns import discounted_return

KINDS = {
    "mlp": {"kind": "mlp", "units": [16]},
    "residual": {"kind": "residual", "units": [16], "geometry": "logit"},
    "gaussian": {"kind": "gaussian", "units": [16]},
    "neural_ode": {"kind": "neural_ode", "units": [16]},
    "flow": {"kind": "flow", "units": [16], "geometry": "logit", "endpoint_weight": 1.0},
    "generative": {"kind": "flow", "mode": "generative", "units": [16]},
}


class Replayed(Actor):
    """Takes the actions given, one after another."""

    nfe = 0
    hidden_units = ()

    def __init__(self, actions):
        super().__init__(GaussianActorConfig(units=(1,)))
        self.actions = iter(actions)

    def preactivation(self, z, context, generator):
        raise AssertionError

    def sample_with_log_prob(self, z, context, generator):
        raise AssertionError

    def forward(self, z, context, generator=None):
        return next(self.actions)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_value_is_the_discounted_sum_and_the_last_value(line):
    """From x = 1: a = 1, -1 leads over 1.5 back to 1; gamma 0.9, cost 0.1, price 2."""
    objective = line(cost=0.1, price=2.0)
    context = objective.model.context(torch.zeros(1, dtype=torch.long))
    actions = torch.tensor([1.0, -1.0], dtype=torch.float64).view(2, 1, 1)
    value = objective.values(torch.ones(1, 1, dtype=torch.float64), actions, context, generator())
    assert float(value) == pytest.approx(-(1.0 + 0.1) - 0.9 * (2.25 + 0.1) - 0.81 * 2.0 * 1.0)


def test_what_follows_a_likely_end_counts_less(line):
    """The first step ends the episode with probability 0.75: what comes after it counts a quarter."""
    objective = line(cost=0.0, price=1.0)
    objective.model.continuation = lambda z, context: torch.where(z[:, 0] > 1.2, 0.25, 1.0)
    context = objective.model.context(torch.zeros(1, dtype=torch.long))
    actions = torch.tensor([1.0, -1.0], dtype=torch.float64).view(2, 1, 1)
    value = objective.values(torch.ones(1, 1, dtype=torch.float64), actions, context, generator())
    assert float(value) == pytest.approx(-1.0 - 0.9 * 0.25 * 2.25 - 0.81 * 0.25 * 1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [None, 0.7])
def test_value_is_that_of_imagining_the_same_actions(make_agent, kind, gamma):
    """Any dynamics, two tasks with their own masks and discounts, a termination head; equal draws of the noise."""
    agent = make_agent(model={"dynamics": KINDS[kind], "termination": {"units": [8]}})
    model, task = agent.world_model, torch.tensor([0, 1, 1, 0])
    context = model.context(task)
    start = model.encode(torch.randn(4, 3, generator=generator(1)).double(), context)
    actions = (torch.rand(3, 4, 3, generator=generator(2)) * 2 - 1).double() * context.action_mask
    imagined = imagine(model, Replayed(actions), start, context, horizon=3, generator=generator(3))
    own = torch.tensor([0.9, 0.5], dtype=torch.float64)[task] if gamma is None else 0.7
    expected = discounted_return(imagined.rewards, agent.critic.value(imagined.z[-1], context), imagined.continues, own)
    value = critic_objective(agent, gamma).values(start, actions, context, generator(3))
    # The rewards' rows come in another batch: rounding alone.
    torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-6)
    assert value.std() > 1e-3


def test_proposals_are_what_the_actor_does_on_its_way(make_agent):
    agent = make_agent(model={"dynamics": KINDS["flow"]})
    context = agent.world_model.context(torch.tensor([0, 1]))
    start = agent.world_model.encode(torch.randn(2, 3, generator=generator(1)).double(), context)
    imagined = imagine(agent.world_model, agent.actor, start, context, horizon=4, generator=generator(3))
    proposed = critic_objective(agent, None).propose(start, context, 4, generator(3))
    torch.testing.assert_close(proposed, imagined.actions)
    assert (proposed[:, 1, 2] == 0).all() and (proposed[:, 0, 2] != 0).all()
