"""A small agent with random weights and real experience, as a diagnostic sees one."""

import pytest
import torch

from flowmbpo.diagnostics.subject import Subject
from flowmbpo.envs.make import make_env
from flowmbpo.models.agent import build_agent
from flowmbpo.presets.load import load_experiment

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


@pytest.fixture(scope="session")
def make_subject():
    """A subject of `quickstart` made small, its weights moved off their zero-initialised heads."""

    def make(*overrides, preset="quickstart", seed=0):
        config = load_experiment(preset, (*SMALL, *overrides))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            agent = build_agent(config, make_env(config.task).spec).eval()
            with torch.no_grad():
                for parameter in agent.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return Subject(
            agent,
            config,
            device=torch.device("cpu"),
            seed=seed,
            make_env=lambda copies: make_env(config.task, num_envs=copies),
            episodes=2,
        )

    return make
