"""The walking benchmark's figures are of whole episodes."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.episodes import Fault
from flowmbpo.envs.make import make_env
from flowmbpo.errors import EnvironmentFailure


def test_an_episode_that_broke_is_refused(monkeypatch):
    path = Path(__file__).parents[2] / "benchmarks" / "walking.py"
    spec = importlib.util.spec_from_file_location("walking", path)
    assert spec is not None and spec.loader is not None
    walking = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(walking)
    env = make_env(TaskConfig(name="mujoco-ant", num_envs=2))
    step = env.step

    def broken(action):
        fault = Fault(1, "mujoco-ant", 3, 0, 1, "a result is absurd", "state", np.zeros((1, 8), np.float32))
        return dataclasses.replace(step(action), faults=(fault,))

    monkeypatch.setattr(env, "step", broken)
    with pytest.raises(EnvironmentFailure, match=r"environment 1 broke in step 1 .*use another --seed"):
        walking.measure(env, lambda obs: torch.zeros(2, 8), 3)
    env.close()
