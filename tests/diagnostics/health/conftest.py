"""A small run that is sound, trained once for all tests of health, and the faults to plant in it."""

import sys
from pathlib import Path

import pytest

from flowmbpo.presets.load import load_experiment
from flowmbpo.runs.subjects import load_subject
from flowmbpo.runs.train import train

sys.path.insert(0, str(Path(__file__).parent))  # `planted` is shared with the benchmark of the same faults

SMALL = (
    "task.name=toy-two-goals",  # two action dimensions, episodes of 25 steps
    "model.latent_dim=32",
    "model.encoder.units=[64]",
    "model.dynamics.units=[64]",
    "model.reward.units=[64]",
    "actor.units=[48]",
    "critic.units=[48]",
    "training.wm_batch_size=32",
    "training.warmup_model_updates=200",
    "training.horizon=5",
    "training.actor_batch_size=32",
    "training.epochs=60",
    "training.preactivation_penalty=0.02",  # or the policy gets close to the end of its range
    "evaluation.every=0",
    "diagnostics.every=0",
    "tracking.sinks=[]",
)


@pytest.fixture(scope="session")
def small_overrides():
    """What makes `quickstart-residual` small."""
    return SMALL


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """The run directory of a residual world model and a Gaussian policy after some seconds of training."""
    out = tmp_path_factory.mktemp("health") / "run"
    train(load_experiment("quickstart-residual", SMALL), out=out, console=False)
    return out


@pytest.fixture
def load_small(small_run):
    """Load the run anew: a fault is planted in the subject itself."""

    def load(episodes=8):
        return load_subject(small_run, task=None, device="cpu", seed=0, episodes=episodes)

    return load
