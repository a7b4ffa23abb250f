"""`pretrain`, `finetune`, `specialize`: what a run that goes on is asked for."""

from pathlib import Path

import pytest

from flowmbpo.config.sections import DataConfig
from flowmbpo.presets.load import load_experiment, to_yaml
from flowmbpo.stages.config import FROM  # imported before `engine` takes the package's place


@pytest.fixture
def run_dir(tmp_path):
    """The directory of an offline run that was started with an override."""
    folder = tmp_path / "outputs" / "run"
    folder.mkdir(parents=True)
    config = load_experiment("mini3-a-residual", ["training.horizon=4"], seed=3)
    config = config.model_copy(update={"data": DataConfig(path=str(tmp_path / "data"))})
    (folder / "config.yaml").write_text(to_yaml(config))
    return folder


def asked(engine):
    ((_, (config,), kwargs),) = engine.calls
    return config, kwargs


def test_a_run_goes_on_under_its_own_name_whatever_is_overridden(command, engine, run_dir, tmp_path):
    flags = ["--preset", "mini3-a-residual", "--data", tmp_path / "data", "--seed", "3"]
    sets = ["--set", "training.horizon=4", "--set", "training.epochs=2000"]
    assert command("pretrain", *flags, *sets, "--resume", run_dir).code == 0
    config, kwargs = asked(engine)
    assert kwargs["resume"] == run_dir
    assert config.name == load_experiment(run_dir / "config.yaml").name and FROM not in config.name
    assert config.training.epochs == 2000


def test_a_run_named_by_out_goes_on_too(command, engine, run_dir):
    assert command("pretrain", "--out", run_dir, "--resume").code == 0
    config, kwargs = asked(engine)
    assert (kwargs["out"], kwargs["resume"], config.seed) == (run_dir, run_dir, 3)


@pytest.mark.parametrize("name", ["pretrain", "train"])
def test_a_dataset_that_was_moved_is_named_anew(command, engine, run_dir, name):
    assert command(name, "--resume", run_dir, "--data", "elsewhere").code == 0
    config, _ = asked(engine)
    assert config.data.path == str(Path("elsewhere").absolute())


def test_what_a_run_that_goes_on_cannot_change_is_refused(command, engine, run_dir):
    result = command("specialize", "--resume", run_dir, "--task", "walker-stand", "--embedding-from", "cheetah-run")
    assert result.code == 2 and "--embedding-from" in result.stderr
    assert not engine.calls
