"""Episodes that a simulator broke. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ABSURD = 1e6
"""No task here has observations or rewards of this size; a diverging simulation passes it on its way to infinity.

A simulator that knows its tasks better sets a lower bound, its `absurd`.
"""

MAX_FAILED_STARTS = 10
"""So many episodes of a copy in a row may fail to start, each a fault, before the copy is given up for good."""


@dataclass(frozen=True)
class Fault:
    """One broken episode: which, where it broke, why, and all that replays it.

    `step` counts the agent steps of the episode, the broken one included; 0 is an episode that could
    not start. `actions` are those of the whole episode, float32 [step, A]; nan stands for those taken
    before a checkpoint of a version that did not keep them. `state` is the one that the broken step
    started from.
    """

    index: int
    task: str
    seed: int
    episode: int
    step: int
    reason: str
    state: str
    actions: np.ndarray

    @property
    def at_start(self) -> bool:
        """Whether the episode could not even start: then no step of it was taken."""
        return self.step == 0

    def __str__(self) -> str:
        where = "at the start" if self.at_start else f"in step {self.step}"
        return (
            f"{self.task}: environment {self.index} broke {where} of episode {self.episode} "
            f"(seed {self.seed}): {self.reason}; {self.state}"
        )


def sound(values: np.ndarray, absurd: float = ABSURD) -> bool:
    """Whether every entry is finite and below `absurd`."""
    # A product is the cheapest look at all entries; NaN compares false.
    return bool(np.vdot(values, values) < absurd**2) or bool((np.abs(values) < absurd).all())


def broken_numbers(obs: np.ndarray, reward: float, absurd: float = ABSURD) -> str | None:
    """What is wrong with one copy's observation [O] and reward, or None: not finite, or at least `absurd`."""
    if abs(reward) < absurd and sound(obs, absurd):
        return None
    entries = np.flatnonzero(~(np.abs(obs) < absurd))
    values = ", ".join(f"{entry}: {obs[entry]:.6g}" for entry in entries[:8].tolist())
    finite = bool(np.isfinite(reward) and np.isfinite(obs).all())
    kind = f"absurd (beyond {absurd:.3g})" if finite else "not finite"
    return f"a result is {kind}: reward {reward:.6g}, observation entries {{{values}}}"
