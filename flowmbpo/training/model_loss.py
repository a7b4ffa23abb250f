"""The world model's loss over a batch of windows.

`L = w_dyn mean_t(rho^t l_dyn,t) + w_rew mean_t(rho^t l_rew,t) [+ w_term mean_t(rho^t l_term,t)]`,
every l_t a mean over the batch. Padding has no weight: the sum over all valid transitions is divided by
their number, so that each of them counts alike whatever the length of its window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowmbpo.config.training import TrainingConfig
from flowmbpo.data.batch import Batch
from flowmbpo.models.dynamics.base import Transition
from flowmbpo.models.task_context import TaskContext
from flowmbpo.models.world_model import WorldModel


@dataclass(frozen=True)
class ModelLoss:
    """Scalars: the weighted total and its unweighted parts (termination and decoder 0 without a head)."""

    total: Float[Tensor, ""]
    dynamics: Float[Tensor, ""]
    reward: Float[Tensor, ""]
    termination: Float[Tensor, ""]
    decoder: Float[Tensor, ""]


@dataclass(frozen=True)
class _Unrolled:
    """States that each step started from [H, B, D], predicted next states, and dynamics losses [H, B]."""

    states: Tensor
    next_states: Tensor | None
    losses: Tensor


def model_loss(
    model: WorldModel, batch: Batch, learning_reward: Float[Tensor, "H B"], config: TrainingConfig, rng: torch.Generator
) -> ModelLoss:
    """The loss of one batch, with gradients to every part of the world model.

    `source: rollout` starts each step from the model's own prediction (latent rollout of TD-MPC2
    and PWM); `source: teacher` from the encoding of the real observation, all steps at once.
    Targets are encodings of the real next observations without gradient.
    """
    horizon, width = batch.reward.shape
    context = model.context(batch.task)
    need_next = model.termination_head is not None
    if model.dynamics.config.source == "rollout":
        unrolled = _rollout(model, batch, context, rng, need_last=need_next)
    else:
        unrolled = _teacher(model, batch, context, rng, need_next=need_next)

    every = context.repeat(horizon)
    z = model.latent(unrolled.states).flatten(0, 1)
    inputs = model.reward_inputs(z, batch.action.flatten(0, 1), every)
    reward_losses = model.reward_head.loss(inputs, learning_reward.flatten()).view(horizon, width)

    decay = config.rho ** torch.arange(horizon, device=z.device, dtype=z.dtype).unsqueeze(-1)
    weight = decay * batch.valid / batch.valid.sum()
    dynamics = (weight * unrolled.losses).sum()
    reward = (weight * reward_losses).sum()
    reward_weight = 1.0 / horizon if config.reward_weight == "1/H" else config.reward_weight
    total = config.dynamics_weight * dynamics + reward_weight * reward
    termination = torch.zeros((), device=z.device)
    if unrolled.next_states is not None and need_next:
        logit = model.termination_logit(model.latent(unrolled.next_states).flatten(0, 1), every)
        losses = nn.functional.binary_cross_entropy_with_logits(
            logit.view(horizon, width), batch.terminated.to(z.dtype), reduction="none"
        )
        termination = (weight * losses).sum()
        total = total + config.termination_weight * termination
    decoder = torch.zeros((), device=z.device)
    if model.config.decoder is not None:
        error = model.decode(z, every) - model.normalized(batch.obs[:-1]).flatten(0, 1)
        decoder = (weight * error.square().mean(-1).view(horizon, width)).sum()
        total = total + model.config.decoder.weight * decoder
    return ModelLoss(total, dynamics, reward, termination, decoder)


def _rollout(
    model: WorldModel, batch: Batch, context: TaskContext, rng: torch.Generator, *, need_last: bool
) -> _Unrolled:
    horizon = batch.action.shape[0]
    with torch.no_grad():  # targets teach the dynamics; a live target would let the encoder collapse onto it
        targets = model.encode(batch.obs[1:].flatten(0, 1), context.repeat(horizon)).view(horizon, len(batch.task), -1)
    state = model.encode(batch.obs[0], context)
    states, losses = [], []
    next_states: list[Tensor] = []
    for t in range(horizon):
        action = batch.action[t] * context.action_mask
        source = state if t > 0 or model.config.encoder_learns_dynamics else state.detach()
        real = state if t == 0 else targets[t - 1]
        transition = Transition(source, action, context.embedding, targets[t], batch.valid[t], real.detach())
        loss, s_next = model.dynamics.loss(transition, rng, need_next=need_last or t + 1 < horizon)
        states.append(state)
        losses.append(loss)
        if s_next is not None:
            next_states.append(s_next)
            state = s_next
    complete = len(next_states) == horizon
    return _Unrolled(torch.stack(states), torch.stack(next_states) if complete else None, torch.stack(losses))


def _teacher(
    model: WorldModel, batch: Batch, context: TaskContext, rng: torch.Generator, *, need_next: bool
) -> _Unrolled:
    horizon, width = batch.reward.shape
    encoded = model.encode(batch.obs.flatten(0, 1), context.repeat(horizon + 1)).view(horizon + 1, width, -1)
    every = context.repeat(horizon)
    source = encoded[:-1] if model.config.encoder_learns_dynamics else encoded[:-1].detach()
    transition = Transition(
        source.flatten(0, 1),
        batch.action.flatten(0, 1) * every.action_mask,
        every.embedding,
        encoded[1:].flatten(0, 1).detach(),  # as in the rollout: the target side carries no gradient
        batch.valid.flatten(),
    )
    losses, s_next = model.dynamics.loss(transition, rng, need_next=need_next)
    next_states = s_next.view(horizon, width, -1) if s_next is not None else None
    return _Unrolled(encoded[:-1], next_states, losses.view(horizon, width))
