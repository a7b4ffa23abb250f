"""What became of one tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Action = Literal["loaded", "adapted", "reinitialised", "dropped"]


@dataclass(frozen=True)
class Outcome:
    """The target's new tensor, where it comes from, and how many of its entries are the source's."""

    tensor: Tensor
    action: Action
    detail: str = ""
    copied: int = 0
