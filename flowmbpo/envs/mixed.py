"""One batch over several vector environments, for task sets whose simulators differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from flowmbpo.envs.contract import EnvStep, VectorEnv, bounded_actions
from flowmbpo.envs.episodes import check_same_tasks
from flowmbpo.spec import EnvSpec

_TENSORS = ("obs", "reward", "terminated", "truncated", "final_obs", "success")


class MixedVectorEnv(VectorEnv):
    """Environments `indices[k]` of the batch belong to `parts[k]`, which knows only its own tasks and widths.

    Parts are seeded apart, so that environment i of two parts never shares an episode's randomness.
    """

    def __init__(
        self, spec: EnvSpec, parts: Sequence[VectorEnv], indices: Sequence[Sequence[int]], task_ids: Sequence[int]
    ) -> None:
        self.spec = spec
        self.num_envs = len(task_ids)
        self.task_ids = torch.tensor(list(task_ids), dtype=torch.int64)
        self._parts = list(parts)
        self._rows = [list(rows) for rows in indices]
        places, self._order = torch.tensor([row for rows in indices for row in rows]).sort()
        assert places.equal(torch.arange(self.num_envs))

    def reset(self, seed: int) -> Float[Tensor, "N O"]:
        return self._gather([part.reset(_part_seed(seed, place)) for place, part in enumerate(self._parts)])

    def step(self, action: Float[Tensor, "N A"]) -> EnvStep:
        action = torch.from_numpy(bounded_actions(action, self.num_envs, self.spec.action_dim))
        steps = [
            part.step(action[rows, : part.spec.action_dim]) for part, rows in zip(self._parts, self._rows, strict=True)
        ]
        pairs = ((fault, rows) for step, rows in zip(steps, self._rows, strict=True) for fault in step.faults)
        faults = tuple(replace(fault, index=rows[fault.index]) for fault, rows in pairs)
        whole: Any = {name: self._gather([getattr(step, name) for step in steps]) for name in _TENSORS}
        return EnvStep(**whole, faults=faults)

    def state_dict(self) -> dict[str, Any]:
        return {
            "task": self.spec.label,
            "task_ids": self.task_ids.clone(),
            "parts": [part.state_dict() for part in self._parts],
        }

    def load_state_dict(self, state: dict[str, Any]) -> Float[Tensor, "N O"]:
        """Raises ValueError where the state is of another set, number of environments or assignment."""
        check_same_tasks(self.spec, self.task_ids.tolist(), state)
        return self._gather(
            [part.load_state_dict(saved) for part, saved in zip(self._parts, state["parts"], strict=True)]
        )

    @property
    def restores_by_replay(self) -> bool:
        return any(part.restores_by_replay for part in self._parts)

    def render(self, index: int = 0) -> np.ndarray:
        for part, rows in zip(self._parts, self._rows, strict=True):
            if index in rows:
                return part.render(rows.index(index))
        raise IndexError(f"copy {index} of {self.num_envs}")

    def cpu_seconds(self) -> float:
        return sum(part.cpu_seconds() for part in self._parts)

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def _gather(self, values: list[Tensor]) -> Tensor:
        """One tensor of all environments out of the parts'; observations are padded to the set's width."""
        if values[0].ndim > 1:
            values = [functional.pad(value, (0, self.spec.obs_dim - value.shape[1])) for value in values]
        return torch.cat(values)[self._order]


def _part_seed(seed: int, place: int) -> int:
    """A seed of its own for every part. The first part keeps the environment's, as a lone one would."""
    return seed if place == 0 else int(np.random.SeedSequence([seed, place]).generate_state(1, np.uint64)[0] >> 1)
