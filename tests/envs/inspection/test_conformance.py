"""The contract's checks pass on sound environments and find every defect that is built into one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs import make as opening
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.inspection.conformance import CHECKS, check_environment
from flowmbpo.envs.make import make_env
from flowmbpo.envs.simulators import SIMULATORS
from flowmbpo.envs.task_sets import TASK_SETS
from flowmbpo.envs.tasks import ALIASES, task_info, task_names
from flowmbpo.errors import ConfigError, EnvironmentUnavailableError

TOY = TaskConfig(name="toy-two-goals")
TOY_SET = TaskConfig(name=None, set="toys", tasks=("toy-pendulum-swingup", "toy-lqr"))
MIXED = TaskConfig(name=None, set="mixed", tasks=("pendulum-swingup", "toy-lqr", "mujoco-hopper", "mw-button-press"))
INSTALLED = [name for name in task_names() if name not in ALIASES and SIMULATORS[task_info(name).simulator].installed]


def verdicts(results):
    return {result.name: result.verdict for result in results}


def failures(results):
    return {result.name: result.detail for result in results if result.verdict == "failed"}


def quick(config, **options):
    return check_environment(config, **{"steps": 40, "workers": 0, "whole_episodes": False, **options})


TOYS = [name for name in task_names() if name.startswith("toy-")]
WHOLE = [name for name in TOYS if task_info(name).episode_length < 100 or name.startswith("toy-pendulum")]


@pytest.mark.parametrize("name", [name for name in TOYS if name not in WHOLE])
def test_toys_of_long_episodes_keep_the_contract(name):
    assert failures(quick(TaskConfig(name=name))) == {}


@pytest.mark.parametrize("name", WHOLE)
def test_toys_keep_the_contract_over_whole_episodes(name):
    results = check_environment(TaskConfig(name=name), steps=60)
    assert failures(results) == {}
    assert verdicts(results)["time limit"] == "passed"
    assert verdicts(results)["final observations"] == "passed"


@pytest.mark.parametrize(
    ("name", "options"),
    [("walker-stand", {"workers": 1}), ("mw-reach", {"steps": 110}), ("mujoco-ant", {"workers": 2, "steps": 120})],
)
def test_one_task_of_each_simulator_keeps_the_contract(name, options):
    assert failures(quick(TaskConfig(name=name), **options)) == {}


def test_a_set_of_several_simulators_keeps_the_contract():
    results = quick(MIXED)
    assert failures(results) == {}
    assert verdicts(results)["masked actions"] == "passed"
    assert verdicts(results)["padding"] == "passed"


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTALLED)
def test_every_installed_task_keeps_the_contract(name):
    assert failures(check_environment(TaskConfig(name=name))) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", TASK_SETS)
def test_every_shipped_set_keeps_the_contract(name):
    assert failures(check_environment(TaskConfig(name=None, set=name), steps=120, workers=2)) == {}


def test_results_come_in_order():
    results = quick(TOY)
    assert tuple(result.name for result in results) == tuple(CHECKS)
    assert {result.environment for result in results} == {"toy-two-goals"}
    assert all(result.cpu_s >= 0 and result.wall_s >= 0 for result in results)


def test_what_cannot_be_asked_is_skipped_with_a_reason():
    found = {result.name: (result.verdict, result.detail) for result in quick(TOY, steps=20)}
    assert found["padding"] == ("skipped", "all observations have the same width")
    assert found["masked actions"] == ("skipped", "all tasks use all actions")
    assert found["time limit"] == ("skipped", "20 steps are fewer than the limit of 25")
    assert found["final observations"] == ("skipped", "no episode ended within 20 steps")


def test_an_unknown_or_missing_environment_is_refused_not_failed(monkeypatch):
    with pytest.raises(ConfigError, match="no task is called 'walker-stnd'"):
        quick(TaskConfig(name="walker-stnd"))
    monkeypatch.setattr(opening, "make_env", refuse)
    with pytest.raises(EnvironmentUnavailableError, match="not here"):
        quick(TOY)


@pytest.mark.parametrize("options", [{"copies": 1}, {"steps": 1}])
def test_too_little_to_compare_is_refused(options):
    with pytest.raises(ValueError, match="at least 2"):
        check_environment(TOY, **options)


def refuse(*args, **options):
    raise EnvironmentUnavailableError("not here")


class Sabotaged(VectorEnv):
    """A sound environment behind a defect: subclasses override one thing."""

    def __init__(self, env):
        self.env = env
        self.spec, self.num_envs, self.task_ids = env.spec, env.num_envs, env.task_ids

    def reset(self, seed):
        return self.env.reset(seed)

    def step(self, action):
        return self.alter(self.env.step(action), action)

    def alter(self, step, action):
        return step

    def state_dict(self):
        return self.env.state_dict()

    def load_state_dict(self, state):
        return self.env.load_state_dict(state)

    def render(self, index=0):
        return self.env.render(index)


class DoubleReward(Sabotaged):
    def alter(self, step, action):
        return replace(step, reward=step.reward.double())


class UnreachedTask(Sabotaged):
    def __init__(self, env):
        super().__init__(env)
        self.task_ids = torch.ones_like(env.task_ids)


class InfiniteReward(Sabotaged):
    def alter(self, step, action):
        return replace(step, reward=step.reward / 0.0)


class OddSuccess(Sabotaged):
    def alter(self, step, action):
        return replace(step, success=torch.full_like(step.reward, 2.0))


class BothEnds(Sabotaged):
    def alter(self, step, action):
        return replace(step, terminated=step.truncated)


class SecretEnd(Sabotaged):
    def alter(self, step, action):
        return replace(step, terminated=step.truncated, truncated=torch.zeros_like(step.truncated))


class NoLimit(Sabotaged):
    def alter(self, step, action):
        return replace(step, truncated=torch.zeros_like(step.truncated))


class LostFinalObs(Sabotaged):
    def alter(self, step, action):
        return replace(step, final_obs=step.obs)


class NoAutoReset(Sabotaged):
    def alter(self, step, action):
        return replace(step, obs=step.final_obs)


class StrayFinalObs(Sabotaged):
    def alter(self, step, action):
        return replace(step, final_obs=step.final_obs + 1)


class Unseeded(Sabotaged):
    count = 0

    def alter(self, step, action):
        Unseeded.count += 1
        return replace(step, reward=step.reward + 1e-6 * Unseeded.count)


class SameSeed(Sabotaged):
    def reset(self, seed):
        return self.env.reset(0)


class SameCopies(Sabotaged):
    def reset(self, seed):
        return self.env.reset(seed)[:1].expand(self.num_envs, -1).clone()

    def alter(self, step, action):
        rows = torch.zeros(self.num_envs, dtype=torch.int64)
        return replace(
            step,
            obs=step.obs[rows],
            final_obs=step.final_obs[rows],
            reward=step.reward[rows],
            success=step.success[rows],
        )


class ForgottenCount(Sabotaged):
    """What it counts is not in its state."""

    def reset(self, seed):
        self.count = 0
        return super().reset(seed)

    def alter(self, step, action):
        self.count += 1
        return replace(step, reward=step.reward + self.count)

    def load_state_dict(self, state):
        self.count = 0
        return super().load_state_dict(state)


class LiveState(Sabotaged):
    """Its state holds an object that only this process has."""

    def state_dict(self):
        return {"environment": self.env}


class Neighbours(Sabotaged):
    def alter(self, step, action):
        return replace(step, reward=step.reward + action.sum().clamp(-5, 5))


class Permissive(Sabotaged):
    def step(self, action):
        if action.shape != (self.num_envs, self.spec.action_dim) or not action.isfinite().all():
            action = torch.zeros(self.num_envs, self.spec.action_dim)
        return self.env.step(action)


class MovedByRefusal(Sabotaged):
    def step(self, action):
        try:
            return self.env.step(action)
        except ValueError:
            self.env.step(torch.ones(self.num_envs, self.spec.action_dim))
            raise


class Unclipped(Sabotaged):
    def alter(self, step, action):
        return replace(step, reward=step.reward + action[:, 0])


class DirtyPadding(Sabotaged):
    def alter(self, step, action):
        obs = step.obs.clone()
        obs[:, -1] += 1.0
        return replace(step, obs=obs)


class LeakingMask(Sabotaged):
    def alter(self, step, action):
        return replace(step, reward=step.reward + 0.1 * action[:, -1].clamp(-1, 1))


class Raising(Sabotaged):
    def step(self, action):
        raise RuntimeError("the simulator is confused")


class RaisingOnClip(Sabotaged):
    """Breaks on one kind of action, and is of no use after that."""

    broken = False

    def step(self, action):
        if self.broken or (action.isfinite().all() and action.abs().max() > 1):
            self.broken = True
            raise RuntimeError("the simulator is confused")
        return self.env.step(action)


class RaisingOnLoad(Sabotaged):
    def load_state_dict(self, state):
        raise KeyError("episode")


DEFECTS = [
    (DoubleReward, "shapes", "reward: (30, 2) of torch.float64, expected (30, 2) of torch.float32"),
    (InfiniteReward, "finite", "values are not finite"),
    (OddSuccess, "finite", "success is outside [0, 1]"),
    (BothEnds, "ends", "copy 0 in step 25 is terminated and truncated at once"),
    (SecretEnd, "ends", "toy-two-goals terminates, which its row denies"),
    (NoLimit, "time limit", "copy 0 (toy-two-goals) is not truncated in step 25, after 25 of 25 steps"),
    (LostFinalObs, "final observations", "copy 0 in step 25 ends an episode, but obs is still its last observation"),
    (NoAutoReset, "final observations", "copy 0 in step 25 ends an episode"),
    (StrayFinalObs, "final observations", "copy 0 in step 1 has a final_obs other than its obs"),
    (Unseeded, "repeatable", "reward of copy 0 in step 1: differs"),
    (SameSeed, "seeds", "seeds 0 and 1 give copy 0 the same 30 steps"),
    (SameCopies, "seeds", "copies 0 and 1 are given the same 30 steps"),
    (ForgottenCount, "resume", "reward of copy 0 in step 1: differs by up to"),
    (LiveState, "rollout", "the saved state holds more than tensors"),
    (Neighbours, "independent", "reward of copy 0 in step 1: differs"),
    (Permissive, "refusals", "an action with shape (1, 2) was accepted"),
    (MovedByRefusal, "refusals", "obs of copy 0 in step 1: differs"),
    (Unclipped, "clipping", "in step 1: differs by up to"),
    (Raising, "rollout", "RuntimeError: the simulator is confused"),
    (RaisingOnLoad, "resume", "KeyError: 'episode'"),
]


def sabotage(monkeypatch, defect):
    monkeypatch.setattr(opening, "make_env", lambda *args, **options: defect(make_env(*args, **options)))


def test_the_control_without_a_defect_passes(monkeypatch):
    sabotage(monkeypatch, Sabotaged)
    assert failures(quick(TOY, steps=60)) == {}
    assert failures(quick(TOY_SET)) == {}


@pytest.mark.parametrize(("defect", "name", "detail"), DEFECTS)
def test_a_defect_is_found_by_its_check(monkeypatch, defect, name, detail):
    sabotage(monkeypatch, defect)
    found = failures(quick(TOY, steps=30))
    assert detail in found[name]


@pytest.mark.parametrize(
    ("defect", "name", "detail"),
    [
        (UnreachedTask, "shapes", "the copies run tasks [1] of 2"),
        (DirtyPadding, "padding", "(toy-pendulum-swingup) writes beyond its 3 observations"),
        (LeakingMask, "masked actions", "in step 1: differs"),
        (Neighbours, "independent", "reward of copy 0 in step 1: differs"),
    ],
)
def test_a_defect_of_a_set_is_found_by_its_check(monkeypatch, defect, name, detail):
    sabotage(monkeypatch, defect)
    assert detail in failures(quick(TOY_SET))[name]


def test_without_a_rollout_the_other_checks_are_skipped(monkeypatch):
    sabotage(monkeypatch, Raising)
    results = quick(TOY)
    assert verdicts(results) == {name: "failed" if name == "rollout" else "skipped" for name in CHECKS}
    assert {result.detail for result in results[1:]} == {"the rollout failed"}


def test_an_instance_that_broke_is_not_used_again(monkeypatch):
    sabotage(monkeypatch, RaisingOnClip)
    assert set(failures(quick(TOY_SET))) == {"clipping"}
