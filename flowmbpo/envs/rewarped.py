"""Environments of a rewarped task as a batch simulator: rewarped's physics and rewards, episodes left to the caller."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.adapters import JointBatch, import_library, leave_running, present_device, quiet, seeded
from flowmbpo.envs.contract import BatchOutcome
from flowmbpo.envs.simulators import require_installed
from flowmbpo.spec import TaskInfo

log = logging.getLogger("flowmbpo")

KERNELS = (
    "warp.sim.articulation",
    "warp.sim.integrator_euler",
    "rewarped.warp.collide",
    "rewarped.warp.integrator_featherstone",
)
"""The modules whose kernels Warp compiles for these tasks."""
_NO_LIMIT = torch.iinfo(torch.int32).max  # of rewarped's own step count, which starts afresh with each episode
_STATE = ("joint_q", "joint_qd", "body_q", "body_qd")
_BINARIES = {"cpu": ("o",), "cuda": ("ptx", "cubin")}


def load_task(task: str) -> tuple[Any, Any]:
    """The module `warp` and rewarped's class of `task`.

    Raises EnvironmentUnavailableError where rewarped is not installed or cannot be imported.
    """
    require_installed("rewarped", task)
    robot = task.removeprefix("rewarped-")

    def load() -> tuple[Any, Any]:
        environment = getattr(importlib.import_module(f"rewarped.envs.dflex.{robot}"), robot.capitalize())
        return importlib.import_module("warp"), environment

    # Warp looks for a CUDA driver in its import and complains, from C, where there is none.
    return import_library(
        "rewarped",
        load,
        "It needs just the Warp that it names (warp-lang 1.3.3) and a folder for compiled kernels that can be written "
        "(WARP_CACHE_PATH names another)",
    )


def announce_compilation(cache: Path, device: str) -> None:
    """Say so where kernels for `device` (cpu, cuda) are not yet in Warp's folder `cache`."""
    patterns = [[f"wp_{module}_*/*.{ending}" for ending in _BINARIES[device]] for module in KERNELS]
    if not all(any(True for pattern in choices for _ in cache.glob(pattern)) for choices in patterns):
        log.warning("compiling rewarped's kernels into %s: 1-3 minutes, once", cache)


class RewarpedBatch(JointBatch):
    """N environments of a rewarped task, stepped in one batch on `device`, without derivatives.

    Reward and termination are rewarped's own; the reward of a step is that of the state which the action led to. Its
    own restarts and its time limit are switched off, so an episode lasts until `start`. All environments stand at the
    origin (they do not touch each other): spread out, as by rewarped's default, each would round differently.
    """

    library = "rewarped"
    joints = ("joint_q", "joint_qd")
    draws = "it writes USD scenes or opens a window"

    def __init__(self, task: TaskInfo, num_envs: int, device: str = "cpu") -> None:
        """Compiles kernels where none are cached, and says so.

        Raises EnvironmentUnavailableError where rewarped or the device is missing.
        """
        super().__init__(task, num_envs)
        warp, environment = load_task(task.name)
        found = torch.cuda.is_available() and warp.is_cuda_available()
        self._device = present_device(task.name, device, self.library, "torch or Warp", found)
        self._seeds: list[tuple[int, np.random.SeedSequence]] = []
        announce_compilation(Path(warp.config.kernel_cache_dir), self._device.type)
        with quiet(), torch.no_grad():
            self.raw = environment(
                num_envs=num_envs, episode_length=_NO_LIMIT, no_grad=True, no_env_offset=True, device=str(self._device)
            )
            self._randomize = self.raw.randomize_init
            self.raw.randomize_init = self._draw_starts
            self._restart = self.raw.reset
            self._restart()
            # Its `step` restarts ended environments by calling this, from torch's global generator.
            self.raw.reset = leave_running
            # Kernels are compiled and loaded where they are first launched.
            self.raw.step(torch.zeros(num_envs, task.action_dim, device=self._device))

    @torch.no_grad()
    def start(self, indices: Sequence[int], seeds: Sequence[np.random.SeedSequence]) -> None:
        self._before = {}
        self._seeds = list(zip(indices, seeds, strict=True))
        # Without early termination rewarped restarts all environments or none.
        self.raw.early_termination = True
        try:
            self._restart(torch.tensor(list(indices), device=self._device))
        finally:
            self.raw.early_termination = self.task.can_terminate
            self._seeds = []

    @torch.no_grad()
    def step(self, action: Float[Tensor, "N A"]) -> BatchOutcome:
        self._before = self._joints()
        _, reward, _, info = self.raw.step(action.to(self._device))
        return BatchOutcome(self.observe(), reward.to("cpu", copy=True), info["terminated"].to("cpu"))

    def state_dict(self) -> dict[str, Any]:
        """Joint coordinates and velocities, the bodies' poses and twists (contacts start from them), and last actions.

        The mass matrix, which rewarped reuses between substeps, is made anew in the first of each step.
        """
        tensors = {name: getattr(self.raw.state, name) for name in _STATE}
        tensors |= {"actions": self.raw.actions, "progress": self.raw.progress_buf}
        return {name: value.to("cpu", copy=True) for name, value in tensors.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = {}
        for name in _STATE:
            getattr(self.raw.state, name).copy_(state[name])
        self.raw.actions = state["actions"].to(self._device, copy=True)
        self.raw.progress_buf = state["progress"].to(self._device, copy=True)
        self.raw.compute_observations()

    def _draw_starts(self, env_ids: Tensor) -> None:
        """In place of rewarped's `randomize_init`: the same draws, for each environment from its own seed."""
        for index, seed in self._seeds:
            with seeded(self._device, seed):
                self._randomize(torch.tensor([index], device=self._device))
