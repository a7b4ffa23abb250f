"""What ends a run early: stop requests by signal, honoured at the next step boundary, and failures."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from flowmbpo.errors import Interrupted, StorageError
from flowmbpo.runs.directory import RunDirectory

log = logging.getLogger("flowmbpo")

ACKNOWLEDGEMENT = (
    b"\nStopping: the current epoch is finished and saved first (before the first epoch: the random episodes and the "
    b"warm-up too). Ctrl-C again stops at once, unsaved.\n"
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether a signal asked the run to stop. Saving inside a handler is how checkpoints break."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Catch SIGINT, SIGTERM and SIGUSR1; a second SIGINT stops at once, unsaved.

    Python lets the main thread alone install handlers: in another one nothing is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not request:
            os.write(2, ACKNOWLEDGEMENT)  # no buffered stream: the handler may have interrupted one
        request.signal = signal.Signals(number).name

    previous = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def failure_recorded(run_dir: RunDirectory) -> Iterator[None]:
    """Whatever ends the run inside is written to its run.json, where the disk lets it, and raised again."""
    try:
        yield
    except KeyboardInterrupt as error:
        if not (run_dir.checkpoints / "latest.pt").is_file():
            _record(run_dir, "failed", "stopped at once, before the first checkpoint")
            raise
        _record(run_dir, "interrupted", "stopped at once; what followed the last checkpoint is lost")
        raise Interrupted(
            "stopped at once: what followed the last checkpoint is lost. "
            f"Go on from it with: flowmbpo train --resume {shlex.quote(str(run_dir.path))}"
        ) from error
    except BaseException as error:  # whatever ended the run is recorded and passed on
        _record(run_dir, "failed", f"{type(error).__name__}: {error}")
        raise


def _record(run_dir: RunDirectory, status: Literal["failed", "interrupted"], error: str) -> None:
    try:
        run_dir.update_status(status, error=error)
    except StorageError as refusal:  # the disk that ended the run may refuse this too: the cause matters more
        log.error("%s", refusal)
