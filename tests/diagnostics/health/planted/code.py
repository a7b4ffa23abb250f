"""Faults of the program: modules of a subject in memory, patched or wrapped as a mistake would."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from flowmbpo.diagnostics.subject import Subject
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.nets.simnorm import simnorm

VELOCITY_KINDS = ("flow", "neural_ode", "residual")


class Wrapped(nn.Module):
    """A module whose output is changed on its way out."""

    def __init__(self, inner: nn.Module, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner = inner
        self.change = change

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The inner module's output, changed."""
        return self.change(self.inner(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x, with a gradient multiplied by `factor`."""
    return factor * x + (1.0 - factor) * x.detach()


def wrap_actor(change: Callable[[Tensor], Tensor]) -> Callable[[Subject], None]:
    """Change the actions on their way out of the actor."""

    def patch(subject: Subject) -> None:
        subject.agent.actor = Wrapped(subject.agent.actor, change)

    return patch


def patch_method(path: str, make: Callable[[Any], Any]) -> Callable[[Subject], None]:
    """Replace the bound method at `path` under the agent by what `make` makes of it."""

    def patch(subject: Subject) -> None:
        owner: Any = subject.agent
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        setattr(owner, name, make(getattr(owner, name)))

    return patch


def hook_parameters(part: str, factor: float) -> Callable[[Subject], None]:
    """Every gradient of the part's parameters multiplied on its way in."""

    def patch(subject: Subject) -> None:
        for parameter in getattr(subject.agent, part).parameters():
            parameter.register_hook(lambda gradient: gradient * factor)

    return patch


def freeze(*path: str, share: float = 1.0) -> Callable[[Subject], None]:
    """requires_grad off for the first share of a part's parameters."""

    def patch(subject: Subject) -> None:
        module: Any = subject.agent
        for name in path:
            module = getattr(module, name)
        parameters = list(module.parameters())
        for parameter in parameters[: max(int(share * len(parameters)), 1)]:
            parameter.requires_grad_(False)

    return patch


def detach_first_layer(subject: Subject) -> None:
    """The actor's hidden layers get no gradient, its output layer does."""
    network = getattr(subject.agent.actor, "mean", None) or subject.agent.actor.velocity
    network[-1].register_forward_pre_hook(lambda module, args: tuple(x.detach() for x in args))


def permute_actions(order: list[int] | None, *, sign: float = 1.0) -> Callable[[Any], Any]:
    """A method (state, action, ...) that gets its action columns in another order (reversed), or of another sign."""

    def make(method: Any) -> Any:
        def changed(s: Tensor, action: Tensor, *rest: Any, **named: Any) -> Any:
            width = action.shape[-1]
            columns = order or list(reversed(range(width)))
            return method(s, sign * action[..., columns[:width]], *rest, **named)

        return changed

    return make


class SwappedEnv:
    """A real environment whose action columns are reversed."""

    def __init__(self, env: VectorEnv) -> None:
        self.env = env

    def step(self, action: Tensor) -> Any:
        """One step with the columns the other way round."""
        return self.env.step(action.flip(-1))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)


def swap_environment(subject: Subject) -> None:
    """The simulator takes its action columns in reverse."""
    make = subject.make_env
    assert make is not None
    subject.make_env = lambda copies: SwappedEnv(make(copies))  # type: ignore[assignment, return-value]


def end_in_simnorm(share: float, *, projected: bool = False) -> Callable[[Subject], None]:
    """The velocity head ends in SimNorm: wholly (share 1), or mixed with the signed velocity.

    Without `projected` the projection onto the tangent is gone too, as in the reference that had this fault.
    """

    def patch(subject: Subject) -> None:
        dynamics: Any = subject.agent.world_model.dynamics
        group = dynamics.dims.simnorm_dim
        owner = dynamics if subject.config.model.dynamics.kind == "residual" else dynamics.velocity
        owner.network = Wrapped(owner.network, lambda v: torch.lerp(v, simnorm(v, group), share))
        if not projected:
            for each in {owner, dynamics}:
                each.geometry = _unprojected(each.geometry)

    return patch


def _unprojected(geometry: Any) -> Any:
    plain = copy.copy(geometry)
    plain.project = lambda v: v
    return plain


def has_many_actions(subject: Subject) -> bool:
    """Whether there are two action columns to swap."""
    return subject.agent.spec.action_dim > 1


def has_encoder(subject: Subject) -> bool:
    """Whether the encoder learns."""
    return subject.config.model.encoder.kind == "mlp"


def has_velocity(subject: Subject) -> bool:
    """Whether the dynamics move the latent by a signed displacement."""
    dynamics = subject.config.model.dynamics
    return dynamics.kind in VELOCITY_KINDS and dynamics.geometry != "euclidean" and not _generative(subject)


def _generative(subject: Subject) -> bool:
    dynamics = subject.config.model.dynamics
    return dynamics.kind == "flow" and dynamics.mode == "generative"


def is_two_hot(subject: Subject) -> bool:
    """Whether the reward head is a distribution over bins."""
    return subject.config.model.reward.kind == "two_hot"


def is_scalar(subject: Subject) -> bool:
    """Whether the reward head has one output."""
    return not is_two_hot(subject)
