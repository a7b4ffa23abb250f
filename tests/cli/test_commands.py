"""`presets`, `parity`, `doctor`, `version`."""

import pytest

from flowmbpo import __version__
from flowmbpo.presets.library import Library
from flowmbpo.presets.load import load_experiment
from flowmbpo.tracking.wandb import wandb_key_present
from flowmbpo_cli import doctor
from flowmbpo_cli.sources import complete_preset, complete_task, config_of
from flowmbpo_cli.tables import show


def test_list_names_every_preset_once(listed):
    text, document = listed
    assert [entry["name"] for entry in document] == Library().names()
    assert all(set(entry) == {"name", "family", "phase", "task", "description", "cost"} for entry in document)
    assert all(f" {name} " in text for name in Library().names())
    assert text.index(" quickstart ") < text.index(" phase1-baseline ")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--family", "quickstart"], ["quickstart", "quickstart-baseline"]),
        (["generative", "--task", "toy-cartpole-swingup"], ["mini-cartpole-genflow"]),
        (["--cost", "0.6", "--family", "risk-obs", "K8"], ["risk-obs-genflow-k8"]),
        (["--cost", "2", "--family", "mini3", "residual"], ["mini3-b-residual", "mini3-c-residual"]),
        (["--cost", "100000", "--family", "phase1"], []),
    ],
)
def test_list_takes_family_task_cost_and_word(command, options, names):
    assert [entry["name"] for entry in command("presets", "list", *options, "--json").document] == names


def test_shown_preset_is_complete_and_loads(command, tmp_path):
    (tmp_path / "shown.yaml").write_text(command("presets", "show", "mini-cartpole-genflow").stdout)
    assert load_experiment("shown.yaml") == load_experiment("mini-cartpole-genflow")
    document = command("presets", "show", "quickstart", "--json").document
    assert document["config"] == load_experiment("quickstart").model_dump(mode="json")
    assert command("presets", "show", "quickstart", "--own").stdout.startswith("extends: quickstart-baseline\n")


@pytest.mark.parametrize("flags", [[], ["--extend"]])
def test_copy_is_the_same_experiment_under_its_own_name(command, flags):
    finished = command("presets", "copy", "dmc-walker-stand-fullflow", "mine.yaml", *flags)
    assert finished.code == 0 and "flowmbpo train --preset mine.yaml" in finished.stdout
    copied, original = load_experiment("mine.yaml"), load_experiment("dmc-walker-stand-fullflow")
    assert copied == original.model_copy(update={"name": "mine"})


def test_copy_never_overwrites_unless_forced(command, tmp_path):
    (tmp_path / "mine.yaml").write_text("precious")
    refused = command("presets", "copy", "quickstart", "mine.yaml")
    assert refused.code == 2 and "--force" in refused.stderr
    assert (tmp_path / "mine.yaml").read_text() == "precious"
    forced = command("presets", "copy", "quickstart", "mine.yaml", "--force", "--json")
    assert forced.document == {"preset": "quickstart", "path": "mine.yaml", "extends": False}
    assert load_experiment("mine.yaml").name == "mine"


def test_copy_into_a_folder_keeps_the_name(command, tmp_path):
    assert command("presets", "copy", "quickstart", tmp_path).code == 0
    assert load_experiment(tmp_path / "quickstart.yaml") == load_experiment("quickstart")


@pytest.mark.parametrize(
    ("dest", "message"), [("mine", "ends in .yaml"), ("no/mine.yaml", "does not exist"), ("a b.yaml", "names a folder")]
)
def test_copy_to_a_place_that_cannot_hold_it_is_refused(command, dest, message):
    finished = command("presets", "copy", "quickstart", dest)
    assert finished.code == 2 and message in finished.stderr


