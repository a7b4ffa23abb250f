"""The Meta-World wrapper against plain loops over Meta-World's own classes."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
from metaworld.sawyer_xyz_env import SawyerXYZEnv

from flowmbpo.envs.episodes import episode_seed
from flowmbpo.envs.metaworld import LeanEnvironment, MetaWorldSimulator, make_environment
from flowmbpo.envs.processes.vector import WorkerVectorEnv
from flowmbpo.envs.task_sets import MT50
from flowmbpo.envs.tasks import all_tasks
from flowmbpo.errors import EnvironmentFailure, EnvironmentUnavailableError
from flowmbpo.spec import EnvSpec

SAMPLE = [
    "mw-coffee-pull",  # reads a geom that is only looked at
    "mw-stick-push",  # two objects; success depends on contacts
]


def raw_environment(name: str):
    env = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{name.removeprefix('mw-')}-v3-goal-observable"]()
    env._freeze_rand_vec = False
    env.seeded_rand_vec = True
    return env


def raw_reset(env, seed: np.random.SeedSequence) -> np.ndarray:
    env.np_random = np.random.Generator(np.random.PCG64(seed))
    return env.reset()[0]


def scripted_policy(name: str):
    """Meta-World's own solution of a task."""
    policies = importlib.import_module("metaworld.policies").ENV_POLICY_MAP
    return policies[f"{name.removeprefix('mw-')}-v3"]()


def scripted_action(policy, obs: np.ndarray, rng: np.random.Generator, noise: float) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Constant")  # of gains that clipping makes harmless
        wanted = policy.get_action(obs)
    return (wanted + rng.normal(0, noise, 4)).clip(-1, 1).astype(np.float32)


def vector_env(name: str, copies: int) -> WorkerVectorEnv:
    task = all_tasks("metaworld")[MT50.index(name)]
    return WorkerVectorEnv(EnvSpec((task,)), [partial(MetaWorldSimulator, name, 2)], [0] * copies, 0)


def simulate(simulator: MetaWorldSimulator, seed: int, steps: int) -> np.ndarray:
    """An episode of random actions: all it gives, one row per step."""
    rng, obs, rows = np.random.default_rng(seed), np.empty(39, np.float32), []
    simulator.reset(np.random.SeedSequence(seed), obs)
    rows.append([*obs, 0.0, 0.0])
    for _ in range(steps):
        outcome = simulator.step(rng.uniform(-1, 1, 4).astype(np.float32), obs)
        rows.append([*obs, outcome.reward, outcome.success])
    return np.array(rows)


def assert_a_plain_loop_gives_the_same(name: str, steps: int, episodes: int = 1) -> None:
    """Two raw control steps with summed rewards are one step, bit for bit, in every episode."""
    raw, simulator = raw_environment(name), MetaWorldSimulator(name, 2)
    policy, rng, row = scripted_policy(name), np.random.default_rng(0), np.empty(39, np.float32)
    for episode in range(episodes):
        obs = raw_reset(raw, np.random.SeedSequence(episode))
        simulator.reset(np.random.SeedSequence(episode), row)
        assert np.array_equal(obs.astype(np.float32), row)
        for _ in range(steps):
            action = scripted_action(policy, obs, rng, noise=0.2)
            first = raw.step(action)
            obs, reward, terminated, _, details = raw.step(action)
            outcome = simulator.step(action, row)
            assert np.array_equal(obs.astype(np.float32), row)
            assert outcome.reward == first[1] + reward
            assert outcome.success == float(details["success"])
            assert outcome.terminated == terminated
    assert np.array_equal(raw.data.qpos, simulator._data.qpos)


