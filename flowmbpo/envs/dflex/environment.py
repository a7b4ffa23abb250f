"""Environments of a dflex task as a batch simulator: dflex's physics and rewards, episodes left to the caller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.adapters import JointBatch, leave_running, present_device, quiet, seeded
from flowmbpo.envs.contract import BatchOutcome, DifferentiableEnvs
from flowmbpo.envs.dflex.library import load_dflex
from flowmbpo.envs.dflex.settings import SETTINGS
from flowmbpo.spec import TaskInfo

_LAST_ACTION = {"dflex-ant": slice(29, 37), "dflex-anymal": slice(37, 49), "dflex-humanoid": slice(55, 76)}
"""Where observations hold the last action."""


class DflexBatch(JointBatch):
    """N environments of a dflex task with PWM's settings, stepped in one batch on `device`.

    Reward and termination are dflex's own; the reward of a step is that of the state which the
    action was taken in. dflex's own restarts are switched off, so an episode lasts until `start`.

    With `autodiff` dflex records each step for `backward` (memory grows with the horizon, steps take longer), and where
    its observations hold the last action (ant 29:37, anymal 37:49, humanoid 55:76) they hold zeros: PWM trained so. The
    physics are the same, bit for bit. For exact derivatives cut the graph with `raw.initialize_trajectory()`, call
    `raw.step(action)` with gradients enabled, and differentiate what it returns.
    """

    library = "dflex"
    joints = ("joint_q", "joint_qd", "joint_act")
    draws = "it writes USD scenes only"

    def __init__(self, task: TaskInfo, num_envs: int, device: str = "cpu", autodiff: bool = False) -> None:
        """Raises EnvironmentUnavailableError where dflex or the device is missing."""
        super().__init__(task, num_envs)
        self._device = present_device(task.name, device, self.library, "this torch", torch.cuda.is_available())
        self._dflex: Any = load_dflex(task.name)
        self._no_grad = not autodiff
        self._recorder: DflexBatch | None = None
        environment, arguments = SETTINGS[task.name]
        with quiet():
            self.raw = vars(self._dflex.envs)[environment](
                device=str(self._device),
                num_envs=num_envs,
                episode_length=task.episode_length,
                stochastic_init=True,
                no_grad=self._no_grad,
                **arguments,
            )
        self._restart = self.raw.reset
        # Its `step` restarts ended environments by calling this, from torch's global generator.
        self.raw.reset = leave_running

    @torch.no_grad()
    def start(self, indices: Sequence[int], seeds: Sequence[np.random.SeedSequence]) -> None:
        self._before = {}
        for index, seed in zip(indices, seeds, strict=True):
            with seeded(self._device, seed):
                self._restart(torch.tensor([index], device=self._device))

    def record(self, action: Float[Tensor, "N A"]) -> BatchOutcome:
        """`step` with gradients, on the device; needs `autodiff`."""
        # One switch for all of dflex: another instance may have set it otherwise.
        self._dflex.config.no_grad = self._no_grad
        _, reward, _, info = self.raw.step(action.to(self._device))
        return BatchOutcome(info["obs_before_reset"], reward, info["termination"])

    @torch.no_grad()
    def step(self, action: Float[Tensor, "N A"]) -> BatchOutcome:
        self._before = self._joints()
        done = self.record(action)
        return BatchOutcome(done.obs.detach().cpu(), done.reward.detach().cpu(), done.terminated.cpu())

    def state_dict(self) -> dict[str, Any]:
        """Joint coordinates, velocities and actuation, dflex's step counts, and the observations.

        The mass matrix, which dflex reuses between substeps, is made anew in the first of each step.
        """
        checkpoint = {name: value.detach().to("cpu", copy=True) for name, value in self.raw.get_checkpoint().items()}
        return {**checkpoint, "obs": self.observe()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = {}
        tensors = {name: value.to(self._device, copy=True) for name, value in state.items()}
        # The next reward is computed from these observations.
        self.raw.obs_buf = tensors.pop("obs")
        self.raw.clear_grad(tensors)

    def differentiable(self) -> DifferentiableEnvs:
        """A second environment in this one's state, which records; made once, because that takes seconds."""
        if self._recorder is None:
            self._recorder = DflexBatch(self.task, self.num_envs, str(self._device), autodiff=True)
        return DifferentiableDflex(self._recorder, self.state_dict())


class DifferentiableDflex(DifferentiableEnvs):
    """dflex's exact derivatives, from the saved `state` on.

    Its observations show the last action as dflex does without recording, so that a policy acts
    on what it was trained on. Where dflex repairs non-finite gradients (anymal), so do these.
    """

    def __init__(self, recorder: DflexBatch, state: dict[str, Any]) -> None:
        self._recorder = recorder
        self._last_action = _LAST_ACTION.get(recorder.task.name)
        recorder.load_state_dict(state)
        self._obs: Tensor = state["obs"].to(recorder.raw.device)

    def observe(self) -> Float[Tensor, "N O"]:
        return self._obs

    def step(self, action: Float[Tensor, "N A"]) -> BatchOutcome:
        done = self._recorder.record(action)
        obs = done.obs
        if self._last_action is not None:
            before, after = obs[:, : self._last_action.start], obs[:, self._last_action.stop :]
            obs = torch.cat((before, action.to(obs.device), after), dim=-1)
        self._obs = obs
        return BatchOutcome(obs, done.reward, done.terminated)
