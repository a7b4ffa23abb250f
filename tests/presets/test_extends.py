"""`extends`: chains, places, circles, and the messages that name file and line."""

import re

import pytest

from flowmbpo.errors import ConfigError
from flowmbpo.presets.load import load_experiment, to_yaml


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a preset file; the current folder is where they lie, so messages name them alone."""
    monkeypatch.chdir(tmp_path)

    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write_file


def test_chain_of_files_is_merged_from_the_bottom_up(write):
    write("a.yaml", "phase: own\ntraining: {horizon: 4, gamma: 0.9, epochs: 3}\n")
    write("sub/b.yaml", "extends: ../a.yaml\ntraining: {gamma: 0.8, epochs: 4}\n")
    config = load_experiment(write("c.yaml", "extends: sub/b.yaml\ntraining: {epochs: 5}\n"))
    assert (config.training.horizon, config.training.gamma, config.training.epochs) == (4, 0.8, 5)
    assert config.phase == "own"


def test_file_is_named_after_itself_and_never_after_its_parent(write):
    write("a.yaml", "name: parent\nphase: own\n")
    assert load_experiment(write("b.yaml", "extends: ./a.yaml\n")).name == "b"
    assert load_experiment(write("c.yaml", "extends: ./a.yaml\nname: mine\n")).name == "mine"


def test_users_file_extends_a_shipped_preset_by_name(write):
    config = load_experiment(write("mine.yaml", "extends: mini-cartpole-flow\nseed: 3\n"))
    assert (config.name, config.seed, config.model.dynamics.kind) == ("mine", 3, "flow")


def test_path_string_works_wherever_a_name_does(write):
    write("mine.yaml", "extends: quickstart\n")
    write("bare", "extends: quickstart\nname: plain\n")
    assert load_experiment("mine.yaml").name == "mine"
    assert load_experiment("./mine.yaml").name == "mine"
    assert load_experiment("bare").name == "plain"


def test_lists_replace_and_null_empties_an_optional_section(write):
    write("a.yaml", "phase: own\ncritic: {units: [8, 8]}\nmodel: {termination: {units: [4]}}\n")
    config = load_experiment(write("b.yaml", "extends: ./a.yaml\ncritic: {units: [3]}\nmodel: {termination: null}\n"))
    assert config.critic.units == (3,)
    assert config.model.termination is None


def test_change_of_kind_drops_what_the_new_kind_lacks_and_keeps_what_it_shares(write):
    write(
        "a.yaml",
        "phase: own\nmodel:\n  dynamics: {kind: flow, units: [7], geometry: logit, source: teacher, substeps: 3}\n"
        "  reward: {kind: two_hot, units: [9], bins: 11}\nactor: {kind: flow, units: [5], substeps: 8}\n",
    )
    child = (
        "extends: ./a.yaml\nmodel:\n  dynamics: {kind: residual}\n  reward: {kind: scalar}\nactor: {kind: gaussian}\n"
    )
    config = load_experiment(write("b.yaml", child))
    dynamics = config.model.dynamics
    assert (dynamics.kind, dynamics.units, dynamics.geometry, dynamics.source) == ("residual", (7,), "logit", "teacher")
    assert (config.model.reward.kind, config.model.reward.units) == ("scalar", (9,))
    assert (config.actor.kind, config.actor.units) == ("gaussian", (5,))


def test_kind_of_the_schemas_default_counts_as_the_parents_kind(write):
    write("a.yaml", "phase: own\nactor: {init_logstd: -2, units: [6]}\n")
    config = load_experiment(write("b.yaml", "extends: ./a.yaml\nactor: {kind: flow}\n"))
    assert (config.actor.kind, config.actor.units) == ("flow", (6,))


def test_section_that_keeps_its_kind_keeps_its_options(write):
    write("a.yaml", "phase: own\nmodel: {dynamics: {kind: flow, substeps: 3}}\n")
    for same in ("{kind: flow, fm_weight: 2}", "{fm_weight: 2}"):
        config = load_experiment(write("b.yaml", f"extends: ./a.yaml\nmodel: {{dynamics: {same}}}\n"))
        assert (config.model.dynamics.substeps, config.model.dynamics.fm_weight) == (3, 2.0)


def test_circle_is_refused_with_every_step(write):
    write("a.yaml", "extends: ./b.yaml\n")
    write("b.yaml", "phase: own\nextends: ./c.yaml\n")
    write("c.yaml", "extends: a.yaml\n")
    with pytest.raises(
        ConfigError, match=re.escape("c.yaml:1: 'extends' goes in a circle: a.yaml -> b.yaml -> c.yaml")
    ):
        load_experiment("a.yaml")


def test_file_that_extends_itself_is_a_circle(write):
    write("a.yaml", "extends: ./a.yaml\n")
    with pytest.raises(ConfigError, match=re.escape("a.yaml:1: 'extends' goes in a circle: a.yaml -> a.yaml")):
        load_experiment("a.yaml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("extends: nothing.yaml", "mine.yaml:2: extends: the file 'nothing.yaml' does not exist"),
        ("extends: quickstrt", "mine.yaml:2: extends: unknown preset 'quickstrt'. Did you mean 'quickstart'?"),
        ("extends: beside", "A file beside this one is extended as 'beside.yaml'."),
        ("extends: [a, b]", "mine.yaml:2: extends: ['a', 'b'] is not allowed"),
        ("extends:", "mine.yaml:2: extends: None is not allowed"),
    ],
)
def test_missing_parent_names_the_file_and_line_that_asked(write, line, message):
    write("beside.yaml", "phase: own\n")
    write("mine.yaml", f"phase: own\n{line}\n")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_experiment("mine.yaml")


def test_wrong_value_in_a_parent_names_the_parents_line(write):
    write("a.yaml", "phase: own\ntraining:\n  horizon: 0\n")
    write("b.yaml", "extends: ./a.yaml\nseed: 1\n")
    with pytest.raises(
        ConfigError, match=re.escape("a.yaml:3: training.horizon: 0 is not allowed. Use an integer >= 1.")
    ):
        load_experiment("b.yaml")


@pytest.mark.parametrize("name", ["_pwm", "_pwm-48m"])
def test_base_of_presets_cannot_be_run(name):
    with pytest.raises(ConfigError, match=r"presets/_pwm\.yaml: is a base for other presets"):
        load_experiment(name)


@pytest.mark.parametrize("name", ["", "..", "../presets/quickstart", "no-such", "a/b.yaml"])
def test_unknown_preset_is_refused(name):
    with pytest.raises(ConfigError, match=r"unknown preset|does not exist"):
        load_experiment(name)


def test_unreadable_files_are_refused(write, tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml: not a text file"):
        load_experiment("binary.yaml")
    with pytest.raises(ConfigError, match="is a folder"):
        load_experiment(tmp_path)


def test_stored_config_is_read_back_equal(write):
    config = load_experiment("mini-cartpole-genflow", ["training.model_lr=1e-5", "model.termination={}"], seed=7)
    assert load_experiment(write("config.yaml", to_yaml(config))) == config


def test_a_folder_called_presets_and_a_key_of_families_are_nothing_special_elsewhere(write):
    assert load_experiment(write("presets/mine.yaml", "extends: quickstart\n")).name == "mine"
    with pytest.raises(ConfigError, match=r"presets/two\.yaml:2: unknown key 'arms'"):
        load_experiment(write("presets/two.yaml", "extends: quickstart\narms: {a: {}}\n"))


def test_name_of_a_file_is_told_by_its_own_line(write):
    write("a.yaml", "name: x y\nphase: own\n")
    assert load_experiment(write("b.yaml", "extends: ./a.yaml\n")).name == "b"
    with pytest.raises(ConfigError, match=r"c d\.yaml: name: 'c d' names a folder"):
        load_experiment(write("c d.yaml", "extends: ./a.yaml\n"))
