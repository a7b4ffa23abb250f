"""A Meta-World v3 task as a simulator for the workers. Imports no torch.

As TD-MPC2 wraps it: the goal is part of the observation, a new one is drawn at every episode, an
action is repeated with the rewards summed, success is that of the last repeat, and no episode
terminates. What differs: the physics is v3, TD-MPC2's data are of v2; and TD-MPC2's wrapper takes
one control step of zeros inside its reset but returns the observation from before that step. Here
an episode starts in the state that its first observation shows.
"""

from __future__ import annotations

import math

import numpy as np

from flowmbpo.envs.metaworld.environment import make_environment
from flowmbpo.envs.metaworld.picture import Picture
from flowmbpo.envs.processes.simulator import Outcome, Simulator
from flowmbpo.errors import EnvironmentFailure

_FRAME = 18  # entries of one observed instant: hand 3, gripper 1, objects 14
_FULLY_OPEN = 0.1  # metres between the fingers
_DOWNWARDS = np.array([1.0, 0.0, 1.0, 0.0])  # the hand's orientation, which actions do not change


class MetaWorldSimulator(Simulator):
    """One copy of a Meta-World task.

    `step` is Meta-World's own, bit for bit, without what the agent never sees: forces on bodies,
    look-ups by name, site positions that the next call overwrites. Its limit of 500 control steps
    is not kept; the vector environment has its own.
    """

    def __init__(self, name: str, action_repeat: int) -> None:
        environment = make_environment(name)
        import mujoco

        self._mujoco = mujoco
        self._environment = environment
        self._model, self._data = environment.model, environment.data
        self._repeat = action_repeat
        self._hand, self._right, self._left = (self._data.body(body).id for body in ("hand", "rightclaw", "leftclaw"))
        space = environment.sawyer_observation_space
        self._low, self._high = space.low, space.high
        self._last = np.zeros(_FRAME)
        self._remember()
        self._picture: Picture | None = None
        self.obs_dim = int(space.shape[0])
        self.action_dim = int(environment.action_space.shape[0])

    def reset(self, seed: np.random.SeedSequence, obs: np.ndarray) -> None:
        environment = self._environment
        environment.np_random = np.random.Generator(np.random.PCG64(seed))
        self._mujoco.mj_resetData(self._model, self._data)
        self._mujoco.mj_forward(self._model, self._data)
        # Meta-World resets twice. The first one's draws place the furniture in whose presence the
        # hand comes to rest in the second (the model keeps it, so the last episode's is gone); its
        # physics is thrown away, so it is not simulated.
        environment.still = True
        environment.reset_model()
        environment.still = False
        self._mujoco.mj_resetData(self._model, self._data)
        first = environment.reset_model()
        self._require_sound()
        self._last = first[:_FRAME].copy()
        first[_FRAME : 2 * _FRAME] = self._last
        obs[:] = first
        self._remember()

    def step(self, action: np.ndarray, obs: np.ndarray) -> Outcome:
        self._remember()
        reward, success = 0.0, math.nan
        full = self._low
        for _ in range(self._repeat):
            self._advance(action)
            full = self._observe()
            try:
                gained, details = self._environment.evaluate_state(full, action)
            except (ArithmeticError, AssertionError, ValueError) as error:  # how rewards refuse impossible states
                raise EnvironmentFailure(f"the reward is undefined ({error}); {self.describe()}") from error
            reward += gained
            success = float(details["success"])
        obs[:] = full
        return Outcome(float(reward), False, success)

    def describe(self) -> str:
        """The state that the last step started from: where a step breaks, MuJoCo wipes what it led to."""
        time, *parts = self._before
        goal = np.asarray(self._environment._target_pos, dtype=np.float64)  # nan before the first episode
        state = np.concatenate([np.frombuffer(part) for part in parts])
        text = np.array2string(state, precision=4, threshold=60, max_line_width=10_000)
        return f"before the step: time {time:.3f} s, goal {np.round(goal, 4).tolist()}, positions and velocities {text}"

    def render(self) -> np.ndarray:
        if self._picture is None:
            self._picture = Picture(self._environment.fullpath)
        return self._picture.draw(self._model, self._data)

    def _remember(self) -> None:
        self._before = (self._data.time, self._data.qpos.tobytes(), self._data.qvel.tobytes())

    def _advance(self, action: np.ndarray) -> None:
        """One control step: the hand's target moves, the gripper pulls, the physics takes its substeps."""
        environment, data = self._environment, self._data
        target = data.mocap_pos[0] + action[:3] * environment.action_scale
        data.mocap_pos[0] = np.minimum(np.maximum(target, environment.mocap_low), environment.mocap_high)
        data.mocap_quat[0] = _DOWNWARDS
        environment.do_simulation([action[3], -action[3]], environment.frame_skip)
        self._mujoco.mj_forward(self._model, data)
        self._require_sound()

    def _observe(self) -> np.ndarray:
        """This instant, the one of the control step before, and the goal, bounded: float64 [39]."""
        environment, data = self._environment, self._data
        full = np.zeros(self.obs_dim)
        full[:3] = data.xpos[self._hand]
        apart = data.xpos[self._right] - data.xpos[self._left]
        full[3] = min(math.sqrt(apart.dot(apart)) / _FULLY_OPEN, 1.0)
        positions, rotations = environment._get_pos_objects(), environment._get_quat_objects()
        for place in range(len(positions) // 3):
            start = 4 + 7 * place
            full[start : start + 3] = positions[3 * place : 3 * place + 3]
            full[start + 3 : start + 7] = rotations[4 * place : 4 * place + 4]
        full[_FRAME : 2 * _FRAME] = self._last
        full[2 * _FRAME :] = environment._get_pos_goal()
        self._last = full[:_FRAME].copy()
        np.maximum(full, self._low, out=full)
        np.minimum(full, self._high, out=full)
        return full

    def _require_sound(self) -> None:
        """Raise EnvironmentFailure on MuJoCo's warnings (divergence, full contact buffers)."""
        counts = self._data.warning.number
        if counts.any():
            names = [name for name, count in zip(self._mujoco.mjtWarning.__members__, counts, strict=False) if count]
            raise EnvironmentFailure(f"the physics state is invalid ({', '.join(names)}); {self.describe()}")
