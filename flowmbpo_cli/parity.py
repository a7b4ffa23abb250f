"""`flowmbpo parity`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flowmbpo_cli.output import Json, print_document
from flowmbpo_cli.sources import complete_preset, config_of

_SOURCE = "A preset's name, a .yaml file, a run directory or a checkpoint."
_COSTS = {
    "nfe": "velocity evaluations per model step",
    "actor_nfe": "velocity evaluations per action",
    "compute_index": "compute index",
    "model_update": "FLOPs of a model update",
    "actor_update": "FLOPs of an actor update",
    "critic_update": "FLOPs of a critic update",
    "epoch": "FLOPs of an epoch",
}


def parity(
    a: Annotated[str, typer.Argument(metavar="A", help=_SOURCE, autocompletion=complete_preset)],
    b: Annotated[str, typer.Argument(metavar="B", help=_SOURCE, autocompletion=complete_preset)],
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where a key differs that is not compared, or a size by over 2%.")
    ] = False,
    allow: Annotated[
        list[str] | None, typer.Option("--allow", metavar="KEY", help="A key or section that may differ. Repeatable.")
    ] = None,
    json_: Json = False,
) -> None:
    """Compare two configs: parameters part by part, compute per update, and the keys that differ."""
    from flowmbpo.envs.resolve import resolve

    sides = [(config, resolve(config.task)) for config in (config_of(a), config_of(b))]
    # With the backend written out, a preset and a run of it do not differ in it.
    left, right = (config.model_copy(update={"task": task.config}) for config, task in sides)
    from flowmbpo.parity.comparison import compare  # imports torch: after what can be refused without

    comparison = compare(left, right, sides[0][1].spec, sides[1][1].spec, allow or ())
    document = comparison.to_dict()
    if not json_:
        _show(document)
    if strict:
        comparison.check()
    if json_:
        print_document(document)


def _show(document: dict[str, Any]) -> None:
    from flowmbpo_cli.tables import print_records, print_table, print_tree

    a, b = document["a"], document["b"]
    compared = {**document["model"], "part": "encoder + dynamics + reward"}
    columns = {"part": "part", "a": a, "b": b, "gap_percent": "gap %"}
    print_records("parameters", columns, (*document["parts"], compared))
    print_tree("solved widths", document["solved_widths"])
    sides = [document["compute"][side] for side in ("a", "b", "ratio")]
    costs = [[name, *({**side, **side["flops"]}[key] for side in sides)] for key, name in _COSTS.items()]
    print_table("compute", ["cost", a, b, "ratio"], costs)
    differences = [
        [row["key"], row["a"], row["b"], verdict]
        for verdict in ("unintended", "intended")
        for row in document["differences"][verdict]
    ]
    if differences:
        print_table("differences", ["key", a, b, ""], differences)
    verdict = "at most" if document["within"] else "WARNING: more than"
    typer.echo(f"Model and actor differ by {verdict} {document['largest_gap_percent']:g}%.")
    unintended = ", ".join(row["key"] for row in document["differences"]["unintended"])
    typer.echo(f"WARNING: keys differ that are not compared: {unintended}." if unintended else "No other key differs.")
