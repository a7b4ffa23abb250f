"""The table of tasks: every name, its simulator and its widths.

What TD-MPC2 (Hansen et al. 2024) has, it runs so: DMControl with 1000 control steps and a repeat of 2, Meta-World with
goals in the observation, 200 control steps and a repeat of 2. Meta-World's physics is v3, TD-MPC2's data were made with
v2: scores of the two are not comparable. Left out are

- of DMControl, whose widths were read from dm_control 1.0.28: the two tasks of `lqr`, which have no time limit and
  unbounded actions, and `quadruped-escape`, which needs an OpenGL context in every process to upload its terrain;
- of dflex: the half-cheetah, which does not start in its published version;
- of rewarped 1.3.3: Anymal and A1, templates without observations or rewards, and the hopper, which observes 12 numbers
  where its reward and termination expect 11, so that its position counts as its height.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flowmbpo.envs.simulators import SIMULATORS
from flowmbpo.envs.task_sets import MT50, TASK_SETS
from flowmbpo.errors import ConfigError, nearest
from flowmbpo.spec import TaskInfo, timed_task

_DMCONTROL = (
    ((6, 1), "acrobot-swingup acrobot-swingup-sparse"),
    ((5, 1), "cartpole-balance cartpole-balance-sparse cartpole-swingup cartpole-swingup-sparse"),
    ((11, 1), "cartpole-three-poles"),
    ((8, 1), "cartpole-two-poles"),
    ((17, 6), "cheetah-run"),
    ((8, 2), "cup-catch"),
    ((232, 38), "dog-fetch"),
    ((223, 38), "dog-run dog-stand dog-trot dog-walk"),
    ((9, 2), "finger-spin"),
    ((12, 2), "finger-turn-easy finger-turn-hard"),
    ((24, 5), "fish-swim"),
    ((21, 5), "fish-upright"),
    ((15, 4), "hopper-hop hopper-stand"),
    ((67, 21), "humanoid-run"),
    ((55, 21), "humanoid-run-pure-state"),
    ((67, 21), "humanoid-stand humanoid-walk"),
    ((137, 56), "humanoid_CMU-run humanoid_CMU-stand humanoid_CMU-walk"),
    ((44, 5), "manipulator-bring-ball manipulator-bring-peg manipulator-insert-ball manipulator-insert-peg"),
    ((3, 1), "pendulum-swingup"),
    ((4, 2), "point_mass-easy point_mass-hard"),
    ((90, 12), "quadruped-fetch"),
    ((78, 12), "quadruped-run quadruped-walk"),
    ((6, 2), "reacher-easy reacher-hard"),
    ((49, 5), "stacker-stack-2"),
    ((63, 5), "stacker-stack-4"),
    ((25, 5), "swimmer-swimmer6"),
    ((61, 14), "swimmer-swimmer15"),
    ((24, 6), "walker-run walker-stand walker-walk"),
    # TD-MPC2's tasks on dm_control's models.
    ((17, 6), "cheetah-jump cheetah-run-back cheetah-run-backwards cheetah-run-front"),
    ((8, 2), "cup-spin"),
    ((15, 4), "hopper-hop-backwards"),
    ((3, 1), "pendulum-spin"),
    ((8, 3), "reacher-three-easy reacher-three-hard"),
    ((24, 6), "walker-run-backwards walker-walk-backwards"),
)


def _rows(
    names: str, widths: tuple[int, int], steps: int, repeat: int = 1, *, simulator: str = "", ends: bool = False
) -> list[TaskInfo]:
    """Tasks of one shape, whose names begin with their simulator's unless that is given."""
    return [
        timed_task(name, simulator or name.partition("-")[0], widths, steps, repeat, can_terminate=ends)
        for name in names.split()
    ]


