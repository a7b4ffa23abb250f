"""The table of tasks against the simulator, and its errors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from flowmbpo.envs.dmcontrol.simulator import DMControlSimulator
from flowmbpo.envs.dmcontrol.suite import EXTRA_TASKS, load_suite_task, suite_key
from flowmbpo.envs.episodes import episode_seed
from flowmbpo.envs.simulators import SimulatorInfo
from flowmbpo.envs.tasks import all_tasks, task_info, task_names
from flowmbpo.errors import ConfigError
from flowmbpo.spec import EnvSpec

DMCONTROL = [name for name in task_names() if task_info(name).simulator == "dmcontrol"]
SAMPLE = ["walker-stand", "cup-catch", "cartpole-swingup", "humanoid_CMU-run", "quadruped-walk", "point_mass-hard"]


def assert_agrees_with_simulator(name: str) -> None:
    task, environment = task_info(name), load_suite_task(name)
    observation = environment.reset().observation
    assert task.obs_dim == sum(np.size(value) for value in observation.values())
    assert task.action_dim == environment.action_spec().shape[0]
    steps = 0
    action = np.zeros(task.action_dim)
    while not environment.step(action).last():
        steps += 1
    assert steps + 1 == task.episode_length * task.action_repeat


@pytest.mark.parametrize("name", ["cup-catch", "point_mass-hard"])
def test_widths_and_length_are_the_simulators(name):
    assert_agrees_with_simulator(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", DMCONTROL)
def test_widths_and_length_are_the_simulators_for_every_task(name):
    assert_agrees_with_simulator(name)


@pytest.mark.parametrize("name", SAMPLE)
def test_widths_are_those_of_the_wrapped_task(name):
    task, simulator = task_info(name), DMControlSimulator(name, 2)
    assert (simulator.obs_dim, simulator.action_dim) == (task.obs_dim, task.action_dim)
    obs = np.full(task.obs_dim, np.nan, dtype=np.float32)
    simulator.reset(episode_seed(0, 0, 0), obs)
    assert np.isfinite(obs).all()


def test_table_names_every_task_of_the_suite_but_three():
    from dm_control import suite

    names = {suite_key(task.name) for task in all_tasks("dmcontrol") if task.name not in EXTRA_TASKS}
    assert set(suite.ALL_TASKS) - names == {("lqr", "lqr_2_1"), ("lqr", "lqr_6_2"), ("quadruped", "escape")}
    assert names <= set(suite.ALL_TASKS)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("walker-stand", ("walker", "stand")),
        ("cup-catch", ("ball_in_cup", "catch")),
        ("cartpole-balance-sparse", ("cartpole", "balance_sparse")),
        ("humanoid-run-pure-state", ("humanoid", "run_pure_state")),
        ("point_mass-easy", ("point_mass", "easy")),
    ],
)
def test_name_splits_at_its_first_dash(name, key):
    assert suite_key(name) == key


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("walker-stand", ("dmcontrol", 24, 6, 500, 2, 0.99, False)),
        ("toy-pendulum-swingup", ("toy", 3, 1, 100, 2, 0.95, False)),
        ("toy-cartpole-swingup", ("toy", 5, 1, 250, 4, 0.98, False)),
        ("mujoco-ant", ("mujoco", 37, 8, 1000, 1, 0.995, True)),
        ("dflex-ant", ("dflex", 37, 8, 1000, 1, 0.995, True)),
        ("mw-button-press", ("metaworld", 39, 4, 100, 2, 0.95, False)),
    ],
)
def test_rows_hold_published_numbers(name, row):
    task = task_info(name)
    assert (task.simulator, task.obs_dim, task.action_dim, task.episode_length, task.action_repeat) == row[:5]
    assert task.discount == pytest.approx(row[5])
    assert task.can_terminate is row[6]


def test_a_set_is_as_wide_as_its_widest_task():
    spec = EnvSpec((task_info("walker-stand"), task_info("mujoco-ant"), task_info("dog-run")))
    assert (spec.obs_dim, spec.action_dim) == (223, 38)


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"'walker-stnd'.*Did you mean 'walker-stand'"):
        task_info("walker-stnd")


def test_a_set_asked_for_as_a_task_is_told_how():
    with pytest.raises(ConfigError, match=r"'mini3'. It is a task set: give task.set=mini3 and task.name=null"):
        task_info("mini3")


@pytest.mark.parametrize(
    ("name", "backend", "allowed"),
    [
        ("walker-stand", "toy", "auto, dmcontrol"),
        ("toy-cartpole-swingup", "dmcontrol", "auto, toy"),
        ("ant", "toy", "auto, dflex, mujoco, rewarped"),
    ],
)
def test_backend_that_lacks_the_task_is_refused(name, backend, allowed):
    with pytest.raises(ConfigError, match=rf"task.backend: '{backend}'.*Allowed: {allowed}\."):
        task_info(name, backend)


@pytest.mark.parametrize(
    ("installed", "runs"), [({"dflex", "mujoco"}, "dflex-ant"), ({"mujoco"}, "mujoco-ant"), (set(), "mujoco-ant")]
)
def test_ant_runs_on_dflex_where_installed_else_on_mujoco(monkeypatch, installed, runs):
    monkeypatch.setattr(SimulatorInfo, "installed", property(lambda info: info.name in installed))
    assert task_info("ant").name == runs
    assert task_info("ant", "mujoco").name == "mujoco-ant"
    assert task_info("ant", "dflex").name == "dflex-ant"


def test_a_tasks_own_simulator_can_be_named():
    assert task_info("walker-stand", "dmcontrol") is task_info("walker-stand")


def test_tables_and_worker_code_import_no_torch_and_no_simulator():
    modules = (
        "flowmbpo.envs.tasks, flowmbpo.envs.dmcontrol, flowmbpo.envs.processes.group, flowmbpo.envs.processes.rendering"
    )
    program = f"import sys, {modules}; print({{'torch', 'dm_control', 'mujoco'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
