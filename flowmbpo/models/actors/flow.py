"""The flow policy: an ODE from noise to action."""

from __future__ import annotations

import math
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jacrev, vmap

from flowmbpo.config.actors import FlowActorConfig
from flowmbpo.config.dynamics import STAGES
from flowmbpo.flows.integrators import integrate
from flowmbpo.models.actors.base import Action, Actor, tanh_log_det
from flowmbpo.models.task_context import TaskContext
from flowmbpo.nets.mlp import policy_mlp
from flowmbpo.nets.noise import standard_normal
from flowmbpo.nets.widths import mlp_parameters, solve_widths


class FlowActor(Actor):
    """a_0 = W z + b + sigma eps, da/dtau = u([z, e_task, a, tau]), action tanh(a_1).

    sigma is one per action dimension, learnable or fixed, and never below its floor. The linear start is optional (then
    a_0 = sigma eps). The hidden widths are solved so that the whole actor has the Gaussian's parameter count.
    """

    def __init__(self, config: FlowActorConfig, latent_dim: int, task_dim: int, action_dim: int) -> None:
        super().__init__(config)
        self.options = config
        context_dim = latent_dim + task_dim
        self.start = nn.Linear(context_dim, action_dim) if config.linear_start else None
        self.hidden_units = _matched_units(config, context_dim, action_dim)
        self.velocity = policy_mlp(
            context_dim + action_dim + 1, self.hidden_units, action_dim, last_layer_scale=config.last_layer_scale
        )
        self.log_noise_std = nn.Parameter(
            torch.full((action_dim,), math.log(config.noise_std)), requires_grad=config.learn_noise_std
        )
        self.nfe = config.substeps * STAGES[config.integrator]

    def preactivation(self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator | None) -> Action:
        """The integrated a_1."""
        features = torch.cat([z, context.embedding], dim=-1)
        start = self._start(features, context.action_mask)
        if generator is not None:
            noise = standard_normal(start, generator) * context.action_mask
            start = start + self.log_noise_std.exp() * noise
        return self._integrate(start, features, context.action_mask)

    def sample_with_log_prob(
        self, z: Float[Tensor, "B D"], context: TaskContext, generator: torch.Generator
    ) -> tuple[Action, Float[Tensor, " B"]]:
        """Exact for the discretised policy: log N(eps) - log |det d a_K / d eps| - tanh's.

        The Jacobian of the whole integrator is formed (A x A per row). With a noise floor after
        the ODE the density is an integral without closed form.
        """
        if self.config.noise_floor > 0.0:
            raise ValueError("the flow actor has no exact density with noise_floor > 0; set actor.noise_floor to 0")
        features = torch.cat([z, context.embedding], dim=-1)
        mask = context.action_mask
        start = self._start(features, mask)
        eps = standard_normal(start, generator)
        std = self.log_noise_std.exp()

        def image(eps_row: Tensor, start_row: Tensor, feature_row: Tensor, mask_row: Tensor) -> tuple[Tensor, Tensor]:
            a_0 = (start_row + std * eps_row * mask_row).unsqueeze(0)
            u = self._integrate(a_0, feature_row.unsqueeze(0), mask_row.unsqueeze(0)).squeeze(0)
            return u, u

        jacobian, u = vmap(jacrev(image, has_aux=True))(eps, start, features, mask)
        # Masked dimensions neither move nor count: ones on their diagonal.
        jacobian = jacobian + torch.diag_embed(1.0 - mask)
        log_det = torch.linalg.slogdet(jacobian).logabsdet
        log_normal = ((-0.5 * eps.square() - 0.5 * math.log(2.0 * math.pi)) * mask).sum(-1)
        return u.tanh() * mask, log_normal - log_det - tanh_log_det(u, mask)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep the source's std at or above its floor."""
        if self.options.min_noise_std > 0.0:
            self.log_noise_std.clamp_(min=math.log(self.options.min_noise_std))

    def _start(self, features: Tensor, mask: Tensor) -> Tensor:
        if self.start is None:
            return torch.zeros_like(mask)
        start: Tensor = self.start(features)
        return start * mask

    def _integrate(self, start: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        def velocity(a: Tensor, tau: float) -> Tensor:
            v: Tensor = self.velocity(torch.cat([features, a, a.new_full((a.shape[0], 1), tau)], dim=-1))
            return v * mask

        return integrate(velocity, start, method=self.options.integrator, substeps=self.options.substeps)


def _matched_units(config: FlowActorConfig, context_dim: int, action_dim: int) -> tuple[int, ...]:
    if not config.parity:
        return config.units
    if config.solved_units is not None:
        return config.solved_units
    linear = (context_dim + 1) * action_dim if config.linear_start else 0
    # Both actors hold action_dim log-stds, which cancel.
    target = mlp_parameters(context_dim, config.units, action_dim) - linear
    count = partial(mlp_parameters, context_dim + action_dim + 1, out_dim=action_dim)
    return solve_widths(config.units, target, count)
