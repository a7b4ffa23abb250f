"""`flowmbpo version`."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Annotated

import typer

from flowmbpo import __version__
from flowmbpo_cli.output import print_document


def version(json_: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False) -> None:
    """Print the versions of flowmbpo, Python and torch."""
    try:
        torch = installed("torch")
    except PackageNotFoundError:
        torch = None
    versions = {"flowmbpo": __version__, "python": platform.python_version(), "torch": torch}
    if json_:
        print_document(versions)
        return
    typer.echo(f"flowmbpo {__version__} (Python {versions['python']}, torch {torch or 'not installed'})")
