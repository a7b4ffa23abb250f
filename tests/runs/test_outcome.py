"""What a run is later asked about, and where it says that it comes from."""

from types import SimpleNamespace

import pytest

from flowmbpo.config.sections import EvaluationConfig
from flowmbpo.envs.resolve import resolve
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.outcome import Milestones
from flowmbpo.runs.start import pinned


def seen(threshold, *returns, state=None):
    milestones = Milestones(EvaluationConfig(threshold=threshold), state)
    for steps, mean in returns:
        milestones.note(steps, SimpleNamespace(return_mean=mean))
    return milestones


def test_agent_steps_to_threshold_are_those_of_the_first_evaluation_that_reached_it():
    returns = [(0, 1.0), (100, 50.0), (200, 49.0), (300, 80.0)]
    assert seen(50.0, *returns).agent_steps_to_threshold == 100
    assert seen(90.0, *returns).agent_steps_to_threshold is None
    assert seen(None, *returns).agent_steps_to_threshold is None


@pytest.mark.parametrize(("threshold", "steps"), [(20.0, 100), (70.0, 400)])
def test_a_threshold_that_a_resume_changes_is_judged_on_what_came_before_too(threshold, steps):
    first = seen(50.0, (0, 1.0), (100, 30.0), (200, 60.0))
    assert seen(threshold, (400, 90.0), state=first.state_dict()).agent_steps_to_threshold == steps


def test_a_run_names_its_files_by_absolute_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    asked = load_experiment("mini3-a-residual", ["data={path: some/data}", "initial={checkpoint: ~/a.pt}"])
    config = pinned(asked, resolve(asked.task))
    assert config.data.path == str(tmp_path / "some" / "data")
    assert config.initial.checkpoint == str(tmp_path / "home" / "a.pt")
