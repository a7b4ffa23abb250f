"""What a person reads when a key or a value is wrong."""

import re

import pytest

from flowmbpo.errors import ConfigError
from flowmbpo.presets.load import experiment_from_dict, load_experiment


def refuse(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.yaml").write_text("phase: own\n" + text)
    with pytest.raises(ConfigError) as caught:
        load_experiment("f.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  dynamcs: {}\n", "f.yaml:3: unknown key 'model.dynamcs'. Did you mean 'dynamics'?"),
        ("trainin: {}\n", "f.yaml:2: unknown key 'trainin'. Did you mean 'training'?"),
        ("<<: {seed: 1}\n", "f.yaml:2: unknown key '<<'. Allowed: name, phase,"),
        (
            "training: {gamma: 1.5}\n",
            "f.yaml:2: training.gamma: 1.5 is not allowed. Use 'task' or a number >= 0 and <= 1.",
        ),
        (
            "training:\n  clip:\n    actor: big\n",
            "f.yaml:4: training.clip.actor: 'big' is not allowed. Use a number > 0 or null.",
        ),
        (
            "training: {betas: [0.5]}\n",
            "training.betas: [0.5] is not allowed. Use a list of 2, each item a number >= 0 and < 1.",
        ),
        (
            "critic: {units: []}\n",
            "critic.units: [] is not allowed. Use a list, each item an integer >= 1, at least 1 of them.",
        ),
        ("critic: {zero_init: yes}\n", "critic.zero_init: 'yes' is not allowed. Use true or false."),
        ("critic: {reduction: max}\n", "critic.reduction: 'max' is not allowed. Use 'min' or 'mean'."),
        ("training: {epochs: '8'}\n", "training.epochs: '8' is not allowed. Use an integer >= 1."),
        ("training: {epochs: 1.5}\n", "training.epochs: 1.5 is not allowed."),
        ("training: {lam: .nan}\n", "training.lam: NaN is not allowed."),
        ("task: {num_envs: true}\n", "task.num_envs: true is not allowed."),
        ("task: {name: 3}\n", "task.name: 3 is not allowed. Use text or null."),
        ("training:\n", "f.yaml:2: training: null is not allowed. Use a mapping of keys."),
        ("actor: flow\n", "f.yaml:2: actor: 'flow' is not allowed. Use a mapping with kind 'gaussian' or 'flow'."),
        ("seed: {a: 1}\n", "f.yaml:2: 'seed' is a value, not a section. Use an integer >= 0 and <= 1e+09."),
        ("seed: {}\n", "f.yaml:2: 'seed' is a value, not a section."),
        (
            "model:\n  dynamics:\n    kind: flwo\n",
            "f.yaml:4: model.dynamics.kind: 'flwo' is not allowed. Use mlp, residual,",
        ),
        ("actor: {kind: [1]}\n", "f.yaml:2: actor.kind: [1] is not allowed. Use gaussian, flow."),
        (
            "model:\n  dynamics:\n    mode: generative\n",
            "f.yaml:4: 'model.dynamics.mode' is not an option of kind 'mlp'; it belongs to flow.",
        ),
        ("model: {latent_dim: 12}\n", "f.yaml:2: model: latent_dim 12 is not a multiple of simnorm_dim 8"),
        ("name: a b\n", "f.yaml:2: name: 'a b' names a folder"),
    ],
)
def test_message_names_line_key_value_and_what_is_allowed(tmp_path, monkeypatch, text, message):
    assert message in refuse(tmp_path, monkeypatch, text)


def test_every_wrong_value_is_named_once(tmp_path, monkeypatch):
    message = refuse(tmp_path, monkeypatch, "training:\n  epochs: 0\n  gamma: 2\n  reward_weight: 1/h\n")
    assert [re.match(r"f\.yaml:(\d)", line).group(1) for line in message.splitlines()] == ["3", "4", "5"]


def test_many_wrong_values_are_cut_short(tmp_path, monkeypatch):
    keys = ("epochs", "horizon", "rounds", "wm_batch_size", "wm_iterations", "critic_batches", "critic_iterations")
    message = refuse(tmp_path, monkeypatch, "training:\n" + "".join(f"  {key}: 0\n" for key in keys))
    assert message.splitlines()[-1] == "... and 2 more"


def test_missing_key_is_named():
    with pytest.raises(ConfigError, match=re.escape("here: the key 'phase' is missing. Set it to text.")):
        experiment_from_dict({"name": "x"}, "here")


def test_stored_mapping_of_another_schema_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"old checkpoint: unknown key 'training\.horizont'"):
        experiment_from_dict({"name": "x", "phase": "p", "training": {"horizont": 3}}, "old checkpoint")
