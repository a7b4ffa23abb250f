"""Tiny agents, batches and trainers."""

import pytest
import torch
from pydantic import TypeAdapter

from flowmbpo.config.actors import ActorConfig
from flowmbpo.config.model import CriticConfig, ModelConfig
from flowmbpo.config.task import TaskConfig
from flowmbpo.config.training import TrainingConfig
from flowmbpo.data.batch import Batch
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.envs.make import make_env
from flowmbpo.models.agent import Agent
from flowmbpo.spec import EnvSpec, TaskInfo
from flowmbpo.training.batches import ReplayBatches
from flowmbpo.training.collector import Collector
from flowmbpo.training.learner import Learner, make_generators

TASKS = (
    TaskInfo("wide", "scripted", 3, 2, 10, 1, 0.9, can_terminate=True),
    TaskInfo("narrow", "scripted", 3, 1, 10, 1, 0.5),
)
MODEL = {
    "latent_dim": 16,
    "encoder": {"kind": "mlp", "units": [16]},
    "dynamics": {"kind": "mlp", "units": [16, 16]},
    "reward": {"kind": "scalar", "units": [16]},
}
TRAINING = {
    "horizon": 3,
    "wm_batch_size": 8,
    "wm_iterations": 2,
    "actor_batch_size": 6,
    "critic_iterations": 2,
    "critic_batches": 2,
    "epochs": 10,
}


def shake(agent):
    """Move every weight, because zero-initialised heads would hide whatever flows through them."""
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)


@pytest.fixture
def make_agent():
    """Build a tiny agent; keyword arguments change its options."""

    def make(*, spec=None, tasks=1, normalization="none", model=None, actor=None, critic=None, seed=0):
        torch.manual_seed(seed)
        agent = Agent(
            ModelConfig.model_validate(MODEL | (model or {})),
            TypeAdapter(ActorConfig).validate_python({"kind": "gaussian", "units": [16]} | (actor or {})),
            CriticConfig.model_validate({"units": [16]} | (critic or {})),
            spec or EnvSpec(TASKS[:tasks]),
            normalization,
        )
        shake(agent)
        return agent

    return make


@pytest.fixture
def training():
    """Build a TrainingConfig; keyword arguments change tiny defaults."""
    return lambda **changes: TrainingConfig.model_validate(TRAINING | changes)


@pytest.fixture
def make_batch():
    """Random windows of the two scripted tasks' widths, all valid."""

    def make(horizon=3, width=4, tasks=1, dtype=torch.float32, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return Batch(
            obs=torch.randn(horizon + 1, width, 3, generator=generator, dtype=dtype),
            action=torch.rand(horizon, width, 2, generator=generator, dtype=dtype) * 2 - 1,
            reward=torch.randn(horizon, width, generator=generator, dtype=dtype),
            terminated=torch.zeros(horizon, width, dtype=torch.bool),
            valid=torch.ones(horizon, width, dtype=torch.bool),
            task=torch.arange(width) % tasks,
        )

    return make


class Trainer:
    """A learner and its collector; their attributes are found here too."""

    def __init__(self, learner, collector):
        self.learner, self.collector = learner, collector

    def __getattr__(self, name):
        owner = self.collector if hasattr(self.collector, name) else self.learner
        return getattr(owner, name)

    def start(self):
        self.collector.start(self.learner.agent)
        self.learner.start()

    def run_epoch(self):
        if not self.learner.started:
            self.start()
        return self.collector.collect(self.learner.agent, self.learner.epoch) | self.learner.update()

    def state_dict(self):
        return self.learner.state_dict() | self.collector.state_dict()

    def load_state_dict(self, state):
        self.learner.load_state_dict(state)
        self.collector.load_state_dict(state)


@pytest.fixture
def make_trainer(make_agent, training):
    """A learner with a collector on the toy pendulum; their dumps are collected in `trainer.dumped`."""

    def make(*, num_envs=4, seed=0, env=None, agent=None, **changes):
        env = env or make_env(TaskConfig(name="toy-pendulum-swingup", num_envs=num_envs))
        agent = agent or make_agent(spec=env.spec, normalization="scale", seed=seed)
        config, dumped = training(**changes), []
        generators = make_generators(seed, torch.device("cpu"))
        replay = ReplayBuffer(config.wm_buffer_size, env.num_envs, env.spec.obs_dim, env.spec.action_dim, env.task_ids)

        def dump(name, tensors):
            dumped.append((name, tensors))

        collector = Collector(env, replay, config, seed=seed, generator=generators["exploration"], dump=dump)
        batches = ReplayBatches(replay, config, generators["replay"])
        trainer = Trainer(Learner(agent, config, batches, generators=generators, dump=dump), collector)
        trainer.dumped = dumped
        return trainer

    return make
