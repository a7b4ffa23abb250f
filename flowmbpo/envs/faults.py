"""Episodes that a simulator broke. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ABSURD = 1e6
"""No task here has observations or rewards of this size; a diverging simulation passes it on its way to infinity."""


@dataclass(frozen=True)
class Fault:
    """One broken episode: which, where it broke, why, and all that replays it.

    `step` counts the agent steps of the episode, the broken one included; `actions` are those of
    the whole episode, float32 [step, A], where the environment keeps them, and otherwise the last.
    """

    index: int
    task: str
    seed: int
    episode: int
    step: int
    reason: str
    state: str
    actions: np.ndarray

    def __str__(self) -> str:
        return (
            f"{self.task}: environment {self.index} broke in step {self.step} of episode {self.episode} "
            f"(seed {self.seed}): {self.reason}; {self.state}"
        )


def sound(values: np.ndarray) -> bool:
    """True proves that every entry is finite and below `ABSURD`; False may also mean many large entries."""
    return bool(np.vdot(values, values) < ABSURD**2)


def broken_numbers(obs: np.ndarray, reward: float) -> str | None:
    """What is wrong with one copy's observation [O] and reward, or None: not finite, or absurd."""
    # A product is the cheapest look at all entries; NaN compares false.
    if abs(reward) < ABSURD and (sound(obs) or bool((np.abs(obs) < ABSURD).all())):
        return None
    entries = np.flatnonzero(~(np.abs(obs) < ABSURD))
    values = ", ".join(f"{entry}: {obs[entry]:.6g}" for entry in entries[:8].tolist())
    finite = bool(np.isfinite(reward) and np.isfinite(obs).all())
    kind = f"absurd (beyond {ABSURD:.0e})" if finite else "not finite"
    return f"a result is {kind}: reward {reward:.6g}, observation entries {{{values}}}"