@pytest.mark.parametrize("name", SAMPLE)
def test_episodes_are_those_of_a_plain_loop(name):
    assert_a_plain_loop_gives_the_same(name, steps=60, episodes=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", MT50)
def test_episodes_are_those_of_a_plain_loop_in_every_task(name):
    assert_a_plain_loop_gives_the_same(name, steps=100, episodes=3)


@pytest.mark.slow
@pytest.mark.parametrize("task", all_tasks("metaworld"), ids=lambda task: task.name)
def test_widths_are_the_simulators_in_every_task(task):
    raw, simulator = raw_environment(task.name), MetaWorldSimulator(task.name, task.action_repeat)
    assert raw.sawyer_observation_space.shape == (task.obs_dim,) == (simulator.obs_dim,)
    assert raw.action_space.shape == (task.action_dim,) == (simulator.action_dim,)
    obs = np.full(task.obs_dim, np.nan, np.float32)
    for seed in range(3):
        simulator.reset(np.random.SeedSequence(seed), obs)
        assert (np.abs(obs) < 2).all()  # metres and unit quaternions


@pytest.mark.slow
@pytest.mark.parametrize("name", MT50)
def test_episodes_depend_on_nothing_else_in_every_task(name):
    fresh, used = MetaWorldSimulator(name, 2), MetaWorldSimulator(name, 2)
    simulate(used, 1, 50)
    assert np.array_equal(simulate(fresh, 2, 30), simulate(used, 2, 30))


def test_table_numbers_the_tasks_as_published():
    assert tuple(task.name for task in all_tasks("metaworld")) == MT50
    assert {
        (task.obs_dim, task.action_dim, task.episode_length, task.action_repeat) for task in all_tasks("metaworld")
    } == {(39, 4, 100, 2)}
    assert {task.discount for task in all_tasks("metaworld")} == {0.95}  # (20 - 1) / 20
    assert {task.simulator for task in all_tasks("metaworld")} == {"metaworld"}
    assert not any(task.can_terminate for task in all_tasks("metaworld"))


def test_an_episode_depends_on_seed_and_actions_only():
    one, other = MetaWorldSimulator("mw-door-open", 2), MetaWorldSimulator("mw-door-open", 2)
    alone = simulate(one, 3, 25)
    rows, obs_one, obs_other = [], np.empty(39, np.float32), np.empty(39, np.float32)
    simulate(other, 4, 5)  # leaves its furniture elsewhere
    rng_one, rng_other = np.random.default_rng(3), np.random.default_rng(7)
    np.random.seed(0)
    one.reset(np.random.SeedSequence(8), obs_one)
    other.reset(np.random.SeedSequence(3), obs_other)
    rows.append([*obs_other, 0.0, 0.0])
    for _ in range(25):
        np.random.random()
        one.step(rng_other.uniform(-1, 1, 4).astype(np.float32), obs_one)
        outcome = other.step(rng_one.uniform(-1, 1, 4).astype(np.float32), obs_other)
        rows.append([*obs_other, outcome.reward, outcome.success])
    assert np.array_equal(alone, np.array(rows))


def test_numpys_global_generator_is_left_alone():
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    simulate(MetaWorldSimulator("mw-drawer-close", 2), 0, 2)
    assert np.array_equal(before, np.random.get_state()[1])


def test_every_episode_and_every_copy_has_its_own_goal():
    env = vector_env("mw-reach", 3)
    goals = [env.reset(0)[:, 36:]]
    for _ in range(100):
        step = env.step(torch.zeros(3, 4))
    assert torch.equal(step.final_obs[:, 36:], goals[0])
    goals.append(step.obs[:, 36:])
    assert len({tuple(goal.tolist()) for goal in torch.cat(goals)}) == 6
    assert torch.equal(env.reset(0)[:, 36:], goals[0])
    assert (env.reset(1)[:, 36:] != goals[0]).any()


def test_truncation_after_100_steps_with_success_at_each():
    env, raw = vector_env("mw-drawer-close", 2), raw_environment("mw-drawer-close")
    policies, rng = [scripted_policy("mw-drawer-close") for _ in range(2)], np.random.default_rng(0)
    obs = env.reset(11)
    assert np.array_equal(raw_reset(raw, episode_seed(11, 1, 0)).astype(np.float32), obs[1].numpy())
    successes = []
    for count in range(1, 101):
        actions = [scripted_action(policy, row.numpy(), rng, 0.0) for policy, row in zip(policies, obs, strict=True)]
        step = env.step(torch.from_numpy(np.stack(actions)))
        obs = step.obs
        successes.append(step.success.clone())
        assert not step.terminated.any()
        assert step.truncated.tolist() == [count == 100] * 2
        assert (step.reward >= 0).all() and (step.reward <= 20).all()  # two of at most 10
    success = torch.stack(successes)
    assert success[0].tolist() == [0.0, 0.0]
    assert success[-1].tolist() == [1.0, 1.0]
    raw_reset(raw, episode_seed(11, 1, 0))
    assert np.array_equal(raw_reset(raw, episode_seed(11, 1, 1)).astype(np.float32), obs[1].numpy())


def test_saved_state_goes_on_bit_equally():
    env, again = vector_env("mw-push", 2), vector_env("mw-push", 2)
    env.reset(2)
    actions = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (40, 2, 4)).astype(np.float32))
    for action in actions[:25]:
        env.step(action)
    again.load_state_dict(env.state_dict())
    for action in actions[25:]:
        one, other = env.step(action), again.step(action)
        assert torch.equal(one.obs, other.obs)
        assert torch.equal(one.reward, other.reward)


def test_the_simulator_goes_on_beyond_meta_worlds_own_limit():
    simulator, obs = MetaWorldSimulator("mw-drawer-close", 2), np.empty(39, np.float32)
    simulator.reset(np.random.SeedSequence(0), obs)
    outcomes = [simulator.step(np.zeros(4, np.float32), obs) for _ in range(260)]  # 520 control steps
    assert not any(outcome.terminated for outcome in outcomes)
    assert np.isfinite(obs).all()


