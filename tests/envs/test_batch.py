"""The contract around a batch simulator: episodes, seeds, limits, faults, saved states."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from flowmbpo.envs.batch import BatchSimulator, BatchVectorEnv
from flowmbpo.envs.contract import BatchOutcome
from flowmbpo.envs.episodes import episode_seed
from flowmbpo.errors import EnvironmentFailure
from flowmbpo.spec import TaskInfo

TASK = TaskInfo("counted", "scripted", 3, 2, episode_length=5, action_repeat=1, discount=0.95, can_terminate=True)
NAN, ABSURD, REWARDLESS, LARGE = 0.7, 0.6, 0.55, 0.5


class CountedBatch(BatchSimulator):
    """Observation [start, step, action[0]], reward 10 action[1]; action[0] < 0 terminates, some values break it."""

    task = TASK

    def __init__(self, num_envs):
        self.num_envs = num_envs
        self.first = torch.zeros(num_envs)
        self.clock = torch.zeros(num_envs)
        self.last = torch.zeros(num_envs)
        self.before = torch.zeros(num_envs)
        self.broken_starts = {}  # (copy, episode) to what its start does

    def start(self, indices, seeds):
        refused = {}
        for index, seed in zip(indices, seeds, strict=True):
            how = self.broken_starts.get((index, seed.entropy[2]))
            if how == "refuses":
                refused[index] = f"no room for copy {index}"
                continue
            self.first[index] = np.nan if how == "is nan" else np.random.default_rng(seed).uniform()
            self.clock[index] = self.last[index] = self.before[index] = 0.0
        return refused

    def observe(self):
        return torch.stack((self.first, self.clock, self.last), dim=1)

    def step(self, action):
        self.before = self.clock.clone()
        self.clock += 1
        self.last = action[:, 0].clone()
        obs, reward = self.observe(), 10 * action[:, 1]
        obs[self.last == torch.tensor(NAN), 1] = torch.nan
        obs[self.last == torch.tensor(ABSURD), 1] = 2e6
        obs[self.last == torch.tensor(LARGE), 1] = 2e3
        reward[self.last == torch.tensor(REWARDLESS)] = torch.inf
        return BatchOutcome(obs, reward, self.last < 0)

    def state_dict(self):
        return {"first": self.first.clone(), "clock": self.clock.clone(), "last": self.last.clone()}

    def load_state_dict(self, state):
        self.first, self.clock, self.last = (state[name].clone() for name in ("first", "clock", "last"))

    def describe(self, index):
        return f"clock {self.before[index]:.0f}"

    def render(self, index):
        return np.full((2, 2, 3), int(self.clock[index]), dtype=np.uint8)


def make(num_envs=4):
    return BatchVectorEnv(CountedBatch(num_envs))


def only(index, value):
    action = torch.zeros(4, 2)
    action[index, 0] = value
    return action


def test_ends_of_either_kind_start_the_next_episode():
    env = make()
    start = env.reset(2)
    assert start[:, 0].unique().numel() == 4
    env.step(torch.full((4, 2), 0.5))
    step = env.step(only(2, -0.5))
    assert step.terminated.tolist() == [False, False, True, False]
    assert step.final_obs[2].tolist() == pytest.approx([start[2, 0].item(), 2, -0.5])
    assert step.obs[2, 1:].tolist() == [0, 0]
    assert step.obs[2, 0] != start[2, 0]
    assert step.obs[[0, 1, 3]].equal(step.final_obs[[0, 1, 3]])
    for _ in range(2):
        env.step(torch.zeros(4, 2))
    step = env.step(only(0, -1.0))
    assert step.terminated.tolist() == [True, False, False, False]
    assert step.truncated.tolist() == [False, True, False, True]
    assert step.success.isnan().all()


def test_an_episode_depends_on_seed_copy_and_number_alone():
    few, many = make(2), make(4)
    assert few.reset(7).equal(many.reset(7)[:2])
    few.step(torch.full((2, 2), -0.5))  # all terminate: episode 1
    many.step(torch.tensor([[-0.5, 0.0], [-0.5, 0.0], [0.1, 0.0], [0.1, 0.0]]))
    a, b = few.step(torch.zeros(2, 2)), many.step(torch.zeros(4, 2))
    assert a.obs.equal(b.obs[:2])
    assert not few.reset(8).equal(few.reset(7))


@pytest.mark.parametrize(("value", "kind"), [(NAN, "not finite"), (ABSURD, "absurd"), (REWARDLESS, "not finite")])
def test_a_copy_with_broken_numbers_is_a_fault_and_restarts(value, kind):
    env = make()
    env.reset(1)
    env.step(torch.full((4, 2), 0.25))
    action = only(1, value)
    action[2, 0] = -1.0
    step = env.step(action)
    (fault,) = step.faults
    assert (fault.index, fault.episode, fault.step, fault.state) == (1, 0, 2, "clock 1")
    assert kind in fault.reason
    assert fault.actions.tolist() == [[0.25, 0.25], pytest.approx([value, 0.0])]
    assert step.done.tolist() == [False, False, True, False]
    assert step.reward[1] == 0
    assert step.success[1].isnan()
    assert step.obs[1].equal(step.final_obs[1])
    assert step.obs[:, 1].tolist() == [2, 0, 0, 2]
    assert env.state_dict()["episode"].tolist() == [0, 1, 1, 0]
    assert not env.step(torch.zeros(4, 2)).faults


@pytest.mark.parametrize("how", ["refuses", "is nan"])
def test_an_episode_that_cannot_start_is_a_fault(how):
    env, calm = make(), make()
    env.simulator.broken_starts = {(1, 1): how, (1, 2): how}
    env.reset(6)
    calm.reset(6)
    step, undisturbed = env.step(only(1, -1.0)), calm.step(only(1, -1.0))
    assert [(fault.index, fault.episode, fault.step, fault.at_start) for fault in step.faults] == [
        (1, 1, 0, True),
        (1, 2, 0, True),
    ]
    assert str(step.faults[0]).startswith("counted: environment 1 broke at the start of episode 1 (seed 6)")
    assert step.faults[0].actions.shape == (0, 2)
    for name in ("reward", "terminated", "truncated", "final_obs"):  # of the step nothing is in doubt
        assert getattr(step, name).equal(getattr(undisturbed, name))
    others = [0, 2, 3]
    assert step.obs[others].equal(undisturbed.obs[others])
    assert env.state_dict()["episode"].tolist() == [0, 3, 0, 0]
    third = np.random.default_rng(episode_seed(6, 1, 3)).uniform()
    assert step.obs[1].tolist() == [pytest.approx(third), 0, 0]
    assert not env.step(torch.zeros(4, 2)).faults


def test_a_broken_step_and_then_start_are_two_faults():
    env = make()
    env.simulator.broken_starts = {(2, 1): "refuses"}
    env.reset(0)
    step = env.step(only(2, NAN))
    assert [(fault.episode, fault.step, fault.reason[:9]) for fault in step.faults] == [
        (0, 1, "a result "),
        (1, 0, "no room f"),
    ]
    assert not step.done.any()
    assert env.state_dict()["episode"].tolist() == [0, 0, 2, 0]


def test_a_first_episode_that_cannot_start_is_logged(caplog):
    env = make()
    env.simulator.broken_starts = {(3, 0): "refuses"}
    with caplog.at_level(logging.WARNING, "flowmbpo"):
        obs = env.reset(0)
    assert "environment 3 broke at the start of episode 0 (seed 0): no room for copy 3" in caplog.text
    assert obs[3, 0] == pytest.approx(np.random.default_rng(episode_seed(0, 3, 1)).uniform())
    assert env.state_dict()["episode"].tolist() == [0, 0, 0, 1]


def test_ten_failed_starts_in_a_row_are_the_end():
    env = make()
    env.simulator.broken_starts = {(0, episode): "is nan" for episode in range(9)}
    assert env.reset(0).isfinite().all()
    env.simulator.broken_starts[0, 9] = "refuses"
    with pytest.raises(EnvironmentFailure, match=r"10 episodes in a row could not start; .*environment 0 .*episode 9"):
        env.reset(0)
    with pytest.raises(EnvironmentFailure, match="closed"):
        env.reset(0)


def test_a_simulators_own_bound_for_the_absurd_holds():
    careful = CountedBatch(4)
    careful.absurd = 1e3
    env, strict = make(), BatchVectorEnv(careful)
    for each in (env, strict):
        each.reset(0)
    assert not env.step(only(1, LARGE)).faults
    (fault,) = strict.step(only(1, LARGE)).faults
    assert (fault.index, fault.reason[:29]) == (1, "a result is absurd (beyond 1e")
    assert "(beyond 1e+03)" in fault.reason


def test_whatever_a_simulator_raises_is_an_environment_failure_and_closes(monkeypatch):
    env = make()
    env.reset(0)

    def out_of_memory(action):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(env.simulator, "step", out_of_memory)
    with pytest.raises(EnvironmentFailure, match="counted: the simulator failed: RuntimeError: CUDA error") as caught:
        env.step(torch.zeros(4, 2))
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(EnvironmentFailure, match="closed"):
        env.step(torch.zeros(4, 2))


def test_a_closed_environment_says_so():
    env = make()
    env.reset(0)
    state = env.state_dict()
    env.close()
    env.close()
    uses = (
        lambda: env.step(torch.zeros(4, 2)),
        lambda: env.reset(0),
        lambda: env.render(0),
        env.state_dict,
        lambda: env.load_state_dict(state),
    )
    for use in uses:
        with pytest.raises(EnvironmentFailure, match="counted: the environment is closed; make it again"):
            use()


def test_results_share_no_memory():
    env = make()
    env.reset(0)
    step = env.step(torch.zeros(4, 2))
    step.obs.fill_(7.0)
    assert step.final_obs[:, 1].tolist() == [1, 1, 1, 1]


def test_a_fault_after_loading_tells_the_actions_before_it_too():
    env, fresh = make(), make()
    env.reset(1)
    env.step(torch.full((4, 2), 0.25))
    state = env.state_dict()
    fresh.load_state_dict(state)
    (fault,) = fresh.step(only(0, NAN)).faults
    assert fault.actions.tolist() == [[0.25, 0.25], pytest.approx([NAN, 0.0])]


def test_a_saved_state_goes_on_bit_for_bit():
    env, action = make(), torch.full((4, 2), 0.25)
    env.reset(3)
    for _ in range(7):
        obs = env.step(action).obs
    fresh = make()
    assert fresh.load_state_dict(env.state_dict()).equal(obs)
    for _ in range(7):
        assert fresh.step(action).obs.equal(env.step(action).obs)
    with pytest.raises(ValueError, match="4 x 'counted'; this one is 2 x 'counted'"):
        make(2).load_state_dict(env.state_dict())


def test_actions_are_checked_and_clipped():
    env = make()
    with pytest.raises(ValueError, match="reset"):
        env.step(torch.zeros(4, 2))
    env.reset(0)
    with pytest.raises(ValueError, match="shape"):
        env.step(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="environment 2 is not finite"):
        env.step(only(2, float("nan")))
    assert env.step(torch.full((4, 2), 3.0)).reward.tolist() == [10, 10, 10, 10]
    assert int(env.render(1)[0, 0, 0]) == 1
