"""`flowmbpo parity`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flowmbpo_cli.output import only_document, people, print_document
from flowmbpo_cli.sources import complete_preset, config_of

_SOURCE = "A preset's name, a .yaml file, a run directory or a checkpoint."


def parity(
    a: Annotated[str, typer.Argument(metavar="A", help=_SOURCE, autocompletion=complete_preset)],
    b: Annotated[str, typer.Argument(metavar="B", help=_SOURCE, autocompletion=complete_preset)],
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Compare the parameter counts of two configs, part by part."""
    left, right = config_of(a), config_of(b)
    from flowmbpo.diagnostics.parity import parity as compare

    with only_document(json_):
        document = compare(left, right).to_dict()
    if json_:
        print_document(document)
        return
    _print(document)


def _print(document: dict[str, Any]) -> None:
    from flowmbpo_cli.tables import print_table, print_tree

    console = people(False)
    rows = [[row["part"], row["a"], row["b"], row["gap_percent"]] for row in document["parts"]]
    print_table(console, "parameters", ["part", document["a"], document["b"], "gap %"], rows)
    for title in ("model", "actor", "solved_widths"):
        print_tree(console, title.replace("_", " "), document[title])
