"""Timings, films and the opening of environments."""

from __future__ import annotations

import os

import numpy as np
import pytest

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.inspection import bench
from flowmbpo.envs.inspection.bench import bench_environment
from flowmbpo.envs.inspection.recording import walk
from flowmbpo.envs.make import make_env, open_env
from flowmbpo.errors import ConfigError, EnvironmentFailure


def test_all_copies_are_counted_and_episodes_end_on_the_way():
    result = bench_environment(TaskConfig(name="toy-map-smooth"), copies=8, seconds=0.2)
    assert (result.environment, result.copies) == ("toy-map-smooth", 8)
    rounds, rest = divmod(result.agent_steps, 8)
    assert rest == 0 and rounds > 0
    assert result.episodes == 8 * ((rounds + 1) // 20)  # one step came before the clock
    assert result.wall_s >= 0.2
    assert result.cpu_s > 0 and result.faults == 0
    assert result.steps_per_s == result.agent_steps / result.wall_s
    assert result.steps_per_cpu_s == result.agent_steps / result.cpu_s


def test_the_workers_time_counts():
    result = bench_environment(TaskConfig(name="pendulum-swingup"), copies=2, workers=1, seconds=0.3)
    assert result.workers == 1
    assert result.construction_s > result.reset_s > 0
    assert result.cpu_s > 0


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_no_time_is_refused(seconds):
    with pytest.raises(ConfigError, match="is not a positive number"):
        bench_environment(TaskConfig(), copies=1, seconds=seconds)


def test_the_config_says_how_many_unless_overridden():
    assert bench_environment(TaskConfig(name="toy-lqr", num_envs=3), seconds=0.01).copies == 3


def test_the_environment_is_closed_when_a_step_fails(monkeypatch):
    closed = []

    def fragile(*args, **options):
        env = make_env(*args, **options)
        monkeypatch.setattr(env, "step", fail)
        monkeypatch.setattr(env, "close", lambda: closed.append(True))
        return env

    monkeypatch.setattr("flowmbpo.envs.make.make_env", fragile)
    with pytest.raises(EnvironmentFailure, match="broke"):
        bench.bench_environment(TaskConfig(name="toy-lqr"), copies=1, seconds=0.1)
    assert closed == [True]


def fail(action):
    raise EnvironmentFailure("it broke")


def film(env, motion):
    return [env.render(0) for _ in walk(env, 3, seed=0, motion=motion)]


def test_a_film_has_the_start_and_a_frame_per_step():
    with open_env(TaskConfig(name="toy-pendulum-swingup"), 1, 0) as env:
        frames = film(env, "zero")
        again = film(env, "zero")
        moved = film(env, "random")
    assert len(frames) == 4
    assert all(frame.dtype == np.uint8 and frame.shape == frames[0].shape for frame in frames)
    assert all(np.array_equal(a, b) for a, b in zip(frames, again, strict=True))
    assert np.array_equal(frames[0], moved[0]) and not np.array_equal(frames[-1], moved[-1])


@pytest.mark.parametrize("chosen", [None, "egl"])
def test_opengl_is_off_only_while_the_environment_is_made(monkeypatch, chosen):
    seen = []
    if chosen is None:
        monkeypatch.delenv("MUJOCO_GL", raising=False)
    else:
        monkeypatch.setenv("MUJOCO_GL", chosen)

    def watched(*args, **options):
        seen.append(os.environ["MUJOCO_GL"])
        return make_env(*args, **options)

    monkeypatch.setattr("flowmbpo.envs.make.make_env", watched)
    with open_env(TaskConfig(name="toy-lqr"), 1, 0):
        assert os.environ.get("MUJOCO_GL") == chosen
    assert seen == ["disabled"]
