"""Returns in the real environment: the policy acts on what it observes, nothing is imagined."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowmbpo.envs.contract import VectorEnv
from flowmbpo.errors import EnvironmentFailure

log = logging.getLogger("flowmbpo")

Policy = Callable[[Float[Tensor, "N O"], Int[Tensor, " N"]], Float[Tensor, "N A"]]
"""Observations and task ids to actions; called with gradients off."""
OnStart = Callable[[Bool[Tensor, " N"]], None]
"""Told which copies' next observation is the first of an episode, for policies that remember."""


@dataclass(frozen=True)
class Evaluation:
    """Finished episodes, ordered by (environment copy, episode of that copy).

    `returns` are undiscounted sums of real rewards, `lengths` agent steps, `successes` the task's
    success at each episode's last step (None where the task defines none), `tasks` the task names.
    `faults` counts episodes that the simulator broke: they are in none of the figures, and the
    copy's next episode stands in for each.
    """

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    successes: tuple[float | None, ...]
    tasks: tuple[str, ...]
    faults: int = 0

    @property
    def episodes(self) -> int:
        """Number of finished episodes."""
        return len(self.returns)

    @property
    def return_mean(self) -> float:
        """Mean return over episodes."""
        return math.fsum(self.returns) / len(self.returns)

    @property
    def return_std(self) -> float:
        """Population standard deviation of the returns (divided by their number; 0 for one episode)."""
        mean = self.return_mean
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.returns) / len(self.returns))

    @property
    def length_mean(self) -> float:
        """Mean length in agent steps."""
        return sum(self.lengths) / len(self.lengths)

    @property
    def success(self) -> float | None:
        """Mean success over the episodes whose task defines it, or None."""
        defined = [value for value in self.successes if value is not None]
        return math.fsum(defined) / len(defined) if defined else None

    @property
    def steps(self) -> int:
        """Agent steps in the counted episodes."""
        return sum(self.lengths)

    def per_task(self) -> dict[str, dict[str, float | int | None]]:
        """Episodes, mean return and mean success of each task, in the order of their first episodes."""
        rows: dict[str, list[int]] = {}
        for episode, task in enumerate(self.tasks):
            rows.setdefault(task, []).append(episode)
        return {task: self._figures(chosen) for task, chosen in rows.items()}

    def _figures(self, chosen: list[int]) -> dict[str, float | int | None]:
        successes = [value for value in (self.successes[episode] for episode in chosen) if value is not None]
        return {
            "episodes": len(chosen),
            "return_mean": math.fsum(self.returns[episode] for episode in chosen) / len(chosen),
            "success": math.fsum(successes) / len(successes) if successes else None,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, ready for JSON."""
        return {
            "episodes": self.episodes,
            "return_mean": self.return_mean,
            "return_std": self.return_std,
            "length_mean": self.length_mean,
            "success": self.success,
            "steps": self.steps,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "successes": list(self.successes),
            "tasks": list(self.tasks),
            "per_task": self.per_task(),
            "faults": self.faults,
        }


@torch.no_grad()  # real returns are only measured; nothing is learnt from them here
def evaluate(
    policy: Policy, env: VectorEnv, episodes: int, seed: int, *, on_start: OnStart | None = None
) -> Evaluation:
    """Run `episodes` whole episodes from `env.reset(seed)`, closed loop, and report them.

    How many each copy runs is fixed beforehand (they differ by at most one), because taking the
    first that finish would favour short episodes. A copy that is done is stepped on, uncounted. An
    episode that the simulator breaks is run again as the copy's next one. `on_start` is called before
    the first action of all, and whenever copies have begun an episode since the last action.

    Raises EnvironmentFailure on a non-finite reward, where more episodes broke than were asked for,
    and whatever `env` raises.
    """
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}: evaluate at least 1")
    share, rest = divmod(episodes, env.num_envs)
    quota = [share + (copy < rest) for copy in range(env.num_envs)]
    finished: list[list[tuple[float, int, float | None]]] = [[] for _ in quota]
    obs = env.reset(seed)
    earned = torch.zeros(env.num_envs, dtype=torch.float64)
    lasted = torch.zeros(env.num_envs, dtype=torch.long)
    pending, faults = episodes, 0
    begins = torch.ones(env.num_envs, dtype=torch.bool)
    while pending:
        if on_start is not None and begins.any():
            on_start(begins)
        step = env.step(policy(obs, env.task_ids).to(obs.device))
        obs = step.obs
        earned += step.reward.to(earned)
        lasted += 1
        begins = step.done.cpu().clone()
        for copy in step.done.nonzero().flatten().tolist():
            if len(finished[copy]) < quota[copy]:
                finished[copy].append(_episode(float(earned[copy]), int(lasted[copy]), float(step.success[copy]), copy))
                pending -= 1
            earned[copy] = 0.0
            lasted[copy] = 0
        for fault in step.faults:
            begins[fault.index] = True
            earned[fault.index] = 0.0
            lasted[fault.index] = 0
            if len(finished[fault.index]) < quota[fault.index]:
                faults += 1
                log.warning("%s; evaluation goes on with the next episode", fault)
            if faults > episodes:
                raise EnvironmentFailure(f"{faults} episodes broke while {episodes} were to be evaluated; {fault}")
    names = [env.spec.tasks[task].name for task in env.task_ids.tolist()]
    flat = [(*episode, names[copy]) for copy, lane in enumerate(finished) for episode in lane]
    returns, lengths, successes, tasks = zip(*flat, strict=True)
    return Evaluation(returns=returns, lengths=lengths, successes=successes, tasks=tasks, faults=faults)


def _episode(total: float, length: int, success: float, copy: int) -> tuple[float, int, float | None]:
    if not math.isfinite(total):
        raise EnvironmentFailure(
            f"the simulator returned a non-finite reward in environment copy {copy} during evaluation: "
            "its return cannot be reported"
        )
    return total, length, None if math.isnan(success) else success
