"""What a diagnostic returns: figures for a program, a table for people, a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = tuple[str, str]
"""A figure's name and its value in words, interval and unit included."""


class Diagnosis(ABC):
    """The result of one diagnostic."""

    name: ClassVar[str]

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The JSON object: plain numbers, strings, lists and dicts."""

    @abstractmethod
    def rows(self) -> list[Row]:
        """The figures for people, most telling first."""

    @abstractmethod
    def draw(self, figure: Figure) -> None:
        """Draw into an empty figure (about 9 x 5 inches, constrained layout)."""

    @property
    def healthy(self) -> bool:
        """False where the command must end with the exit code of an unhealthy run."""
        return True
