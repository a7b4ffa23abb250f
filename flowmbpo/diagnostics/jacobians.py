"""Jacobians of the world model's macro map: how much a step, or many, amplify a change of latent or action."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from flowmbpo.diagnostics.interface import Diagnosis, Drawing, Effort, Row
from flowmbpo.diagnostics.jacobian_norms import Frobenius, Linearised, Projection, Spectral, hutchinson, spectral_norm
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.errors import NonFiniteError
from flowmbpo.json_documents import Document
from flowmbpo.models.open_loop import rollout
from flowmbpo.models.task_context import TaskContext
from flowmbpo.training.updates import frozen

HORIZONS = (1, 2, 4, 8, 16)
PRODUCT_SHARE = 4  # one start state in so many is followed through the horizon
LIGHT_ROWS = 64
EXPLODES, VANISHES = 10.0, 0.1  # gains of the whole horizon that the reading names
Loop = Literal["open", "closed"]
Noise = Literal["none", "fixed"]


@dataclass(frozen=True)
class JacobianNorms(Document):
    """Norms of d z_h / d z_0 or d z_h / d a_0 on the input's `rank` allowed dimensions.

    `loop` open: later actions stay as they are; closed: the policy reacts. `model_noise` none: the step of zero
    noise (of a flow a mode, not the mean); fixed: the model's own noise is drawn once per row and held.
    """

    derived = ("gain",)
    of: str
    horizon: int
    loop: Loop
    model_noise: Noise
    rank: float
    frobenius: Frobenius
    spectral: Spectral

    @property
    def gain(self) -> float:
        """||J||_F / sqrt(rank): root mean square of the singular values, 1 for the identity."""
        return self.frobenius.given_rows.value / math.sqrt(self.rank)

    @property
    def row(self) -> Row:
        """Which map this is, and its norms with their intervals."""
        loop = "" if self.horizon == 1 and self.loop == "open" else f", {self.loop} loop"
        noise = ", model noise fixed" if self.model_noise == "fixed" else ""
        norms = f"Frobenius {self.frobenius.given_rows}, largest singular value {self.spectral.over_rows}"
        return f"d z_{self.horizon} / d {self.of}_0{loop}{noise}", f"gain {self.gain:.3g}, {norms}"


@dataclass(frozen=True)
class JacobianDiagnosis(Diagnosis):
    """`step`: one macro step at real states; `horizon`: several steps, at fewer of them."""

    name: ClassVar[str] = "jacobians"
    step: tuple[JacobianNorms, ...]
    horizon: tuple[JacobianNorms, ...]
    states_from: str

    @property
    def reading(self) -> str:
        """Whether the longest closed-loop product of steps amplifies, damps, or keeps a change of the latent."""
        longest = [n for n in self.horizon if (n.of, n.loop, n.model_noise) == ("z", "closed", "none")][-1]
        told = f"comes to {longest.gain:.2g} times its size: gradients neither explode nor vanish."
        if longest.gain > EXPLODES:
            told = f"grows {longest.gain:.3g}-fold: gradients through this model explode."
        elif longest.gain < VANISHES:
            told = f"shrinks to {longest.gain:.2g} of its size: gradients from the end of the horizon vanish."
        return f"Over {longest.horizon} steps under the policy a change of the latent {told}"

    def rows(self) -> list[Row]:
        """Gain, Frobenius norm and largest singular value of every map."""
        several = [norms for norms in self.horizon if norms.horizon > 1 or norms.loop == "closed"]
        return [
            *(norms.row for norms in (*self.step, *several)),
            ("states", f"{self._count(self.step)}; through the horizon {self._count(self.horizon)}"),
            ("states come from", self.states_from),
        ]

    @staticmethod
    def _count(norms: tuple[JacobianNorms, ...]) -> str:
        frobenius, tolerance = norms[0].frobenius, f"{100 * norms[0].spectral.tolerance:g}%"
        stuck = sum(int((~each.spectral.converged).sum()) for each in norms)
        tolerance += f", {stuck} not converged" if stuck else ""
        return f"n {frobenius.rows}, {frobenius.probes} probes, singular values to {tolerance}"

    def draw(self, figure: Drawing) -> None:
        """Gain and largest singular value (root mean square over states) by the number of steps."""
        for axes, of in zip(figure.subplots(1, 2), ("z", "a"), strict=True):
            for loop, colour in (("open", "#4477aa"), ("closed", "#ee6677")):
                chosen = [n for n in self.horizon if (n.of, n.loop, n.model_noise) == (of, loop, "none")]
                steps = [n.horizon for n in chosen]
                axes.plot(steps, [n.gain for n in chosen], "o-", color=colour, label=f"gain, {loop} loop")
                largest = [n.spectral.over_rows.value for n in chosen]
                axes.plot(steps, largest, "s--", color=colour, label=f"largest, {loop} loop")
            axes.set_xscale("log", base=2)
            axes.set_xticks(steps, [str(h) for h in steps])
            axes.set(yscale="log", xlabel="steps h", ylabel=f"singular values of d z_h / d {of}_0")
        axes.legend()


def measure_jacobians(subject: Subject, effort: Effort) -> JacobianDiagnosis:
    """Norms of the macro map at `effort.rows` states, and through the horizon at a quarter of them.

    Horizons go up to the one trained with. Raises NonFiniteError where a Jacobian is not finite.
    """
    start, context = subject.starts(effort.rows, subject.generator("jacobians/states"))
    few = max(2, effort.rows // PRODUCT_SHARE)
    horizons = tuple(h for h in HORIZONS if h <= min(effort.horizon, subject.config.training.horizon))
    noises: tuple[Noise, ...] = ("none", "fixed") if subject.agent.world_model.dynamics.stochastic else ("none",)
    step: list[JacobianNorms] = []
    products: list[JacobianNorms] = []
    for noise in noises:
        step += _norms(subject, start, context, (1,), noise, effort.probes, loops=("open",))
        products += _norms(subject, start[:few], context.rows(torch.arange(few)), horizons, noise, effort.probes)
    return JacobianDiagnosis(tuple(step), tuple(products), subject.windows_source)


def light_jacobians(subject: Subject, effort: Effort) -> dict[str, float]:
    """Gain of one step in latent and action (see `JacobianNorms.gain`) by few probes at few states.

    Stochastic models take their zero-noise step. A figure that is not finite is left out.
    """
    rows = min(effort.rows, LIGHT_ROWS)
    start, context = subject.starts(rows, subject.generator("jacobians/states"))
    path = unroll(subject, start, context, 1, "none", unroll(subject, start, context, 1, "none").actions)
    projections = make_projections(subject, context)
    generator = subject.generator("jacobians/probes")
    squares = hutchinson(Linearised(path.z[0], path.point), projections, effort.probes, generator)
    ranks = (latent_rank(subject), float(context.action_mask.sum(-1).mean()))
    gains = (math.sqrt(float(square.mean()) / rank) for square, rank in zip(squares, ranks, strict=True))
    return {f"jacobian/{of}": gain for of, gain in zip("za", gains, strict=True) if math.isfinite(gain)}


def _norms(
    subject: Subject,
    start: Float[Tensor, "B D"],
    context: TaskContext,
    horizons: tuple[int, ...],
    noise: Noise,
    probes: int,
    loops: tuple[Loop, ...] = ("open", "closed"),
) -> list[JacobianNorms]:
    """Both inputs at the given horizons in each loop, the open one under the closed one's actions."""
    closed = unroll(subject, start, context, max(horizons), noise)
    opened = unroll(subject, start, context, max(horizons), noise, closed.actions)
    projections = make_projections(subject, context)
    rank, action_rank = latent_rank(subject), context.action_mask.sum(-1)
    inputs = (("z", float(rank), rank), ("a", float(action_rank.mean()), int(action_rank.max())))
    found = []
    for loop in loops:
        path = opened if loop == "open" else closed
        for h in horizons:
            jacobian = Linearised(path.z[h - 1], path.point)
            generator = subject.generator(f"jacobians/{loop}/{h}/{noise}")
            squares = hutchinson(jacobian, projections, probes, generator)
            for (of, mean_rank, dimension), square, project in zip(inputs, squares, projections, strict=True):
                if not bool(square.isfinite().all()):
                    raise NonFiniteError(
                        f"d z_{h} / d {of}_0 of the world model is not finite ({loop} loop): `flowmbpo diagnose "
                        "health` tells which part of the checkpoint broke; diagnose one saved before that"
                    )
                spectral = spectral_norm(jacobian, project, dimension, generator)
                found.append(JacobianNorms(of, h, loop, noise, mean_rank, Frobenius.of(square), spectral))
    return found


