"""The adapter against rewarped itself, where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flowmbpo.envs.adapters import quiet
from flowmbpo.envs.batch import BatchVectorEnv
from flowmbpo.envs.episodes import episode_seed
from flowmbpo.envs.rewarped import RewarpedBatch
from flowmbpo.envs.simulators import SIMULATORS
from flowmbpo.envs.tasks import all_tasks
from flowmbpo.errors import EnvironmentUnavailableError

pytestmark = [
    pytest.mark.rewarped,
    pytest.mark.skipif(
        not SIMULATORS["rewarped"].installed, reason="rewarped is not installed (docs/rewarped.md says how to)"
    ),
]

BY_NAME = {task.name: task for task in all_tasks("rewarped")}
ANT = BY_NAME["rewarped-ant"]
LAST_ACTION = {"rewarped-ant": slice(29, 37), "rewarped-humanoid": slice(55, 76)}


def actions(task: str, steps: int, num_envs: int, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(steps, num_envs, BY_NAME[task].action_dim, generator=rng) - 1


def make(task: str = "rewarped-ant", num_envs: int = 3) -> BatchVectorEnv:
    return BatchVectorEnv(RewarpedBatch(BY_NAME[task], num_envs))


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
    """rewarped's own Ant, as its users make it for training without derivatives; restarts itself."""
    environment = type(RewarpedBatch(ANT, 1).raw)
    with quiet():
        return environment(num_envs=num_envs, no_grad=True, no_env_offset=True, device="cpu")


def place(raw: Any, simulator: RewarpedBatch, rows: torch.Tensor) -> None:
    """Give copies `rows` of `raw` the start states that the adapter's copies have."""
    for name in ("joint_q", "joint_qd", "body_q", "body_qd"):
        target, source = (getattr(env.state, name).view(raw.num_envs, -1) for env in (raw, simulator.raw))
        target[rows] = source[rows]
    raw.compute_observations()


@torch.no_grad()
def test_sixteen_ants_step_as_the_raw_simulator_does():
    simulator = RewarpedBatch(ANT, 16)
    env = BatchVectorEnv(simulator)
    with quiet():
        raw = raw_ant(16)
        raw.reset()
    assert not env.reset(0).equal(raw.obs_buf)
    place(raw, simulator, torch.arange(16))
    assert simulator.observe().equal(raw.obs_buf)
    ends = 0
    for action in actions("rewarped-ant", 50, 16):
        step = env.step(action)
        _, reward, done, info = raw.step(action)
        reached = raw.obs_buf if info["obs_before_reset"] is None else info["obs_before_reset"]
        assert step.final_obs.equal(reached)
        assert step.reward.equal(reward)
        assert step.terminated.equal(info["terminated"])
        assert step.done.equal(done)
        if done.any():  # each has restarted by its own randomness
            place(raw, simulator, done.nonzero()[:, 0])
            ends += int(done.sum())
        assert step.obs.equal(raw.obs_buf)
    assert ends > 0


@torch.no_grad()
def test_start_states_are_rewarpeds_own_draws():
    simulator = RewarpedBatch(ANT, 1)
    env = BatchVectorEnv(simulator)
    first = env.reset(5)
    raw = raw_ant(1)
    seed = episode_seed(5, 0, 0).generate_state(1, "uint64")[0]
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed) >> 1)
        assert raw.reset().equal(first)


@pytest.mark.parametrize("task", all_tasks("rewarped"), ids=lambda task: task.name)
def test_widths_types_and_seeds_of_every_task(task):
    env = make(task.name, 2)
    first = env.reset(3)
    assert first.shape == (2, task.obs_dim)
    assert not first[0].equal(first[1])
    table = actions(task.name, 30, 2)
    reached = follow(env, table)
    assert reached[0].shape == (30, 2, 2 * task.obs_dim)
    assert [tensor.dtype for tensor in reached] == [torch.float32, torch.float32, torch.bool, torch.bool]
    assert reached[0].isfinite().all()
    assert not env.reset(4).equal(first)
    assert env.reset(3).equal(first)
    assert all_equal(follow(env, table), reached)
    if task.name in LAST_ACTION:
        torch.testing.assert_close(reached[0][-1, :, task.obs_dim :][:, LAST_ACTION[task.name]], table[-1])


@pytest.mark.parametrize("task", ["rewarped-ant", "rewarped-cartpole"])
def test_an_episode_does_not_depend_on_the_others(task):
    alone, env, table = make(task, 1), make(task, 5), actions(task, 120, 5)
    assert alone.reset(1)[0].equal(env.reset(1)[0])
    together, lone = follow(env, table), follow(alone, table[:, :1])
    if ANT.name == task:
        assert together[2].any(dim=0).sum() > 1, "other copies must have restarted"
    assert all(one[:, 0].equal(other[:, 0]) for one, other in zip(together, lone, strict=True))


