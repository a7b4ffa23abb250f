"""What every dynamics offers: one macro step of the latent state, and its own loss.

Letters: B batch, D latent, A action, E task embedding. Network inputs are always ordered
[state, task, action] (TD-MPC2's order), then what a variant adds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flowmbpo.config.dynamics import DynamicsDims, _DynamicsConfig, _SinglePassConfig
from flowmbpo.flows.simplex import make_geometry
from flowmbpo.models.dynamics.spectral import cap_spectral_norm_
from flowmbpo.nets.mlp import normed_mlp
from flowmbpo.nets.noise import rademacher
from flowmbpo.nets.running import RunningStd
from flowmbpo.nets.widths import mlp_flops, mlp_parameters, solve_widths

CHANGE_DECAY = 0.99


@dataclass(frozen=True)
class Transition:
    """One transition of a training batch, as its dynamics sees it.

    `source` is the state that the step starts from: the model's own prediction (`rollout`) or the
    encoding of the observation (`teacher`). `target` is the encoding of the next observation,
    without gradient. Rows that are not `valid` (None: all are) are padding: their losses are thrown
    away by the caller, and they must not enter running statistics.
    """

    source: Float[Tensor, "B D"]
    action: Float[Tensor, "B A"]
    task: Float[Tensor, "B E"]
    target: Float[Tensor, "B D"]
    valid: Bool[Tensor, " B"] | None = None
    real_source: Float[Tensor, "B D"] | None = None
    """The encoding of the observation that the step was taken from; None: `source` is it."""


class Dynamics(nn.Module, ABC):
    """One macro step s' = F(s, a, e_task), and the loss that trains it.

    `generator` None means the step without noise: a Gaussian's mean, but of a flow the image of zero noise, which is a
    mode and not its mean.
    """

    nfe = 1
    """Network evaluations per macro step."""
    stochastic = False
    """Whether a step draws from its generator."""
    hidden_units: tuple[int, ...]
    """Hidden widths as built, after solving for parity."""

    def __init__(self, config: _DynamicsConfig, dims: DynamicsDims) -> None:
        super().__init__()
        self.config = config
        self.dims = dims
        self.geometry = make_geometry(config.geometry, dims.simnorm_dim, retraction=config.retraction)
        self.change = RunningStd(dims.latent_dim, CHANGE_DECAY) if config.error_scale == "change" else None

    @abstractmethod
    def forward(
        self,
        s: Float[Tensor, "B D"],
        action: Float[Tensor, "B A"],
        task: Float[Tensor, "B E"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D"]:
        """The next state."""

    @abstractmethod
    def step_loss(
        self, transition: Transition, generator: torch.Generator, *, need_next: bool
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"] | None]:
        """The variant's own loss per sample (mean over the latent), and its next state if needed."""

    def loss(
        self, transition: Transition, generator: torch.Generator, *, need_next: bool
    ) -> tuple[Float[Tensor, " B"], Float[Tensor, "B D"] | None]:
        """`step_loss` plus the optional Jacobian penalty."""
        if self.change is not None and self.training:
            start = transition.source if transition.real_source is None else transition.real_source
            self.change.update(self._errors(transition.target, start.detach()), transition.valid)
        loss, s_next = self.step_loss(transition, generator, need_next=need_next)
        if self.config.jacobian_penalty > 0.0:
            loss = loss + self.config.jacobian_penalty * self._squared_jacobian(transition, generator)
        return loss, s_next

    def endpoint_error(self, s: Float[Tensor, "B D"], target: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Squared error, mean over the latent, in the config's loss space and error scale."""
        return self.scaled(self._errors(s, target)).square().mean(-1)

    def scaled(self, error: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Errors in the config's scale."""
        return error if self.change is None else error / self.change.std

    def _errors(self, s: Tensor, target: Tensor) -> Tensor:
        if self.config.loss_space == "logit":
            return s - target
        return self.geometry.latent(s) - self.geometry.latent(target)

    def _squared_jacobian(self, transition: Transition, generator: torch.Generator) -> Float[Tensor, " B"]:
        """Unbiased estimate of ||(dF/ds) P||_F^2 / D: one Rademacher probe, ||P J^T eps||^2 / D.

        The source is detached: the penalty shapes the dynamics, not the encoder.
        """
        s = transition.source.detach().requires_grad_()
        s_next = self(s, transition.action, transition.task, generator)
        (vjp,) = torch.autograd.grad(s_next, s, rademacher(s, generator), create_graph=True)
        return self.geometry.project(vjp).square().mean(-1)


def reference_parameters(dims: DynamicsDims, units: tuple[int, ...]) -> int:
    """Parameter count of the MLP dynamics of hidden widths `units`: what variants are matched to."""
    return mlp_parameters(_inputs(dims), units, dims.latent_dim) + 2 * dims.latent_dim  # its head is normed


def widened_units(config: _SinglePassConfig, dims: DynamicsDims) -> tuple[int, ...]:
    """Widths at which one evaluation on [s, task, a] takes the FLOPs of `widen_nfe` at `config.units`.

    Widths are whole numbers: the match is to half a unit of the widest layer, 0.1% at widths of
    hundreds and some percent at a dozen.
    """
    if config.widen_nfe == 1:
        return config.units
    if config.solved_units is not None:
        return config.solved_units
    flops = partial(mlp_flops, _inputs(dims), out_dim=dims.latent_dim)
    return solve_widths(config.units, config.widen_nfe * flops(config.units), flops)


def matched_network(
    config: _DynamicsConfig, dims: DynamicsDims, *, extra_inputs: int, out_dim: int
) -> tuple[nn.Sequential, tuple[int, ...]]:
    """A linear-headed network on [s, task, a, extra], its widths solved for parity if asked."""
    in_dim = _inputs(dims) + extra_inputs
    units = config.units
    if config.solved_units is not None:
        units = config.solved_units
    elif config.parity:
        target = reference_parameters(dims, config.units)
        units = solve_widths(config.units, target, partial(mlp_parameters, in_dim, out_dim=out_dim))
    return linear_headed(config, in_dim, units, out_dim), units


def linear_headed(config: _DynamicsConfig, in_dim: int, units: tuple[int, ...], out_dim: int) -> nn.Sequential:
    """Hidden layers and a head that starts at zero, its spectral norm capped if asked."""
    network = normed_mlp(in_dim, units, out_dim, normed_output=False)
    if config.spectral_norm:
        head = network[-1]
        assert isinstance(head, nn.Linear)
        cap_spectral_norm_(head)
    return network


def _inputs(dims: DynamicsDims) -> int:
    """Width of [s, task, a]."""
    return dims.latent_dim + dims.task_dim + dims.action_dim
