"""`flowmbpo parity`: what it prints, and when it fails."""

import pytest

from flowmbpo.envs.resolve import resolve
from flowmbpo.presets.load import load_experiment, to_yaml


def test_document_holds_sizes_costs_and_differences(command):
    document = command("parity", "quickstart-baseline", "quickstart", "--strict", "--json").document
    assert {"a", "b", "parts", "model", "actor", "solved_widths", "largest_gap_percent", "within"} <= document.keys()
    assert document["compute"]["a"]["nfe"] == 1 and document["compute"]["b"]["nfe"] == 2
    assert document["differences"]["unintended"] == [] and document["comparable"]


def test_text_shows_costs_and_verdicts(command):
    finished = command("parity", "quickstart-baseline", "quickstart", "--allow", "training.horizon")
    assert finished.code == 0
    for text in ("FLOPs of an actor update", "compute index", "model.dynamics.kind", "No other key differs."):
        assert text in finished.stdout


def test_unintended_keys_warn_and_fail_only_when_strict(command, tmp_path):
    for name, horizon in (("short", 1), ("longer", 2)):
        (tmp_path / f"{name}.yaml").write_text(f"extends: quickstart\ntraining: {{horizon: {horizon}}}\n")
    relaxed = command("parity", "short.yaml", "longer.yaml")
    assert relaxed.code == 0 and "WARNING: keys differ that are not compared: training.horizon." in relaxed.stdout
    strict = command("parity", "short.yaml", "longer.yaml", "--strict")
    assert strict.code == 1 and "training.horizon: 1 -> 2" in strict.stderr
    allowed = command("parity", "short.yaml", "longer.yaml", "--strict", "--allow", "training.horizon")
    assert allowed.code == 0


def test_strict_failure_is_one_document_with_json(command):
    finished = command("parity", "quickstart", "quickstart-widemlp", "--strict", "--json")
    assert finished.code == 1
    assert finished.document["error"]["kind"] == "parity"
    assert "model parameters" in finished.document["error"]["message"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["quickstart", "quickstart", "--allow", "training.horizn"], "Did you mean 'training.horizon'?"),
        (["quickstart", "nowhere.yaml"], "does not exist"),
        (["quickstart", "quickstart-residul"], "Did you mean 'quickstart-residual'?"),
        (["quickstart", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_what_cannot_be_compared_is_a_user_error(command, args, message):
    finished = command("parity", *args, "--json")
    assert finished.code == 2 and message in finished.document["error"]["message"]


def test_run_of_an_alias_equals_its_preset(command, tmp_path):
    """A run stores the backend that ran; the preset leaves it open."""
    (tmp_path / "ant.yaml").write_text("extends: quickstart\ntask: {name: ant, num_envs: 2}\ntraining: {horizon: 1}\n")
    config = load_experiment("ant.yaml")
    (tmp_path / "run").mkdir()
    stored = config.model_copy(update={"task": resolve(config.task).config})
    assert stored.task.backend != config.task.backend
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(stored))
    document = command("parity", "run", "ant.yaml", "--json").document
    assert document["differences"] == {"intended": [], "unintended": []}
