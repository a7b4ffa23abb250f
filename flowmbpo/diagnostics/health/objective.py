"""The actor's objective under the magnifying glass: what autograd says of it, and what it really does.

Letters: B start states, H horizon, A action, D latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.diagnostics.health.precision import context_in_double, in_double
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.training import updates

STEP = 1e-6  # of a tensor's RMS weight: central differences in float64 are then exact to some 1e-6
SMALLEST_WEIGHT = 1e-2  # the RMS of tensors that are (nearly) zero
Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class Slope:
    """d loss along one random direction within one tensor of the actor: by autograd and by finite difference."""

    tensor: str
    autograd: float
    difference: float


@dataclass(frozen=True)
class Sensitivity:
    """How the imagined return depends on the actions, by autograd, whatever happens before the actions.

    `norms[h]` is the RMS over start states of |d return / d a_h|, `returns` the objective of each start state,
    `spread` their standard deviation.
    """

    norms: list[float]
    returns: Float[Tensor, " B"]

    @property
    def spread(self) -> float:
        """Standard deviation of the returns over start states, at least a hundredth of their size."""
        return max(float(self.returns.std()), 1e-2 * float(self.returns.square().mean().sqrt()))

    @property
    def relative(self) -> float:
        """The largest norm in units of the spread: how many spreads an action moves the return by."""
        return max(self.norms) / self.spread if self.spread > 0.0 else 0.0

    @property
    def growth(self) -> float:
        """Norm at the first action over that at the last: how the gradient grows on its way back."""
        return self.norms[0] / self.norms[-1] if self.norms[-1] > 0.0 else math.inf


class ActorObjective:
    """The objective as a function of the actor's weights at fixed start states and noise, in float64."""

    def __init__(self, subject: Subject, rows: int, purpose: str) -> None:
        self.subject = subject
        self.agent = subject.agent
        self.purpose = purpose
        self.config = subject.config.training.model_copy(update={"noise_replicas": 1})
        start, context = subject.starts(rows, subject.generator(purpose))
        self.start = start.detach().double()
        self.context = context_in_double(context)

    def slopes(self, fixed: set[str], *, joint: bool = False) -> list[Slope]:
        """One random direction within every tensor of the actor that is not `fixed`, or one for all of them.

        A direction changes every weight by the same share of its tensor's RMS, up or down. With
        `actor_input_gradient: detached` the difference too holds the actor's inputs at what they were: that is
        the derivative which the config asks for. Gradients are taken by `backward`, as training takes them, so
        that every hook has its say.
        """
        generator = torch.Generator().manual_seed(self.subject.seed)
        actor = self.agent.actor
        with in_double(self.agent), updates.frozen(self.agent.world_model, self.agent.critic):
            inputs: list[Tensor] = []
            with _actor_input(actor, lambda z: inputs.append(z.detach())):
                loss = self._loss()
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            moved = [_Move.draw(n, p, generator) for n, p in actor.named_parameters() if n not in fixed]
            groups = [moved] if joint else [[move] for move in moved]
            replayed = inputs if self.config.actor_input_gradient == "detached" else None
            return [
                Slope("all" if joint else group[0].tensor, _autograd(group), self._difference(group, replayed))
                for group in groups
            ]

    def sensitivity(self) -> Sensitivity:
        """Gradients of the return to the action of every step, through model and critic."""
        actor = self.agent.actor
        shifts: list[Tensor] = []

        def shift(module: nn.Module, args: Inputs, output: Tensor) -> Tensor:
            del module, args
            shifts.append(torch.zeros_like(output).requires_grad_())
            return output + shifts[-1]

        with in_double(self.agent), updates.frozen(self.agent.world_model, self.agent.critic):
            handle = actor.register_forward_hook(shift)
            try:
                returns = self._objective().returns
            finally:
                handle.remove()
            norms = [0.0] * len(shifts)
            if returns.requires_grad:
                found = torch.autograd.grad(returns.sum(), shifts, allow_unused=True)
                norms = [0.0 if g is None else float(g.square().sum(-1).mean().sqrt()) for g in found]
        return Sensitivity(norms, returns.detach())

    def _objective(self) -> updates.ActorObjective:
        generator = self.subject.generator(f"{self.purpose} noise")  # the same noise each time
        # Read through its module, as `update_actor` reads it.
        return updates.actor_objective(self.agent, self.start, self.context, self.config, generator)

    def _loss(self) -> Tensor:
        return self._objective().loss

    @torch.no_grad()  # two values of the function; its gradient is what they are compared with
    def _difference(self, moves: list[_Move], replayed: list[Tensor] | None) -> float:
        weights = [move.parameter.data for move in moves]
        losses = []
        for step in (STEP, -STEP):
            for move, weight in zip(moves, weights, strict=True):
                move.parameter.data = weight + step * move.direction
            if replayed is None:
                losses.append(float(self._loss()))
            else:
                rest = iter(replayed)
                with _actor_input(self.agent.actor, lambda z, rest=rest: next(rest)):  # type: ignore[misc]
                    losses.append(float(self._loss()))
        for move, weight in zip(moves, weights, strict=True):
            move.parameter.data = weight
        return (losses[0] - losses[1]) / (2.0 * STEP)


@dataclass(frozen=True)
class _Move:
    """A direction within one tensor."""

    tensor: str
    parameter: nn.Parameter
    direction: Tensor

    @classmethod
    def draw(cls, tensor: str, parameter: nn.Parameter, generator: torch.Generator) -> _Move:
        signs = (torch.randint(0, 2, parameter.shape, generator=generator) * 2.0 - 1.0).to(parameter.data)
        return cls(tensor, parameter, signs * max(float(parameter.data.square().mean().sqrt()), SMALLEST_WEIGHT))


def _autograd(moves: list[_Move]) -> float:
    return sum(float((move.parameter.grad * move.direction).sum()) for move in moves if move.parameter.grad is not None)


@contextmanager
def _actor_input(actor: nn.Module, see: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Inside, `see` gets the latent of every call of the actor, and may return another in its place."""

    def hook(module: nn.Module, args: Inputs) -> Inputs | None:
        del module
        other = see(args[0])
        return None if other is None else (other, *args[1:])

    handle = actor.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
