"""Windows of real transitions, paired comparisons of errors on them, and what a regression and the model make of them.

Letters: W transitions of a window, B windows (rows), O observation, A action, D latent; I inputs, Q targets, F
features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from flowmbpo.data.batch import Batch
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.subject import Subject
from flowmbpo.evaluation.episodes import Episodes
from flowmbpo.models.task_context import TaskContext
from flowmbpo.models.world_model import WorldModel

BLOCK = 25
LONGEST = 2**32  # blocks of an episode
COMPARABLE = 64
FLOOR = 1e-4
FEATURES = 128
WEIGHT_STD = 1.5
FURTHEST = 6.0  # standard deviations: a row out there is met as the nearest one that is known
PENALTIES = tuple(10.0**power for power in range(-7, 1))

Option = TypeVar("Option", bound=Hashable)
Regression = Callable[[Float[Tensor, "B I"]], Float[Tensor, "B Q"]]
Inputs = Sequence[Float[Tensor, "B I"]]
"""What a regression is given, side by side."""


@dataclass(frozen=True)
class TransitionWindows:
    """B windows of W transitions, time-major, none of which leaves its episode.

    `action[t]` leads from obs[t] to obs[t + 1] and earned `reward[t]`. `block` numbers, from 0 on, the pieces of
    `BLOCK` steps of an episode: errors of neighbouring steps are alike; over this many that is mostly forgotten.
    """

    obs: Float[Tensor, "W+1 B O"]
    action: Float[Tensor, "W B A"]
    reward: Float[Tensor, "W B"]
    task: Int[Tensor, " B"]
    block: Int[Tensor, " B"]

    def __len__(self) -> int:
        return len(self.task)

    def first(self, count: int) -> TransitionWindows:
        """The first `count` windows; they are in random order."""
        obs, action, reward = (x[:, :count] for x in (self.obs, self.action, self.reward))
        return TransitionWindows(obs, action, reward, self.task[:count], _blocks(self.block[:count]))

    @property
    def comparable(self) -> bool:
        """Whether errors can be compared and predictions held out: enough rows, in two blocks or more."""
        return len(self) >= COMPARABLE and int(self.block.max()) > 0

    def shuffled(self, generator: torch.Generator) -> Int[Tensor, " B"]:
        """The rows' numbers in random order."""
        return torch.randperm(len(self), generator=generator, device=generator.device).to(self.task.device)

    def held_out_error(self, inputs: Inputs, targets: Float[Tensor, "B Q"], features: int = FEATURES) -> Tensor:
        """Squared errors [B] of `predict_held_out` from these inputs, side by side."""
        return (predict_held_out(inputs, targets, self.block, features) - targets).square().mean(-1)


def fresh_windows(*recorded: Episodes, width: int, limit: int, generator: torch.Generator) -> TransitionWindows:
    """At most `limit` windows of episodes of one environment, without replacement. Empty where none is long enough."""

    def joined(name: str) -> Tensor:
        parts: list[Tensor] = [getattr(each, name) for each in recorded]
        longest = max(map(len, parts))
        return torch.cat([pad(x, (0, 0) * (x.ndim - 1) + (0, longest - len(x))) for x in parts], dim=1)

    obs, action, reward = joined("obs"), joined("action"), joined("reward")
    length, task = (torch.cat([getattr(each, name) for each in recorded]) for name in ("length", "task"))
    start = torch.arange(len(action), device=obs.device).unsqueeze(1)
    time, env = _draw(start + width <= length, limit, generator)
    steps = time + torch.arange(width + 1, device=obs.device).unsqueeze(1)
    before = (steps[:-1], env)
    return TransitionWindows(obs[steps, env], action[before], reward[before], task[env], _blocks(env, time))


def sampled_windows(replay: ReplayBuffer, width: int, count: int, generator: torch.Generator) -> TransitionWindows:
    """Whole windows among `count` that the replay buffer hands out to training; each counts as its own episode."""
    batch = replay.sample(count, width, generator)
    whole = batch.valid.all(0)
    obs, action, reward = (x[:, whole] for x in (batch.obs, batch.action, batch.reward))
    return TransitionWindows(obs, action, reward, batch.task[whole], torch.arange(len(reward[0]), device=whole.device))


def sources_of_rows(
    subject: Subject, *fresh: Episodes, names: tuple[str, str], limit: int, generator: torch.Generator
) -> dict[str, TransitionWindows]:
    """Single transitions of `fresh` episodes and of the replay buffer, by these names; only those `comparable`."""
    found = [fresh_windows(*fresh, width=1, limit=limit, generator=generator)]
    if subject.replay is not None:
        found.append(sampled_windows(subject.replay, 1, limit, generator))
    return {name: rows for name, rows in zip(names, found, strict=False) if rows.comparable}


