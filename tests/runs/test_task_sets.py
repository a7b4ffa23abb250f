"""Runs over several tasks: evaluated evenly, refused early, and one task at a time."""

import collections
import json
import logging
from pathlib import Path

import pytest
import torch

from flowmbpo.checkpoints.load import load
from flowmbpo.envs.resolve import resolve
from flowmbpo.errors import ConfigError, EnvironmentFailure, StorageError
from flowmbpo.runs.evaluate import EVALUATION_ENVS, evaluate_checkpoint, evaluation_env, evaluation_episodes
from flowmbpo.runs.session import TrainingSession
from flowmbpo.runs.start import dry_run
from flowmbpo.tracking.sink import read_rows

CPU = torch.device("cpu")
TOYS = {"name": None, "set": "toys", "tasks": ["toy-lqr", "toy-two-goals", "toy-map-smooth"], "num_envs": 4}
LEGS = {"name": None, "set": "legs", "tasks": ["ant", "hopper"], "num_envs": 2}


@pytest.fixture
def toys(config):
    """The tiny config over three toy tasks."""
    return lambda **changes: config(task=TOYS, **changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def run(finished, train, toys):
    """A finished run over the three, shared by the module."""
    if not finished.exists():
        train(toys(**{"training.epochs": 2}), out=finished)
    return finished


def test_episodes_that_do_not_come_out_even_are_rounded_up_and_said_once(train, toys, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="flowmbpo")
    outcome = train(toys(**{"evaluation.episodes": 4, "evaluation.every": 1}), out=tmp_path / "run")
    assert (outcome.status, outcome.eval_episodes) == ("done", 6)
    said = [message for message in caplog.messages if "do not come out even" in message]
    assert said == [
        "evaluation: 4 episodes do not come out even over the 3 tasks of 'toys'; it takes 6, 2 of each task"
    ]


def test_eval_rounds_up_too(run):
    figures = evaluate_checkpoint(run, episodes=4).evaluation
    assert {task: own["episodes"] for task, own in figures.per_task().items()} == dict.fromkeys(TOYS["tasks"], 2)


@pytest.mark.parametrize(("episodes", "copies"), [(33, 3), (36, 18), (48, 24), (20, 21), (1, 3), (3000, 30)])
def test_copies_share_out_the_episodes_of_every_task_evenly(toys, episodes, copies):
    task = resolve(toys().task)
    env = evaluation_env(task, episodes, 0, CPU)
    even = evaluation_episodes(task, episodes)
    assert env.num_envs == copies <= EVALUATION_ENVS
    assert even % copies == 0  # the evaluation gives remainders to the first copies, whatever their task
    assert set(collections.Counter(env.task_ids.tolist()).values()) == {copies // 3}


def test_single_task_keeps_as_many_copies_as_fit(config):
    task = resolve(config().task)
    assert evaluation_env(task, 33, 0, CPU).num_envs == EVALUATION_ENVS
    assert evaluation_episodes(task, 33) == 33


@pytest.mark.parametrize("dry", [True, False])
def test_too_few_copies_for_the_tasks_are_refused_before_anything_is_written(train, config, tmp_path, dry):
    settings = config(task={**TOYS, "num_envs": 2})
    with pytest.raises(ConfigError, match=r"task\.num_envs: 2 copies cannot hold the 3 tasks of 'toys'.*at least 3"):
        dry_run(settings) if dry else train(settings, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [EnvironmentFailure("a worker died"), RuntimeError("bus error")])
def test_failing_periodic_evaluation_loses_no_training(train, config, tmp_path, monkeypatch, error):
    def fail(session, epoch):
        raise error

    settings = config(**{"evaluation.every": 3, "checkpoint.every": 0})
    with monkeypatch.context() as broken:
        broken.setattr(TrainingSession, "_evaluate", fail)
        with pytest.raises(type(error), match=str(error)):
            train(settings, out=tmp_path / "run")
    assert load(tmp_path / "run" / "checkpoints" / "latest.pt").payload["epoch"] == 3
    assert read_rows(tmp_path / "run" / "metrics.jsonl")[-1]["epoch"] == 3
    assert train(settings, resume=tmp_path / "run").epochs == 4


def test_evaluations_error_is_raised_even_where_the_disk_refuses_to_save(train, config, tmp_path, monkeypatch):
    def fail(session, epoch):
        monkeypatch.setattr(TrainingSession, "_save", refuse)
        raise EnvironmentFailure("a worker died")

    def refuse(session):
        raise StorageError("latest.pt: cannot be written")

    monkeypatch.setattr(TrainingSession, "_evaluate", fail)
    with pytest.raises(EnvironmentFailure, match="a worker died"):
        train(config(**{"checkpoint.every": 0}), out=tmp_path / "run")


def test_one_task_of_the_set_is_evaluated_and_filmed_alone(run, tmp_path):
    outcome = evaluate_checkpoint(run, task="toy-two-goals", episodes=2, video=tmp_path / "film.mp4")
    assert (outcome.task, outcome.simulator) == ("toy-two-goals", "batched torch, differentiable")
    assert set(outcome.evaluation.tasks) == {"toy-two-goals"}
    assert "test/toy-two-goals/tiny" in str(outcome.results)
    assert json.loads((tmp_path / outcome.results).read_text())["episodes"] == 2
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"


def test_task_of_another_set_is_refused_naming_this_ones(run, tmp_path):
    with pytest.raises(ConfigError, match=r"--task toy-gust: .*tasks of toys.*toy-lqr, toy-two-goals"):
        evaluate_checkpoint(run, task="toy-gust")
    with pytest.raises(ConfigError, match=r"--video: films one task, and toys has 3; name one with --task"):
        evaluate_checkpoint(run, video=tmp_path / "film.mp4")


def test_set_of_one_task_keeps_its_name_and_resumes(train, config, tmp_path):
    one = {**TOYS, "set": "mine", "tasks": ["toy-lqr"]}
    first = train(config(task=one, **{"training.epochs": 1}))
    assert "outputs/test/mine/" in first.run_dir
    assert train(config(task=one, **{"training.epochs": 2}), resume="auto").epochs == 2
    assert evaluate_checkpoint(tmp_path / first.run_dir, episodes=1).task == "mine"


def test_backend_of_the_run_is_kept_for_its_own_alias_and_the_notice_given(train, config, caplog, stop_after):
    stop_after(1)  # its own evaluation is not what is asked
    ant = {"name": "ant", "backend": "mujoco", "num_envs": 2}
    outcome = train(
        config(
            task=ant,
            **{
                "training.epochs": 1,
                "training.random_episodes": 0,
                "training.warmup_model_updates": 0,
                "evaluation.episodes": 1,
            },
        )
    )
    caplog.clear()
    assert evaluate_checkpoint(Path(outcome.run_dir), task="ant", episodes=1).task == "mujoco-ant"
    assert any("'ant' runs as mujoco-ant" in message for message in caplog.messages)


def test_stored_config_of_a_set_names_what_really_ran(train, config, caplog, stop_after):
    stop_after(1)
    short = {
        "training.epochs": 1,
        "training.random_episodes": 0,
        "training.warmup_model_updates": 0,
        "evaluation.episodes": 2,
    }
    outcome = train(config(task=LEGS, **short))
    stored = load(Path(outcome.checkpoint)).payload["config"]["task"]["tasks"]
    assert [name.partition("-")[2] for name in stored] == ["ant", "hopper"]
    notices = [message for message in caplog.messages if "The physics differ" in message]
    assert len(notices) == sum(not name.startswith("dflex") for name in stored)
