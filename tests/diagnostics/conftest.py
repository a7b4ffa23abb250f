"""Subjects: a small agent with random weights, and the linear-quadratic regulator as a model right in every digit."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from flowmbpo.config.task import TaskConfig
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.envs.batch import BatchVectorEnv
from flowmbpo.envs.make import make_env
from flowmbpo.envs.mixed import MixedVectorEnv
from flowmbpo.envs.tasks import task_info
from flowmbpo.envs.toy.lqr import regulator
from flowmbpo.envs.toy.system import ToyBatch
from flowmbpo.envs.toy.systems import toy_system
from flowmbpo.models.actors.base import Actor
from flowmbpo.models.agent import build_agent
from flowmbpo.models.dynamics.base import Dynamics
from flowmbpo.models.heads import RewardHead
from flowmbpo.presets.load import load_experiment
from flowmbpo.spec import EnvSpec

SMALL = (
    "task.name=toy-pendulum-swingup",
    "task.num_envs=4",
    "model.latent_dim=16",
    "model.dynamics.units=[24]",
    "actor.units=[16]",
    "critic.units=[16]",
    "training.wm_batch_size=8",
    "training.wm_buffer_size=1000",
    "training.actor_batch_size=6",
    "training.horizon=4",
)


LONGEST = 40  # agent steps of an episode on a toy: every subject runs some for its states


def open_short(task, copies, longest):
    """The environment of a task, a toy's with at most `longest` steps in an episode."""
    info = task_info(task.name)
    if info.simulator != "toy":
        return make_env(task, num_envs=copies)
    short = replace(info, episode_length=min(longest, info.episode_length))
    return BatchVectorEnv(ToyBatch(toy_system(short), copies))


@pytest.fixture(scope="session")
def make_subject():
    """A subject of `quickstart` made small, its weights moved off their zero-initialised heads."""

    def make(*overrides, preset="quickstart", seed=0, longest=LONGEST):
        config = load_experiment(preset, (*SMALL, *overrides))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            agent = build_agent(config, open_short(config.task, config.task.num_envs, longest).spec).eval()
            with torch.no_grad():
                for parameter in agent.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return Subject(
            agent,
            config,
            device=torch.device("cpu"),
            seed=seed,
            make_env=lambda copies: open_short(config.task, copies, longest),
            episode_count=2,
        )

    return make


OPTIONS = (
    "task.name=toy-lqr",
    "model.latent_dim=4",
    "model.simnorm_dim=4",
    "actor.units=[4]",
    "critic.units=[4]",
    "critic.zero_init=true",
    "training.horizon=8",
    "training.gamma=0.97",
    "training.reward_normalization=none",
)


class LinearActor(Actor):
    """u = -K z, without tanh: the policy of the closed form. Small gains keep it inside the bounds."""

    def __init__(self, config, gain):
        super().__init__(config)
        self.gain = nn.Parameter(gain.clone())

    nfe = 1
    hidden_units = ()

    def preactivation(self, z, context, generator):
        return -z @ self.gain.T

    def sample_with_log_prob(self, z, context, generator):
        raise ValueError("a deterministic policy has no density")

    def forward(self, z, context, generator=None):
        return self.preactivation(z, context, generator)


class RegulatorDynamics(Dynamics):
    """x' = A x + B u."""

    nfe = 1
    hidden_units = ()

    def __init__(self, config, dims, problem):
        super().__init__(config, dims)
        self.register_buffer("transition", problem.transition.float())
        self.register_buffer("control", problem.control.float())

    def forward(self, s, action, task, generator=None):
        return s @ self.transition.T + action @ self.control.T

    def step_loss(self, transition, generator, *, need_next):
        raise NotImplementedError("it has nothing to learn")


class RegulatorReward(RewardHead):
    """-(x'Qx + u'Ru) + offset of [x, u]."""

    def __init__(self, problem, offset=0.0):
        super().__init__()
        cost = torch.cat((problem.state_cost.diagonal(), problem.action_cost.diagonal()))
        self.register_buffer("cost", cost.float())
        self.offset = offset
        self.network = nn.Sequential()

    def decode(self, output):
        return self.offset - (output.square() * self.cost).sum(-1)

    def loss(self, inputs, reward):
        raise NotImplementedError("it has nothing to learn")


def exactly(problem, dtype):
    """The matrices in `dtype`, so that a model made double does not keep float32's rounding."""
    return {name: getattr(problem, name).to(dtype) for name in ("transition", "control", "state_cost", "action_cost")}


@pytest.fixture
def gain():
    """Pulls both carts back; no optimum, so that the gradient is not 0."""
    return torch.tensor([[0.5, -0.1, 0.3, 0.0], [0.1, 0.4, 0.0, 0.5]])


@pytest.fixture
def make_regulator(gain):
    """A subject on `toy-lqr` whose model is the regulator itself; `control` multiplies B, `offset` adds to rewards."""

    def make(*overrides, control=1.0, offset=0.0, dtype=torch.float32, episodes=4):
        config = load_experiment("risk-obs-residual", (*OPTIONS, *overrides))
        with torch.random.fork_rng(devices=[]):
            agent = build_agent(config, make_env(config.task).spec).eval()
        problem, model = regulator(), agent.world_model
        model.dynamics = RegulatorDynamics(model.dynamics.config, model.dynamics.dims, problem)
        model.reward_head = RegulatorReward(problem, offset)
        agent.actor = LinearActor(agent.actor.config, gain)
        agent = agent.to(dtype)
        matrices = exactly(problem, dtype)
        model.dynamics.transition = matrices["transition"]
        model.dynamics.control = control * matrices["control"]
        model.reward_head.cost = torch.cat((matrices["state_cost"].diagonal(), matrices["action_cost"].diagonal()))
        return Subject(
            agent,
            config,
            device=torch.device("cpu"),
            seed=0,
            make_env=lambda copies: make_env(config.task, num_envs=copies),
            episode_count=episodes,
        )

    return make


@pytest.fixture
def make_pair(make_subject):
    """A subject on a set of two toy tasks, half of the copies each."""

    def make():
        tasks = [task_info(name) for name in ("toy-pendulum-swingup", "toy-pendulum-push")]
        spec = EnvSpec(tuple(tasks), "pair")

        def open_env(copies):
            parts = [make_env(TaskConfig(name=task.name, num_envs=copies // 2)) for task in tasks]
            first = list(range(copies // 2))
            second = list(range(copies // 2, copies))
            return MixedVectorEnv(spec, parts, [first, second], [0] * len(first) + [1] * len(second))

        single = make_subject("model.task_dim=4")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            agent = build_agent(single.config, spec).eval()
            with torch.no_grad():
                for parameter in agent.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return Subject(agent, single.config, device=torch.device("cpu"), seed=0, make_env=open_env, episode_count=4)

    return make
