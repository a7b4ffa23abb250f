"""How every command fails: one short message, an exit code, and with --json an error document.

Exit codes: 0 done, 1 failure, 2 user error, 3 diagnosed unhealthy, 75 interrupted and resumable.
"""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import typer
from typer.core import TyperGroup

from flowmbpo.errors import FlowMBPOError

_INTERRUPTED = 130  # what Typer makes of a Ctrl-C that no command handled
_FULL = (errno.ENOSPC, errno.EDQUOT)


class ContractGroup(TyperGroup):
    """The top command group: `--debug` anywhere, and every failure by the contract."""

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, *rest: Any, **extra: Any) -> Any:
        """Run one command line and exit with its code."""
        given = list(sys.argv[1:] if args is None else args)
        line = [arg for arg in given if arg != "--debug"]
        try:
            code = super().main(line, prog_name or "flowmbpo", *rest, **(extra | {"standalone_mode": False}))
        except FlowMBPOError as error:
            code = _fail(given, error.kind, str(error), error, error.exit_code)
        except typer.TyperException as error:
            context = getattr(error, "ctx", None)  # only Typer's private subclass declares it
            command = context.command_path if context is not None else "flowmbpo"
            message = error.format_message().replace("Value error, ", "")  # pydantic's prefix
            code = _fail(given, "usage", f"{message}\nSee `{command} --help`.", error, 2)
        except OSError as error:
            message = storage_message(error)
            if message is None:
                raise
            code = _fail(given, "storage", message, error)
        if code == _INTERRUPTED:
            code = _fail(given, "interrupted", "before there was anything to save.")
        sys.exit(code if isinstance(code, int) else 0)


def storage_message(error: OSError) -> str | None:
    """What the disk refused, in words; None where no file is involved."""
    where = f" while writing '{error.filename}'" if error.filename else ""
    if error.errno in _FULL:
        return f"the disk is full{where}. Free some space (see `df -h`), then run the command again."
    if error.filename is None:
        return None
    return f"'{error.filename}': {error.strerror}. Check the path and its permissions."


def report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook` of the command line: an unexpected exception is our bug, said in one message."""
    first_line = str(error).strip().partition("\n")[0]
    what = f"{kind.__name__}: {first_line}" if first_line else kind.__name__
    again = "" if "--debug" in sys.argv else " Add --debug for the traceback and please report it with that."
    _fail(sys.argv, "bug", f"{what}\nThis is a bug in flowmbpo, not a mistake of yours.{again}", error)


def _fail(given: Sequence[str], kind: str, message: str, error: BaseException | None = None, code: int = 1) -> int:
    """Say what failed in the way that the command line `given` asks for; returns the exit code."""
    from flowmbpo_cli.output import print_document

    if "--debug" in given:
        traceback.print_exception(error)
    print(f"{'Stopped' if kind == 'interrupted' else 'Error'}: {message}", file=sys.stderr, flush=True)
    if "--json" in given:
        print_document({"error": {"kind": kind, "message": message}})
    return code
