"""`flowmbpo parity`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowmbpo_cli.output import only_document, people, print_document
from flowmbpo_cli.sources import complete_preset, config_of

if TYPE_CHECKING:
    from flowmbpo.config.experiment import ExperimentConfig
    from flowmbpo.envs.spec import EnvSpec

_SOURCE = "A preset's name, a .yaml file, a run directory or a checkpoint."


def parity(
    a: Annotated[str, typer.Argument(metavar="A", help=_SOURCE, autocompletion=complete_preset)],
    b: Annotated[str, typer.Argument(metavar="B", help=_SOURCE, autocompletion=complete_preset)],
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Compare the parameter counts of two configs, part by part."""
    left, right = config_of(a), config_of(b)
    specs = _spec(left), _spec(right)
    from flowmbpo.diagnostics.parity import parity as compare

    with only_document(json_):
        document = compare(left, right, *specs).to_dict()
    if json_:
        print_document(document)
    else:
        _print(document)


def _spec(config: ExperimentConfig) -> EnvSpec:
    from flowmbpo.envs.resolve import task_spec

    return task_spec(config.task)


def _print(document: dict[str, Any]) -> None:
    from flowmbpo_cli.tables import print_table, print_tree

    console = people(False)
    compared = {**document["model"], "part": "encoder + dynamics + reward"}
    rows = [[row[key] for key in ("part", "a", "b", "gap_percent")] for row in (*document["parts"], compared)]
    print_table(console, "parameters", ["part", document["a"], document["b"], "gap %"], rows)
    print_tree(console, "solved widths", document["solved_widths"])
    limit = document["largest_gap_percent"]
    verdict = "at most" if document["within"] else "WARNING: more than"
    console.print(f"Model and actor differ by {verdict} {limit:g}%.", markup=False)
