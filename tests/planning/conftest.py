"""A line of which everything is known, and small agents of every kind."""

import pytest
import torch
from pydantic import TypeAdapter

from flowmbpo.config.actors import ActorConfig
from flowmbpo.config.model import CriticConfig, ModelConfig
from flowmbpo.config.planner import MPPIConfig
from flowmbpo.models.agent import Agent
from flowmbpo.models.task_context import TaskContext
from flowmbpo.planning.mppi import MPPIPlanner
from flowmbpo.planning.values import Objective
from flowmbpo.spec import EnvSpec, TaskInfo

TASKS = (
    TaskInfo("wide", "scripted", 3, 3, 10, 1, 0.9, can_terminate=True),
    TaskInfo("narrow", "scripted", 2, 2, 10, 1, 0.5),
)
MODEL = {
    "latent_dim": 16,
    "encoder": {"kind": "mlp", "units": [16]},
    "dynamics": {"kind": "mlp", "units": [16, 16]},
    "reward": {"kind": "scalar", "units": [16]},
}


class Line:
    """x' = x + 0.5 a in every dimension, in place of a world model: the observation is the state."""

    def context(self, task):
        mask = torch.ones(len(task), self.width, dtype=torch.float64)
        return TaskContext(mask[:, :0], mask, torch.full((len(task),), 0.9, dtype=torch.float64))

    def __init__(self, width=1):
        self.width = width

    def encode(self, obs, context):
        return obs

    def latent(self, s):
        return s

    def next(self, s, action, context, generator=None):
        return s + 0.5 * action * context.action_mask

    def continuation(self, z, context):
        return torch.ones(len(z), dtype=z.dtype)


class LineObjective(Objective):
    """Reward -(|x|^2 + c |a|^2), terminal value -p |x|^2, and a policy that always does `habit`.

    Every batch of sequences that is valued is kept in `seen`.
    """

    def __init__(self, width=1, cost=0.1, price=0.0, habit=0.25):
        super().__init__("line", Line(width), self.act, self.cost_of, self.price_of, lambda context: context.discount)
        self.cost, self.price, self.habit = cost, price, habit
        self.seen = []

    def act(self, z, context, generator):
        return self.habit * context.action_mask

    def cost_of(self, z, action, context):
        return -(z.square().sum(-1) + self.cost * action.square().sum(-1))

    def price_of(self, z, context, generator):
        return -self.price * z.square().sum(-1)

    def values(self, start, actions, context, generator):
        self.seen.append(actions)
        return super().values(start, actions, context, generator)


@pytest.fixture
def line():
    return LineObjective


@pytest.fixture
def plan():
    """A planner with few samples; keyword arguments are its options."""

    def make(objective, seed=0, **options):
        config = MPPIConfig.model_validate({"samples": 32, "elites": 8, "policy_samples": 4, **options})
        return MPPIPlanner(objective, config, torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def make_agent():
    """A tiny float64 agent over two tasks whose every weight says something."""

    def make(*, model=None, actor=None, critic=None, normalization="none", tasks=2, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            agent = Agent(
                ModelConfig.model_validate(MODEL | {"task_dim": 4} | (model or {})),
                TypeAdapter(ActorConfig).validate_python({"kind": "gaussian", "units": [16]} | (actor or {})),
                CriticConfig.model_validate({"units": [16]} | (critic or {})),
                EnvSpec(TASKS[:tasks]),
                normalization,
            )
            for parameter in agent.parameters():
                parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
        return agent.double().eval()

    return make
