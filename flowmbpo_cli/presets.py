"""`flowmbpo presets list | show | copy`."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowmbpo.errors import ConfigError
from flowmbpo_cli.output import Json, answer, command_group, print_document
from flowmbpo_cli.sources import complete_preset

if TYPE_CHECKING:
    from flowmbpo.presets.library import Library, Preset
    from flowmbpo.presets.load import PresetInfo

app = command_group("List, show and copy the presets.")
_FIRST = ("quickstart", "mini-cartpole", "mini-ant", "mini3", "dmc")  # what a laptop finishes comes first
_NAME = typer.Argument(metavar="NAME|FILE", help="A preset's name or a .yaml file.", autocompletion=complete_preset)


@app.command("list")
def list_(
    word: Annotated[str, typer.Argument(metavar="WORD", help="In the name, task or description.")] = "",
    family: Annotated[str, typer.Option("--family", help="One family: quickstart, dmc, phase2, ...")] = "",
    task: Annotated[str, typer.Option("--task", help="One task, or task set.")] = "",
    cost: Annotated[
        float | None,
        typer.Option("--cost", metavar="MINUTES", help="Only what is said to take at most so many CPU minutes."),
    ] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="The controls of every flow preset, in place of the presets.")
    ] = False,
    json_: Json = False,
) -> None:
    """List the presets by family: what each is for and what it costs."""
    from flowmbpo.presets.load import preset_info

    infos = [
        info
        for info in preset_info(family, controls=controls)
        if word.lower() in f"{info.name} {info.task} {info.description}".lower()
        and task in ("", info.task)
        and (cost is None or _cpu_minutes(info.cost) <= cost)
    ]
    answer(infos, json_, partial(_show_list, controls))


def _show_list(controls: bool, infos: list[PresetInfo]) -> None:
    from flowmbpo.presets.controls import CONTROLS
    from flowmbpo_cli.tables import print_records

    families = {info.family: [other for other in infos if other.family == info.family] for info in infos}
    for name in sorted(families, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)):
        columns = {"name": "name", "task": "task", "description": "for"}
        print_records(name, columns, [vars(info) for info in families[name]])
        for text in dict.fromkeys(info.cost for info in families[name]):
            typer.secho(f"cost: {text}", dim=True)
        typer.echo()
    if not infos:
        typer.echo("No preset is like that. Without options all are listed.")
    if not controls:
        endings = ", ".join(f"-{control}" for control in CONTROLS)
        typer.echo(
            f"Every preset with a flow world model has controls, by its name and {endings}; "
            "`flowmbpo presets list --controls` lists them."
        )
    typer.echo("Train one: flowmbpo train --preset NAME.  Make your own: flowmbpo presets copy NAME FILE.yaml")


def _cpu_minutes(cost: str) -> float:
    """The most that `cost` says in CPU time; infinite where it says none, as for a GPU."""
    stated = re.search(r"(\d+) CPU (second|minute)s", cost)
    return float(stated[1]) / (60 if stated[2] == "second" else 1) if stated else float("inf")


@app.command()
def show(
    name: Annotated[str, _NAME],
    own: Annotated[bool, typer.Option("--own", help="Only what the file itself states, as written.")] = False,
    json_: Json = False,
) -> None:
    """Print a preset's complete config as YAML."""
    from flowmbpo.presets.library import Library
    from flowmbpo.presets.load import load_experiment, to_yaml
    from flowmbpo.presets.yaml import dump_document

    config, library = load_experiment(name), Library()
    preset = library.find(name)
    if json_:
        print_document({"name": config.name, "config": config.model_dump(mode="json")})
    elif own and preset.is_file:
        typer.echo(preset.path.read_text(encoding="utf-8"), nl=False)
    else:
        text = dump_document(library.own(preset)) if own else to_yaml(config)
        typer.echo(_standing(library, preset) + text, nl=False)


def _standing(library: Library, preset: Preset) -> str:
    """A comment line where a preset is derived, or where a file stands in a derived one's place; else nothing."""
    if preset.control:
        return f"# Derived, not a file: the control '{preset.control}' of {preset.flow.name}.\n"
    file, control = library.shown(preset.path), library.control(preset.name)
    if preset.path.parent == library.folder and control is not None and library.controls_of(control.flow.name):
        return f"# {file} stands in place of the control '{control.control}' derived from {control.flow.name}.\n"
    return f"# Derived: {file} with {', '.join(part for _, part in preset.parts)}.\n" if preset.parts else ""


@app.command()
def copy(
    name: Annotated[str, _NAME],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="The new .yaml file, or a folder for it.")],
    extend: Annotated[
        bool, typer.Option("--extend", help="Write a short file that extends NAME, in place of a complete one.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite DEST.")] = False,
    json_: Json = False,
) -> None:
    """Write a preset of your own to start from; it is named after its file."""
    from flowmbpo.presets.library import Library, is_file_path
    from flowmbpo.presets.load import experiment_from_dict, load_experiment, to_yaml

    target = dest.expanduser()
    if target.is_dir():
        target /= f"{Path(name).stem}.yaml"
    if target.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{target}: a preset file ends in .yaml. Use '{target}.yaml'.")
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: the folder '{target.parent}' does not exist. Create it first.")
    config = load_experiment(name)
    if extend:
        path, parent = Library().find(name).path, name
        if is_file_path(name) or path.parent == Path():
            parent = os.path.relpath(path.resolve(), target.parent.resolve())
            parent = parent if "/" in parent else f"./{parent}"
        text = (
            f"extends: {json.dumps(parent)}\n"
            f"description: {json.dumps(config.description)}\n"
            f"# State what differs below; `flowmbpo presets show {name}` lists every key.\n"
        )
    else:
        own = {**config.model_dump(mode="json"), "name": target.stem}
        text = to_yaml(experiment_from_dict(own, str(target)))
    try:
        with open(target, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{target}: exists already. Choose another name, or overwrite it with --force.") from error
    line = f"Wrote {target}. Edit it, then: flowmbpo train --preset {target}"
    answer({"preset": name, "path": str(target), "extends": extend}, json_, line)
