"""The loop of a worker process: read a command, do it, answer. Imports no torch.

A message is one byte of command followed by a pickled payload, or by nothing: a step, the command
that matters, is a single byte each way. Waiting is a blocking read, so an idle worker costs nothing,
and a parent that dies in any way closes the pipe and thereby ends the worker.
"""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from flowmbpo.errors import EnvironmentFailure

STEP, RESET, LOAD, RENDER, CPU = b"s", b"r", b"l", b"f", b"c"
DONE, FAILED = b"k", b"e"

PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Requests to stop that the parent honours. Terminals and Slurm send them to every process of a job."""

Handlers = Mapping[bytes, Callable[[Any], Any]]


@dataclass(frozen=True)
class Failure:
    """An exception as text: its last line, and the whole traceback for whoever debugs it."""

    line: str
    trace: str


def encode(kind: bytes, payload: Any = None) -> bytes:
    """One message."""
    return kind if payload is None else kind + pickle.dumps(payload)


def decode(message: bytes) -> tuple[bytes, Any]:
    """The command (or status) of a message, and its payload."""
    return message[:1], pickle.loads(message[1:]) if len(message) > 1 else None


class FailureReport(AbstractContextManager["FailureReport"]):
    """Turns whatever a simulator raises into a `Failure` for the parent.

    A worker cannot know which exceptions a simulator has, and one that merely died with them would
    leave the parent with an exit code instead of a reason. SystemExit and the like pass through.
    """

    failure: Failure | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not isinstance(error, Exception):
            return False
        line = str(error) if isinstance(error, EnvironmentFailure) else traceback.format_exception_only(error)[-1]
        self.failure = Failure(line.strip(), "".join(traceback.format_exception(error)))
        return True


def answer(handlers: Handlers, message: bytes) -> bytes:
    """Do what `message` asks and return the reply."""
    report = FailureReport()
    reply = None
    with report:
        kind, payload = decode(message)
        reply = handlers[kind](payload)
    return encode(DONE, reply) if report.failure is None else encode(FAILED, report.failure)


def serve(connection: Connection, variables: dict[str, str], build: Callable[[], Handlers]) -> None:
    """Body of a worker process: build the handlers, say so, then serve until the pipe closes.

    `variables` are environment variables of this process alone, set before anything of a simulator
    is imported. `PARENTS_SIGNALS` are ignored: a worker that died of one would cost the parent the
    checkpoint that it is about to write.
    """
    for number in PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.environ.update(variables)
    report = FailureReport()
    handlers: Handlers = {}
    with report:
        handlers = build()
    try:
        connection.send_bytes(encode(DONE) if report.failure is None else encode(FAILED, report.failure))
        while True:
            connection.send_bytes(answer(handlers, connection.recv_bytes()))
    except (EOFError, OSError):
        return  # the parent closed the pipe, or is gone
