"""What a run starts from, where that is another run's weights. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flowmbpo.config.base import FrozenConfig, NonNegativeInt


class InitialConfig(FrozenConfig):
    """The checkpoint whose weights a run begins with; `sha256` is filled in when it is loaded.

    A task that the checkpoint never saw starts with the embedding of the task `embedding_from`, or of the
    nearest one. Dynamics of another kind are distilled from the checkpoint's by `distill_updates` updates.
    """

    checkpoint: Annotated[str, Field(min_length=1)]
    sha256: str | None = None
    embedding_from: str | None = None
    distill_updates: NonNegativeInt = 2000