@pytest.mark.parametrize("task", ["rewarped-ant", "rewarped-cartpole"])
def test_starting_one_copy_leaves_the_others_where_they_are(task):
    env, other, table = make(task, 4), make(task, 4), actions(task, 40, 4)
    env.reset(0)
    other.reset(0)
    follow(env, table[:10])
    follow(other, table[:10])
    before = env.simulator.observe()
    env.simulator.start([2], [episode_seed(8, 2, 0)])
    after = env.simulator.observe()
    rows = [0, 1, 3]
    assert after[rows].equal(before[rows])
    assert not after[2].equal(before[2])
    moved = torch.stack([env.simulator.step(action).obs for action in table[10:]])
    kept = torch.stack([other.simulator.step(action).obs for action in table[10:]])
    assert moved[:, rows].equal(kept[:, rows])
    fresh = make(task, 4)
    fresh.reset(9)
    fresh.simulator.start([2], [episode_seed(8, 2, 0)])
    assert torch.stack([fresh.simulator.step(action).obs for action in table[10:]])[:, 2].equal(moved[:, 2])


def test_torchs_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    env = make()
    first = env.reset(0)
    reached = follow(env, actions("rewarped-ant", 60, 3))
    assert reached[2].any()
    assert torch.get_rng_state().equal(state)
    torch.manual_seed(6)
    assert env.reset(0).equal(first)


@pytest.mark.parametrize("task", ["rewarped-ant", "rewarped-cartpole"])
def test_a_saved_state_goes_on_bit_equally(task):
    env, other, table = make(task, 4), make(task, 4), actions(task, 240, 4)
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
    env, other, table = make(), make(), actions("rewarped-ant", 30, 3)
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
    ends = 0
    for action in actions("rewarped-ant", 60, 3):
        step = env.step(action)
        assert step.terminated.equal(step.final_obs[:, 0] < 0.27)
        assert not step.truncated.any()
        ends += int(step.terminated.sum())
    assert ends > 0
    pole = make("rewarped-cartpole", 2)
    pole.reset(0)
    for count, action in enumerate(torch.zeros(240, 2, 1), start=1):
        step = pole.step(action)
        assert not step.terminated.any()
        assert step.truncated.tolist() == [count == 240] * 2
    assert not step.obs.equal(step.final_obs)


def test_the_ants_reward_is_of_the_state_reached():
    env = make()
    env.reset(0)
    for action in actions("rewarped-ant", 20, 3):
        step = env.step(action)
        obs = step.final_obs
        expected = obs[:, 5] + 0.1 * obs[:, 27] + obs[:, 28] + (obs[:, 0] - 0.27)
        torch.testing.assert_close(step.reward, expected, rtol=1e-6, atol=1e-6)


def test_what_a_step_gave_shares_no_memory_with_the_simulation():
    env = make()
    env.reset(0)
    step = env.step(actions("rewarped-ant", 1, 3)[0])
    kept = env.simulator.raw.obs_buf.clone(), env.simulator.raw.rew_buf.clone()
    for given in (step.obs, step.final_obs, step.reward):
        given.zero_()
    assert env.simulator.raw.obs_buf.equal(kept[0])
    assert env.simulator.raw.rew_buf.equal(kept[1])


def test_description_is_the_state_before_the_last_step():
    env = make()
    env.reset(0)
    for action in actions("rewarped-ant", 3, 3):
        before = env.simulator.state_dict()["joint_q"].view(3, -1)[1].numpy()
        env.step(action)
        shown = np.array2string(before, precision=4, max_line_width=10_000)
        assert env.simulator.describe(1).startswith(f"before the step: joint_q {shown}, joint_qd [")
    last = env.simulator.describe(1)
    env.load_state_dict(env.state_dict())
    assert env.simulator.describe(1) != last


def test_a_broken_environment_is_a_fault_others_go_on():
    env, other, table = make(), make(), actions("rewarped-ant", 12, 3)
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
    got = torch.stack([step.obs, *(env.step(action).obs for action in table[1:])])
    assert got.isfinite().all()
    assert got[:, [0, 2]].equal(reached[0][:, [0, 2], : ANT.obs_dim])


def test_nothing_is_printed(capfd):
    env = make(num_envs=1)
    env.reset(0)
    follow(env, actions("rewarped-ant", 2, 1))
    assert capfd.readouterr() == ("", "")


def test_a_device_that_is_not_there_is_refused():
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentUnavailableError, match="no CUDA device"):
            RewarpedBatch(ANT, 1, device="cuda:0")
    with pytest.raises(EnvironmentUnavailableError, match="Allowed: cpu, cuda"):
        RewarpedBatch(ANT, 1, device="meta")


def test_drawing_is_refused_with_what_can_be_drawn():
    env = make(num_envs=1)
    env.reset(0)
    with pytest.raises(EnvironmentUnavailableError, match="mujoco-ant"):
        env.render(0)
