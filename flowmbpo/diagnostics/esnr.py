"""Signal to noise of a checkpoint's gradients: the actor's in two variants, and the world model's."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.diagnostics.esnr_estimate import (
    PER_COORDINATE_FLOOR,
    Esnr,
    esnr_from_gram,
    inner_products,
    per_coordinate_snr,
)
from flowmbpo.diagnostics.interface import Diagnosis, Drawing, Effort, Row
from flowmbpo.diagnostics.statistics import Interval
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.errors import NonFiniteError
from flowmbpo.json_documents import Document
from flowmbpo.training.model_loss import model_loss
from flowmbpo.training.updates import actor_objective, frozen


@dataclass(frozen=True)
class GradientSnr(Document):
    """ESNR of one kind of gradient, each estimate of it from `batch` samples `of`; of `size` coordinates.

    `per_coordinate` is PWM's figure (see `per_coordinate_snr`), not comparable with `esnr`.
    """

    esnr: Esnr
    per_coordinate: Interval
    batch: int
    of: str
    size: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON object: the ESNR's, with what it is of."""
        own = {"N": self.batch, "N_of": self.of, "coordinates": self.size}
        return {**self.esnr.to_dict(), **own, "per_coordinate_snr": self.per_coordinate.to_dict()}


@dataclass(frozen=True)
class EsnrDiagnosis(Diagnosis):
    """`policy`: start states fixed; `total`: drawn again; `model`: the world model's loss over fresh windows."""

    name: ClassVar[str] = "esnr"
    horizon: int
    actor: dict[Literal["policy", "total"], GradientSnr]
    model: GradientSnr
    samples_from: str

    @property
    def reading(self) -> str:
        """How much of one actor update is signal."""
        total = self.actor["total"]
        estimate, of = total.esnr, f"the actor's gradient of {total.batch} start states"
        if estimate.value is None:
            return f"Nothing in {of} is chance: all {estimate.gradients} are equal."
        if (estimate.value if estimate.interval is None else estimate.interval.low) <= 0.0:
            return f"In {estimate.gradients} draws of {of} no signal can be told from noise."
        if estimate.value >= 1.0:
            return f"One draw of {of} is more signal than noise; whether it points the right way `gradient` tells."
        return f"One draw of {of} is mostly noise: signal equals it in the mean of {math.ceil(1.0 / estimate.value)}."

    @property
    def _kinds(self) -> dict[str, tuple[GradientSnr, str]]:
        return {
            "actor, total": (self.actor["total"], "start states drawn again"),
            "actor, policy": (self.actor["policy"], "start states fixed"),
            "world model": (self.model, "fresh windows"),
        }

    def rows(self) -> list[Row]:
        """ESNR, gradient length and PWM's figure of each kind."""
        rows: list[Row] = []
        for name, (snr, drawn) in self._kinds.items():
            rows += [
                (f"ESNR: {name}", f"{snr.esnr}, N {snr.batch} {snr.of} ({drawn})"),
                (f"  length of a gradient: {name}", f"{snr.esnr.norm}, {snr.size:,} coordinates"),
                (f"  per-coordinate SNR (PWM's code): {name}", str(snr.per_coordinate)),
            ]
        steps = ("imagined steps of the actor's gradient", str(self.horizon))
        return [*rows, steps, ("samples come from", self.samples_from)]

    def draw(self, figure: Drawing) -> None:
        """ESNR with its interval, on a scale that is linear near zero and logarithmic beyond."""
        axes = figure.subplots()
        for place, (snr, _) in enumerate(self._kinds.values()):
            value, interval = snr.esnr.value, snr.esnr.interval
            if value is None:
                axes.annotate("infinite", (place, 1.0), ha="center")
                continue
            axes.plot(place, value, "o", color="#4477aa")
            if interval is not None:
                axes.vlines(place, interval.low, interval.high, color="#4477aa")
        axes.set_yscale("symlog", linthresh=0.01)
        axes.axhline(0.0, color="0.6", linewidth=0.8)
        axes.set_xticks(range(3), [f"{name}\nN {snr.batch}" for name, (snr, _) in self._kinds.items()])
        axes.set(xlim=(-0.5, 2.5), ylabel=f"ESNR, M {self.model.esnr.gradients}")


def measure_esnr(subject: Subject, effort: Effort) -> EsnrDiagnosis:
    """Draw `effort.gradients` gradients of each kind. Raises NonFiniteError where one is not finite."""
    training, replicas = subject.config.training, subject.config.training.noise_replicas
    states = "start states" + (f" rolled out {replicas} times each" if replicas > 1 else "")

    def measure(kind: str, gradient: Gradient, batch: int, of: str) -> GradientSnr:
        gram, per_coordinate, size = collect(gradient, effort.gradients)
        estimate = esnr_from_gram(gram, subject.generator(f"esnr/bootstrap/{kind}"), effort.resamples)
        return GradientSnr(estimate, per_coordinate, batch, of, size)

    policy, total = actor_gradients(subject, "fixed"), actor_gradients(subject, "resampled")
    size = subject.batch_size
    return EsnrDiagnosis(
        actor={"policy": measure("policy", policy, size, states), "total": measure("total", total, size, states)},
        model=measure("model", model_gradients(subject), training.wm_batch_size, "windows"),
        horizon=subject.actor_horizon,
        samples_from=subject.windows_source,
    )