@dataclass(frozen=True)
class Trajectory:
    """Latents `z[h - 1]` after h steps as functions of `point` = [z_0, change of a_0]; `actions` as taken."""

    point: Float[Tensor, "B D+A"]
    z: list[Float[Tensor, "B D"]]
    actions: list[Float[Tensor, "B A"]]


def unroll(
    subject: Subject,
    start: Float[Tensor, "B D"],
    context: TaskContext,
    horizon: int,
    noise: Noise,
    actions: list[Tensor] | None = None,
) -> Trajectory:
    """`horizon` steps from the states `start`, differentiable in z_0 and a_0.

    Open loop under the given `actions`; without them closed loop, actions sampled as in imagination. Samples of the
    policy, and with `noise` "fixed" those of the model, are the same in every call. The first state is the geometry's
    own of z_0 (in logit geometry of max(z_0, 1e-6)): derivatives are on the latent in every geometry.
    """
    agent, model = subject.agent, subject.agent.world_model
    policy = subject.generator("jacobians/policy")
    drawn = subject.generator("jacobians/model") if noise == "fixed" else None
    latent = model.latent(start).detach()
    point = pad(latent, (0, agent.spec.action_dim)).requires_grad_()
    first, shift = point[..., : latent.shape[-1]], point[..., latent.shape[-1] :]
    taken: list[Tensor] = []

    def controls(step: int, z: Tensor) -> Tensor:
        here = first if step == 0 else z
        action = agent.actor(here, context, policy) if actions is None else actions[step]
        taken.append(action.detach())
        return action + shift if step == 0 else action

    with frozen(agent):  # only z_0 and a_0 are asked about
        walk = rollout(model, model.geometry.from_latent(first), controls, context, horizon, drawn)
        return Trajectory(point, [z_next for _, _, z_next in walk], taken)


def make_projections(subject: Subject, context: TaskContext) -> tuple[Projection, Projection]:
    """Of [z, a]: onto the latent's allowed directions (the simplex's tangent); onto the actions of each row's task."""
    width, geometry = subject.config.model.latent_dim, subject.agent.world_model.geometry
    return (
        lambda v: pad(geometry.project(v[..., :width]), (0, v.shape[-1] - width)),
        lambda v: pad(v[..., width:] * context.action_mask, (width, 0)),
    )


def latent_rank(subject: Subject) -> int:
    """Dimension of the latent's allowed directions: D, less one per group on a simplex."""
    # The trace of P, of which `noise_gain` is the inverse root per coordinate.
    return round(subject.config.model.latent_dim / subject.agent.world_model.geometry.noise_gain**2)
