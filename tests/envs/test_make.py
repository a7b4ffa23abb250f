"""From a task's config to an environment."""

from __future__ import annotations

import pytest

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.batch import BatchVectorEnv
from flowmbpo.envs.make import cores, make_env
from flowmbpo.envs.processes.vector import WorkerVectorEnv
from flowmbpo.errors import ConfigError, EnvironmentUnavailableError


def test_the_config_chooses_the_environment_and_the_number_of_copies():
    env = make_env(TaskConfig(name="toy-cartpole-swingup", num_envs=3))
    assert isinstance(env, BatchVectorEnv)
    assert (env.num_envs, env.spec.obs_dim, env.spec.action_dim) == (3, 5, 1)
    assert env.cpu_seconds() == 0
    env.close()


def test_arguments_override_the_config():
    env = make_env(TaskConfig(name="pendulum-swingup", num_envs=7, workers=4), num_envs=1, workers=0)
    assert isinstance(env, WorkerVectorEnv)
    assert env.num_envs == 1


def test_a_task_without_a_simulator_says_what_works_instead():
    with pytest.raises(EnvironmentUnavailableError, match=r"'dflex-hopper' needs dflex.*pip install.*mujoco-hopper"):
        make_env(TaskConfig(name="dflex-hopper"))


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="Allowed: auto, toy"):
        make_env(TaskConfig(name="toy-pendulum-swingup", backend="isaac"))


def test_this_process_may_use_a_core():
    assert cores() >= 1
