"""The four pictures of `health`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curves = Mapping[str, list[float]]


def draw_health(figure: Figure, curves: Mapping[str, Curves], title: str) -> None:
    """Draw what was measured; a part that could not be measured says so."""
    figure.suptitle(f"health: {title}", x=0.01, ha="left", fontsize=11, fontweight="bold", wrap=True)
    reward, actor, critic, latents = figure.subplots(2, 2).flat
    none: Curves = {}
    _scatter(reward, curves.get("reward", none), ("real", "predicted"), "reward", "real reward", "predicted reward")
    _line(actor, curves.get("actor", none), "action_gradient_norms", "actor gradient", "imagined step", "|d J / d a_h|")
    _scatter(critic, curves.get("critic", none), ("return", "value"), "value", "discounted return", "value")
    _line(latents, curves.get("latents", none), "violation", "latents", "imagined step", "off the simplex by")


def _scatter(axes: Axes, curves: Curves, keys: tuple[str, str], title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if not all(key in curves for key in keys):
        _say_missing(axes)
        return
    x, y = curves[keys[0]], curves[keys[1]]
    axes.plot(x, y, ".", markersize=2, alpha=0.5, color="#4477aa")
    both = [*x, *y]
    axes.plot([min(both), max(both)], [min(both), max(both)], color="#bbbbbb", linewidth=1, zorder=0)


def _line(axes: Axes, curves: Curves, key: str, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if key not in curves:
        _say_missing(axes)
        return
    axes.plot(curves[key], marker="o", markersize=3, color="#ee6677")
    axes.set_ylim(bottom=0.0)


def _say_missing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="#888888")