_ROWS = (
    *_rows("toy-pendulum-swingup toy-pendulum-push", (3, 1), steps=200, repeat=2),
    *_rows("toy-pendulum-hidden", (2, 1), steps=200, repeat=2),
    *_rows("toy-cartpole-swingup toy-cartpole-push", (5, 1), steps=1000, repeat=4),
    *_rows("toy-cartpole-hidden", (3, 1), steps=1000, repeat=4),
    *_rows("toy-map-smooth toy-map-inelastic toy-map-fold", (1, 1), steps=20),
    *_rows("toy-lqr", (4, 2), steps=50),
    *_rows("toy-two-goals", (2, 2), steps=25),
    *_rows("toy-bounce-soft toy-bounce-stiff toy-gust toy-rare-push toy-skew-push", (2, 1), steps=100),
    *_rows("toy-pillar", (1, 1), steps=50),
    *_rows("toy-slip", (2, 1), steps=100),
    *_rows("mujoco-ant", (37, 8), steps=1000, ends=True),
    *_rows("mujoco-hopper", (11, 3), steps=1000, ends=True),
    *(row for widths, names in _DMCONTROL for row in _rows(names, widths, 1000, 2, simulator="dmcontrol")),
    *_rows(" ".join(MT50), (39, 4), steps=200, repeat=2, simulator="metaworld"),
    *_rows("dflex-ant", (37, 8), steps=1000, ends=True),
    *_rows("dflex-hopper", (11, 3), steps=1000, ends=True),
    *_rows("dflex-anymal", (49, 12), steps=1000, ends=True),
    *_rows("dflex-humanoid", (76, 21), steps=1000, ends=True),
    *_rows("dflex-snu-humanoid", (53, 152), steps=1000, ends=True),
    *_rows("dflex-cartpole", (5, 1), steps=240),
    *_rows("dflex-double-pendulum", (6, 1), steps=240),
    *_rows("rewarped-ant", (37, 8), steps=1000, ends=True),
    *_rows("rewarped-humanoid", (76, 21), steps=1000, ends=True),
    *_rows("rewarped-cartpole", (5, 1), steps=240),
)
_TASKS = MappingProxyType({task.name: task for task in _ROWS})

ALIASES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "ant": MappingProxyType({"dflex": "dflex-ant", "mujoco": "mujoco-ant", "rewarped": "rewarped-ant"}),
        "hopper": MappingProxyType({"dflex": "dflex-hopper", "mujoco": "mujoco-hopper"}),
    }
)
"""Tasks that several simulators have, each with physics of its own: backend to the task that really runs."""
_AUTOMATIC = ("dflex", "mujoco")  # what `auto` tries; rewarped only by name


def all_tasks(simulator: str | None = None) -> list[TaskInfo]:
    """The table of tasks, without the aliases, in its order: of all simulators or of one."""
    return [task for task in _ROWS if simulator in (None, task.simulator)]


def task_names() -> list[str]:
    """Every name that `task_info` knows: the table's in its order, then the aliases."""
    return [*_TASKS, *ALIASES]


def task_info(name: str, backend: str = "auto", *, key: str = "task.name") -> TaskInfo:
    """The task called `name`; raises ConfigError where the name or the backend is not known.

    `backend` is 'auto' or the name of a simulator that has this task. An alias gives the task of
    the simulator that runs it: with 'auto' dflex where it is installed, otherwise MuJoCo. `key` is
    where the config names it, for the message.
    """
    if name not in _TASKS and name not in ALIASES:
        a_set = f" It is a task set: give task.set={name} and task.name=null." if name in TASK_SETS else ""
        hint = a_set or nearest(name, task_names())
        raise ConfigError(f"{key}: no task is called '{name}'.{hint} `flowmbpo envs list` shows all.")
    choices = ALIASES[name] if name in ALIASES else {_TASKS[name].simulator: name}
    allowed = ("auto", *choices)
    if backend not in allowed:
        raise ConfigError(
            f"task.backend: '{backend}' does not run '{name}'. "
            f"Allowed: {', '.join(allowed)}.{nearest(backend, allowed)}"
        )
    if backend == "auto":
        installed = (choice for choice in _AUTOMATIC if SIMULATORS[choice].installed)
        backend = next(installed, _AUTOMATIC[-1]) if name in ALIASES else _TASKS[name].simulator
    return _TASKS[choices[backend]]
