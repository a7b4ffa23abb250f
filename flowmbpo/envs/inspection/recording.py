"""All that an environment answered along a table of actions, and where two such answers differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.episodes import Fault

Motion = Literal["zero", "random"]


@dataclass(frozen=True)
class Recording:
    """T steps of N environments. `first` are the observations before the first step, `broken` marks faults."""

    first: Float[Tensor, "N O"]
    obs: Float[Tensor, "T N O"]
    final_obs: Float[Tensor, "T N O"]
    reward: Float[Tensor, "T N"]
    success: Float[Tensor, "T N"]
    terminated: Bool[Tensor, "T N"]
    truncated: Bool[Tensor, "T N"]
    broken: Bool[Tensor, "T N"]

    @property
    def steps(self) -> int:
        """T."""
        return len(self.reward)

    def of(self, index: int) -> Recording:
        """The same for one environment alone, still with its axis."""
        return self._sliced(slice(None), slice(index, index + 1), self.first)

    def part(self, start: int, stop: int) -> Recording:
        """Steps `start` to `stop`; `first` is then what was seen before step `start`."""
        return self._sliced(slice(start, stop), slice(None), self.obs[start - 1] if start else self.first)

    def _sliced(self, steps: slice, envs: slice, first: Tensor) -> Recording:
        return Recording(first[envs], *(getattr(self, field.name)[steps, envs] for field in fields(self)[1:]))


_ANSWERS = ("obs", "final_obs", "reward", "success", "terminated", "truncated")


def random_actions(env: VectorEnv, steps: int, seed: int) -> Float[Tensor, "T N A"]:
    """Uniform in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(steps, env.num_envs, env.spec.action_dim, generator=generator) - 1


def record(env: VectorEnv, first: Float[Tensor, "N O"], actions: Iterable[Float[Tensor, "N A"]]) -> Recording:
    """Step `env`, whose current observations are `first`, along `actions` (at least one)."""
    steps = [env.step(action) for action in actions]
    stacked = {name: torch.stack([getattr(step, name) for step in steps]) for name in _ANSWERS}
    broken = torch.stack([_marks(step.faults, len(first)) for step in steps])
    return Recording(first=first, broken=broken, **stacked)


def difference(expected: Recording, found: Recording) -> str | None:
    """Where the earliest bit differs, in words; None where all are equal (nan equals the same nan)."""
    unlike = _unlike(expected.first, found.first)
    if unlike.any():
        index = int(unlike.nonzero()[0, 0])
        return f"the first observation of copy {index}: {_gap(expected.first[index], found.first[index])}"
    places = {}
    for field in fields(Recording)[1:]:
        unlike = _unlike(getattr(expected, field.name), getattr(found, field.name))
        if unlike.any():
            places[field.name] = unlike.nonzero()[0, :2].tolist()
    if not places:
        return None
    name = min(places, key=lambda key: places[key][0])
    step, index = places[name]
    values = getattr(expected, name)[step, index], getattr(found, name)[step, index]
    return f"{name} of copy {index} in step {step + 1}: {_gap(*values)}"


def _unlike(left: Tensor, right: Tensor) -> Bool[Tensor, "..."]:
    """Where bits differ."""
    if left.dtype == torch.bool:
        return left ^ right
    return left.contiguous().view(torch.int32) != right.contiguous().view(torch.int32)


def _gap(expected: Tensor, found: Tensor) -> str:
    if expected.dtype == torch.bool:
        return f"{bool(found)} in place of {bool(expected)}"
    return f"differs by up to {float((found - expected).abs().max()):.3g}"


def _marks(faults: tuple[Fault, ...], num_envs: int) -> Bool[Tensor, " N"]:
    broken = torch.zeros(num_envs, dtype=torch.bool)
    broken[[fault.index for fault in faults if not fault.at_start]] = True
    return broken


def film(env: VectorEnv, steps: int, seed: int, motion: Motion) -> Iterator[np.ndarray]:
    """The first environment's frame at the start and after each of `steps` agent steps, uint8 [height, width, 3].

    An episode that ends on the way is followed by the next.
    """
    for _ in walk(env, steps, seed, motion):
        yield env.render(0)


def walk(env: VectorEnv, steps: int, seed: int, motion: Motion) -> Iterator[int]:
    """Reset from `seed`, then step; yields the number of agent steps taken so far, 0 to `steps`."""
    env.reset(seed)
    yield 0
    actions = random_actions(env, steps, seed)
    for place, action in enumerate(torch.zeros_like(actions) if motion == "zero" else actions, start=1):
        env.step(action)
        yield place
