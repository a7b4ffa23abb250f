"""What goes to stdout and what to stderr: with --json, one document there and everything else here."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from contextvars import ContextVar
from typing import Annotated, Any, TextIO

import typer

from flowmbpo.json_documents import json_value

_DOCUMENTS: ContextVar[TextIO | None] = ContextVar("documents", default=None)  # where they go; None: to sys.stdout


def _reserve(context: typer.Context, wanted: bool) -> bool:
    """From here to the command's end, whatever Python code prints goes to stderr if a document is wanted."""
    if wanted:
        root, token = context.find_root(), _DOCUMENTS.set(sys.stdout)
        root.call_on_close(lambda: _DOCUMENTS.reset(token))
        root.with_resource(redirect_stdout(sys.stderr))
    return wanted


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.", callback=_reserve)]


def print_document(document: Any) -> None:
    """The JSON document, on one line of stdout. JSON has no nan or infinity: they become null."""
    print(json.dumps(json_value(document), allow_nan=False), file=_DOCUMENTS.get(), flush=True)


def answer(document: Any, json_wanted: bool, show: Callable[[Any], object] | str) -> None:
    """A command's outcome: as JSON for programs, by `show` (a function, or the text itself) for people."""
    if json_wanted:
        print_document(document)
    elif isinstance(show, str):
        typer.echo(show)
    else:
        show(document)


def reserve_stdout() -> None:
    """Point file descriptor 1 at stderr and keep the old one for `sys.stdout`.

    Worker processes and C libraries (MuJoCo, EGL) write to the descriptor, past Python's stdout.
    """
    sys.stdout.flush()
    document = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(document, "w", encoding="utf-8", closefd=True)  # noqa: SIM115 - lives as long as the process


def command_group(help_text: str) -> typer.Typer:
    """A group of commands that without one shows its help."""
    group = typer.Typer(
        help=help_text,
        invoke_without_command=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @group.callback()
    def root(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    return group
