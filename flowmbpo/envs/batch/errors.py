"""One place where whatever a batch simulator raises becomes this project's error."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from flowmbpo.errors import EnvironmentFailure, FlowMBPOError


class SimulatorErrors(AbstractContextManager[None]):
    """Turns any exception of a simulator into EnvironmentFailure, with the original chained.

    Which exceptions a simulator has cannot be known. The project's own errors pass as they are, and
    so do KeyboardInterrupt and the like. `close`, where given, is called first: a simulator that
    failed halfway through a step must not be stepped on.
    """

    def __init__(self, task: str, close: Callable[[], None] | None = None) -> None:
        self._task = task
        self._close = close

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception):
            return
        if self._close is not None:
            self._close()
        if not isinstance(error, FlowMBPOError):
            line = traceback.format_exception_only(error)[-1].strip()
            raise EnvironmentFailure(f"{self._task}: the simulator failed: {line}") from error
