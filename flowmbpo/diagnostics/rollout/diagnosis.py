"""How far the model's open-loop predictions stray from real trajectories, step by step.

From the encoding of a real observation the model plays the real actions; its latents z are compared with the encodings
of the real observations that followed, whatever the geometry. The measure is the squared error over that of the trivial
predictor, which says that nothing changes. Letters: T steps, B windows, D latent, R bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.data.batch import Batch
from flowmbpo.diagnostics.interface import Diagnosis, Drawing, Effort, Row, draw_band
from flowmbpo.diagnostics.rollout.distribution import Distribution, measure_distribution
from flowmbpo.diagnostics.statistics import Interval, fit_line, middle_interval, ratio_intervals, resample_counts
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.models.open_loop import RealWindows, encode_windows, squared_errors, unroll_samples

SOURCE = "fresh episodes of the policy"
LIGHT_STEPS = (1, 4, 8, 16)
SHOWN_STEPS = (1, 2, 4, 8, 16, 32)
NOISE_SCALES = (0.0, 0.1, 0.2, 0.4, 0.5, 0.8)  # standard deviations, as in Robotic World Model (arXiv 2501.10100)


@dataclass(frozen=True)
class StepError:
    """After `step` predicted transitions, over the `n` windows that are still inside their episode.

    `error` and `trivial` are mean squared errors of z of the model and of the predictor that nothing changes;
    `relative` is their ratio. A stochastic model is judged by the mean of its samples; `sampled` is the ratio of one
    sample (None: deterministic). The reward of step k is that of leaving the k-th predicted state: root mean squared
    error in real units, Pearson's correlation (nan where one is constant), and the real rewards' own standard
    deviation.
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


@dataclass(frozen=True)
class NoiseError:
    """Relative L1 error with observation noise of `scale` at the start of the rollout.

    Sum of ||z_hat_k - z_k||_1 over windows and their steps, over that of ||z_k||_1, against the clean trajectory;
    `trivial` holds the noisy start for ever. `curve[k - 1]` is the same at step k alone.
    """

    scale: float
    relative_l1: Interval
    trivial: Interval
    curve: tuple[float, ...]


@dataclass(frozen=True)
class RolloutDiagnosis(Diagnosis):
    """Prediction errors along the rollout, with and without observation noise, and the predicted distribution."""

    name: ClassVar[str] = "rollout"
    windows: int
    episodes: int
    source: str
    stochastic: bool
    trained_horizon: int
    steps: tuple[StepError, ...]
    noise: tuple[NoiseError, ...]
    distribution: Distribution

    @property
    def reading(self) -> str:
        """For how many steps the model beats the predictor that nothing changes, against the horizon trained on."""
        reach = next((step.step - 1 for step in self.steps if not step.relative.value < 1.0), len(self.steps))
        if not reach:
            return "Already after one step the model predicts no better than that nothing changes."
        better = f"For {reach} steps the model predicts better than that nothing changes"
        if reach == len(self.steps):
            return f"{better}: as far as was measured."
        if reach < self.trained_horizon:
            return f"{better}, then worse: the end of its {self.trained_horizon}-step horizon is guesswork."
        return f"{better}, which covers the {self.trained_horizon} that it is trained on."

    def rows(self) -> list[Row]:
        """The steps 1, 2, 4, ... 32, then noise, then the distribution."""
        rows: list[Row] = [
            ("judged by", f"{self.windows} windows of {SOURCE}; 1.0 = no better than 'nothing changes'"),
            ("intervals", f"of errors: over {self.episodes} episodes; of distributions: over windows, which overlap"),
            ("horizon that the model is trained on", f"{self.trained_horizon} steps"),
        ]
        shown = [step for step in self.steps if step.step in SHOWN_STEPS]
        for step in shown:
            sampled = "" if step.sampled is None else f"; sampled {step.sampled}"
            rows.append((f"squared error / trivial, step {step.step}", f"{step.relative}{sampled}  (n {step.n})"))
        for step in shown:
            told = f"RMSE {step.reward_rmse} (real std {step.reward_std:.3g}), correlation {step.reward_correlation}"
            rows.append((f"reward, step {step.step}", told))
        for noise in self.noise:
            told = f"{noise.relative_l1}; holding the start {noise.trivial.value:.3g}"
            rows.append((f"relative L1, observation noise {noise.scale:g}", told))
        return [*rows, *self.distribution.rows()]

    def draw(self, figure: Drawing) -> None:
        """Relative error, reward error and noise curves over the steps, and the reliability of events."""
        axes = figure.subplots(2, 2)
        k = [step.step for step in self.steps]
        draw_band(axes[0, 0], k, [step.relative for step in self.steps], "prediction")
        if self.stochastic:
            draw_band(axes[0, 0], k, [step.sampled for step in self.steps if step.sampled is not None], "one sample")
            axes[0, 0].legend()
        axes[0, 0].axhline(1.0, color="grey", linestyle=":")
        axes[0, 0].set(yscale="log", ylabel="squared error / trivial", xlabel="step")
        draw_band(axes[0, 1], k, [step.reward_rmse for step in self.steps], "RMSE")
        axes[0, 1].plot(k, [step.reward_std for step in self.steps], color="grey", linestyle=":", label="real std")
        axes[0, 1].set(ylabel="reward error", xlabel="step")
        axes[0, 1].legend()
        for noise in self.noise:
            axes[1, 0].plot(k, noise.curve, label=f"{noise.scale:g}")
        axes[1, 0].set(ylabel="relative L1", xlabel="step")
        axes[1, 0].legend(title="noise", ncols=2)
        self.distribution.draw(axes[1, 1])


