"""Seconds of training are seconds of training alone; what a run is later asked about."""

import time
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.make import make_env
from flowmbpo.runs import train as page
from flowmbpo.runs.session import Milestones, TrainingClock

SLACK_S = 0.2


@pytest.fixture
def env():
    return make_env(TaskConfig(name="toy-pendulum-swingup", num_envs=1))


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_time_in_pauses_counts_as_nothing_and_other_time_counts(env):
    clock = TrainingClock(env.cpu_seconds, {})
    burn(0.1)
    with clock.paused():
        burn(0.3)
        time.sleep(0.3)
    assert 0.1 <= clock.times["cpu_s"] < 0.1 + SLACK_S
    assert 0.1 <= clock.times["wall_s"] < 0.1 + 0.3 + SLACK_S


def test_pause_that_fails_is_still_taken_out(env):
    clock = TrainingClock(env.cpu_seconds, {})
    with pytest.raises(ZeroDivisionError), clock.paused():
        burn(0.3)
        raise ZeroDivisionError
    assert clock.times["cpu_s"] < SLACK_S


def test_earlier_seconds_are_added(env):
    clock = TrainingClock(env.cpu_seconds, {"wall_s": 100.0, "cpu_s": 50.0})
    assert 100.0 <= clock.times["wall_s"] < 100.0 + SLACK_S
    assert 50.0 <= clock.times["cpu_s"] < 50.0 + SLACK_S


def test_cpu_time_of_workers_counts():
    worked = [0.0]
    clock = TrainingClock(lambda: worked[0], {})
    worked[0] = 7.0
    assert 7.0 <= clock.times["cpu_s"] < 7.0 + SLACK_S


def test_evaluation_is_not_in_the_runs_seconds(train, config, tmp_path, monkeypatch):
    from flowmbpo.runs import session

    evaluate = session.evaluate

    def slow(*args):
        burn(0.2)
        return evaluate(*args)

    monkeypatch.setattr(session, "evaluate", slow)
    ends = []
    whole = page.run_epochs

    def run(*args):
        start = time.process_time()
        outcome = whole(*args)
        ends.append(time.process_time() - start)
        return outcome

    monkeypatch.setattr(page, "run_epochs", run)
    outcome = train(config(), out=tmp_path / "run")  # three evaluations: epochs 2 and 4, and the final one
    assert outcome.cpu_s < ends[0] - 0.6 + 0.05


def seen(*returns, state=None):
    milestones = Milestones(**(state or {}))
    for steps, mean in returns:
        milestones.note(steps, SimpleNamespace(return_mean=mean))
    return milestones


def test_agent_steps_to_a_threshold_are_those_of_the_first_evaluation_that_reached_it():
    milestones = seen((0, 1.0), (100, 50.0), (200, 49.0), (300, 80.0))
    assert [milestones.agent_steps_to(threshold) for threshold in (50.0, 90.0, None)] == [100, None, None]


@pytest.mark.parametrize(("threshold", "steps"), [(20.0, 100), (70.0, 400)])
def test_a_threshold_that_a_resume_changes_is_judged_on_what_came_before_too(threshold, steps):
    first = seen((0, 1.0), (100, 30.0), (200, 60.0))
    assert seen((400, 90.0), state=asdict(first)).agent_steps_to(threshold) == steps
