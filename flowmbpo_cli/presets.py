"""`flowmbpo presets list | show | copy`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from flowmbpo.errors import ConfigError
from flowmbpo_cli.output import people, print_document
from flowmbpo_cli.sources import complete_preset

app = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
_FIRST = ("quickstart", "mini", "dmc")  # what a laptop finishes comes before the paper's scale
_JSON = typer.Option("--json", help="One JSON document on stdout.")
_NAME = typer.Argument(metavar="NAME|FILE", help="A preset's name or a .yaml file.", autocompletion=complete_preset)


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """List, show and copy the presets."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("list")
def list_(
    controls: Annotated[
        bool, typer.Option("--controls", help="The controls of every flow preset, in place of the presets.")
    ] = False,
    json_: Annotated[bool, _JSON] = False,
) -> None:
    """List every preset: what it is for and what it costs."""
    from flowmbpo.presets.controls import CONTROLS
    from flowmbpo.presets.load import control_info, preset_info

    infos = control_info() if controls else preset_info()
    if json_:
        print_document([info.to_dict() for info in infos])
        return
    from flowmbpo_cli.tables import print_table

    console = people(json_)
    phases = sorted({info.phase for info in infos} - set(_FIRST))
    for phase in (*_FIRST, *phases):
        chosen = [info for info in infos if info.phase == phase]
        if not chosen:
            continue
        print_table(console, phase, ["name", "task", "for"], [[i.name, i.task, i.description] for i in chosen])
        for cost in dict.fromkeys(info.cost for info in chosen):
            console.print(f"cost: {cost}", style="dim", markup=False)
        console.print()
    if not controls:
        endings = ", ".join(f"-{control}" for control in CONTROLS)
        console.print(
            f"Every preset with a flow world model has controls, by its name and {endings}; "
            "`flowmbpo presets list --controls` lists them.",
            markup=False,
        )
    console.print("Train one: flowmbpo train --preset NAME.  Make your own: flowmbpo presets copy NAME FILE.yaml")


@app.command()
def show(
    name: Annotated[str, _NAME],
    own: Annotated[bool, typer.Option("--own", help="Only what the file itself states, as written.")] = False,
    json_: Annotated[bool, _JSON] = False,
) -> None:
    """Print a preset's complete config as YAML."""
    from flowmbpo.presets.load import load_experiment, to_yaml

    config = load_experiment(name)
    if json_:
        print_document({"name": config.name, "config": config.model_dump(mode="json")})
    elif own:
        typer.echo(_own_text(name), nl=False)
    else:
        typer.echo(_standing(name) + to_yaml(config), nl=False)


def _own_text(name: str) -> str:
    """The preset's file as written; of a derived preset, the file that would state it."""
    from flowmbpo.presets.library import Library
    from flowmbpo.presets.yaml import dump_document

    library = Library()
    preset = library.find(name)
    if preset.is_file:
        return preset.path.read_text(encoding="utf-8")
    return _standing(name) + dump_document(library.own(preset))


def _standing(name: str) -> str:
    """A comment line where a preset is derived, or where a file stands in a derived one's place; else nothing."""
    from flowmbpo.presets.library import Library

    library = Library()
    preset, control = library.find(name), library.control(name)
    if preset.control:
        return f"# Derived, not a file: the control '{preset.control}' of {preset.flow.name}.\n"
    if control is not None and library.controls_of(control.flow.name):
        return (
            f"# {library.shown(preset.path)} stands in place of the control '{control.control}' "
            f"derived from {control.flow.name}.\n"
        )
    if preset.parts:
        parts = ", ".join(part for _, part in preset.parts)
        return f"# Derived: {library.shown(preset.path)} with {parts}.\n"
    return ""


@app.command()
def copy(
    name: Annotated[str, _NAME],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="The new .yaml file, or a folder for it.")],
    extend: Annotated[
        bool, typer.Option("--extend", help="Write a short file that extends NAME, in place of a complete one.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite DEST.")] = False,
    json_: Annotated[bool, _JSON] = False,
) -> None:
    """Write a preset of your own to start from; it is named after its file."""
    target = _target(name, dest.expanduser())
    text = _extending(name, target) if extend else _standalone(name, target)
    try:
        with open(target, "w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{target}: exists already. Choose another name, or overwrite it with --force.") from error
    if json_:
        print_document({"preset": name, "path": str(target), "extends": extend})
        return
    typer.echo(f"Wrote {target}. Edit it, then: flowmbpo train --preset {target}")


def _target(name: str, dest: Path) -> Path:
    target = dest / f"{Path(name).stem}.yaml" if dest.is_dir() else dest
    if target.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{target}: a preset file ends in .yaml. Use '{target}.yaml'.")
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: the folder '{target.parent}' does not exist. Create it first.")
    return target


def _standalone(name: str, target: Path) -> str:
    from flowmbpo.presets.load import experiment_from_dict, load_experiment, to_yaml

    complete = load_experiment(name).model_dump(mode="json")
    return to_yaml(experiment_from_dict({**complete, "name": target.stem}, str(target)))


def _extending(name: str, target: Path) -> str:
    from flowmbpo.presets.library import Library, is_file_path
    from flowmbpo.presets.load import load_experiment

    description = load_experiment(name).description
    path = Library().find(name).path
    parent = name
    if is_file_path(name) or path.parent == Path():
        parent = os.path.relpath(path.resolve(), target.parent.resolve())
        parent = parent if "/" in parent else f"./{parent}"
    return (
        f"extends: {json.dumps(parent)}\n"
        f"description: {json.dumps(description)}\n"
        f"# State what differs below; `flowmbpo presets show {name}` lists every key.\n"
    )
