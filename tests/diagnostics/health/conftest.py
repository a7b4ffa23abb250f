"""A small run that is sound, trained once for all tests of health, and the faults to plant in it."""

import sys
from pathlib import Path

import pytest

from flowmbpo.diagnostics.health.engine import MODEL_PROBES, POLICY_PROBES, judge, measure_health
from flowmbpo.diagnostics.health.probes.critic import state_of_value
from flowmbpo.diagnostics.health.probes.weights import measure_weights
from flowmbpo.diagnostics.health.rules import RULES
from flowmbpo.diagnostics.interface import Effort
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
PROBES = {"weights": measure_weights, **MODEL_PROBES, **POLICY_PROBES}


@pytest.fixture(scope="session")
def small_overrides():
    """What makes `quickstart-residual` small."""
    return SMALL


@pytest.fixture(scope="session")
def small_run(once):
    """The run directory of a residual world model and a Gaussian policy after some seconds of training."""
    config = load_experiment("quickstart-residual", SMALL)
    return once("health", lambda out: train(config, out=out, console=False).status)[0]


@pytest.fixture
def load_small(small_run):
    """Load the run anew: a fault is planted in the subject itself."""

    def load(episodes=8):
        return load_subject(small_run, task=None, device="cpu", seed=0, episodes=episodes)

    return load


@pytest.fixture(scope="session")
def sound(small_run):
    """The run, to be measured and never changed."""
    return load_subject(small_run, task=None, device="cpu", seed=0, episodes=8)


@pytest.fixture(scope="session")
def sound_health(sound):
    """The whole diagnosis of the sound run."""
    return measure_health(sound, Effort())


@pytest.fixture(scope="session")
def examine():
    """What one probe measures of a subject, and what the rules find in it."""

    def measure(subject, check):
        figures = PROBES[check](subject)
        found = [row.finding for row in judge({check: figures}, RULES) if row.finding is not None]
        return figures, found

    return measure


@pytest.fixture(scope="session")
def named(examine):
    """Names of what the rules find in one probe's figures, each once."""
    return lambda subject, check: list(dict.fromkeys(finding.name for finding in examine(subject, check)[1]))


@pytest.fixture(scope="session")
def found_in():
    """Findings in figures made by hand: (name, severity)."""

    def find(check, figures, subject=None):
        if subject is not None:
            figures = figures | {"state": state_of_value(figures, subject)}
        rows = judge({check: figures}, RULES)
        return [(row.finding.name, row.finding.severity) for row in rows if row.finding is not None]

    return find