def test_contacts_are_felt_as_meta_world_feels_them():
    """Both verdicts occur while the scripted policy picks the object up."""
    env = make_environment("mw-pick-place")
    obs = raw_reset(env, np.random.SeedSequence(0))
    policy, rng, verdicts = scripted_policy("mw-pick-place"), np.random.default_rng(0), []
    geom = env.data.geom("objGeom").id
    for _ in range(120):
        obs = env.step(scripted_action(policy, obs, rng, 0.0))[0]
        verdict = LeanEnvironment.touching_object(env, geom)
        assert verdict == SawyerXYZEnv.touching_object(env, geom)
        verdicts.append(verdict)
    assert set(verdicts) == {True, False}


def test_the_stepped_model_is_small_and_never_shared():
    one, other = make_environment("mw-lever-pull"), make_environment("mw-lever-pull")
    raw = raw_environment("mw-lever-pull")
    assert one.model.nbuffer < raw.model.nbuffer / 4
    for count in ("nq", "nv", "nu", "nbody", "nsite", "nmocap", "neq"):
        assert getattr(one.model, count) == getattr(raw.model, count)
    assert np.array_equal(one.model.body_inertia, raw.model.body_inertia)
    one.model.body_pos[1] = 5.0
    assert (other.model.body_pos[1] != 5.0).all()


def test_diverging_physics_is_an_error_with_the_state(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    simulator, obs = MetaWorldSimulator("mw-reach", 2), np.empty(39, np.float32)
    simulator.reset(episode_seed(0, 0, 0), obs)
    sound = obs.copy()
    for _ in range(5):
        simulator.step(np.ones(4, np.float32), obs)
    data = simulator._data
    data.qvel[0] = 1e12
    before = np.concatenate([data.qpos, data.qvel])
    shown = np.array2string(before, precision=4, max_line_width=10_000)
    time = f"{data.time:.3f} s"
    with (
        caplog.at_level(logging.CRITICAL),
        pytest.raises(EnvironmentFailure, match=r"invalid \(mjWARN_BAD.*, goal \[") as raised,
    ):
        simulator.step(np.zeros(4, np.float32), obs)
    assert f"before the step: time {time}, goal [" in str(raised.value)
    assert str(raised.value).endswith(f"positions and velocities {shown}")
    assert str(raised.value).endswith(simulator.describe())
    assert not np.array_equal(np.concatenate([data.qpos, data.qvel]), before), "MuJoCo has wiped it"
    assert list(tmp_path.iterdir()) == []  # MuJoCo's own handler would leave a log here
    simulator.reset(episode_seed(0, 0, 0), obs)
    assert np.array_equal(obs, sound)


def test_a_reward_refusing_a_state_is_an_error_with_it(monkeypatch):
    simulator, obs = MetaWorldSimulator("mw-reach", 2), np.empty(39, np.float32)
    simulator.reset(episode_seed(0, 0, 0), obs)

    def refuse(obs, action):
        raise ValueError("a must range between 0 and 1")

    monkeypatch.setattr(simulator._environment, "evaluate_state", refuse)
    with pytest.raises(EnvironmentFailure, match=r"reward is undefined \(a must range.*velocities \["):
        simulator.step(np.zeros(4, np.float32), obs)


def test_a_state_can_be_described_before_the_first_episode():
    assert "goal nan" in MetaWorldSimulator("mw-reach", 2).describe()


def test_a_missing_installation_or_task_says_what_to_install(monkeypatch):
    with pytest.raises(EnvironmentUnavailableError, match=r"'mw-fly'.*no 'fly-v3'"):
        make_environment("mw-fly")
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(EnvironmentUnavailableError, match=r"'mw-reach' needs Meta-World.*metaworld==3.1.1"):
        make_environment("mw-reach")


def test_frames_are_the_right_way_up():
    env = vector_env("mw-reach", 1)
    env.reset(0)
    try:
        first = env.render()
    except EnvironmentUnavailableError as error:
        pytest.skip(f"no OpenGL here: {error}")
    assert first.shape == (240, 320, 3)
    assert first.dtype == np.uint8
    for _ in range(15):
        env.step(torch.tensor([[0.0, 0.0, 1.0, 0.0]]))  # the hand rises
    last = env.render()
    env.close()
    assert finger_row(last) < finger_row(first) - 10  # row 0 is the top


def finger_row(frame: np.ndarray) -> float:
    """Mean row of the bright blue finger."""
    red, green, blue = frame.astype(int).transpose(2, 0, 1)
    rows = np.nonzero((blue > 150) & (green > 120) & (red < 80))[0]
    assert len(rows) > 5
    return float(rows.mean())
