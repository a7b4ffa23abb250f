"""Which task each row of a batch is drawn from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]  # [n], one per task


class Schedule:
    """Deals rows to tasks in the order of due times: draw j of task i is due at (j + offset[i]) / rate[i].

    With rates of 1 that is a fixed round-robin: any run of rows holds every task equally often, give or
    take one. With rates proportional to the tasks' sizes all tasks get through their data together: after
    the sum of rates rows every task has been dealt exactly its rate. The counts of draws so far are the
    only state.
    """

    def __init__(self, rates: Counts, offsets: npt.NDArray[np.float64]) -> None:
        """`rates` [n] are positive; `offsets` [n] lie in [0, 1) and decide the order of simultaneous tasks."""
        self.rates = rates
        self.offsets = offsets

    @classmethod
    def balanced(cls, tasks: int, rng: np.random.Generator) -> Schedule:
        """Every task equally often, in a seeded order."""
        return cls(np.ones(tasks, np.int64), rng.permutation(tasks) / tasks)

    @classmethod
    def proportional(cls, sizes: Counts, rng: np.random.Generator) -> Schedule:
        """Every task as often as it has something to draw."""
        return cls(sizes, 0.999 * rng.random(len(sizes)))  # below 1 after rounding, too: a pass ends with the pass

    def deal(self, draws: Counts, rows: int) -> tuple[Counts, Counts]:
        """The next rows after `draws` [n] draws of each task: (task [rows], number of its draw [rows])."""
        ahead = np.ceil((rows + len(draws)) * (self.rates / self.rates.sum())).astype(np.int64) + 1
        task = np.repeat(np.arange(len(draws)), ahead)
        draw = np.arange(len(task)) - np.repeat(np.cumsum(ahead) - ahead, ahead) + draws[task]
        rate = self.rates[task]
        # Whole passes apart from the rest: the difference between two draws stays exact for ever.
        due = draw // rate + (draw % rate + self.offsets[task]) / rate
        first = np.argsort(due, kind="stable")[:rows]
        return task[first], draw[first]
