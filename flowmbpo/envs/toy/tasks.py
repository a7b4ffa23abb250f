"""The toy tasks and their widths. Imports no torch."""

from __future__ import annotations

from flowmbpo.spec import TaskInfo, timed_task


def _row(name: str, widths: tuple[int, int], steps: int, repeat: int = 1) -> TaskInfo:
    return timed_task(f"toy-{name}", "toy", widths, steps, repeat)


TASKS: tuple[TaskInfo, ...] = (
    _row("pendulum-swingup", (3, 1), steps=200, repeat=2),
    _row("pendulum-push", (3, 1), steps=200, repeat=2),
    _row("pendulum-hidden", (2, 1), steps=200, repeat=2),
    _row("cartpole-swingup", (5, 1), steps=1000, repeat=4),
    _row("cartpole-push", (5, 1), steps=1000, repeat=4),
    _row("cartpole-hidden", (3, 1), steps=1000, repeat=4),
    _row("map-smooth", (1, 1), steps=20),
    _row("map-inelastic", (1, 1), steps=20),
    _row("map-fold", (1, 1), steps=20),
    _row("lqr", (4, 2), steps=50),
    _row("two-goals", (2, 2), steps=25),
    _row("bounce-soft", (2, 1), steps=100),
    _row("bounce-stiff", (2, 1), steps=100),
    _row("gust", (2, 1), steps=100),
    _row("rare-push", (2, 1), steps=100),
    _row("skew-push", (2, 1), steps=100),
    _row("pillar", (1, 1), steps=50),
    _row("slip", (2, 1), steps=100),
)