def test_copy_of_a_users_file_extends_it_by_its_path(command, tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: quickstart\nseed: 5\n")
    (tmp_path / "sub").mkdir()
    assert command("presets", "copy", "mine.yaml", "sub/child.yaml", "--extend").code == 0
    child = load_experiment("sub/child.yaml")
    assert (child.name, child.seed) == ("child", 5)


def test_parity_compares_presets_part_by_part(command):
    document = command("parity", "mini-cartpole-mlp", "mini-cartpole-fullflow", "--json").document
    assert (document["a"], document["b"]) == ("mini-cartpole-mlp", "mini-cartpole-fullflow")
    parts = {row["part"]: row for row in document["parts"]}
    assert {"encoder", "dynamics", "reward", "actor", "critic"} <= set(parts)
    for part in (document["model"], document["actor"], parts["dynamics"]):
        assert part["gap_percent"] == pytest.approx(100 * (part["b"] - part["a"]) / part["a"])
        assert abs(part["gap_percent"]) <= 2
    text = command("parity", "mini-cartpole-mlp", "mini-cartpole-fullflow").stdout
    assert "encoder + dynamics + reward" in text and "at most 2%" in text


def test_parity_of_unequal_sizes_warns_and_still_succeeds(command):
    finished = command("parity", "quickstart", "phase1-baseline")
    assert finished.code == 0
    assert "WARNING: more than 2%" in finished.stdout


def test_parity_takes_a_run_directory(command, tmp_path):
    (tmp_path / "run").mkdir()
    command("presets", "copy", "quickstart", "run/config.yaml")
    assert command("parity", "run", "quickstart", "--json").document["model"]["gap_percent"] == 0.0


def test_doctor_reports_every_part_of_the_machine(command):
    finished = command("doctor", "--json")
    assert finished.code == 0
    document = finished.document
    sections = {check["section"] for check in document["checks"]}
    assert sections == {"python", "torch", "simulators", "rendering", "dflex", "slurm", "wandb", "disk"}
    assert document["ok"] is True
    by_name = {check["name"]: check for check in document["checks"]}
    assert by_name["step"]["ok"] and by_name["torch"]["ok"]
    assert all(check["advice"] or check["ok"] or check["section"] == "rendering" for check in document["checks"])


def test_doctor_exits_1_when_the_core_is_broken(command, monkeypatch):
    broken = doctor.MachineCheck("torch", "torch", False, "cannot be imported", "Install torch.", core=True)
    monkeypatch.setattr(doctor, "_torch", lambda: iter([broken]))
    finished = command("doctor")
    assert finished.code == 1
    assert "Install torch." in finished.stdout and "The core does not work" in finished.stdout


def test_doctor_tells_of_a_wandb_key_without_showing_it(command, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_key_present() is False
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret-in-netrc\n")
    assert wandb_key_present() is True
    (tmp_path / "netrc").write_text("not a netrc file")
    assert wandb_key_present() is False
    monkeypatch.setenv("WANDB_API_KEY", "secret-in-environment")
    assert wandb_key_present() is True
    finished = command("doctor", "--json")
    assert "secret-in" not in finished.stdout + finished.stderr


def test_version_is_the_packages(command):
    assert command("version", "--json").document["flowmbpo"] == __version__
    assert command("version").stdout.startswith(f"flowmbpo {__version__} ")
    assert command("--version").stdout == command("version").stdout


def test_completion_offers_presets_and_tasks():
    assert complete_preset("quick") == ["quickstart", "quickstart-baseline"]
    stock, backwards = ["walker-run", "walker-stand", "walker-walk"], ["walker-run-backwards", "walker-walk-backwards"]
    assert complete_task("walker") == stock + backwards


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.000123456, "0.0001235"),
        (123456.7, "123,457"),
        ([], "none"),
    ],
)
def test_values_are_shown_for_people(value, text):
    assert show(value) == text


def test_config_inside_a_lone_checkpoint_is_taken(command, tmp_path):
    from flowmbpo.checkpoints.save import CheckpointStore

    config = load_experiment("quickstart", ["training.horizon=3"])
    payload = {"config": config.model_dump(mode="json"), "epoch": 1, "agent_steps": 0, "env_steps": 0, "agent": {}}
    saved = CheckpointStore(tmp_path / "checkpoints").save("latest", payload)
    lone = saved.rename(tmp_path / "lone.pt")
    assert config_of(str(lone)) == config
    payload["config"] = {**payload["config"], "horizon": 3}
    foreign = CheckpointStore(tmp_path / "other").save("latest", payload)
    finished = command("parity", foreign, "quickstart")
    assert finished.code == 2 and "(config): unknown key 'horizon'. Did you mean" in finished.stderr
