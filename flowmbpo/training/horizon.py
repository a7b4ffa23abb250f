"""How far the model can be followed: the actor's horizon chosen by the model's own error on replayed windows."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowmbpo.data.batch import Batch
from flowmbpo.models.world_model import WorldModel


@torch.no_grad()  # a measurement: nothing is trained on it
def k_step_errors(model: WorldModel, batch: Batch) -> tuple[Float[Tensor, " H"], Float[Tensor, " H"]]:
    """Mean squared latent error after k = 1 .. H recorded actions, of the model and of predicting no change.

    Autoregressive from the encoding of the first observation, against the encodings of the real ones,
    on z; windows that have ended before k do not count (NaN where none is left). Stochastic dynamics
    take their deterministic step.
    """
    horizon, width = batch.reward.shape
    context = model.context(batch.task)
    encoded = model.encode(batch.obs.flatten(0, 1), context.repeat(horizon + 1))
    z = model.latent(encoded).view(horizon + 1, width, -1)
    state = encoded.view(horizon + 1, width, -1)[0]
    predicted = []
    for action in batch.action:
        state = model.next(state, action, context)
        predicted.append(model.latent(state))
    counted = batch.valid.to(z.dtype)
    windows = counted.sum(-1)
    model_error = ((torch.stack(predicted) - z[1:]).square().mean(-1) * counted).sum(-1) / windows
    trivial_error = ((z[:1] - z[1:]).square().mean(-1) * counted).sum(-1) / windows
    return model_error, trivial_error


def trusted_steps(model: WorldModel, batch: Batch, tolerance: float) -> Int[Tensor, ""]:
    """The largest h such that for every k <= h the model's error is below `tolerance` x the trivial one's.

    0 where the first step misses already; a NaN counts as a miss.
    """
    model_error, trivial_error = k_step_errors(model, batch)
    return (model_error < tolerance * trivial_error).long().cumprod(0).sum()
