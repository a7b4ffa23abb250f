"""What a diagnostic is: its name and question, how much it measures, and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from flowmbpo.json_documents import Document

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flowmbpo.config.sections import DiagnosticsConfig
    from flowmbpo.diagnostics.statistics import Interval


Row = tuple[str, str]
"""A figure's name and its value in words, interval and unit included."""
Drawing: TypeAlias = "Figure"
"""matplotlib's figure: only what draws into one imports the library, which takes a second."""


@dataclass(frozen=True)
class Brief:
    """A table for a terminal, the line above it and the lines below."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Diagnosis(Document, ABC):
    """The result of one diagnostic."""

    derived: ClassVar[tuple[str, ...]] = ("reading",)
    name: ClassVar[str]

    @property
    def reading(self) -> str:
        """One sentence: what the figures mean for this run. Empty where the rows begin with it."""
        return ""

    @abstractmethod
    def rows(self) -> list[Row]:
        """The figures for people, most telling first."""

    @abstractmethod
    def draw(self, figure: Drawing) -> None:
        """Draw into an empty figure (about 9 x 5 inches, constrained layout)."""

    def whole(self) -> Brief:
        """All rows, and the reading."""
        return Brief(self.name, ("figure", "value"), self.rows(), (f"{self.reading}\n",) if self.reading else ())

    def brief(self) -> Brief:
        """What a terminal shows unless it is asked for everything."""
        return self.whole()

    @property
    def healthy(self) -> bool:
        """False where the command must end with the exit code of an unhealthy run."""
        return True


def draw_band(
    axes: Any, at: Sequence[int], values: Sequence[Interval], label: str = "", colour: str | None = None
) -> None:
    """Estimates as a line, their intervals as a band around it."""
    (line,) = axes.plot(at, [value.value for value in values], label=label, color=colour)
    low, high = [value.low for value in values], [value.high for value in values]
    axes.fill_between(at, low, high, alpha=0.2, color=line.get_color())


LIGHT_HORIZON = 16


@dataclass(frozen=True)
class Effort:
    """Sample sizes. The defaults are those of `flowmbpo diagnose`.

    `gradients` of an ESNR; `probes` of a Jacobian norm; `windows` of `horizon` transitions; `rows`: states of Jacobians
    and action statistics; whole real `episodes`; `resamples` of a bootstrap.
    """

    gradients: int = 64
    probes: int = 64
    windows: int = 256
    horizon: int = 32
    rows: int = 256
    episodes: int = 8
    resamples: int = 1000

    @classmethod
    def light(cls, config: DiagnosticsConfig) -> Effort:
        """What a run measures of itself while it trains; no episodes are run for it."""
        sizes = {"gradients": config.gradients, "probes": config.probes, "windows": config.windows}
        return cls(**sizes, horizon=LIGHT_HORIZON, rows=config.windows, episodes=0, resamples=0)


SUMMARIES = {
    "health": "A verdict in words: what is broken in the run, with the figures behind it.",
    "jacobians": "Norms of the model's Jacobians in state and action, per step and through the horizon.",
    "esnr": "Signal to noise of the actor's and the world model's gradients.",
    "gradient": "The model's actor gradient against a reference from the real environment.",
    "rollout": "Latent and reward error of 1- to 32-step predictions against real trajectories.",
    "reward-gap": "The same policy's return in the model and in the environment.",
    "actions": "Spread, saturation and modes of the policy's actions.",
    "compute": "Network evaluations, FLOPs, seconds and memory of each update.",
}
