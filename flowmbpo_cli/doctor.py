"""`flowmbpo doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flowmbpo_cli.output import only_document, people, print_document


def doctor(json_: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """Say what works on this machine, and what to do about what does not."""
    from flowmbpo_cli.machine import checks

    with only_document(json_):
        found = list(checks(Path.cwd()))
    core_works = all(check.ok for check in found if check.core)
    if json_:
        print_document({"ok": core_works, "checks": [check.to_dict() for check in found]})
    else:
        from flowmbpo_cli.tables import print_table

        console = people(json_)
        rows = [[c.section, c.name, "ok" if c.ok else "missing", c.detail, c.advice] for c in found]
        print_table(console, "doctor", ["section", "what", "state", "found", "what to do"], rows)
        console.print("The core works." if core_works else "The core does not work: see the lines above.")
    raise typer.Exit(0 if core_works else 1)
