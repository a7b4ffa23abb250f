"""`--set`, the flags, and the name that a changed config gets."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmbpo.config.experiment import ExperimentConfig, config_differences, flatten
from flowmbpo.config.planner import MPPIConfig
from flowmbpo.errors import ConfigError
from flowmbpo.presets.load import experiment_from_dict, load_experiment, override
from flowmbpo.presets.overrides import parse_settings
from flowmbpo.presets.schema import validate

PRESET = "mini-cartpole-flow"
BASE = load_experiment(PRESET)


def changed(*overrides, **flags):
    return load_experiment(PRESET, overrides, **flags)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("training.epochs=1e3", "training.epochs", 1000),
        ("training.model_lr=3e-4", "training.model_lr", 3e-4),
        ("training.gamma=task", "training.gamma", "task"),
        ("training.reward_weight=1/H", "training.reward_weight", "1/H"),
        ("training.clip.actor=null", "training.clip.actor", None),
        ("critic.units=[4, 5]", "critic.units", [4, 5]),
        ("tracking.sinks=[wandb,tensorboard]", "tracking.sinks", ["wandb", "tensorboard"]),
        ("model.dynamics={substeps: 9}", "model.dynamics.substeps", 9),
        ("model.termination.units=[3]", "model.termination.units", [3]),
        ("description=a: b, [c", "description", "a: b, [c"),
        ("description='quoted # text'", "description", "quoted # text"),
        ("description=1e3", "description", "1e3"),
        ("description=", "description", ""),
        (" training.horizon = 3 ", "training.horizon", 3),
    ],
)
def test_value_is_typed_by_the_schema(text, key, value):
    assert flatten(changed(text))[key] == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training.gama=1", "unknown key 'training.gama'. Did you mean 'training.gamma'?"),
        ("model.dynamcs.substeps=4", "Did you mean 'model.dynamics.substeps'?"),
        ("horizon=4", "Did you mean 'training.horizon'?"),
        ("substeps=4", "Did you mean 'model.dynamics.substeps' or 'actor.substeps'?"),
        ("actor.substeps=4", "'actor.substeps' is not an option of kind 'gaussian'; it belongs to flow."),
        ("training.gamma", "write key=value, for instance --set training.gamma=0.99"),
        ("=3", "write key=value"),
        ("training.gamma=", "no value"),
        ("training.gamma=2", "training.gamma: 2 is not allowed. Use 'task' or a number >= 0 and <= 1."),
        ("critic.units=[1", "not valid YAML"),
        ("extends=quickstart", "'extends' belongs in a preset file"),
        ("training=null", "training: null is not allowed"),
    ],
)
def test_wrong_override_is_refused_naming_the_option(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        changed(text)
    assert str(caught.value).startswith(f"--set {text}:")


def test_overrides_change_a_kind_as_merging_does_in_either_order():
    pair = ["model.dynamics.kind=neural_ode", "model.dynamics.substeps=5"]
    for overrides in (pair, pair[::-1]):
        dynamics = changed(*overrides).model.dynamics
        assert (dynamics.kind, dynamics.substeps) == ("neural_ode", 5)
        assert dynamics.integrator == BASE.model.dynamics.integrator  # shared
    assert changed("model.dynamics.kind=mlp").model.dynamics.units == BASE.model.dynamics.units


def test_later_override_wins():
    assert changed("training.horizon=3", "training.horizon=5").training.horizon == 5


def test_flags_win_over_overrides_and_preset():
    config = changed("seed=1", "task.name=a", task="b", seed=2, device="cpu", track=["wandb"])
    assert (config.seed, config.task.name, config.device, config.tracking.sinks) == (2, "b", "cpu", ("wandb",))
    assert changed("tracking.sinks=[wandb]", track=[]).tracking.sinks == ()
    assert config.task.num_envs == BASE.task.num_envs


def test_wrong_flag_is_named():
    with pytest.raises(ConfigError, match="--device tpu: device: 'tpu' is not allowed"):
        changed(device="tpu")


def test_changed_config_gets_a_name_of_its_own():
    name = changed("training.horizon=3").name
    assert re.fullmatch(rf"{PRESET}\+[0-9a-f]{{6}}", name)
    assert changed("training.horizon=4").name != name
    assert changed("training.rounds=3").name != name


def test_name_depends_on_values_and_not_on_how_they_are_written():
    assert (
        changed("training.epochs=1e3", "training.lam=0.5").name
        == changed("training.lam=.5", "training.epochs=1000").name
    )
    assert changed(f"training.horizon={BASE.training.horizon}").name == PRESET


def test_task_seed_device_and_tracking_leave_the_name_alone():
    assert changed(task="walker-stand", seed=3, device="cpu", track=["wandb"]).name == PRESET
    assert changed("task.name=walker-stand", "seed=3", "device=cpu", "tracking.sinks=[wandb]").name == PRESET
    with_flags = changed("training.horizon=3", task="walker-stand", seed=9).name
    assert with_flags == changed("training.horizon=3").name


def test_name_that_is_set_is_kept_and_still_marked():
    assert changed("name=own").name == "own"
    assert re.fullmatch(r"own\+[0-9a-f]{6}", changed("name=own", "training.horizon=3").name)


def test_resumed_run_keeps_its_name_when_overridden():
    run = changed("training.horizon=3")
    longer = override(run, ["training.epochs=9999"], seed=4)
    assert (longer.name, longer.training.epochs, longer.training.horizon, longer.seed) == (run.name, 9999, 3, 4)


def test_differences_name_the_keys_and_both_values():
    other = changed("training.horizon=3", "actor.kind=flow", "name=x")
    found = {d.key: (d.a, d.b) for d in config_differences(BASE, other)}
    assert found["training.horizon"] == (8, 3)
    assert found["actor.kind"] == ("gaussian", "flow")
    assert found["actor.init_logstd"] == (-1.0, "(absent)")
    assert found["actor.substeps"] == ("(absent)", 2)
    assert not any(key.startswith(("model.", "critic.")) for key in found)
    assert str(config_differences(BASE, changed("training.horizon=3", "name=mini-cartpole-flow"))[-1]).endswith(
        "8 -> 3"
    )
    assert config_differences(BASE, BASE) == []


def written(value):
    """A JSON value is a YAML value."""
    return value if isinstance(value, str) else json.dumps(value)


PROPERTY_KEYS = {
    "training.epochs": st.integers(1, 10**9),
    "training.gamma": st.floats(0, 1) | st.just("task"),
    "training.model_lr": st.floats(1e-12, 1e3),
    "training.clip.model": st.floats(1e-6, 1e6) | st.none(),
    "training.betas": st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)).map(list),
    "critic.units": st.lists(st.integers(1, 4096), min_size=1, max_size=4),
    "critic.zero_init": st.booleans(),
    "model.dynamics.integrator": st.sampled_from(["euler", "heun", "midpoint", "rk4"]),
    "model.dynamics.noise_std": st.floats(1e-3, 10),
    "checkpoint.keep": st.integers(0, 100),
}


@settings(max_examples=30)
@given(st.fixed_dictionaries({}, optional=PROPERTY_KEYS))
def test_override_of_any_value_is_read_back(values):
    config = override(BASE, [f"{key}={written(value)}" for key, value in values.items()])
    flat = flatten(config)
    assert {key: flat[key] for key in values} == values
    rest = {key: value for key, value in flatten(BASE).items() if key not in values and key != "name"}
    assert rest == {key: flat[key] for key in rest}


@settings(max_examples=30)
@given(st.fixed_dictionaries({}, optional=PROPERTY_KEYS))
def test_every_value_of_a_config_can_be_set_again_without_a_change(values):
    config = override(BASE, [f"{key}={written(value)}" for key, value in values.items()])
    again = [f"{key}={written(value)}" for key, value in flatten(config).items() if value is not None and value != ""]
    assert override(config, again) == config
    assert experiment_from_dict(json.loads(config.model_dump_json())) == config


def test_flatten_covers_the_whole_schema():
    assert {key.partition(".")[0] for key in flatten(BASE)} == set(ExperimentConfig.model_fields)


def test_settings_of_another_schema_name_its_flag_and_keys():
    document = parse_settings(["horizon=5", "horizon=7"], MPPIConfig, "--planner-set", "horizon=5")
    assert validate(document, "planner", MPPIConfig).horizon == 7
    for text, message in [
        ("x=3", "--planner-set x=3: unknown key 'x'. Allowed: horizon, "),
        ("horizon", "--planner-set horizon: write key=value, for instance --planner-set horizon=5."),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            parse_settings([text], MPPIConfig, "--planner-set", "horizon=5")
