"""What is measured of each part of the agent; nothing is judged here.

A probe is a function `(Subject) -> Figures` of fixed sample sizes: fewer rows would not do, more would show no more.
With `light` it measures what a run asks of itself. A figure that could not be measured is None or left out; `curves`
are series of numbers to draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Figures = dict[str, Any]
NAMED = 4  # tensors that a message names; the rest are counted


def in_words(value: Mapping[str, int] | Sequence[object]) -> str:
    """The first few names, of a mapping with their counts, or all of some numbers."""
    if not isinstance(value, Mapping):
        names = [f"{each:.3g}" if isinstance(each, float) else str(each) for each in value]
        return ", ".join(names[:NAMED] if any(isinstance(each, str) for each in value) else names) or "no names known"
    shown = ", ".join(f"{name} ({value[name]})" for name in list(value)[:NAMED])
    rest = len(value) - NAMED
    return shown + (f" and {rest} more tensors" if rest > 0 else "")


def ratio(a: float, b: float, undefined: float = 0.0) -> float:
    """a over a positive b."""
    return a / b if b > 0.0 else undefined
