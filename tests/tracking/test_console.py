"""What the console shows, on a terminal and in a log file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from flowmbpo.tracking.console import ConsoleSink


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def plain(clock: Clock, total: int = 100, first: int = 0) -> tuple[ConsoleSink, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, force_terminal=False, width=60)
    return ConsoleSink("run", total, first, console=console, clock=clock), text


def row(epoch: int, **extra: float) -> dict[str, float]:
    return {"epoch": epoch, "agent_steps": 16 * epoch, **extra}


def test_plain_output_is_limited_by_time_not_by_epochs() -> None:
    clock = Clock()
    sink, text = plain(clock)
    for epoch in range(1, 101):
        clock.now += 0.125
        sink.log(row(epoch))
    assert [line.split(" |")[0] for line in text.getvalue().splitlines()] == ["epoch 40/100", "epoch 80/100"]


def test_evaluations_show_a_line_with_what_was_last_known() -> None:
    clock = Clock()
    sink, text = plain(clock)
    sink.log(row(1, **{"loss/actor": -0.25, "speed/updates_per_s": 12.5}))
    assert text.getvalue() == ""
    sink.log(row(2, **{"eval/return_mean": 123.456, "eval/return_std": 7.0}))
    (line,) = text.getvalue().splitlines()
    assert "return 123.5 +- 7" in line and "actor -0.25" in line and "12.5 updates/s" in line


def test_last_row_and_status_are_shown_at_the_end_once() -> None:
    clock = Clock()
    sink, text = plain(clock)
    sink.log(row(3, **{"nonfinite/count": 2.0, "faults/count": 3.0}))
    clock.now = 75.0
    sink.close("interrupted")
    lines = text.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("epoch 3/100") and lines[0].endswith("| 2 non-finite | 3 broken episodes")
    assert lines[1] == "run: interrupted after 0:01:15"


def test_time_to_go_counts_this_processs_epochs_after_the_warm_up() -> None:
    clock = Clock()
    sink, _ = plain(clock, total=100, first=40)
    assert sink.eta_s is None
    clock.now = 500.0  # the warm-up
    sink.log(row(41))
    assert sink.eta_s is None
    clock.now = 530.0
    sink.log(row(61))
    assert sink.eta_s == pytest.approx(58.5)  # 20 epochs took 30 s, 39 are left


def test_terminal_shows_one_live_view_with_everything() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=110, height=30)
    sink = ConsoleSink("quick [demo]", 10, console=console)
    sink.log(row(4, **{"eval/return_mean": 150.0, "eval/return_std": 3.0, "eval/success": 0.5, "nonfinite/count": 1}))
    sink.log(row(4, **{"faults/count": 2.0}))
    sink.log(row(5, **{"eval/return_mean": 140.0, "loss/critic": 2.0, "grad_norm/model": 0.75}))
    sink.close("done")
    shown = text.getvalue()
    for part in ("quick [demo]", "5/10 epochs", "140 +- 3", "best 150", "success 0.5", "critic 2", "model 0.75"):
        assert part in shown
    assert "1 non-finite updates skipped" in shown
    assert "2 episodes broke in the simulator" in shown


def test_default_console_writes_to_stderr_only(capfd: pytest.CaptureFixture[str]) -> None:
    sink = ConsoleSink("run", 1)
    sink.log(row(1, **{"eval/return_mean": 1.0}))
    sink.close("done")
    captured = capfd.readouterr()
    assert captured.out == "" and "epoch 1/1" in captured.err
