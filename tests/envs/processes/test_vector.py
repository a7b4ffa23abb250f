"""Worker processes: the step's bookkeeping, and every way to fail."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from scripted_simulator import (
    ABSURDITY,
    CRASH,
    DIVERGENCE,
    EXIT,
    NOT_A_NUMBER,
    REWARDLESS,
    TASK,
    ScriptedSimulator,
    StubbornSimulator,
)

from flowmbpo.envs.episodes import episode_seed
from flowmbpo.envs.processes.vector import WorkerVectorEnv
from flowmbpo.errors import EnvironmentFailure
from flowmbpo.spec import EnvSpec


def make(num_envs=4, workers=2, task=TASK, simulator=ScriptedSimulator):
    return WorkerVectorEnv(EnvSpec((task,)), [simulator], [0] * num_envs, workers)


def worker_processes(of: psutil.Process | None = None) -> list[psutil.Process]:
    children = (of or psutil.Process()).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def gone(processes: list[psutil.Process], within: float = 5.0) -> bool:
    return not psutil.wait_procs(processes, timeout=within)[1]


def only(index: int, value: float, num_envs: int = 4) -> torch.Tensor:
    action = torch.zeros(num_envs, 2)
    action[index, 0] = value
    return action


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_steps_ends_and_starts_are_delivered(workers):
    env = make(workers=workers)
    start = env.reset(9)
    assert start[:, 0].unique().numel() == 4
    env.step(torch.full((4, 2), 0.5))
    step = env.step(only(2, -0.5) + torch.tensor([[0.0, 0.1], [0.0, 0.2], [0.0, 0.3], [0.0, 0.4]]))
    assert step.reward.tolist() == pytest.approx([1, 2, 3, 4])
    assert step.terminated.tolist() == [False, False, True, False]
    assert not step.truncated.any()
    assert step.success.tolist() == [2, 2, 2, 2]
    assert step.final_obs[2].tolist() == pytest.approx([start[2, 0].item(), 2, -0.5])
    assert step.obs[2, 1] == 0
    assert step.obs[2, 0] != start[2, 0]
    for _ in range(2):
        step = env.step(torch.zeros(4, 2))
    step = env.step(only(0, -1.0))  # step 5 of 5: an end by the task and by the clock is the task's
    assert step.terminated.tolist() == [True, False, False, False]
    assert step.truncated.tolist() == [False, True, False, True]
    env.close()


def test_more_workers_than_copies_are_not_started():
    before = len(worker_processes())
    env = make(num_envs=2, workers=5)
    assert len(worker_processes()) - before == 2
    env.close()
    assert len(worker_processes()) == before


def test_waiting_costs_no_cpu_time_and_work_is_counted():
    env = make(workers=1)
    env.reset(0)
    used = env.cpu_seconds()
    assert used > 0
    time.sleep(0.5)
    idle = env.cpu_seconds()
    assert idle - used < 0.05
    for _ in range(200):
        env.step(torch.zeros(4, 2))
    assert env.cpu_seconds() > idle
    env.close()
    assert env.cpu_seconds() >= idle


def test_close_ends_the_workers_and_may_be_repeated():
    env = make()
    processes = worker_processes()
    env.reset(0)
    env.close()
    env.close()
    assert gone(processes)
    with pytest.raises(EnvironmentFailure, match="closed"):
        env.reset(0)


def test_a_forgotten_environment_ends_its_workers():
    env = make()
    processes = worker_processes()
    assert processes
    del env
    assert gone(processes)


@pytest.mark.parametrize(
    ("moment", "how"),
    [("idle", "exit code -9"), ("as a step starts", "exit code -9"), ("reaped by other code", "closed its pipe")],
)
def test_a_killed_worker_is_an_error_within_seconds(moment, how):
    env = make()
    processes = worker_processes()
    victim = processes[1]
    env.reset(0)
    env.step(torch.full((4, 2), 0.25))
    before = time.monotonic()
    if moment == "as a step starts":
        victim.suspend()
    victim.kill()
    if moment == "idle":
        while victim.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
    elif moment == "reaped by other code":
        victim.wait(5)
    with pytest.raises(EnvironmentFailure) as caught:
        env.step(torch.zeros(4, 2))
    assert time.monotonic() - before < 5
    message = str(caught.value)
    assert message.startswith("scripted: environments ")
    assert how in message
    assert "after 1 steps" in message
    assert gone(processes)


def test_a_worker_that_exits_names_the_copy_it_was_at():
    env = make()
    processes = worker_processes()
    env.reset(0)
    env.step(torch.zeros(4, 2))
    with pytest.raises(EnvironmentFailure, match=r"environment 3 failed in episode 0 after 1 steps.*\[0.8.*code 7"):
        env.step(only(3, EXIT))
    assert gone(processes)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_simulator_that_raises_is_quoted(workers):
    env = make(workers=workers)
    processes = worker_processes()
    env.reset(0)
    with pytest.raises(
        EnvironmentFailure, match=r"environment 2 failed.*ZeroDivisionError: the gearbox is gone"
    ) as caught:
        env.step(only(2, CRASH))
    assert "scripted_simulator.py" in caught.value.__notes__[0]
    assert gone(processes)
    with pytest.raises(EnvironmentFailure, match="closed"):
        env.step(torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (NOT_A_NUMBER, "a result is not finite: reward 0, observation entries {1: nan}"),
        (REWARDLESS, "a result is not finite: reward inf, observation entries {}"),
        (ABSURDITY, "a result is absurd (beyond 1e+06): reward 0, observation entries {1: 1e+07}"),
        (DIVERGENCE, "the physics state is invalid"),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_episode_is_a_fault_the_next_begins(value, reason, workers):
    env, calm = make(workers=workers), make(workers=0)
    env.reset(3)
    calm.reset(3)
    earlier = torch.full((4, 2), 0.25)
    env.step(earlier)
    calm.step(earlier)
    step, undisturbed = env.step(only(1, value)), calm.step(torch.zeros(4, 2))
    (fault,) = step.faults
    assert (fault.index, fault.task, fault.seed, fault.episode, fault.step) == (1, "scripted", 3, 0, 2)
    assert (fault.reason, fault.state) == (reason, "scripted state 2")
    assert fault.actions.tolist() == [[0.25, 0.25], pytest.approx([value, 0.0])]
    assert not step.done.any()
    assert step.reward[1] == 0
    assert step.success[1].isnan()
    assert step.obs[1].equal(step.final_obs[1])
    assert step.obs[1, 1] == 0  # the first observation of the next episode
    others = [0, 2, 3]
    assert step.obs[others].equal(undisturbed.obs[others])
    assert not env.step(torch.zeros(4, 2)).faults
    saved = env.state_dict()
    assert saved["episode"].tolist() == [0, 1, 0, 0]
    assert [len(actions) for actions in saved["actions"]] == [3, 1, 3, 3]
    env.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_episode_that_cannot_start_is_a_fault(workers):
    env, calm = make(workers=workers, simulator=StubbornSimulator), make(workers=0)
    env.reset(3)
    calm.reset(3)
    step, undisturbed = env.step(only(1, -1.0)), calm.step(only(1, -1.0))
    assert [(fault.index, fault.episode, fault.step, fault.at_start) for fault in step.faults] == [
        (1, 1, 0, True),
        (1, 2, 0, True),
    ]
    assert [fault.reason[:9] for fault in step.faults] == ["no room f", "a result "]
    assert step.faults[0].actions.shape == (0, 2)
    for name in ("reward", "terminated", "truncated", "final_obs", "success"):  # of the step nothing is in doubt
        assert getattr(step, name).equal(getattr(undisturbed, name))
    others = [0, 2, 3]
    assert step.obs[others].equal(undisturbed.obs[others])
    third = np.random.default_rng(episode_seed(3, 1, 3)).uniform()
    assert step.obs[1].tolist() == [pytest.approx(third), 0, 0]
    step = env.step(torch.full((4, 2), 0.25))
    assert not step.faults
    saved = env.state_dict()
    assert saved["episode"].tolist() == [0, 3, 0, 0]
    fresh = make(workers=0, simulator=StubbornSimulator)
    assert fresh.load_state_dict(saved).equal(step.obs)
    env.close()


def test_a_broken_step_and_then_start_are_two_faults():
    env = make(workers=0, simulator=StubbornSimulator)
    env.reset(3)
    step = env.step(only(1, DIVERGENCE))
    assert [(fault.episode, fault.step) for fault in step.faults] == [(0, 1), (1, 0), (2, 0)]
    assert not step.done.any()
    assert step.final_obs[1].equal(step.obs[1])
    assert step.obs.isfinite().all()
    assert env.state_dict()["episode"].tolist() == [0, 3, 0, 0]


def test_ten_failed_starts_of_one_environment_are_an_error():
    env = make(num_envs=10, workers=0, simulator=StubbornSimulator)
    with pytest.raises(EnvironmentFailure, match=r"10 episodes in a row could not start; .*environment 9 .*episode 9"):
        env.reset(0)


def test_a_first_episode_that_cannot_start_is_logged(monkeypatch, caplog):
    env = make(workers=0, simulator=StubbornSimulator)
    group_seed = episode_seed
    monkeypatch.setattr("flowmbpo.envs.episodes.episode_seed", lambda *at: group_seed(*at[:2], at[2] + 1))
    with caplog.at_level(logging.WARNING, "flowmbpo"):
        env.reset(5)
    assert "environment 1 broke at the start of episode 0 (seed 5): no room for copy 1" in caplog.text
    assert env.state_dict()["episode"].tolist() == [0, 2, 0, 0]


def test_a_lower_bound_for_the_absurd_holds(monkeypatch):
    env = make(workers=0, simulator=StubbornSimulator)
    env.reset(0)
    monkeypatch.setattr(env, "absurd", 4.5)
    action = torch.zeros(4, 2)
    action[2, 1] = 0.5  # a reward of 5
    assert [fault.reason for fault in env.step(action).faults] == [
        "a result is absurd (beyond 4.5): reward 5, observation entries {}"
    ]


def test_the_last_step_can_be_saved_after_a_failure():
    env = make(workers=0)
    env.reset(0)
    obs = env.step(torch.full((4, 2), 0.1)).obs
    with pytest.raises(EnvironmentFailure):
        env.step(only(1, CRASH))
    fresh = make(workers=0)
    assert fresh.load_state_dict(env.state_dict()).equal(obs)


def test_the_last_step_can_be_saved_after_a_crash_at_a_start(monkeypatch):
    env = make(workers=0)
    env.reset(0)
    for _ in range(4):
        obs = env.step(torch.full((4, 2), 0.1)).obs
    with monkeypatch.context() as patch:
        patch.setattr(ScriptedSimulator, "reset", lambda *_: 1 / 0)
        with pytest.raises(EnvironmentFailure, match=r"environment 0 failed in episode 1 after 0 steps.*ZeroDivision"):
            env.step(torch.zeros(4, 2))
    assert make(workers=0).load_state_dict(env.state_dict()).equal(obs)


def test_a_simulator_of_another_width_is_refused_at_the_start():
    wide = dataclasses.replace(TASK, obs_dim=4)
    with pytest.raises(EnvironmentFailure, match=r"widths \(3, 2\), the task table says \(4, 2\)"):
        make(task=wide)
    assert not worker_processes()


def test_workers_end_when_their_parent_is_killed():
    program = (
        f"import sys; sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})\n"
        "from functools import partial\n"
        "from scripted_simulator import TASK, ScriptedSimulator\n"
        "from flowmbpo.envs.processes.worker import ProcessWorker\n"
        "from flowmbpo.envs.processes.rendering import drawer_handlers\n"
        "workers = [ProcessWorker(partial(drawer_handlers, ScriptedSimulator, TASK), {}) for _ in range(2)]\n"
        "[worker.receive() for worker in workers]; print('ready', flush=True); input()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        processes = worker_processes(psutil.Process(parent.pid))
        assert len(processes) == 2
        for process in processes:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # requests to stop belong to the parent
                process.send_signal(number)
        time.sleep(0.2)
        assert all(process.is_running() for process in processes)
        parent.kill()
    assert gone(processes)


def test_a_program_that_never_closed_its_environment_still_ends():
    program = (
        f"import sys; sys.path.insert(0, {os.path.dirname(os.path.dirname(__file__))!r})\n"
        "import tempfile, weakref; weakref.finalize(tempfile, print)\n"  # its exit hook stands before multiprocessing's
        "from scripted_simulator import TASK, ScriptedSimulator\n"
        "from flowmbpo.envs.processes.worker import ProcessWorker\n"
        "from flowmbpo.envs.processes.rendering import drawer_handlers\n"
        "from functools import partial\n"
        "worker = ProcessWorker(partial(drawer_handlers, ScriptedSimulator, TASK), {})\n"
        "worker.receive()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=30, capture_output=True).returncode == 0
