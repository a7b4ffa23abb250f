"""Stop requests: noted by the handler, honoured at the next step boundary."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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
