"""Derived controls on the command line: listed, shown, copied, completed, trained."""

import shutil

import flowmbpo
from flowmbpo.presets.controls import CONTROLS
from flowmbpo.presets.library import Library, presets_folder
from flowmbpo.presets.load import load_experiment
from flowmbpo_cli.sources import complete_preset


def test_list_says_that_flow_presets_have_controls_and_stays_a_list_of_files(listed):
    text, document = listed
    assert "-residual, -gaussian, -neuralode, -teacher, -widemlp, -jacpen" in text
    assert " quickstart-widemlp " not in text
    assert [entry["name"] for entry in document] == Library().names()


def test_list_of_controls_names_each_flow_presets(command):
    listed = command("presets", "list", "--controls", "--json").document
    names = [entry["name"] for entry in listed]
    assert {f"phase1-flow-k4-{control}" for control in CONTROLS} <= set(names)
    assert not set(names) & set(Library().names()) and len(names) == len(set(names))
    assert not [name for name in names if name.startswith("phase1-baseline-")]
    text = command("presets", "list", "--controls", "--family", "quickstart").stdout
    assert " quickstart-widemlp " in text and " quickstart-baseline " not in text


def test_shown_control_says_that_it_is_derived_and_loads(command, tmp_path):
    finished = command("presets", "show", "phase1-flow-k4-gaussian")
    assert finished.stdout.startswith("# Derived, not a file: the control 'gaussian' of phase1-flow-k4.\n")
    (tmp_path / "shown.yaml").write_text(finished.stdout)
    assert load_experiment("shown.yaml") == load_experiment("phase1-flow-k4-gaussian")
    document = command("presets", "show", "phase1-flow-k4-gaussian", "--json").document
    assert document["name"] == "phase1-flow-k4-gaussian"


def test_own_text_of_a_control_is_the_file_it_stands_for(command, tmp_path):
    own = command("presets", "show", "quickstart-widemlp", "--own").stdout
    assert "extends: quickstart\n" in own and "widen_nfe: 2" in own
    (tmp_path / "quickstart-widemlp.yaml").write_text(own)
    assert load_experiment(tmp_path / "quickstart-widemlp.yaml") == load_experiment("quickstart-widemlp")


def test_copy_of_a_control_is_the_same_experiment(command):
    for flags in ([], ["--extend"]):
        assert command("presets", "copy", "quickstart-jacpen", "mine.yaml", "--force", *flags).code == 0
        expected = load_experiment("quickstart-jacpen").model_copy(update={"name": "mine"})
        assert load_experiment("mine.yaml") == expected


def test_a_file_in_a_control_s_place_is_said_to_be_one(command, tmp_path, monkeypatch):
    shutil.copytree(presets_folder(), tmp_path / "presets")
    (tmp_path / "flowmbpo").mkdir()
    monkeypatch.setattr(flowmbpo, "__file__", str(tmp_path / "flowmbpo" / "__init__.py"))
    own = "extends: quickstart\ndescription: By hand.\nmodel: {dynamics: {kind: residual}}\n"
    (tmp_path / "presets" / "quickstart-residual.yaml").write_text(own)
    shown = command("presets", "show", "quickstart-residual").stdout
    assert shown.startswith("# presets/quickstart-residual.yaml stands in place of the control 'residual' derived from")
    assert command("presets", "show", "quickstart-residual", "--own").stdout == own


def test_completion_offers_the_controls_of_a_preset_that_is_typed_in_full():
    assert complete_preset("quick") == ["quickstart", "quickstart-baseline"]
    assert complete_preset("quickstart-") == ["quickstart-baseline", *(f"quickstart-{c}" for c in CONTROLS)]
    assert complete_preset("phase1-flow-k4-w") == ["phase1-flow-k4-widemlp"]
    assert complete_preset("phase1-baseline-48m-") == []


def test_a_control_is_trained_by_its_name(command, engine):
    assert command("train", "--preset", "quickstart-neuralode", "--seed", "4").code == 0
    ((_, args, kwargs),) = engine.calls
    (config,) = [
        value for value in (*args, *kwargs.values()) if value == load_experiment("quickstart-neuralode", seed=4)
    ]
    assert config.name == "quickstart-neuralode"


def test_an_unknown_control_is_refused_with_the_nearest_name(command):
    finished = command("train", "--preset", "quickstart-residul", "--dry-run", "--json")
    assert finished.code == 2 and "Did you mean 'quickstart-residual'?" in finished.document["error"]["message"]
