"""Copies of a rewarped task as a batch simulator: rewarped's physics and rewards, episodes left to the caller."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.batch.simulator import BatchOutcome, BatchSimulator
from flowmbpo.envs.rewarped.library import announce_compilation, load_task, quiet
from flowmbpo.errors import EnvironmentUnavailableError
from flowmbpo.spec import TaskInfo

_NO_LIMIT = torch.iinfo(torch.int32).max  # of rewarped's own step count, which starts afresh with each episode
_STATE = ("joint_q", "joint_qd", "body_q", "body_qd")


class RewarpedBatch(BatchSimulator):
    """N copies of a rewarped task, stepped in one batch on `device`, without derivatives.

    Reward and termination are rewarped's own; the reward of a step is that of the state which the
    action led to. Its own restarts and its time limit are switched off, so an episode lasts until
    `start`. All copies stand at the origin (they do not touch each other): spread out, as by
    rewarped's default, each would round differently.
    """

    def __init__(self, task: TaskInfo, num_envs: int, device: str = "cpu") -> None:
        """Compiles kernels where none are cached, and says so.

        Raises EnvironmentUnavailableError where rewarped or the device is missing.
        """
        self.task = task
        self.num_envs = num_envs
        warp, environment = load_task(task.name)
        self._device = _present_device(task, device, warp)
        self._before: dict[str, Tensor] = {}
        self._seeds: list[tuple[int, np.random.SeedSequence]] = []
        announce_compilation(Path(warp.config.kernel_cache_dir), self._device.type)
        with quiet(), torch.no_grad():
            self._raw: Any = environment(
                num_envs=num_envs,
                episode_length=_NO_LIMIT,
                no_grad=True,
                no_env_offset=True,
                device=str(self._device),
            )
            self._randomize = self._raw.randomize_init
            self._raw.randomize_init = self._draw_starts
            self._restart = self._raw.reset
            self._restart()
            # Its `step` restarts ended copies by calling this, from torch's global generator.
            self._raw.reset = _leave_running
            # Kernels are compiled and loaded where they are first launched.
            self._raw.step(torch.zeros(num_envs, task.action_dim, device=self._device))

    @property
    def raw(self) -> Any:
        """rewarped's own environment. Its `reset` does nothing: `start` begins episodes."""
        return self._raw

    @torch.no_grad()
    def start(self, indices: Sequence[int], seeds: Sequence[np.random.SeedSequence]) -> None:
        self._before = {}
        self._seeds = list(zip(indices, seeds, strict=True))
        # Without early termination rewarped restarts all copies or none.
        self._raw.early_termination = True
        try:
            self._restart(torch.tensor(list(indices), device=self._device))
        finally:
            self._raw.early_termination = self.task.can_terminate
            self._seeds = []

    def observe(self) -> Float[Tensor, "N O"]:
        obs: Tensor = self._raw.obs_buf.to("cpu", copy=True)
        return obs

    @torch.no_grad()
    def step(self, action: Float[Tensor, "N A"]) -> BatchOutcome:
        self._before = self._joints()
        _, reward, _, info = self._raw.step(action.to(self._device))
        return BatchOutcome(
            obs=self.observe(), reward=reward.to("cpu", copy=True), terminated=info["terminated"].to("cpu")
        )

    def state_dict(self) -> dict[str, Any]:
        """Joint coordinates and velocities, the bodies' poses and twists (contacts start from them), and last actions.

        The mass matrix, which rewarped reuses between substeps, is made anew in the first of each step.
        """
        tensors = {name: getattr(self._raw.state, name) for name in _STATE}
        tensors |= {"actions": self._raw.actions, "progress": self._raw.progress_buf}
        return {name: value.to("cpu", copy=True) for name, value in tensors.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = {}
        for name in _STATE:
            getattr(self._raw.state, name).copy_(state[name])
        self._raw.actions = state["actions"].to(self._device, copy=True)
        self._raw.progress_buf = state["progress"].to(self._device, copy=True)
        self._raw.compute_observations()

    def describe(self, index: int) -> str:
        """The state that the last step started from, or that of now where none has been taken since a start."""
        parts = []
        for name, rows in (self._before or self._joints()).items():
            row = rows.view(self.num_envs, -1)[index].cpu().numpy()
            parts.append(f"{name} {np.array2string(row, precision=4, threshold=60, max_line_width=10_000)}")
        return f"before the step: {', '.join(parts)}"

    def render(self, index: int) -> np.ndarray:
        raise EnvironmentUnavailableError(
            f"{self.task.name}: rewarped draws no pictures (it writes USD scenes or opens a window). "
            "mujoco-ant, mujoco-hopper and the DMControl tasks can be rendered."
        )

    def _joints(self) -> dict[str, Tensor]:
        """Copies of all joints' coordinates and velocities, on the device: rewarped steps in place."""
        return {name: getattr(self._raw.state, name).clone() for name in ("joint_q", "joint_qd")}

    def _draw_starts(self, env_ids: Tensor) -> None:
        """In place of rewarped's `randomize_init`: the same draws, for each copy from its own seed."""
        cuda = self._device.type == "cuda"
        generator = torch.cuda.default_generators[self._device.index] if cuda else torch.default_generator
        saved = generator.get_state()
        try:
            for index, seed in self._seeds:
                generator.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
                self._randomize(torch.tensor([index], device=self._device))
        finally:
            generator.set_state(saved)


def _leave_running(env_ids: Tensor | None = None) -> None:
    """In place of rewarped's own restart of ended copies."""


def _present_device(task: TaskInfo, device: str, warp: Any) -> torch.device:
    place = torch.device(device)
    if place.type == "cpu":
        return place
    if place.type != "cuda":
        raise EnvironmentUnavailableError(f"{task.name}: rewarped does not run on '{device}'. Allowed: cpu, cuda.")
    if not (torch.cuda.is_available() and warp.is_cuda_available()):
        raise EnvironmentUnavailableError(
            f"{task.name}: the device '{device}' was asked for and torch or Warp finds no CUDA device; take 'cpu'."
        )
    return torch.device("cuda", torch.cuda.current_device() if place.index is None else place.index)
