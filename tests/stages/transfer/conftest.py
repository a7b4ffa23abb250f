"""Small agents of every kind whose every number is random: a zero head hides most mistakes."""

import pytest
import torch
from pydantic import TypeAdapter

from flowmbpo.config.actors import ActorConfig
from flowmbpo.config.model import CriticConfig, ModelConfig
from flowmbpo.models.agent import Agent
from flowmbpo.spec import EnvSpec, TaskInfo
from flowmbpo.stages.transfer.source import Architecture, SourceAgent

MODEL = {
    "latent_dim": 16,
    "task_dim": 4,
    "encoder": {"kind": "mlp", "units": [12, 10]},
    "dynamics": {"kind": "mlp", "units": [14, 14]},
    "reward": {"kind": "scalar", "units": [9]},
}
ACTOR = {"kind": "gaussian", "units": [11, 8]}
CRITIC = {"units": [7]}
WIDTHS = {"walker-stand": (6, 3), "walker-walk": (6, 3), "cheetah-run": (5, 3), "reacher-easy": (4, 2)}
WIDTHS |= {"walker-run": (6, 3), "humanoid-stand": (9, 5), "cheetah-jump": (5, 3), "reacher-hard": (4, 2)}


def make_spec(*names, **widths):
    """Tasks by name, with the widths above or those given (dashes as underscores)."""
    known = WIDTHS | {name.replace("_", "-"): value for name, value in widths.items()}
    return EnvSpec(tuple(TaskInfo(name, "dmcontrol", *known[name.partition("+")[0]], 500, 2, 0.99) for name in names))


def scatter(agent, seed):
    """Random numbers in all of the state: weights, running sums, spectral vectors."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in agent.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 0.8 + 0.1)
        tensor.mul_(
            torch.where(torch.rand(tensor.shape, generator=generator) < 0.5, -1.0, 1.0) if tensor.ndim > 1 else 1
        )
    return agent


@pytest.fixture
def specs():
    return make_spec


@pytest.fixture
def make_agent():
    """An agent of the tasks; keyword sections change the defaults. Scattered, or as built with `built`."""

    def make(spec, *, model=None, actor=None, critic=None, normalization="scale", seed=0, built=False):
        architecture = Architecture(
            ModelConfig.model_validate(MODEL | (model or {})),
            TypeAdapter(ActorConfig).validate_python(ACTOR | (actor or {})),
            CriticConfig.model_validate(CRITIC | (critic or {})),
            spec,
            normalization,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            agent = architecture.build().eval()
        return agent if built else scatter(agent, seed)

    return make


@pytest.fixture
def source_of():
    """The agent as a checkpoint would hold it."""

    def take(agent: Agent, untrained=()):
        state = {name: tensor.clone() for name, tensor in agent.state_dict().items()}
        return SourceAgent(Architecture.of(agent), state, untrained)

    return take
