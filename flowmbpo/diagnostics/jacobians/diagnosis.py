"""Jacobians of the world model's macro map: how much a step, or many, amplify a change of latent or action."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.diagnostics.diagnosis import Diagnosis, Row
from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.jacobians.maps import (
    Loop,
    Noise,
    Trajectory,
    action_projection,
    action_ranks,
    draws_noise,
    latent_projection,
    latent_rank,
    unroll,
)
from flowmbpo.diagnostics.jacobians.norms import Frobenius, Linearised, Spectral, hutchinson, spectral_norm
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.errors import NonFiniteError
from flowmbpo.models.task_context import TaskContext

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HORIZONS = (1, 2, 4, 8, 16)
PRODUCT_SHARE = 4  # one start state in so many is followed through the horizon
LIGHT_ROWS = 64


@dataclass(frozen=True)
class JacobianNorms:
    """Norms of d z_h / d z_0 or d z_h / d a_0 on the input's `rank` allowed dimensions.

    `loop` open: later actions stay as they are; closed: the policy reacts. `noise` fixed: the model's own
    noise is drawn once per row and held.
    """

    of: str
    horizon: int
    loop: Loop
    noise: Noise
    rank: float
    frobenius: Frobenius
    spectral: Spectral

    @property
    def gain(self) -> float:
        """||J||_F / sqrt(rank): root mean square of the singular values, 1 for the identity."""
        return self.frobenius.given_rows.value / math.sqrt(self.rank)

    @property
    def label(self) -> str:
        """Which map this is."""
        name = f"d z_{self.horizon} / d {self.of}_0"
        name += "" if self.horizon == 1 and self.loop == "open" else f", {self.loop} loop"
        return name + (", model noise fixed" if self.noise == "fixed" else "")

    @property
    def words(self) -> str:
        """The norms with their intervals."""
        return (
            f"gain {self.gain:.3g}, Frobenius {self.frobenius.given_rows}, "
            f"largest singular value {self.spectral.over_rows}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "of": self.of,
            "horizon": self.horizon,
            "loop": self.loop,
            "model_noise": self.noise,
            "rank": self.rank,
            "gain": self.gain,
            "frobenius": self.frobenius.to_dict(),
            "spectral": self.spectral.to_dict(),
        }


@dataclass(frozen=True)
class JacobianDiagnosis(Diagnosis):
    """`step`: one macro step at real states; `products`: several steps, at fewer of them."""

    name: ClassVar[str] = "jacobians"
    step: tuple[JacobianNorms, ...]
    products: tuple[JacobianNorms, ...]
    source: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "step": [norms.to_dict() for norms in self.step],
            "horizon": [norms.to_dict() for norms in self.products],
            "states_from": self.source,
        }

    def rows(self) -> list[Row]:
        """Gain, Frobenius norm and largest singular value of every map."""
        several = [norms for norms in self.products if norms.horizon > 1 or norms.loop == "closed"]
        found: list[Row] = [(norms.label, norms.words) for norms in (*self.step, *several)]
        found.append(("states", f"{self._count(self.step)}; through the horizon {self._count(self.products)}"))
        found.append(("states come from", self.source))
        return found

    @staticmethod
    def _count(norms: tuple[JacobianNorms, ...]) -> str:
        frobenius, spectral = norms[0].frobenius, [each.spectral for each in norms]
        stuck = sum(int((~each.converged).sum()) for each in spectral)
        tolerance = f"singular values to {100 * spectral[0].tolerance:g}%"
        tolerance += f", {stuck} not converged" if stuck else ""
        return f"n {frobenius.rows}, {frobenius.probes} probes, {tolerance}"

    def draw(self, figure: Figure) -> None:
        """Gain and largest singular value (root mean square over states) by the number of steps."""
        for axes, of in zip(figure.subplots(1, 2), ("z", "a"), strict=True):
            for loop, colour in (("open", "#4477aa"), ("closed", "#ee6677")):
                chosen = [n for n in self.products if (n.of, n.loop, n.noise) == (of, loop, "none")]
                steps = [n.horizon for n in chosen]
                gains, largest = [n.gain for n in chosen], [n.spectral.over_rows.value for n in chosen]
                axes.plot(steps, gains, "o-", color=colour, label=f"gain, {loop} loop")
                axes.plot(steps, largest, "s--", color=colour, label=f"largest, {loop} loop")
            axes.set_xscale("log", base=2)
            axes.set_xticks(steps, [str(h) for h in steps])
            axes.set_yscale("log")
            axes.set_xlabel("steps h")
            axes.set_ylabel(f"singular values of d z_h / d {of}_0")
        axes.legend()


def measure_jacobians(subject: Subject, effort: Effort) -> JacobianDiagnosis:
    """Norms of the macro map at `effort.rows` states, and through the horizon at a quarter of them.

    Horizons go up to the one trained with. Raises NonFiniteError where a Jacobian is not finite.
    """
    start, context = subject.starts(effort.rows, subject.generator("jacobians/states"))
    few = max(2, effort.rows // PRODUCT_SHARE)
    longest = min(effort.horizon, subject.config.training.horizon)
    horizons = tuple(h for h in HORIZONS if h <= longest)
    noises: tuple[Noise, ...] = ("none", "fixed") if draws_noise(subject, start, context) else ("none",)
    step: list[JacobianNorms] = []
    products: list[JacobianNorms] = []
    for noise in noises:
        step += _norms(subject, start, context, (1,), noise, effort.probes)["open"]
        through = _norms(subject, start[:few], context.rows(torch.arange(few)), horizons, noise, effort.probes)
        products += through["open"] + through["closed"]
    return JacobianDiagnosis(tuple(step), tuple(products), subject.windows_source)


def light_jacobians(subject: Subject, effort: Effort) -> dict[str, float]:
    """Gain of one step in latent and action (see `JacobianNorms.gain`) by few probes at few states.

    Stochastic models take their mean. A figure that is not finite is left out.
    """
    rows = min(effort.rows, LIGHT_ROWS)
    start, context = subject.starts(rows, subject.generator("jacobians/states"))
    path = unroll(subject, start, context, 1, "none", unroll(subject, start, context, 1, "none").actions)
    projections = (latent_projection(subject), action_projection(subject, context))
    generator = subject.generator("jacobians/probes")
    squares = hutchinson(Linearised(path.z[0], path.point), projections, effort.probes, generator)
    ranks = (latent_rank(subject), float(action_ranks(context).mean()))
    gains = {
        key: math.sqrt(float(square.mean()) / rank)
        for key, square, rank in zip(("jacobian/z", "jacobian/a"), squares, ranks, strict=True)
    }
    return {key: gain for key, gain in gains.items() if math.isfinite(gain)}


def _norms(
    subject: Subject,
    start: Float[Tensor, "B D"],
    context: TaskContext,
    horizons: tuple[int, ...],
    noise: Noise,
    probes: int,
) -> dict[Loop, list[JacobianNorms]]:
    """Both loops and both inputs at the given horizons, the open loop under the closed one's actions."""
    closed = unroll(subject, start, context, max(horizons), noise)
    opened = unroll(subject, start, context, max(horizons), noise, closed.actions)
    projections = (latent_projection(subject), action_projection(subject, context))
    action_rank = action_ranks(context)
    ranks = (float(latent_rank(subject)), float(action_rank.mean()))
    dimensions = (latent_rank(subject), int(action_rank.max()))
    found: dict[Loop, list[JacobianNorms]] = {"open": [], "closed": []}
    paths: dict[Loop, Trajectory] = {"open": opened, "closed": closed}
    for loop, path in paths.items():
        for h in horizons:
            jacobian = Linearised(path.z[h - 1], path.point)
            generator = subject.generator(f"jacobians/{loop}/{h}/{noise}")
            squares = hutchinson(jacobian, projections, probes, generator)
            for k, of in enumerate(("z", "a")):
                if not bool(squares[k].isfinite().all()):
                    raise NonFiniteError(
                        f"d z_{h} / d {of}_0 of the world model is not finite ({loop} loop): `flowmbpo diagnose "
                        "health` tells which part of the checkpoint broke; diagnose one saved before that"
                    )
                spectral = spectral_norm(jacobian, projections[k], dimensions[k], generator)
                norms = JacobianNorms(of, h, loop, noise, ranks[k], Frobenius.of(squares[k]), spectral)
                found[loop].append(norms)
    return found
