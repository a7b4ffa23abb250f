"""Learning-rate schedules as pure functions of the epoch: nothing to save, nothing to resume wrongly."""

from __future__ import annotations

from typing import Literal


def learning_rate(initial: float, final: float, epoch: int, epochs: int, kind: Literal["linear", "constant"]) -> float:
    """The rate of epoch `epoch` (from 0) of `epochs`.

    `linear` goes from `initial` at epoch 0 towards `final`, which it reaches at `epochs` and keeps;
    `constant` stays at `initial`.
    """
    if kind == "constant":
        return initial
    return initial + (final - initial) * min(epoch / epochs, 1.0)
