"""The locomotion tasks as a batch simulator."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.config.task import PerturbationConfig
from flowmbpo.envs.batch import BatchSimulator
from flowmbpo.envs.contract import BatchOutcome
from flowmbpo.envs.locomotion.physics import drawer_handlers, import_mujoco, load_model
from flowmbpo.envs.locomotion.robots import BODIES
from flowmbpo.envs.mujoco import draw_impulses
from flowmbpo.envs.processes.rendering import DrawingProcess
from flowmbpo.spec import TaskInfo

_CONTROL_RATE = 60  # Hz


class LocomotionSimulator(BatchSimulator):
    """N environments of a robot on flat ground, stepped by `threads` threads; results do not depend on how many.

    A control step of 1/60 s is a function of positions, velocities and torques alone: the solver starts each from
    zero accelerations rather than from those of the step before. MuJoCo's own reset of diverged environments is off
    (in the model files): the caller finds their numbers. Computes in float64, rounded to float32 at the end. With a
    `perturbation` of rate above 0, random impulses change the root's level velocity before some steps; the
    observation that was handed out, and with it that step's reward, stay as they were.
    """

    absurd = 1e3
    """Beyond any robot: observations of random play stay below 21 (m, m/s, rad, 0.1 rad/s)."""

    def __init__(
        self, task: TaskInfo, num_envs: int, threads: int, perturbation: PerturbationConfig | None = None
    ) -> None:
        self.task, self.num_envs = task, num_envs
        self._perturbation = perturbation if perturbation is not None and perturbation.rate > 0 else None
        length = task.episode_length if self._perturbation is not None else 0
        self._push_axis = np.zeros((num_envs, length), dtype=np.int64)
        self._push_change = np.zeros((num_envs, length))
        self._elapsed = np.zeros(num_envs, dtype=np.int64)
        self._body = BODIES[task.plain_name]
        self._before = np.zeros(0)
        mujoco = import_mujoco()
        model = load_model(mujoco, self._body.model_file)
        self._substeps = round(1 / (_CONTROL_RATE * model.opt.timestep))
        threads = max(min(threads, num_envs), 1)
        self._pool = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)
        self._models = [model] * num_envs
        self._workspaces = [mujoco.MjData(model) for _ in range(threads)]
        self._control_kind = mujoco.mjtState.mjSTATE_CTRL.value
        size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS.value)
        assert size == 1 + model.nq + model.nv, "the model has activations or plugins"
        self._state = np.zeros((num_envs, size))  # time (s since the start), positions, velocities
        self._time, self._qpos, self._qvel = np.split(self._state, (1, 1 + int(model.nq)), axis=1)  # views
        self._torques, self._trace, self._sensors = (
            np.zeros((num_envs, self._substeps, width)) for width in (int(model.nu), size, int(model.nsensordata))
        )
        self._action = np.zeros((num_envs, task.action_dim))
        self._obs = np.zeros((num_envs, task.obs_dim))
        self._pictures = DrawingProcess(partial(drawer_handlers, self._body.model_file), task.name)

    def start(self, indices: Sequence[int], seeds: Sequence[np.random.SeedSequence]) -> None:
        for index, seed in zip(indices, seeds, strict=True):
            qpos, qvel = self._body.start(np.random.Generator(np.random.PCG64(seed)))
            self._time[index], self._qpos[index], self._qvel[index] = 0.0, qpos, qvel
            if self._perturbation is not None:
                self._push_axis[index], self._push_change[index] = draw_impulses(
                    self._perturbation, self._body.level_velocities, self.task.episode_length, seed
                )
        rows = list(indices)
        self._action[rows] = 0.0
        self._elapsed[rows] = 0
        self._obs[rows] = self._body.observe(self._qpos[rows], self._qvel[rows], self._action[rows])

    def observe(self) -> Float[Tensor, "N O"]:
        return torch.from_numpy(self._obs.astype(np.float32))

    def step(self, action: Float[Tensor, "N A"]) -> BatchOutcome:
        """The reward is that of the observation before the step, the termination of the one after it (dflex)."""
        self._before = self._state.copy()
        self._action = action.numpy().astype(np.float64)
        reward = self._body.reward(self._obs, self._action)
        if self._perturbation is not None:  # each environment's impulse of this step, if it has one, along x or y
            rows, elapsed = np.arange(self.num_envs), self._elapsed
            self._qvel[rows, self._push_axis[rows, elapsed]] += self._push_change[rows, elapsed]
            self._elapsed += 1
        self._torques[:] = self._action[:, None]
        self._pool.rollout(
            self._models,
            self._workspaces,
            self._state,
            self._torques,
            control_spec=self._control_kind,
            skip_checks=True,
            nstep=self._substeps,
            state=self._trace,
            sensordata=self._sensors,
        )
        self._state[:] = self._trace[:, -1]
        # Environments that diverged overflow here; the caller finds them by their numbers.
        with np.errstate(over="ignore", invalid="ignore"):
            self._obs = self._body.observe(self._qpos, self._qvel, self._action)
            terminated = self._body.terminated(self._obs)
            obs = self.observe()
        return BatchOutcome(obs, torch.from_numpy(reward.astype(np.float32)), torch.from_numpy(terminated))

    def state_dict(self) -> dict[str, Any]:
        return {name: torch.from_numpy(array.copy()) for name, array in self._saved().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, array in self._saved().items():
            array[:] = state[name].numpy()
        self._obs = self._body.observe(self._qpos, self._qvel, self._action)

    def _saved(self) -> dict[str, np.ndarray]:
        """All that the next steps depend on."""
        pushes = {"push_axis": self._push_axis, "push_change": self._push_change, "elapsed": self._elapsed}
        return {"physics": self._state, "action": self._action, **pushes}

    def describe(self, index: int) -> str:
        """The state that the last step started from; the one after it may be anything."""
        state = self._before[index] if len(self._before) else self._state[index]
        split = 1 + self._qpos.shape[1]
        parts = state[1:split], state[split:]
        qpos, qvel = (np.array2string(part, precision=4, max_line_width=10_000) for part in parts)
        return f"before the step: time {state[0]:.3f} s, qpos {qpos}, qvel {qvel}"

    def render(self, index: int) -> np.ndarray:
        return self._pictures.draw(self._qpos[index].copy())

    def close(self) -> None:
        self._pictures.close()
        self._pool.close()
