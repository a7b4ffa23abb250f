"""How the arithmetic is done. Imports no torch."""

from __future__ import annotations

from typing import Literal

from flowmbpo.config.base import FrozenConfig, PositiveInt


class ComputeConfig(FrozenConfig):
    """`threads: null` leaves torch's choice. Bit-equality holds for a fixed thread count."""

    threads: PositiveInt | None = None
    precision: Literal["highest", "high", "medium"] = "highest"
