"""What goes to stdout and what to stderr: with --json, one document there and everything else here."""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowmbpo.json_documents import json_value

if TYPE_CHECKING:
    from rich.console import Console


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def print_document(document: Any) -> None:
    """The JSON document, on one line of stdout. JSON has no nan or infinity: they become null."""
    print(json.dumps(json_value(document), allow_nan=False), flush=True)


def people(json_wanted: bool) -> Console:
    """The console for people: stdout, or stderr where stdout carries a document."""
    from rich.console import Console

    stream = sys.stderr if json_wanted else sys.stdout
    width = None if stream.isatty() else 160  # a pipe has no width of its own: do not wrap at 80
    return Console(file=stream, width=width, highlight=False, soft_wrap=False)


def only_document(json_wanted: bool) -> AbstractContextManager[Any]:
    """Inside, whatever Python code prints goes to stderr if a document is wanted on stdout."""
    return redirect_stdout(sys.stderr) if json_wanted else nullcontext()


def reserve_stdout() -> None:
    """Point file descriptor 1 at stderr and keep the old one for `sys.stdout`.

    Worker processes and C libraries (MuJoCo, EGL) write to the descriptor, past Python's stdout.
    """
    sys.stdout.flush()
    document = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = open(document, "w", encoding="utf-8", closefd=True)  # noqa: SIM115 - lives as long as the process
