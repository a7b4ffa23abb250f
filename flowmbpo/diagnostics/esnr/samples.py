"""Independent gradients at fixed parameters, each drawn again from its own seed.

Letters: M gradients, n coordinates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.diagnostics.esnr.estimate import PER_COORDINATE_FLOOR, inner_products, per_coordinate_snr
from flowmbpo.diagnostics.statistics import Interval
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.errors import NonFiniteError
from flowmbpo.training.model_loss import model_loss
from flowmbpo.training.updates import actor_objective, frozen

Gradient = Callable[[int], Tensor]
"""The flat gradient of a row number; the same row gives the same gradient whenever it is asked for."""
STORED_BYTES = 160_000_000
STORED_ROWS = 8  # at least, however long a gradient is: as much as the networks and their optimisers take
SAMPLED_COORDINATES = 1 << 16


@dataclass(frozen=True)
class GradientSample:
    """What M gradients of n coordinates leave behind: their inner products, and PWM's per-coordinate figure."""

    gram: Float[Tensor, "M M"]
    per_coordinate: Interval
    size: int


def actor_gradients(subject: Subject, starts: Literal["fixed", "resampled"]) -> Gradient:
    """Gradients of -J to the actor, as `update_actor` takes them, each from `subject.batch_size` start states.

    `fixed`: all from the same start states, so that only the noise of policy and model differs;
    `resampled`: the start states are drawn again too. The penalty on preactivations is left out: it
    is no estimate of a return's gradient. All have the horizon `subject.actor_horizon`.
    """
    agent, training = subject.agent, subject.config.training
    parameters = [p for p in agent.actor.parameters() if p.requires_grad]
    scale = agent.return_scale.std.squeeze(0) if training.return_normalization else 1.0
    horizon = subject.actor_horizon
    fixed = subject.starts(subject.batch_size, subject.generator("esnr/starts")) if starts == "fixed" else None

    def gradient(row: int) -> Tensor:
        generator = subject.generator(f"esnr/actor/{starts}/{row}")
        start, context = fixed or subject.starts(subject.batch_size, generator)
        with frozen(agent.world_model, agent.critic):
            loss = actor_objective(agent, start, context, training, generator, horizon).loss / scale
            return _finite(flat_gradient(loss, parameters), "actor")

    return gradient


def model_gradients(subject: Subject) -> Gradient:
    """Gradients of the model loss to the world model, each from `wm_batch_size` fresh windows."""
    agent, training = subject.agent, subject.config.training
    parameters = [p for p in agent.world_model.parameters() if p.requires_grad]

    def gradient(row: int) -> Tensor:
        generator = subject.generator(f"esnr/model/{row}")
        batch = subject.windows.sample(training.wm_batch_size, training.horizon, generator)
        reward = agent.reward_normalizer(batch.reward)
        loss = model_loss(agent.world_model, batch, reward, training, generator).total
        return _finite(flat_gradient(loss, parameters), "world model")

    return gradient


def flat_gradient(loss: Float[Tensor, ""], parameters: Iterable[nn.Parameter]) -> Float[Tensor, " n"]:
    """The gradient of all parameters in one vector; 0 for those that the loss does not depend on."""
    wanted = list(parameters)
    found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in found])


def collect(gradient: Gradient, count: int, stored_bytes: int = STORED_BYTES) -> GradientSample:
    """All inner products of `count` >= 2 gradients, exact, in bounded memory.

    As many gradients as `stored_bytes` holds (8 at least) are kept; the others are drawn again from their
    seeds for every such block. Where all fit, each is drawn once; 64 gradients of 5 million coordinates
    take 4.5 times as many, and 0.3 GB. The per-coordinate figure is a mean over all coordinates; its
    interval is that of at most 65,536 of them, evenly spaced.
    """
    first = gradient(0)
    size = first.numel()
    block = min(count, max(STORED_ROWS, stored_bytes // (size * first.element_size())))
    rows = first.new_empty(block, size)
    gram = torch.zeros(count, count, dtype=torch.float64)
    moments = _Moments(first, count)
    rows[0] = first
    del first  # as long as a row
    for begin in range(0, count, block):
        end = min(begin + block, count)
        stored = rows[: end - begin]
        for row in range(begin, end):
            if row > 0:
                stored[row - begin] = gradient(row)
            if begin == 0:
                moments.add(stored[row])
        gram[begin:end, begin:end] = inner_products(stored, stored).cpu()
        for row in range(end, count):
            other = gradient(row)
            if begin == 0:
                moments.add(other)
            gram[begin:end, row] = inner_products(stored, other.unsqueeze(0)).squeeze(1).cpu()
            gram[row, begin:end] = gram[begin:end, row]
    return GradientSample(gram, moments.per_coordinate(), size)


class _Moments:
    """Running mean and sum of squared deviations of every coordinate (Welford 1962), and some coordinates kept."""

    def __init__(self, like: Tensor, count: int) -> None:
        size = like.numel()
        self.step = -(-size // SAMPLED_COORDINATES)
        self.kept = like.new_empty(count, -(-size // self.step))
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)
        self.seen = 0

    def add(self, row: Tensor) -> None:
        self.kept[self.seen] = row[:: self.step]
        self.seen += 1
        deviation = row - self.mean
        self.mean.add_(deviation, alpha=1.0 / self.seen)
        self.square.addcmul_(deviation, deviation, value=1.0 - 1.0 / self.seen)

    def per_coordinate(self) -> Interval:
        sampled = per_coordinate_snr(self.kept)
        if self.step == 1:
            return sampled
        variance = self.square / (self.seen - 1)
        value = float((self.mean.square() / (variance + PER_COORDINATE_FLOOR)).mean(dtype=torch.float64))
        return Interval(value, value + sampled.low - sampled.value, value + sampled.high - sampled.value)


def _finite(gradient: Tensor, part: str) -> Tensor:
    if not bool(gradient.isfinite().all()):
        raise NonFiniteError(
            f"the gradient of the {part} is not finite, so it has no signal to noise: `flowmbpo diagnose health` "
            "tells which part of the checkpoint broke; diagnose one saved before that"
        )
    return gradient