def light_esnr(subject: Subject, effort: Effort) -> dict[str, float]:
    """Unbiased ESNR of the actor (`total`) and of the world model from few gradients: rough, without interval.

    A figure that is infinite, or whose gradient is not finite (the update guards count those), is left out.
    """
    actor = [("esnr/actor", actor_gradients(subject, "resampled"))] if subject.trains_policy else []
    model = [("esnr/model", model_gradients(subject))] if subject.trains_model else []
    figures = {}
    for key, gradient in actor + model:
        with suppress(NonFiniteError):
            figures[key] = esnr_from_gram(collect(gradient, effort.gradients).gram).value
    return {key: value for key, value in figures.items() if value is not None}


Gradient = Callable[[int], Tensor]
"""The flat gradient of a row number; the same row gives the same gradient whenever it is asked for."""
STORED_BYTES = 160_000_000
STORED_ROWS = 8  # at least, however long a gradient is: as much as the networks and their optimisers take
SAMPLED_COORDINATES = 1 << 16


class GradientSample(NamedTuple):
    """What M gradients of n coordinates leave behind: their inner products, and PWM's per-coordinate figure."""

    gram: Float[Tensor, "M M"]
    per_coordinate: Interval
    size: int


def actor_gradients(subject: Subject, starts: Literal["fixed", "resampled"]) -> Gradient:
    """Gradients of -J (without the preactivation penalty) to the actor, each from `subject.batch_size` start states.

    `fixed`: all from the same ones, so that only the noise of policy and model differs; `resampled`: drawn again too.
    """
    agent, training = subject.agent, subject.config.training
    scale = agent.return_scale.std.squeeze(0) if training.return_normalization else 1.0
    horizon = subject.actor_horizon
    fixed = subject.starts(subject.batch_size, subject.generator("esnr/starts")) if starts == "fixed" else None

    def loss(generator: torch.Generator) -> Tensor:
        start, context = fixed or subject.starts(subject.batch_size, generator)
        with frozen(agent.world_model, agent.critic):
            return actor_objective(agent, start, context, training, generator, horizon).loss / scale

    return _seeded(subject, f"esnr/actor/{starts}", agent.actor, "actor", loss)


def model_gradients(subject: Subject) -> Gradient:
    """Gradients of the model loss to the world model, each from `wm_batch_size` fresh windows."""
    agent, training = subject.agent, subject.config.training

    def loss(generator: torch.Generator) -> Tensor:
        batch = subject.windows.sample(training.wm_batch_size, training.horizon, generator)
        return model_loss(agent.world_model, batch, agent.reward_normalizer(batch.reward), training, generator).total

    return _seeded(subject, "esnr/model", agent.world_model, "world model", loss)


def _seeded(
    subject: Subject, purpose: str, module: nn.Module, part: str, loss: Callable[[torch.Generator], Tensor]
) -> Gradient:
    """The gradient of `module` whose loss is drawn from the generator of the row."""
    parameters = [p for p in module.parameters() if p.requires_grad]

    def gradient(row: int) -> Tensor:
        found = flat_gradient(loss(subject.generator(f"{purpose}/{row}")), parameters)
        if not bool(found.isfinite().all()):
            raise NonFiniteError(
                f"the gradient of the {part} is not finite, so it has no signal to noise: `flowmbpo diagnose health` "
                "tells which part of the checkpoint broke; diagnose one saved before that"
            )
        return found

    return gradient


def flat_gradient(
    loss: Float[Tensor, ""], parameters: list[nn.Parameter], *, retain_graph: bool = False
) -> Float[Tensor, " n"]:
    """The gradient of all parameters in one vector; 0 for those that the loss does not depend on."""
    parts = torch.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def collect(gradient: Gradient, count: int, stored_bytes: int = STORED_BYTES) -> GradientSample:
    """All inner products of `count` >= 2 gradients, exact, in bounded memory.

    As many gradients as `stored_bytes` holds (8 at least) are kept; the others are drawn again from their seeds for
    every such block. The interval of the per-coordinate figure is that of at most 65,536 coordinates, evenly spaced.
    """
    vector = gradient(0)
    size = vector.numel()
    block = min(count, max(STORED_ROWS, stored_bytes // (size * vector.element_size())))
    stored = vector.new_empty(block, size)
    gram = torch.zeros(count, count, dtype=torch.float64)
    spacing = -(-size // SAMPLED_COORDINATES)
    sampled = vector.new_empty(count, -(-size // spacing))
    mean, square = torch.zeros_like(vector), torch.zeros_like(vector)  # of deviations, running (Welford 1962)
    for begin in range(0, count, block):
        end = min(begin + block, count)
        own = stored[: end - begin]
        for row in range(begin, count):
            if row > 0:
                vector = gradient(row)
            if begin == 0:
                sampled[row] = vector[::spacing]
                deviation = vector - mean
                mean.add_(deviation, alpha=1.0 / (row + 1))
                square.addcmul_(deviation, deviation, value=1.0 - 1.0 / (row + 1))
            if row < end:
                own[row - begin] = vector
            else:
                gram[begin:end, row] = inner_products(own, vector.unsqueeze(0)).squeeze(1).cpu()
                gram[row, begin:end] = gram[begin:end, row]
        gram[begin:end, begin:end] = inner_products(own, own).cpu()
    snr = per_coordinate_snr(sampled)
    if spacing > 1:
        ratios = mean.square() / (square / (count - 1) + PER_COORDINATE_FLOOR)
        value = float(ratios.mean(dtype=torch.float64))
        snr = Interval(value, value + snr.low - snr.value, value + snr.high - snr.value)
    return GradientSample(gram, snr, size)
