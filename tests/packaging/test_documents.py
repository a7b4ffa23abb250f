"""Documents and examples name only what exists."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.presets.library import Library
from flowmbpo.presets.load import load_experiment
from flowmbpo.presets.schema import dotted_keys
from flowmbpo_cli.main import app

DOCUMENTS = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            *("models", "baseline-comparison", "architecture", "controls", "diagnostics", "risk"),
            *("pipeline", "data", "checkpoints", "planning"),
        )
    ),
)
SECTIONS = (
    "data",
    "initial",
    "model",
    "actor",
    "critic",
    "training",
    "evaluation",
    "diagnostics",
    "checkpoint",
    "tracking",
    "compute",
    "task",
)


def expanded(text: str) -> list[str]:
    """'a-{b,c}-d' -> ['a-b-d', 'a-c-d'], every brace in turn."""
    brace = re.search(r"\{([^{}]+)\}", text)
    if brace is None:
        return [text]
    return [
        name for part in brace[1].split(",") for name in expanded(text[: brace.start()] + part + text[brace.end() :])
    ]


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def test_braces_expand_in_order() -> None:
    assert expanded("a-{b,c}-{d,e}") == ["a-b-d", "a-b-e", "a-c-d", "a-c-e"]


def test_readme_names_presets_that_exist(repository: Path) -> None:
    section = (repository / "README.md").read_text().split("## Presets")[1].split("\n## ")[0]
    rows = [line.rsplit("|", 2)[1] for line in section.splitlines() if line.startswith("| ")][1:]
    names = {name for row in rows for span in code_spans(row) if not span.startswith("-") for name in expanded(span)}
    assert len(names) > 20
    assert names <= set(Library().names()), sorted(names - set(Library().names()))


def test_readme_names_presets_in_its_commands_that_exist(repository: Path) -> None:
    named = set(re.findall(r"--preset ([a-z][\w-]+)(?!\S)", (repository / "README.md").read_text()))
    shipped = {*Library().names(), *(control.name for control in Library().controls())}
    assert named and named <= shipped, sorted(named - shipped)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_dotted_keys_in_documents_are_config_keys(repository: Path, document: str) -> None:
    known = set(dotted_keys(ExperimentConfig))
    for span in code_spans((repository / document).read_text()):
        for key in expanded(span.replace(", ", ",")):
            match = re.fullmatch(rf"((?:{'|'.join(SECTIONS)})(?:\.[a-z_0-9]+)+)(?:[:=].*)?", key)
            if match is not None and not match[1].endswith((".json", ".safetensors", ".py")):  # a file of that name
                assert any(name == match[1] or name.startswith(match[1] + ".") for name in known), f"{document}: {key}"


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md", "examples/README.md"])
def test_relative_links_lead_somewhere(repository: Path, document: str) -> None:
    path = repository / document
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()) if "://" not in target]
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert not missing


def test_example_preset_loads_and_changes_what_it_says(repository: Path) -> None:
    config = load_experiment(repository / "examples" / "my-pendulum.yaml")
    base = load_experiment("quickstart")
    assert (config.name, config.training.horizon, config.training.model_lr) == ("my-pendulum", 16, 3e-4)
    assert config.task == base.task and config.actor == base.actor


def test_shell_scripts_parse_and_stop_at_the_first_error(repository: Path) -> None:
    examples = repository / "examples"
    scripts = [*examples.rglob("*.sh"), *examples.rglob("*.sbatch"), repository / ".ci/run", repository / ".ci/install"]
    assert len(scripts) > 10
    for script in scripts:
        checked = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        text = script.read_text()
        if text.startswith("#!"):  # the others are sourced
            assert re.search(r"^set -euo pipefail$", text, re.MULTILINE), script


@pytest.mark.parametrize("document", ["docs/pipeline.md", "docs/data.md", "examples/README.md"])
def test_named_presets_and_scripts_exist(repository: Path, document: str) -> None:
    text = (repository / document).read_text()
    named = set(re.findall(r"--preset ([a-z][\w-]+)(?!\S)", text))
    assert named <= set(Library().names()), sorted(named - set(Library().names()))
    for script in re.findall(r"\bexamples/[\w/-]+\.(?:sh|py|yaml|sbatch)", text):
        assert (repository / script).is_file(), script


@pytest.mark.parametrize("document", ["README.md", "docs/pipeline.md", "docs/data.md", "docs/planning.md"])
def test_options_in_documents_are_options_of_their_commands(repository: Path, document: str) -> None:
    """Every line of a shell block that calls the command, with the options that it names."""
    group = typer.main.get_command(app)
    blocks = re.findall(r"```(?:sh)?\n(.*?)```", (repository / document).read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("flowmbpo ")]
    for line in lines:
        command, words = group, line.split("  #")[0].split()[1:]
        while words and isinstance(command, TyperGroup) and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        asked = {word.split("=")[0].strip("[]") for word in words if word.startswith("--")}
        assert asked <= known | {"--help"}, f"{document}: {line}"


def test_quickstart_script_never_reuses_a_folder(repository: Path, tmp_path: Path) -> None:
    command = tmp_path / "flowmbpo"
    command.write_text('#!/bin/sh\necho "$@" >> "$LOG"\nif [ "$1" = train ]; then mkdir -p "$5"; fi\n')
    command.chmod(0o755)
    environment = {"FLOWMBPO": str(command), "RUNS": str(tmp_path / "runs"), "LOG": str(tmp_path / "log")}
    for _ in range(2):
        subprocess.run(
            ["bash", str(repository / "examples" / "quickstart.sh")],
            env={**environment, "PATH": "/usr/bin:/bin", "TRAIN_ARGS": "--seed 3"},
            check=True,
            capture_output=True,
        )
    trained = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("train")]
    assert [line.split()[4] for line in trained] == [str(tmp_path / f"runs/run-00{n}") for n in (1, 2)]
    assert all(line.endswith("--seed 3") for line in trained)


def test_python_example_trains_every_arm_into_its_own_folder(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("train_in_python", repository / "examples" / "train_in_python.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    tiny = ["training.epochs=2", "training.warmup_model_updates=2", "evaluation.episodes=2", "task.num_envs=2"]
    tiny += ["training.rounds=1", "training.horizon=2", "training.wm_batch_size=8", "diagnostics.every=0"]

    def small_experiment(preset: str, overrides: list[str], *, seed: int) -> ExperimentConfig:
        return load_experiment(preset, [*overrides, *tiny], seed=seed)

    monkeypatch.setattr(example, "load_experiment", small_experiment)
    assert example.main(tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["flow", "mlp"]
    assert all((tmp_path / arm / "run.json").exists() for arm in ("flow", "mlp"))
    assert example.main(tmp_path) == 2  # both folders hold runs now: refused, not overwritten
