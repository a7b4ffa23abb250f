"""The adapter against dflex itself, where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flowmbpo.envs.batch import BatchVectorEnv
from flowmbpo.envs.dflex.environment import DflexBatch
from flowmbpo.envs.dflex.settings import SETTINGS
from flowmbpo.envs.simulators import SIMULATORS
from flowmbpo.envs.tasks import all_tasks
from flowmbpo.errors import EnvironmentUnavailableError

pytestmark = [
    pytest.mark.dflex,
    pytest.mark.skipif(not SIMULATORS["dflex"].installed, reason="dflex is not installed (docs/dflex.md says how to)"),
]

BY_NAME = {task.name: task for task in all_tasks("dflex")}
ANT = BY_NAME["dflex-ant"]
LAST_ACTION = {"dflex-ant": slice(29, 37), "dflex-anymal": slice(37, 49), "dflex-humanoid": slice(55, 76)}


def actions(task: str, steps: int, num_envs: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(steps, num_envs, BY_NAME[task].action_dim, generator=rng) - 1


def make(task: str = "dflex-ant", num_envs: int = 3, **options: Any) -> BatchVectorEnv:
    return BatchVectorEnv(DflexBatch(BY_NAME[task], num_envs, **options))


def follow(env: BatchVectorEnv, table: torch.Tensor) -> list[torch.Tensor]:
    """Everything that the steps along `table` [T, N, A] gave."""
    steps = [env.step(action) for action in table]
    return [
        torch.stack([torch.cat((step.obs, step.final_obs), dim=-1) for step in steps]),
        torch.stack([step.reward for step in steps]),
        torch.stack([step.terminated for step in steps]),
        torch.stack([step.truncated for step in steps]),
    ]


def all_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(one.equal(other) for one, other in zip(left, right, strict=True))


def raw_ant(num_envs: int) -> Any:
    """dflex's own Ant with the published settings, as its users make it; restarts itself."""
    environment = type(DflexBatch(ANT, 1).raw)
    with torch.no_grad():
        _, arguments = SETTINGS[ANT.name]
        return environment(device="cpu", num_envs=num_envs, stochastic_init=True, no_grad=True, **arguments)


def place(raw: Any, simulator: DflexBatch, rows: torch.Tensor) -> None:
    """Give copies `rows` of `raw` the start states that the adapter's copies have."""
    for name in ("joint_q", "joint_qd", "joint_act"):
        target, source = (getattr(env.state, name).view(raw.num_envs, -1) for env in (raw, simulator.raw))
        target[rows] = source[rows]
    raw.obs_buf = raw.observation_from_state(raw.state)


@torch.no_grad()
def test_64_ants_step_as_the_raw_simulator_does():
    simulator = DflexBatch(ANT, 64)
    env = BatchVectorEnv(simulator)
    raw = raw_ant(64)
    raw.reset()
    assert not env.reset(0).equal(raw.obs_buf)
    place(raw, simulator, torch.arange(64))
    assert simulator.observe().equal(raw.obs_buf)
    ends = 0
    for action in actions("dflex-ant", 50, 64):
        step = env.step(action)
        _, reward, done, info = raw.step(action)
        assert step.final_obs.equal(info["obs_before_reset"])
        assert step.reward.equal(reward)
        assert step.terminated.equal(info["termination"])
        assert step.done.equal(done)
        if done.any():  # each has restarted by its own randomness
            place(raw, simulator, done.nonzero()[:, 0])
            ends += int(done.sum())
        assert step.obs.equal(raw.obs_buf)
    assert ends > 0


@pytest.mark.parametrize("task", all_tasks("dflex"), ids=lambda task: task.name)
def test_widths_types_and_seeds_of_every_task(task):
    env = make(task.name, 2)
    first = env.reset(3)
    assert first.shape == (2, task.obs_dim)
    assert not first[0].equal(first[1])
    table = actions(task.name, 5, 2)
    reached = follow(env, table)
    assert reached[0].shape == (5, 2, 2 * task.obs_dim)
    assert [tensor.dtype for tensor in reached] == [torch.float32, torch.float32, torch.bool, torch.bool]
    assert reached[0].isfinite().all()
    assert env.reset(4).equal(first) is False
    assert env.reset(3).equal(first)
    assert all_equal(follow(env, table), reached)
    if task.name in LAST_ACTION:
        torch.testing.assert_close(reached[0][-1, :, task.obs_dim :][:, LAST_ACTION[task.name]], table[-1])


def test_an_episode_does_not_depend_on_the_others():
    alone, env, table = make(num_envs=1), make(num_envs=5), actions("dflex-ant", 120, 5)
    assert alone.reset(1)[0].equal(env.reset(1)[0])
    together, lone = follow(env, table), follow(alone, table[:, :1])
    assert together[2].any(dim=0).sum() > 1, "other copies must have restarted"
    assert all(one[:, 0].equal(other[:, 0]) for one, other in zip(together, lone, strict=True))


def test_torchs_global_generator_is_neither_read_nor_moved():
    env = make()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    env.reset(0)
    reached = follow(env, actions("dflex-ant", 100, 3))
    assert reached[2].any()
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("task", ["dflex-ant", "dflex-hopper", "dflex-cartpole"])
def test_a_saved_state_goes_on_bit_equally(task):
    env, other, table = make(task), make(task), actions(task, 240, 3)
    env.reset(0)
    follow(env, table[:40])
    saved = env.state_dict()
    reached = follow(env, table[40:])
    assert (reached[2] | reached[3]).any(), "episodes must end on the way"
    first = env.load_state_dict(saved)
    assert all_equal(follow(env, table[40:]), reached)
    other.reset(9)
    follow(other, table[:7])
    assert other.load_state_dict(saved).equal(first)
    assert all_equal(follow(other, table[40:]), reached)


