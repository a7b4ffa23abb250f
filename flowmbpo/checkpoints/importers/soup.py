"""Newt's 200 tasks: the rows of its embedding table that are tasks known here. Imports no torch.

Newt trains on one list of tasks, DMControl's first (21, then 16 of its own), then 49 of Meta-World's;
the rest run in simulators that this project does not have. Its names lack the `s` of `-backwards`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

TASKS = 200
OBS_DIM = 128  # every task is zero-padded to these
ACTION_DIM = 16
_MISSING = "mw-shelf-place"  # of the 50 of Meta-World, Newt has all but this one
_SUITE = 19  # of MT30's tasks so many are DMControl's own; the other 11 are in Newt's second block
_SECOND_BLOCK = 21
_META_WORLD = 37
_DMCONTROL = 30


def soup_rows(mt80: Sequence[str]) -> MappingProxyType[str, int]:
    """Row of every task known here, from the names of MT80 in their order."""
    rows = {name: row for row, name in enumerate(mt80[:_SUITE])}
    rows |= {"quadruped-walk": _SUITE, "quadruped-run": _SUITE + 1}
    rows |= {name: _SECOND_BLOCK + place for place, name in enumerate(mt80[_SUITE:_DMCONTROL])}
    meta_world = [name for name in mt80[_DMCONTROL:] if name != _MISSING]
    rows |= {name: _META_WORLD + place for place, name in enumerate(meta_world)}
    return MappingProxyType(rows)
