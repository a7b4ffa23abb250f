"""What a run is later asked about, and where it says that it comes from."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from flowmbpo.checkpoints.load import Loaded
from flowmbpo.config.sections import EvaluationConfig, InitialConfig
from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.build import pinned
from flowmbpo.runs.milestones import Milestones
from flowmbpo.stages.initial import Initial


def seen(threshold, *returns, state=None):
    milestones = Milestones(EvaluationConfig(threshold=threshold), state)
    for steps, mean in returns:
        milestones.note(steps, SimpleNamespace(return_mean=mean))
    return milestones


def test_steps_to_threshold_are_those_of_the_first_evaluation_that_reached_it():
    returns = [(0, 1.0), (100, 50.0), (200, 49.0), (300, 80.0)]
    assert seen(50.0, *returns).steps_to_threshold == 100
    assert seen(90.0, *returns).steps_to_threshold is None
    assert seen(None, *returns).steps_to_threshold is None


@pytest.mark.parametrize(("threshold", "steps"), [(20.0, 100), (70.0, 400)])
def test_a_threshold_that_a_resume_changes_is_judged_on_what_came_before_too(threshold, steps):
    first = seen(50.0, (0, 1.0), (100, 30.0), (200, 60.0))
    assert seen(threshold, (400, 90.0), state=first.state_dict()).steps_to_threshold == steps


@pytest.mark.parametrize("kept", [{"lineage": [{"name": "a"}]}, {"imported": {}}, {}])
def test_a_checkpoint_that_kept_no_lineage_counts_as_one_run_from_scratch(kept):
    config = load_experiment("mini3-b-residual")
    loaded = Loaded(Path("x.pt"), {"epoch": 7, "env_steps": 900, **kept}, "0" * 64, True)
    found = Initial(InitialConfig(checkpoint="x.pt"), loaded, config, source=None).lineage
    if kept:
        assert found == kept.get("lineage", [])
    else:
        assert [(run["name"], run["epochs"], run["env_steps"]) for run in found] == [("mini3-b-residual", 7, 900)]


def test_a_run_names_its_files_by_absolute_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    asked = load_experiment("mini3-a-residual", ["data={path: some/data}", "initial={checkpoint: ~/a.pt}"])
    config = pinned(asked)
    assert config.data.path == str(tmp_path / "some" / "data")
    assert config.initial.checkpoint == str(tmp_path / "home" / "a.pt")
