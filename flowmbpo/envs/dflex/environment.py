"""Copies of a dflex task as a batch simulator: dflex's physics and rewards, episodes left to the caller."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.envs.batch import BatchOutcome, BatchSimulator
from flowmbpo.envs.contract import DifferentiableCopies, DifferentiableStep
from flowmbpo.envs.dflex.library import load_dflex
from flowmbpo.envs.dflex.settings import SETTINGS
from flowmbpo.errors import EnvironmentUnavailableError
from flowmbpo.spec import TaskInfo

_LAST_ACTION = {"dflex-ant": slice(29, 37), "dflex-anymal": slice(37, 49), "dflex-humanoid": slice(55, 76)}
"""Where observations hold the last action."""


class DflexBatch(BatchSimulator):
    """N copies of a dflex task with PWM's settings, stepped in one batch on `device`.

    Reward and termination are dflex's own; the reward of a step is that of the state which the
    action was taken in. dflex's own restarts are switched off, so an episode lasts until `start`.

    With `autodiff` dflex records each step for `backward` (memory grows with the horizon, steps
    take longer), and where its observations hold the last action (ant 29:37, anymal 37:49,
    humanoid 55:76) they hold zeros: PWM trained so. The physics are the same, bit for bit.
    """

    def __init__(self, task: TaskInfo, num_envs: int, device: str = "cpu", autodiff: bool = False) -> None:
        """Raises EnvironmentUnavailableError where dflex or the device is missing."""
        self.task = task
        self.num_envs = num_envs
        self._device = _present_device(task, device)
        self._dflex: Any = load_dflex(task.name)
        self._no_grad = not autodiff
        self._before: dict[str, Tensor] = {}
        self._recorder: DflexBatch | None = None
        setting = SETTINGS[task.name]
        with _quiet():
            self._raw: Any = vars(self._dflex.envs)[setting.environment](
                device=str(self._device),
                num_envs=num_envs,
                episode_length=task.episode_length,
                stochastic_init=True,
                no_grad=self._no_grad,
                **setting.arguments,
            )
        self._restart = self._raw.reset
        # Its `step` restarts ended copies by calling this, from torch's global generator.
        self._raw.reset = _leave_running

    @property
    def raw(self) -> Any:
        """dflex's own environment, for exact derivatives through the physics (`autodiff=True`).

        Cut the graph with `raw.initialize_trajectory()`, call `raw.step(action)` with gradients
        enabled, differentiate what it returns. Its `reset` does nothing: `start` begins episodes.
        """
        return self._raw

    @torch.no_grad()
    def start(self, indices: Sequence[int], seeds: Sequence[np.random.SeedSequence]) -> None:
        self._before = {}
        for index, seed in zip(indices, seeds, strict=True):
            with _seeded(self._device, seed):
                self._restart(torch.tensor([index], device=self._device))

    def observe(self) -> Float[Tensor, "N O"]:
        obs: Tensor = self._raw.obs_buf.detach().to("cpu", copy=True)
        return obs

    def record(self, action: Float[Tensor, "N A"]) -> DifferentiableStep:
        """`step` with gradients; needs `autodiff`."""
        self._dflex.config.no_grad = self._no_grad
        _, reward, _, info = self._raw.step(action.to(self._device))
        return DifferentiableStep(info["obs_before_reset"], reward, info["termination"])

    @torch.no_grad()
    def step(self, action: Float[Tensor, "N A"]) -> BatchOutcome:
        # One switch for all of dflex: another instance may have set it otherwise.
        self._dflex.config.no_grad = self._no_grad
        self._before = self._joints()
        _, reward, _, info = self._raw.step(action.to(self._device))
        return BatchOutcome(
            obs=info["obs_before_reset"].detach().to("cpu"),
            reward=reward.detach().to("cpu"),
            terminated=info["termination"].to("cpu"),
        )

    def state_dict(self) -> dict[str, Any]:
        """Joint coordinates, velocities and actuation, dflex's step counts, and the observations.

        The mass matrix, which dflex reuses between substeps, is made anew in the first of each step.
        """
        checkpoint = {name: value.detach().to("cpu", copy=True) for name, value in self._raw.get_checkpoint().items()}
        return {**checkpoint, "obs": self.observe()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._before = {}
        tensors = {name: value.to(self._device, copy=True) for name, value in state.items()}
        # The next reward is computed from these observations.
        self._raw.obs_buf = tensors.pop("obs")
        self._raw.clear_grad(tensors)

    def differentiable(self) -> DifferentiableCopies:
        """A second environment in this one's state, which records; made once, because that takes seconds."""
        if self._recorder is None:
            self._recorder = DflexBatch(self.task, self.num_envs, str(self._device), autodiff=True)
        return DifferentiableDflex(self._recorder, self.state_dict())

    def describe(self, index: int) -> str:
        """The state that the last step started from, or that of now where none has been taken since a start."""
        parts = []
        for name, rows in (self._before or self._joints()).items():
            row = rows.view(self.num_envs, -1)[index].cpu().numpy()
            parts.append(f"{name} {np.array2string(row, precision=4, threshold=60, max_line_width=10_000)}")
        return f"before the step: {', '.join(parts)}"

    def _joints(self) -> dict[str, Tensor]:
        """Copies of all joints' coordinates, velocities and actuation, on the device: dflex steps in place."""
        state = self._raw.state
        return {name: getattr(state, name).detach().clone() for name in ("joint_q", "joint_qd", "joint_act")}

    def render(self, index: int) -> np.ndarray:
        raise EnvironmentUnavailableError(
            f"{self.task.name}: dflex draws no pictures (it writes USD scenes only). "
            "mujoco-ant, mujoco-hopper and the DMControl tasks can be rendered."
        )


class DifferentiableDflex(DifferentiableCopies):
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

    def step(self, action: Float[Tensor, "N A"]) -> DifferentiableStep:
        done = self._recorder.record(action)
        obs = done.obs
        if self._last_action is not None:
            before, after = obs[:, : self._last_action.start], obs[:, self._last_action.stop :]
            obs = torch.cat((before, action.to(obs.device), after), dim=-1)
        self._obs = obs
        return DifferentiableStep(obs, done.reward, done.terminated)


def _leave_running(env_ids: Tensor | None = None) -> None:
    """In place of dflex's own restart of ended copies."""


def _present_device(task: TaskInfo, device: str) -> torch.device:
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise EnvironmentUnavailableError(
            f"{task.name}: the device '{device}' was asked for and this torch finds no CUDA device; take 'cpu'."
        )
    if place.type not in ("cpu", "cuda"):
        raise EnvironmentUnavailableError(f"{task.name}: dflex does not run on '{device}'. Allowed: cpu, cuda.")
    if place.type == "cuda" and place.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return place


@contextlib.contextmanager
def _seeded(device: torch.device, seed: np.random.SeedSequence) -> Iterator[None]:
    """torch's global generator of `device`, from which dflex draws, seeded for the while and then as before."""
    generator = torch.cuda.default_generators[device.index] if device.type == "cuda" else torch.default_generator
    saved = generator.get_state()
    generator.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    try:
        yield
    finally:
        generator.set_state(saved)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without dflex's own prints and the warnings of what it calls, while an environment is made."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
