"""A worker process, from both sides: its loop (read a command, do it, answer) and the handle that its parent holds.

A message is one byte of command and a pickled payload, or nothing: a step is a single byte each way. Waiting is a
blocking read, so an idle worker costs nothing, and a parent that dies closes the pipe and thereby ends the worker.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import traceback
import weakref
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from flowmbpo.errors import EnvironmentFailure

BUILD, STEP, START, REPLAY, DESCRIBE, RENDER, CPU = b"b", b"s", b"a", b"r", b"d", b"f", b"c"
DONE, FAILED = b"k", b"e"

PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Requests to stop that the parent honours. Terminals and Slurm send them to every process of a job."""

_SLICE_S = 30.0
_SILENT_SLICES = 20  # a worker that says nothing for this many slices is taken for stuck
_EXIT_S = 5.0
_open_workers: weakref.WeakSet[ProcessWorker] = weakref.WeakSet()

Handlers = Mapping[bytes, Callable[[Any], Any]]


class WorkerError(Exception):
    """A worker's command failed (then `trace` is its traceback), or its process is gone."""

    def __init__(self, line: str, trace: str = "") -> None:
        super().__init__(line)
        self.trace = trace


def encode(kind: bytes, payload: Any = None) -> bytes:
    """One message."""
    return kind if payload is None else kind + pickle.dumps(payload)


def decode(message: bytes) -> tuple[bytes, Any]:
    """The command (or status) of a message, and its payload."""
    return message[:1], pickle.loads(message[1:]) if len(message) > 1 else None


def answer(handlers: Handlers, message: bytes) -> bytes:
    """Do what `message` asks and return the reply: a WorkerError for whatever a simulator raises.

    A worker that merely died would leave the parent with an exit code instead of a reason.
    """
    try:
        kind, payload = decode(message)
        return encode(DONE, handlers[kind](payload))
    except Exception as error:  # noqa: BLE001  which exceptions a simulator has cannot be known
        line = str(error) if isinstance(error, EnvironmentFailure) else traceback.format_exception_only(error)[-1]
        return encode(FAILED, WorkerError(line.strip(), "".join(traceback.format_exception(error))))


def serve(connection: Connection, variables: dict[str, str], build: Callable[[], Handlers]) -> None:
    """Body of a worker process: build the handlers, say so, then serve until the pipe closes.

    `variables` are environment variables of this process, set before a simulator is imported. A worker that died of
    one of `PARENTS_SIGNALS` would cost the parent the checkpoint that it is about to write.
    """
    for number in PARENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.environ.update(variables)
    handlers: dict[bytes, Callable[[Any], Any]] = {}
    try:
        connection.send_bytes(answer({BUILD: lambda _: handlers.update(build())}, BUILD))
        while True:
            connection.send_bytes(answer(handlers, connection.recv_bytes()))
    except (EOFError, OSError):
        return  # the parent closed the pipe, or is gone


class LocalWorker:
    """The same as `ProcessWorker`, in this process."""

    def __init__(self, build: Callable[[], Handlers]) -> None:
        self._handlers = build()
        self._reply = DONE

    def send(self, kind: bytes, payload: Any = None) -> None:
        self._reply = answer(self._handlers, encode(kind, payload))

    def receive(self) -> Any:
        return _opened(self._reply)

    def close(self) -> None:
        self._handlers = {}


@atexit.register  # after multiprocessing's own hook, so it runs before: that one waits for workers it cannot terminate
def _close_open_workers() -> None:
    for worker in list(_open_workers):
        worker.close()


class ProcessWorker:
    """Handlers in a process of their own, started fresh (spawn), ended with its parent.

    Every `send` is followed by one `receive`; a first `receive`, before any, waits until the worker is ready.
    """

    def __init__(self, build: Callable[[], Handlers], variables: dict[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, variables, build), daemon=True)
        # The child inherits the blocked signals: none can hit it before it ignores them.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, PARENTS_SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            theirs.close()  # from here on the worker alone holds its end: its death is an end of file
        self._closed = False
        _open_workers.add(self)

    def send(self, kind: bytes, payload: Any = None) -> None:
        """Give a command; raises WorkerError where the process is gone."""
        try:
            self._connection.send_bytes(encode(kind, payload))
        except OSError as error:
            raise self._lost() from error

    def receive(self) -> Any:
        """Block for the reply; raises WorkerError where the command failed or the process is gone."""
        try:
            # Slices, not one long wait: a machine or a job that was suspended must not look stuck.
            if not any(self._connection.poll(_SLICE_S) for _ in range(_SILENT_SLICES)):
                silence = f"{_SLICE_S * _SILENT_SLICES:.0f} s"
                raise WorkerError(f"its worker process {self._process.pid} has been silent for {silence}")
            message = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        return _opened(message)

    def ask(self, kind: bytes, payload: Any = None) -> Any:
        """Give a command and block for its reply."""
        self.send(kind, payload)
        return self.receive()

    def close(self) -> None:
        """End it; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        self._connection.close()
        self._process.join(_EXIT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        if self._process.exitcode is not None:  # None where other code in this process has reaped it
            self._process.close()

    def _lost(self) -> WorkerError:
        if self._closed:
            return WorkerError("its worker process was closed")
        self._process.join(_EXIT_S)
        code = self._process.exitcode
        if code is None:
            how = "closed its pipe"
        elif code < 0:
            how = f"was killed by signal {-code} ({signal.strsignal(-code)}), exit code {code}"
        else:
            how = f"ended with exit code {code}"
        return WorkerError(f"its worker process {self._process.pid} {how}")


def _opened(message: bytes) -> Any:
    status, payload = decode(message)
    if status == DONE:
        return payload
    raise payload
