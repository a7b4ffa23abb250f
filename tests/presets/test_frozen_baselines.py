"""Paper-scale baselines are frozen: every recorded value, and the hash over them, stay as they are.

`baselines.lock.json` records, for each baseline, the resolved value of every key that existed when it was
recorded. An option added later is not in the record and breaks nothing (its default must leave the method
as it was); a recorded value that changes, or a key that disappears, fails by its name. Adding a baseline: the
failing test prints the entry to record. A record that is there is never edited.
"""

import hashlib
import json
from pathlib import Path

import pytest

from flowmbpo.config.experiment import ABSENT, flatten
from flowmbpo.presets.library import Library
from flowmbpo.presets.load import load_experiment

LOCK = json.loads((Path(__file__).parent / "baselines.lock.json").read_text())
METHOD = ("task.name", "task.set", "task.num_envs", "model", "actor", "critic", "training")
BASELINES = [name for name in Library().names() if name.startswith(("phase", "stage")) and "-baseline" in name]


def digest(values):
    """SHA-256 over the values, independent of their order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def method(config):
    """The resolved values of what makes the method."""
    held = flatten(config)
    return {key: held[key] for key in held if key in METHOD or key.split(".")[0] in METHOD}


def changes(recorded, held):
    """Recorded keys that no longer hold their value, one line each."""
    return [
        f"{key}: recorded {value!r}, now {held.get(key, ABSENT)!r}"
        for key, value in recorded.items()
        if key not in held or held[key] != value
    ]


def test_every_paper_scale_baseline_is_recorded():
    missing = {}
    for name in sorted(set(BASELINES) - set(LOCK)):
        values = method(load_experiment(name))
        missing[name] = {"sha256": digest(values), "values": values}
    assert len(BASELINES) >= 6
    assert not missing, f"record these in tests/presets/baselines.lock.json:\n{json.dumps(missing, indent=1)}"


@pytest.mark.parametrize("name", LOCK)
def test_recorded_values_have_the_recorded_hash(name):
    assert digest(LOCK[name]["values"]) == LOCK[name]["sha256"], f"the record of {name} was edited"


@pytest.mark.parametrize("name", LOCK)
def test_baseline_holds_what_was_recorded(name):
    found = changes(LOCK[name]["values"], method(load_experiment(name)))
    assert not found, f"{name} is frozen, and these keys changed:\n" + "\n".join(found)


@pytest.mark.parametrize("name", LOCK)
def test_record_covers_model_policy_critic_and_training(name):
    keys = set(LOCK[name]["values"])
    assert {"task.name", "task.num_envs", "model.latent_dim", "actor.init_logstd", "critic.reduction"} <= keys
    assert {"training.horizon", "training.actor_horizon", "training.actor_input_gradient", "training.rho"} <= keys
    assert len(keys) > 60


def test_a_changed_value_is_named():
    config = load_experiment("phase1-baseline", ["training.gamma=0.98", "actor.init_logstd=-0.5"])
    assert changes(LOCK["phase1-baseline"]["values"], method(config)) == [
        "actor.init_logstd: recorded -1.0, now -0.5",
        "training.gamma: recorded 0.99, now 0.98",
    ]


def test_a_key_that_disappears_is_named():
    held = method(load_experiment("phase1-baseline"))
    del held["training.lam"]
    assert changes(LOCK["phase1-baseline"]["values"], held) == ["training.lam: recorded 0.95, now '(absent)'"]


def test_an_option_added_later_breaks_no_record():
    held = method(load_experiment("phase1-baseline")) | {"training.added_later": 1}
    assert changes(LOCK["phase1-baseline"]["values"], held) == []
