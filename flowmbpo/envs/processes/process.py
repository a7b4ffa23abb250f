"""A worker as its parent sees it: a process, or, for tests and debugging, none. Imports no torch."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from flowmbpo.envs.processes.server import DONE, PARENTS_SIGNALS, Failure, Handlers, answer, decode, encode, serve

_SLICE_S = 30.0
_SILENT_SLICES = 20  # a worker that says nothing for this many slices is taken for stuck
_EXIT_S = 5.0


class WorkerError(Exception):
    """A worker's command failed (then `trace` is its traceback), or its process is gone."""

    def __init__(self, line: str, trace: str = "") -> None:
        super().__init__(line)
        self.trace = trace


class Worker(ABC):
    """Takes one command at a time; every `send` is followed by one `receive`."""

    @abstractmethod
    def send(self, kind: bytes, payload: Any = None) -> None:
        """Give a command; raises WorkerError where the process is gone."""

    @abstractmethod
    def receive(self) -> Any:
        """Block for the reply; raises WorkerError where the command failed or the process is gone."""

    @abstractmethod
    def close(self) -> None:
        """End it; safe to call twice."""


class LocalWorker(Worker):
    """The same handlers in this process."""

    def __init__(self, build: Callable[[], Handlers]) -> None:
        self._handlers = build()
        self._reply = b""

    def send(self, kind: bytes, payload: Any = None) -> None:
        self._reply = answer(self._handlers, encode(kind, payload))

    def receive(self) -> Any:
        return _opened(self._reply)

    def close(self) -> None:
        self._handlers = {}


_open_workers: weakref.WeakSet[ProcessWorker] = weakref.WeakSet()


@atexit.register  # after multiprocessing's own hook, so it runs before: that one waits for workers it cannot terminate
def _close_open_workers() -> None:
    for worker in list(_open_workers):
        worker.close()


class ProcessWorker(Worker):
    """Handlers in a process of their own, started fresh (spawn), ended with its parent.

    The constructor returns at once; the first `receive` waits until the worker is ready.
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

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid or -1

    def send(self, kind: bytes, payload: Any = None) -> None:
        try:
            self._connection.send_bytes(encode(kind, payload))
        except OSError as error:
            raise self._lost() from error

    def receive(self) -> Any:
        try:
            # Slices, not one long wait: a machine or a job that was suspended must not look stuck.
            if not any(self._connection.poll(_SLICE_S) for _ in range(_SILENT_SLICES)):
                raise WorkerError(
                    f"its worker process {self.pid} has been silent for {_SLICE_S * _SILENT_SLICES:.0f} s"
                )
            message = self._connection.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        return _opened(message)

    def close(self) -> None:
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
        return WorkerError(f"its worker process {self.pid} {how}")


def _opened(message: bytes) -> Any:
    status, payload = decode(message)
    if status == DONE:
        return payload
    failure: Failure = payload
    raise WorkerError(failure.line, failure.trace)