def measure_rollout(subject: Subject, effort: Effort) -> RolloutDiagnosis:
    """Judge the model by `effort.windows` windows of `effort.horizon` transitions of fresh episodes.

    Intervals of errors are bootstraps over episodes, of which there are few: rough. Those of the distribution are over
    windows, which overlap: too narrow. Raises DataError where no real transition is there.
    """
    agent, episodes, generator = subject.agent, subject.episodes, subject.generator("rollout")
    first, episode = episodes.draw(effort.windows, generator)
    batch = episodes.cut(first, episode, effort.horizon)
    real = encode_windows(agent.world_model, batch)
    counts = resample_counts(len(episodes.length), effort.resamples, generator)[:, episode.cpu()]
    stochastic = agent.world_model.dynamics.stochastic
    samples = _samples(subject, real, real.states[0])
    one = samples[:, 0] if stochastic else None
    return RolloutDiagnosis(
        windows=effort.windows,
        episodes=len(episodes.length),
        source=SOURCE,
        stochastic=stochastic,
        trained_horizon=subject.config.training.horizon,
        steps=step_errors(samples.mean(1), real, _mean_rewards(subject, samples, real), counts, one),
        noise=_noise_errors(subject, real, counts, generator),
        distribution=measure_distribution(subject, real, effort),
    )


def light_rollout(subject: Subject, effort: Effort) -> dict[str, float]:
    """`rollout_error/k`: squared error of z after k steps over the trivial predictor's, for k = 1, 4, 8, 16.

    A step that no window reaches, or over which no observation changes, is left out.
    """
    generator = subject.generator("rollout")
    batch = subject.windows.sample(effort.windows, effort.horizon, generator)
    real = encode_windows(subject.agent.world_model, batch)
    predicted = _samples(subject, real, real.states[0]).mean(1)
    error, trivial = (total.sum(1) for total in squared_errors(predicted.double(), real.z.double(), batch.valid))
    steps = zip(LIGHT_STEPS, (k <= effort.horizon and float(trivial[k - 1]) > 0.0 for k in LIGHT_STEPS), strict=True)
    return {f"rollout_error/{k}": float(error[k - 1] / trivial[k - 1]) for k, defined in steps if defined}


def _samples(subject: Subject, real: RealWindows, start: Float[Tensor, "B D"]) -> Float[Tensor, "T+1 M B D"]:
    """Rollouts from `start`, under the same noise in every call: light and full figures agree, noise scales compare."""
    noise = subject.generator("rollout/samples")
    return unroll_samples(subject.agent.world_model, start, real.batch.action, real.context, noise)


def _mean_rewards(subject: Subject, samples: Float[Tensor, "T+1 M B D"], real: RealWindows) -> Float[Tensor, "T B"]:
    """Mean over samples of the predicted rewards: of a curved reward not the reward of the mean."""
    shape = samples[:-1].shape[:-1]
    action, every = real.batch.action.unsqueeze(1).expand(*shape, -1), real.context.repeat(shape[0] * shape[1])
    return subject.agent.predict_reward(samples[:-1].flatten(0, 2), action.flatten(0, 2), every).view(shape).mean(1)


def _noise_errors(
    subject: Subject, real: RealWindows, counts: Tensor, generator: torch.Generator
) -> tuple[NoiseError, ...]:
    """The same noise at every scale, so that the scales compare."""
    batch, first = real.batch, real.batch.obs[0]
    eps = torch.randn(first.shape, generator=generator, device=first.device, dtype=first.dtype) * observation_std(batch)
    errors = []
    for scale in NOISE_SCALES:
        start, _ = subject.encode(first + scale * eps, batch.task)
        predicted = _samples(subject, real, start).mean(1)
        error, norm = l1_errors(predicted, real)
        held, _ = l1_errors(predicted[:1].expand_as(predicted), real)
        whole = norm.sum(0).unsqueeze(1)
        value, trivial = (ratio_intervals(each.sum(0).unsqueeze(1), whole, counts)[0] for each in (error, held))
        curve = (error.sum(1) / norm.sum(1))[batch.valid.any(1)]
        errors.append(NoiseError(scale, value, trivial, tuple(curve.tolist())))
    return tuple(errors)


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
    valid, z = real.batch.valid, real.z.double()
    error, trivial = squared_errors(predicted.double(), z, valid)
    relative = ratio_intervals(error.T, trivial.T, counts)
    sampled: Sequence[Interval | None] = [None] * len(valid)
    if sample is not None:
        sampled = ratio_intervals(squared_errors(sample.double(), z, valid)[0].T, trivial.T, counts)
    reward_error = torch.where(valid, (rewards - real.batch.reward).double().square(), 0.0)
    mean_square = ratio_intervals(reward_error.T, valid.T, counts)

    def after(t: int, n: int) -> StepError:
        return StepError(
            step=t + 1,
            n=n,
            error=float(error[t].sum()) / n,
            trivial=float(trivial[t].sum()) / n,
            relative=relative[t],
            sampled=sampled[t],
            reward_rmse=Interval(*(value**0.5 for value in astuple(mean_square[t]))),
            reward_correlation=_correlation(rewards[t], real.batch.reward[t], valid[t], counts),
            reward_std=float(real.batch.reward[t, valid[t]].double().std(correction=0)),
        )

    return tuple(after(t, n) for t, n in enumerate(valid.sum(1).tolist()) if n)


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
