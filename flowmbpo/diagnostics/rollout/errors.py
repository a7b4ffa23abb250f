"""Errors of open-loop predictions against real trajectories, always on the latent z, whatever the geometry.

Letters: T steps, B windows, D latent, R bootstrap resamples.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.data.batch import Batch
from flowmbpo.diagnostics.statistics import Interval, fit_line, middle_interval, ratio_intervals
from flowmbpo.models.open_loop import RealWindows, squared_errors


@dataclass(frozen=True)
class StepError:
    """After `step` predicted transitions, over the `n` windows that are still inside their episode.

    `error` and `trivial` are mean squared errors of z (mean over latent and windows) of the model and of
    the predictor that nothing changes; `relative` is their ratio. A stochastic model is judged by the mean of its
    samples; `sampled` is the same ratio with one sample in its place (None: the model is deterministic).
    The reward of step k is that of leaving the k-th predicted state: root mean squared error in real
    units, Pearson's correlation with the real reward (nan where one of them is constant), and the real
    rewards' own standard deviation, which a constant prediction would reach.
    """

    step: int
    n: int
    error: float
    trivial: float
    relative: Interval
    sampled: Interval | None
    reward_rmse: Interval
    reward_correlation: Interval
    reward_std: float


def step_errors(
    predicted: Float[Tensor, "T+1 B D"],
    real: RealWindows,
    rewards: Float[Tensor, "T B"],
    counts: Float[Tensor, "R B"],
    sample: Float[Tensor, "T+1 B D"] | None = None,
) -> tuple[StepError, ...]:
    """The errors of every step that at least one window reaches; `rewards` are predictions in real units.

    `sample` is one rollout of a stochastic model, `predicted` then the mean of many.
    """
    valid = real.batch.valid
    error, trivial = squared_errors(predicted.double(), real.z.double(), valid)
    relative = ratio_intervals(error.T, trivial.T, counts)
    sampled = None
    if sample is not None:
        sampled = ratio_intervals(squared_errors(sample.double(), real.z.double(), valid)[0].T, trivial.T, counts)
    reward_error = torch.where(valid, (rewards - real.batch.reward).double().square(), 0.0)
    mean_square = ratio_intervals(reward_error.T, valid.T, counts)
    errors = []
    for t, n in enumerate(valid.sum(1).tolist()):
        if not n:
            break
        truth = real.batch.reward[t, valid[t]].double()
        errors.append(
            StepError(
                step=t + 1,
                n=n,
                error=float(error[t].sum()) / n,
                trivial=float(trivial[t].sum()) / n,
                relative=relative[t],
                sampled=None if sampled is None else sampled[t],
                reward_rmse=Interval(*(value**0.5 for value in astuple(mean_square[t]))),
                reward_correlation=_correlation(rewards[t], real.batch.reward[t], valid[t], counts),
                reward_std=float(truth.std(correction=0)),
            )
        )
    return tuple(errors)


def _correlation(x: Tensor, y: Tensor, valid: Tensor, counts: Tensor) -> Interval:
    """Pearson's, with the bootstrap over windows from weighted moments."""
    value = fit_line(x[valid], y[valid]).correlation
    weight = counts * valid.cpu()
    total = weight.sum(1)
    x, y = ((row.double() - row[valid].double().mean()).cpu() for row in (x, y))  # centred: no cancellation

    def moment(product: Tensor) -> Tensor:
        return (weight @ product) / total

    mean_x, mean_y = moment(x), moment(y)
    spread = (moment(x * x) - mean_x**2).clamp(min=0.0) * (moment(y * y) - mean_y**2).clamp(min=0.0)
    return middle_interval(value, (moment(x * y) - mean_x * mean_y) / spread.sqrt())


def l1_errors(
    predicted: Float[Tensor, "T+1 B D"], real: RealWindows
) -> tuple[Float[Tensor, "T B"], Float[Tensor, "T B"]]:
    """||z_hat_k - z_k||_1 and ||z_k||_1 after each step; 0 in both where the window has ended."""
    target = real.z[1:].double()
    error = (predicted[1:].double() - target).abs().sum(-1)
    return torch.where(real.batch.valid, error, 0.0), torch.where(real.batch.valid, target.abs().sum(-1), 0.0)


def observation_std(batch: Batch) -> Float[Tensor, "B O"]:
    """Standard deviation of every observed dimension over the windows' own steps, of each row's task."""
    spread = torch.zeros_like(batch.obs[0])
    exists = torch.cat((torch.ones_like(batch.valid[:1]), batch.valid))
    for task in sorted(set(batch.task.tolist())):
        rows = batch.task == task
        spread[rows] = batch.obs[:, rows][exists[:, rows]].std(0, correction=0)
    return spread