def stored_windows(
    replay: ReplayBuffer,
    envs: Sequence[int],
    width: int,
    limit: int,
    generator: torch.Generator,
    ages: tuple[float, float] = (0.0, 1.0),
) -> TransitionWindows:
    """At most `limit` windows of some environments, without replacement, that begin between two ages (0 the oldest)."""
    device = replay.device
    column = torch.tensor(envs, device=device)
    count, head = replay.count[column], replay.head[column]
    position = torch.arange(int(count.max()), device=device).unsqueeze(1)  # oldest first
    stored = position < count
    # Rows beyond `count` may not be allocated; they are left out below.
    row = ((head - count + 1 + position) % replay.rows).clamp(max=len(replay.closed) - 1)
    ends = replay.closed[row, column] | ~stored
    episode = ends.long().cumsum(0) - ends.long()
    whole = torch.zeros_like(ends)  # nothing ended between the first row and the last observation
    whole[:-width] = episode[:-width] == episode[width:]
    inside = (position >= ages[0] * count) & (position < ages[1] * count)
    at, index = _draw(whole & ~ends & stored & inside, limit, generator)
    steps = at + torch.arange(width + 1, device=device).unsqueeze(1)
    env = column[index]
    cells = row[steps, index]
    action, reward = (each[cells[:-1], env] for each in (replay.action, replay.reward))
    block = _blocks(episode[at, index] * len(envs) + index, at)
    return TransitionWindows(replay.obs[cells, env], action, reward, replay.task_ids[env], block)


