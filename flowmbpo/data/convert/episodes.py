"""Episodes as published files align them, checked and realigned.

Published files (TD-MPC2, MMBench, PWM) keep with an observation the action and the reward that LED to it; a dataset
here, like the replay buffer, keeps with it those that LEAVE it. An episode of L transitions has L + 1 rows::

    published row      0         1         2              L
                     o_0       o_1       o_2     ...    o_L
                     ( - )     a_0       a_1            a_{L-1}       row 0: NaN or whatever memory held
                     ( - )     r_0       r_1            r_{L-1}

    here             o_0       o_1       o_2     ...    o_L
                     a_0       a_1       a_2            ( 0 )

So index 0 of action and reward is left out by its place, whatever it holds, and everything else must be finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from flowmbpo.errors import DataError

Rows = Float[NDArray[np.float32], "E L+1 W"]


@dataclass(frozen=True)
class TaskColumns:
    """A task of the set and the columns that are its own."""

    name: str
    obs_dim: int
    action_dim: int


@dataclass(frozen=True)
class Block:
    """E whole episodes of one task, of equal length, aligned as a dataset keeps them.

    `numbers` are the episodes' places among those of their portion.
    """

    task: int
    numbers: NDArray[np.int64]
    obs: Rows
    action: Float[NDArray[np.float32], "E L A"]
    reward: Float[NDArray[np.float32], "E L"]
    terminated: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Portion:
    """What was read of a file at once: up to its row `end`, `episodes` of them, and those that are to be kept."""

    end: int
    episodes: int
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Place:
    """Where episodes come from, for messages: row `rows[e]` of the file is episode e's first or only one.

    Steps of an episode are counted on from there where `flat`, and named beside the row elsewhere.
    """

    path: Path
    rows: NDArray[np.int64]
    flat: bool = False

    def at(self, episode: int, step: int) -> str:
        """`chunk_0.pt, row 17, step 3`."""
        row = int(self.rows[episode])
        return f"{self.path}, row {row + step}" if self.flat else f"{self.path}, row {row}, step {step}"


def realign(
    task: int,
    columns: TaskColumns,
    place: Place,
    numbers: NDArray[np.int64],
    obs: Rows,
    action: Rows,
    reward: Float[NDArray[np.float32], "E L+1"],
    terminated: NDArray[np.bool_] | None = None,
    *,
    drop_padding: bool = False,
) -> Block:
    """The block of episodes of one task: index 0 left out, padding cut off, all numbers checked.

    Raises DataError where the padding is not zero (unless `drop_padding`) or a number is not finite.
    """
    for name, rows, width in (("obs", obs, columns.obs_dim), ("action", action[:, 1:], columns.action_dim)):
        if rows.shape[2] < width:
            raise DataError(
                f"{place.path}: wrong widths: {name} has {rows.shape[2]} columns, but {columns.name} has {width} of "
                "its own. Is this the data of another set?"
            )
        if not drop_padding:
            _check_padding(name, rows, width, columns, place)
    block = Block(
        task,
        numbers,
        np.ascontiguousarray(obs[..., : columns.obs_dim]),
        np.ascontiguousarray(action[:, 1:, : columns.action_dim]),
        np.ascontiguousarray(reward[:, 1:]),
        None if terminated is None else np.ascontiguousarray(terminated[:, 1:]),
    )
    for name, values, shift in (("obs", block.obs, 0), ("action", block.action, 1), ("reward", block.reward, 1)):
        _check_finite(name, values, shift, place)
    return block


def _check_padding(name: str, rows: Rows, width: int, columns: TaskColumns, place: Place) -> None:
    beyond = rows[..., width:]
    if not beyond.any():
        return
    episode, step, column = (int(index[0]) for index in beyond.nonzero())
    shift = 1 if name == "action" else 0
    raise DataError(
        f"{place.at(episode, step + shift)}: wrong widths: {columns.name} has {width} columns of {name}, but column "
        f"{width + column} holds {beyond[episode, step, column]:g} where padding must be 0. Is this the data of "
        "another set? --drop-padding cuts such columns off unseen."
    )


def _check_finite(name: str, values: NDArray[np.float32], shift: int, place: Place) -> None:
    if np.isfinite(values).all():
        return
    episode, step, *column = (int(index[0]) for index in (~np.isfinite(values)).nonzero())
    where = f"[{column[0]}]" if column else ""
    raise DataError(
        f"{place.at(episode, step + shift)}: {name}{where} is {values[(episode, step, *column)]:g}. Only the action "
        "and the reward of an episode's first row may be NaN: the file is damaged, or of another alignment."
    )
