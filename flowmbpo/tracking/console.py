"""What a person watches while it trains: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flowmbpo.tracking.sink import PARTS, MetricSink, Row, Value

INTERVAL_S = 5.0
_EVAL, _BEST = "eval/return_mean", "eval/best"
_WARNINGS = {  # on a line, and in the live view
    "nonfinite/count": ("non-finite", "non-finite updates skipped"),
    "faults/count": ("broken episodes", "episodes broke in the simulator and were thrown away"),
}


class ConsoleSink(MetricSink):
    """Progress, ETA, real return, losses, gradient norms and speed, always on stderr.

    On a terminal one view is refreshed in place; elsewhere one line is written about every
    `INTERVAL_S` seconds and at each evaluation. `first_epoch` is the number of epochs done before;
    `opening` is said once, before anything has happened.
    """

    def __init__(
        self,
        title: str,
        total_epochs: int,
        first_epoch: int = 0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        opening: str = "",
    ) -> None:
        self._title, self._total = title, total_epochs
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._latest: dict[str, Value] = {"epoch": first_epoch}
        self._shown_row: dict[str, Value] | None = None
        self._started = self._printed = clock()
        self._first_row: tuple[int, float] | None = None  # its epoch and time: before it comes the warm-up
        self._live: Live | None = None
        if opening:
            self._say(f"{title}: {opening}")
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._view, refresh_per_second=4)
            self._live.start()

    def log(self, row: Row) -> None:
        self._latest = {**self._latest, **row}
        if self._first_row is None:
            self._first_row = self._epoch, self._clock()
        if _EVAL in row:
            self._latest[_BEST] = max(float(self._latest.get(_BEST, -math.inf)), float(row[_EVAL]))
        due = self._clock() - self._printed >= INTERVAL_S
        if self._live is None and (due or _EVAL in row):
            self._print_line()

    def close(self, status: str) -> None:
        if self._live is not None:
            self._live.update(self._view(), refresh=True)
            self._live.stop()
            self._live = None
        elif self._shown_row != self._latest and "agent_steps" in self._latest:
            self._print_line()
        self._say(f"{self._title}: {status} after {self._elapsed}")

    @property
    def eta_s(self) -> float | None:
        """Seconds to go at the mean speed since the first row, which holds the warm-up; None until a later one."""
        if self._first_row is None or self._epoch <= self._first_row[0]:
            return None
        epoch, since = self._first_row
        return (self._total - self._epoch) * (self._clock() - since) / (self._epoch - epoch)

    @property
    def _epoch(self) -> int:
        return int(self._latest["epoch"])

    def _number(self, key: str) -> str:
        value = self._latest.get(key)
        return "-" if value is None or isinstance(value, str) else f"{value:.4g}"

    @property
    def _elapsed(self) -> timedelta:
        return timedelta(seconds=round(self._clock() - self._started))

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _parts(self, group: str, separator: str) -> str:
        return separator.join(f"{part} {self._number(f'{group}/{part}')}" for part in PARTS[group])

    def _eta(self) -> str:
        return "-" if self.eta_s is None else str(timedelta(seconds=round(self.eta_s)))

    def _print_line(self) -> None:
        self._printed, self._shown_row = self._clock(), self._latest
        line = (
            f"epoch {self._epoch}/{self._total} | agent steps {self._latest.get('agent_steps', '-')} | "
            f"return {self._number(_EVAL)} +- {self._number('eval/return_std')} | loss {self._parts('loss', ' ')} | "
            f"grad {self._parts('grad_norm', ' ')} | "
            f"{self._number('speed/updates_per_s')} updates/s | eta {self._eta()}"
        )
        self._say("".join([line, *(f" | {warning}" for warning in self._warnings(0))]))

    def _warnings(self, form: int) -> list[str]:
        return [f"{self._number(key)} {said[form]}" for key, said in _WARNINGS.items() if self._latest.get(key)]

    def _view(self) -> Group:
        """The live view; rich asks for it from its own thread."""
        bar = ProgressBar(total=self._total, completed=self._epoch)
        progress = Table.grid(padding=(0, 2), expand=True)
        progress.add_column(no_wrap=True)
        progress.add_column(ratio=1)
        progress.add_row(Text(self._title, style="bold"), bar, f"{self._epoch}/{self._total} epochs")
        table = Table.grid(padding=(0, 2))
        real = f"{self._number(_EVAL)} +- {self._number('eval/return_std')}   best {self._number(_BEST)}"
        success = f"   success {self._number('eval/success')}" if "eval/success" in self._latest else ""
        updates, speed = (self._number(f"speed/{what}_per_s") for what in ("updates", "agent_steps"))
        agent_steps, env_steps = (self._latest.get(key, "-") for key in ("agent_steps", "env_steps"))
        rows = {
            "real return": real + success,
            "train return": self._number("train/return_mean"),
            "loss": self._parts("loss", "   "),
            "gradient norm": self._parts("grad_norm", "   "),
            "speed": f"{updates} updates/s   {speed} agent steps/s",
            "steps": f"{agent_steps} agent steps   {env_steps} env steps",
            "time": f"{self._elapsed} elapsed   {self._eta()} to go",
        }
        for name, text in rows.items():
            table.add_row(name, text)
        return Group(progress, table, *(Text(warning, style="bold red") for warning in self._warnings(1)))