def newest_windows(replay: ReplayBuffer, limit: int, generator: torch.Generator) -> TransitionWindows:
    """About `limit` of the newest single transitions of the replay buffer, as many of each environment."""
    wanted = -(-limit // replay.num_envs) + 1  # the newest row of an environment has no transition yet
    oldest = max(0.0, 1.0 - wanted / max(int(replay.count.max()), 1))
    return stored_windows(replay, range(replay.num_envs), 1, limit, generator, (oldest, 1.0))


def _draw(usable: Bool[Tensor, "R N"], limit: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Row and column of at most `limit` usable cells, without replacement."""
    row, column = usable.nonzero(as_tuple=True)
    order = torch.randperm(len(row), generator=generator, device=generator.device).to(row.device)[:limit]
    return row[order], column[order]


def _blocks(episode: Tensor, time: Tensor | int = 0) -> Int[Tensor, " B"]:
    """The pieces of `BLOCK` steps that lie in one episode, numbered from 0."""
    ranks: Tensor = torch.unique(episode * LONGEST + time // BLOCK, return_inverse=True)[1]
    return ranks


@dataclass(frozen=True)
class Paired:
    """The mean log ratio of the other's squared error to the baseline's: 0.7 is twice the error, -0.7 half of it.

    `z` is that mean in its standard errors over `n` blocks (rows of one block count as one).
    """

    effect: float
    z: float
    n: int

    def better(self, effect: float, z: float) -> bool:
        """Whether the other's errors are smaller by at least `effect`, `z` standard errors from equal."""
        return self.effect <= -effect and self.z <= -z

    def worse(self, effect: float, z: float) -> bool:
        """Whether the other's errors are larger by at least `effect`, `z` standard errors from equal."""
        return self.effect >= effect and self.z >= z


def compare_errors(baseline: Float[Tensor, " B"], other: Float[Tensor, " B"], block: Int[Tensor, " B"]) -> Paired:
    """Squared errors `other` against `baseline`, row by row; errors below `FLOOR` of the baseline's mean count as that.

    `z` is 0 where there are fewer than two blocks, or where nothing differs.
    """
    floor = max(FLOOR * float(baseline.double().mean()), 1e-300)
    ratio = ((other.double() + floor) / (baseline.double() + floor)).log()
    means = torch.bincount(block, ratio) / torch.bincount(block)
    n = len(means)
    spread = float(means.std()) if n > 1 else 0.0
    z = float(means.mean()) / (spread / math.sqrt(n)) if spread > 0.0 else 0.0
    return Paired(float(ratio.mean()), z, n)


def best_of(compared: Mapping[Option, Paired]) -> Option:
    """The option whose errors are smallest."""
    return min(compared, key=lambda option: compared[option].effect)


def within_tasks(x: Float[Tensor, "B *Q"], task: Int[Tensor, " B"]) -> Float[Tensor, "B *Q"]:
    """x less the mean over the rows of its own task: what tasks differ by tells nothing of what goes on in one."""
    x = x.clone()
    for each in torch.unique(task):
        x[task == each] -= x[task == each].mean(0)
    return x


def obs_changes(before: Float[Tensor, "B O"], after: Float[Tensor, "B O"]) -> Float[Tensor, "B Q"]:
    """obs[t + 1] - obs[t] of the coordinates that move, in their standard deviations."""
    change = after - before
    moving = change.std(0) > 1e-6 * (1.0 + before.std(0))
    return change[:, moving] / change[:, moving].std(0)


def fit_regression(inputs: Float[Tensor, "B I"], targets: Float[Tensor, "B Q"], features: int = FEATURES) -> Regression:
    """Ridge regression on [1, x, x^2, tanh(W x + b)], random W and b (in the manner of Rahimi and Recht 2007).

    x are the standardised inputs, no further out than `FURTHEST`. The penalty has the smallest generalised
    cross-validation error (Golub et al. 1979), every target weighted by its own scale. float64 inside and out.
    """
    x, y = inputs.double(), targets.double()
    centre, spread = x.mean(0), x.std(0)
    spread = torch.where(spread > 1e-6 * (1.0 + centre.abs()), spread, 1.0)
    width = x.shape[1]
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(width, features, generator=generator, dtype=torch.float64) * WEIGHT_STD / width**0.5
    directions = directions.to(x.device)
    phases = torch.randn(features, generator=generator, dtype=torch.float64).to(x.device)

    def featured(inputs: Float[Tensor, "B I"]) -> Float[Tensor, "B F"]:
        x = ((inputs.double() - centre) / spread).clamp(-FURTHEST, FURTHEST)
        return torch.cat([torch.ones_like(x[:, :1]), x, x.square(), (x @ directions + phases).tanh()], dim=1)

    phi = featured(inputs)
    scale = torch.where(y.std(0) > 0.0, y.std(0), 1.0)
    y = y / scale
    squares, basis = torch.linalg.eigh(phi.T @ phi)
    squares = squares.clamp(min=0.0)
    projected = basis.T @ (phi.T @ y)
    total = float(y.square().sum())

    def cross_validated(damped: Tensor) -> float:
        coefficients = projected / damped.unsqueeze(1)
        explained = float((2.0 * projected * coefficients - squares.unsqueeze(1) * coefficients.square()).sum())
        freedom = len(x) - float((squares / damped).sum())
        return (total - explained) / max(freedom, 1.0) ** 2

    chosen = min((squares + penalty * squares[-1] for penalty in PENALTIES), key=cross_validated)
    weights = basis @ (projected / chosen.unsqueeze(1)) * scale
    return lambda inputs: featured(inputs) @ weights


def predict_held_out(
    inputs: Inputs, targets: Float[Tensor, "B Q"], block: Int[Tensor, " B"], features: int = FEATURES, at: Inputs = ()
) -> Float[Tensor, "B Q"]:
    """Every row predicted, from its inputs (or those `at`), by a regression on the blocks of the other parity.

    Both parities must have rows.
    """
    known, asked = torch.cat([*inputs], dim=-1), torch.cat([*(at or inputs)], dim=-1)
    predicted, half = torch.empty_like(targets, dtype=torch.float64), block % 2 == 0
    for part in (half, ~half):
        predicted[part] = fit_regression(known[~part], targets[~part], features)(asked[part])
    return predicted


@dataclass(frozen=True)
class OneStep:
    """Real transitions as the model sees them: states, their latents `z`, those that followed. Steps of zero noise."""

    model: WorldModel
    context: TaskContext
    state: Float[Tensor, "B D"]
    z: Float[Tensor, "B D"]
    target: Float[Tensor, "B D"]

    @classmethod
    def of(cls, subject: Subject, rows: TransitionWindows | Batch, at: int = 0) -> OneStep:
        """The transitions at step `at` of the windows."""
        model = subject.agent.world_model
        state, context = subject.encode(rows.obs[at], rows.task)
        reached, _ = subject.encode(rows.obs[at + 1], rows.task)
        return cls(model, context, state, model.latent(state), model.latent(reached))

    def next(self, action: Float[Tensor, "B A"]) -> Float[Tensor, "B D"]:
        """Predicted latents after these actions."""
        return self.model.latent(self.model.next(self.state, action, self.context))

    def error(self, action: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """Squared latent errors of the step with these actions."""
        return (self.next(action) - self.target).square().mean(-1)
