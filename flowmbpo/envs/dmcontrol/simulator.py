"""A task of DeepMind's Control Suite as a simulator for the workers.

As TD-MPC2 wraps it: action repeat with summed rewards, the observation's values flattened in spec
order as float32, actions scaled from [-1, 1] to the task's range. dm_control itself is imported
only where a task is made, because its import chooses the OpenGL backend for good.
"""

from __future__ import annotations

import importlib
import math

import numpy as np

from flowmbpo.config.task import PerturbationConfig
from flowmbpo.envs.dmcontrol.pushes import pushable_velocities
from flowmbpo.envs.dmcontrol.suite import READERS, load_suite_task
from flowmbpo.envs.mujoco import MuJoCoSimulator, draw_impulses
from flowmbpo.envs.processes.group import StepOutcome
from flowmbpo.errors import EnvironmentFailure

_HEIGHT, _WIDTH = 240, 320  # pixels


def action_scale(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(centre, half-range) of a task's action range, or None where it is [-1, 1] already.

    Raises EnvironmentFailure on an unbounded range: [-1, 1] has nothing to map onto.
    """
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise EnvironmentFailure(f"actions without bounds cannot be scaled: low {low}, high {high}")
    if (low == -1).all() and (high == 1).all():
        return None
    return (high + low) / 2, (high - low) / 2


class DMControlSimulator(MuJoCoSimulator):
    """One environment of a Control Suite task, stepped through its `physics` and `task`.

    This is dm_control's own step, bit for bit, without what the agent never sees. Tasks of `READERS` are also read
    without dm_control's named indexing; `read_fast=False` turns that off. With a `perturbation` of rate above 0,
    random impulses change a velocity before some agent steps, see `pushable_velocities`.
    """

    def __init__(
        self,
        name: str,
        action_repeat: int,
        *,
        read_fast: bool = True,
        perturbation: PerturbationConfig | None = None,
        episode_length: int = 0,
    ) -> None:
        """`episode_length` (agent steps) is how far impulses are drawn ahead; needed with a perturbation."""
        environment = load_suite_task(name)
        self._environment = environment
        self._physics = environment.physics
        self._task = environment.task
        self._repeat = action_repeat
        mujoco = importlib.import_module("mujoco")
        self._bind(mujoco, self._physics.model.ptr, self._physics.data.ptr)
        self._substeps = round(environment.control_timestep() / self._physics.timestep())  # of a control step
        self._agent_step = self._model.opt.timestep * self._substeps * self._repeat  # seconds
        self._in_fluid = self._model.opt.density > 0 or self._model.opt.viscosity > 0
        self._runge_kutta = self._model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4.value
        self._control: np.ndarray = self._data.ctrl
        spec = environment.action_spec()
        low, high = (np.broadcast_to(bound, spec.shape).astype(np.float64) for bound in (spec.minimum, spec.maximum))
        self._scale = action_scale(low, high)
        self.action_dim = int(np.prod(spec.shape))
        self.obs_dim = sum(int(np.size(value)) for value in environment.reset().observation.values())
        fast = read_fast and name in READERS
        self._fast = READERS[name](self._model, self._data) if fast else None
        self._perturbation = perturbation if perturbation is not None and perturbation.rate > 0 else None
        self._pushable, self._skewed = pushable_velocities(self._model)
        self._episode_length = episode_length
        self._impulses: tuple[np.ndarray, np.ndarray] | None = None
        self._elapsed = 0

    def reset(self, seed: np.random.SeedSequence, obs: np.ndarray) -> None:
        self._task.random.seed(seed.generate_state(8))
        self._environment.reset()
        self._elapsed = 0
        if self._perturbation is not None:
            self._impulses = draw_impulses(
                self._perturbation, len(self._pushable), self._episode_length, seed, skewed=self._skewed
            )
        self._remember()
        self._observe(obs)

    def step(self, action: np.ndarray, obs: np.ndarray) -> StepOutcome:
        self._remember()
        control = action.astype(np.float64)
        if self._scale is not None:
            control = self._scale[0] + control * self._scale[1]
        if self._impulses is not None:
            self._push(*self._impulses)
        task, physics = self._task, self._physics
        reward = 0.0
        terminated = False
        for _ in range(self._repeat):
            if self._fast is not None:
                self._control[:] = control  # suite tasks do no more than this before a step, and nothing after it
                self._advance()
                reward += self._fast.reward()
                continue
            task.before_step(control, physics)
            self._advance()
            task.after_step(physics)
            reward += task.get_reward(physics)
            terminated = task.get_termination(physics) is not None
            if terminated:
                break
        self._observe(obs)
        return StepOutcome(float(reward), terminated, math.nan)

    def render(self) -> np.ndarray:
        return np.asarray(self._physics.render(_HEIGHT, _WIDTH, camera_id=0))

    def _push(self, axis: np.ndarray, changes: np.ndarray) -> None:
        """Apply the impulse of this agent step, if it has one.

        In a fluid explicit physics steps would turn the quadratic drag on a jump into a greater jump back. There the
        impulse is a steady force over the agent step, which would change the velocity as much without fluid.
        """
        change, velocity = changes[self._elapsed], self._pushable[axis[self._elapsed]]
        self._elapsed += 1
        if self._in_fluid:
            acceleration, force = np.zeros((2, self._model.nv))
            acceleration[velocity] = change / self._agent_step
            self._mujoco.mj_mulM(self._model, self._data, force, acceleration)
            self._data.qfrc_applied[:] = force
        elif change:
            self._data.qvel[velocity] += change
            self._mujoco.mj_step1(self._model, self._data)  # what follows from the velocities, for the step to come

    def _advance(self) -> None:
        """One control step. As in dm_control, positions and velocities are up to date after it."""
        model, data = self._model, self._data
        if self._runge_kutta:
            self._mujoco.mj_step(model, data, self._substeps)
        else:
            self._mujoco.mj_step2(model, data)
            if self._substeps > 1:
                self._mujoco.mj_step(model, data, self._substeps - 1)
        self._mujoco.mj_step1(model, data)
        self._require_sound()

    def _observe(self, obs: np.ndarray) -> None:
        if self._fast is not None:
            parts = self._fast.observed()
        else:
            parts = tuple(map(np.ravel, self._task.get_observation(self._physics).values()))
        np.concatenate(parts, out=obs, casting="same_kind")
