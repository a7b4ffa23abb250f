"""The table of tasks: every name, its simulator and its widths. Imports no torch and no simulator.

DMControl's widths were read from dm_control 1.0.28; a test compares the table with the simulator.
Three tasks of its suite are left out: the two of `lqr` have no time limit and unbounded actions, and
`quadruped-escape` needs an OpenGL context in every simulating process to upload its terrain.
"""

from __future__ import annotations

from types import MappingProxyType

from flowmbpo.envs.spec import TaskInfo, task_discount
from flowmbpo.errors import ConfigError, nearest

NO_SIMULATOR = "none"
"""`TaskInfo.simulator` of a task whose dimensions are known but that nothing here can run."""

_DMCONTROL_WIDTHS = {
    "acrobot-swingup": (6, 1),
    "acrobot-swingup-sparse": (6, 1),
    "cartpole-balance": (5, 1),
    "cartpole-balance-sparse": (5, 1),
    "cartpole-swingup": (5, 1),
    "cartpole-swingup-sparse": (5, 1),
    "cartpole-three-poles": (11, 1),
    "cartpole-two-poles": (8, 1),
    "cheetah-run": (17, 6),
    "cup-catch": (8, 2),
    "dog-fetch": (232, 38),
    "dog-run": (223, 38),
    "dog-stand": (223, 38),
    "dog-trot": (223, 38),
    "dog-walk": (223, 38),
    "finger-spin": (9, 2),
    "finger-turn-easy": (12, 2),
    "finger-turn-hard": (12, 2),
    "fish-swim": (24, 5),
    "fish-upright": (21, 5),
    "hopper-hop": (15, 4),
    "hopper-stand": (15, 4),
    "humanoid-run": (67, 21),
    "humanoid-run-pure-state": (55, 21),
    "humanoid-stand": (67, 21),
    "humanoid-walk": (67, 21),
    "humanoid_CMU-run": (137, 56),
    "humanoid_CMU-stand": (137, 56),
    "humanoid_CMU-walk": (137, 56),
    "manipulator-bring-ball": (44, 5),
    "manipulator-bring-peg": (44, 5),
    "manipulator-insert-ball": (44, 5),
    "manipulator-insert-peg": (44, 5),
    "pendulum-swingup": (3, 1),
    "point_mass-easy": (4, 2),
    "point_mass-hard": (4, 2),
    "quadruped-fetch": (90, 12),
    "quadruped-run": (78, 12),
    "quadruped-walk": (78, 12),
    "reacher-easy": (6, 2),
    "reacher-hard": (6, 2),
    "stacker-stack-2": (49, 5),
    "stacker-stack-4": (63, 5),
    "swimmer-swimmer6": (25, 5),
    "swimmer-swimmer15": (61, 14),
    "walker-run": (24, 6),
    "walker-stand": (24, 6),
    "walker-walk": (24, 6),
}
_DMCONTROL_REPEAT = 2
_DMCONTROL_CONTROL_STEPS = 1000


def _task(name: str, simulator: str, widths: tuple[int, int], steps: int, repeat: int) -> TaskInfo:
    """One row; `steps` counts control (or physics) steps, of which `repeat` make an agent step."""
    length = steps // repeat
    return TaskInfo(name, simulator, *widths, length, repeat, task_discount(length))


_TASKS = MappingProxyType(
    {
        task.name: task
        for task in (
            _task("toy-pendulum-swingup", "toy", (3, 1), steps=200, repeat=2),
            _task("toy-cartpole-swingup", "toy", (5, 1), steps=1000, repeat=4),
            *(
                _task(name, "dmcontrol", widths, _DMCONTROL_CONTROL_STEPS, _DMCONTROL_REPEAT)
                for name, widths in _DMCONTROL_WIDTHS.items()
            ),
            TaskInfo("ant", NO_SIMULATOR, 37, 8, 1000, 1, task_discount(1000), can_terminate=True),
        )
    }
)


def task_names() -> list[str]:
    """Every task that `task_info` knows, in the table's order."""
    return list(_TASKS)


def task_info(name: str, backend: str = "auto") -> TaskInfo:
    """The task called `name`; raises ConfigError where the name or the backend is not known.

    `backend` is 'auto' or the name of a simulator that has this task.
    """
    task = _TASKS.get(name)
    if task is None:
        raise ConfigError(f"task.name: no task is called '{name}'.{nearest(name, _TASKS)} Tasks: {', '.join(_TASKS)}.")
    allowed = ("auto",) if task.simulator == NO_SIMULATOR else ("auto", task.simulator)
    if backend not in allowed:
        raise ConfigError(
            f"task.backend: '{backend}' does not run '{name}'. "
            f"Allowed: {', '.join(allowed)}.{nearest(backend, allowed)}"
        )
    return task