def test_saving_holds_copies_and_changes_nothing():
    env, other, table = make(), make(), actions("dflex-ant", 30, 3)
    env.reset(0)
    other.reset(0)
    saved = env.state_dict()["simulator"]
    copies = {name: value.clone() for name, value in saved.items()}
    observed = []
    for action in table:
        env.state_dict()
        observed.append(env.step(action).obs)
    assert all(value.equal(copies[name]) for name, value in saved.items())
    assert torch.stack(observed).equal(follow(other, table)[0][..., : ANT.obs_dim])


def test_a_low_torso_terminates_and_the_time_limit_truncates():
    env = make()
    env.reset(0)
    for action in actions("dflex-ant", 100, 3):
        step = env.step(action)
        assert step.terminated.equal(step.final_obs[:, 0] < 0.27)
        assert not step.truncated.any()
    pole = make("dflex-cartpole", 2)
    pole.reset(0)
    for count, action in enumerate(torch.zeros(240, 2, 1), start=1):
        step = pole.step(action)
        assert not step.terminated.any()
        assert step.truncated.tolist() == [count == 240] * 2
    assert not step.obs.equal(step.final_obs)


def test_the_reward_is_that_of_the_state_acted_in():
    env = make()
    obs = env.reset(0)
    for action in actions("dflex-ant", 20, 3):
        step = env.step(action)
        expected = obs[:, 5] + 0.1 * obs[:, 27] + obs[:, 28] + (obs[:, 0] - 0.27)
        torch.testing.assert_close(step.reward, expected, rtol=1e-6, atol=1e-6)
        obs = step.obs


def test_description_is_the_state_before_the_last_step():
    env = make()
    env.reset(0)
    for action in actions("dflex-ant", 3, 3):
        before = env.simulator.state_dict()["joint_q"].view(3, -1)[1].numpy()
        env.step(action)
        shown = np.array2string(before, precision=4, max_line_width=10_000)
        assert env.simulator.describe(1).startswith(f"before the step: joint_q {shown}, joint_qd [")
    last = env.simulator.describe(1)
    env.load_state_dict(env.state_dict())
    assert env.simulator.describe(1) != last


def test_a_broken_environment_is_a_fault_others_go_on():
    env, other, table = make(), make(), actions("dflex-ant", 12, 3)
    env.reset(0)
    other.reset(0)
    reached = follow(other, table)
    state = env.state_dict()
    state["simulator"]["joint_qd"].view(3, -1)[1, 4] = torch.nan
    env.load_state_dict(state)
    step = env.step(table[0])
    assert [fault.index for fault in step.faults] == [1]
    before = state["simulator"]["joint_q"].view(3, -1)[1].numpy()  # the step makes all of it nan
    shown = np.array2string(before, precision=4, max_line_width=10_000)
    assert step.faults[0].state.startswith(f"before the step: joint_q {shown}, joint_qd [")
    assert "nan" in step.faults[0].state
    rows = [step.obs, *(env.step(action).obs for action in table[1:])]
    got = torch.stack(rows)
    assert got.isfinite().all()
    assert got[:, [0, 2]].equal(reached[0][:, [0, 2], : ANT.obs_dim])


def test_autodiff_keeps_the_physics_and_hides_the_last_action():
    plain, recorded, table = make(), make(autodiff=True), actions("dflex-ant", 120, 3)
    assert plain.reset(0).equal(recorded.reset(0))
    obs, reward, terminated, _ = follow(plain, table)
    recorded_obs, recorded_reward, recorded_terminated, _ = follow(recorded, table)
    shown = torch.cat((torch.arange(29), torch.arange(37, 37 + 29)))
    assert recorded_obs[..., shown].equal(obs[..., shown])
    assert not recorded_obs[..., 37 + 29 :].any()
    torch.testing.assert_close(obs[..., 37 + 29 :], table)  # each keeps its mode, although dflex has one switch
    assert recorded_reward.equal(reward)
    assert recorded_terminated.equal(terminated)
    assert terminated.any()


def test_the_raw_environment_gives_exact_gradients_through_the_physics():
    simulator = DflexBatch(BY_NAME["dflex-cartpole"], 2, autodiff=True)
    simulator.start([0, 1], [np.random.SeedSequence(index) for index in range(2)])
    begin = simulator.state_dict()

    def velocity(action: torch.Tensor) -> torch.Tensor:
        simulator.load_state_dict(begin)
        simulator.raw.initialize_trajectory()
        obs, *_ = simulator.raw.step(action)
        return obs[:, 1]

    action = torch.full((2, 1), 0.1, requires_grad=True)
    (gradient,) = torch.autograd.grad(velocity(action).sum(), action)
    with torch.no_grad():
        difference = (velocity(action + 0.05) - velocity(action - 0.05)) / 0.1
    torch.testing.assert_close(gradient[:, 0], difference, rtol=2e-2, atol=0.0)
    assert (gradient > 0).all()


def test_a_device_that_is_not_there_is_refused():
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentUnavailableError, match="no CUDA device"):
            DflexBatch(ANT, 1, device="cuda:0")
    with pytest.raises(EnvironmentUnavailableError, match="Allowed: cpu, cuda"):
        DflexBatch(ANT, 1, device="meta")


def test_drawing_is_refused_with_what_can_be_drawn():
    env = make(num_envs=1)
    env.reset(0)
    with pytest.raises(EnvironmentUnavailableError, match="mujoco-ant"):
        env.render(0)
