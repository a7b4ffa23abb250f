"""The simulators: what each is, whether it is here, and how to get it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from types import MappingProxyType

from flowmbpo.errors import EnvironmentUnavailableError
from flowmbpo.spec import EnvSpec


@dataclass(frozen=True)
class SimulatorInfo:
    """`modules` are what must be importable; `instead` names tasks that run where this simulator is missing."""

    name: str
    title: str
    modules: tuple[str, ...] = ()
    install: str = ""
    licence: str = ""
    instead: tuple[str, ...] = ()

    @property
    def installed(self) -> bool:
        """Whether every module is found, without importing any."""
        return all(_found(module) for module in self.modules)


_ALL = (
    SimulatorInfo("toy", "batched torch, differentiable"),
    SimulatorInfo(
        "dmcontrol",
        "DeepMind Control Suite on MuJoCo",
        ("dm_control", "mujoco"),
        "pip install dm-control==1.0.28 mujoco==3.3.0",
        "Apache 2.0",
        ("toy-pendulum-swingup", "toy-cartpole-swingup"),
    ),
    SimulatorInfo(
        "metaworld",
        "Meta-World, v3 physics (TD-MPC2's data are v2)",
        ("metaworld", "mujoco"),
        "pip install metaworld==3.1.1 mujoco==3.3.0",
        "MIT",
        ("reacher-easy", "toy-pendulum-swingup"),
    ),
    SimulatorInfo(
        "mujoco",
        "own models with dflex's conventions, on MuJoCo",
        ("mujoco",),
        "pip install mujoco==3.3.0",
        "Apache 2.0",
        ("toy-pendulum-swingup", "toy-cartpole-swingup"),
    ),
    SimulatorInfo(
        "dflex",
        "dflex, the differentiable simulator of PWM's single-task results",
        ("dflex",),
        'pip install ninja && pip install "git+https://github.com/imgeorgiev/DiffRL.git#subdirectory=dflex"',
        "NVIDIA Source Code License, NON-COMMERCIAL",
        ("mujoco-ant", "mujoco-hopper"),
    ),
    SimulatorInfo(
        "rewarped",
        "rewarped, dflex's tasks on NVIDIA Warp (not the same physics)",
        ("rewarped", "warp"),
        "pip install rewarped==1.3.3",
        "Apache 2.0 as declared, some files with NVIDIA notices; Warp: NVIDIA Software License",
        ("mujoco-ant", "humanoid-walk", "toy-cartpole-swingup"),
    ),
)
SIMULATORS = MappingProxyType({simulator.name: simulator for simulator in _ALL})


def simulators(spec: EnvSpec) -> str:
    """What runs the tasks, for reports: 'Meta-World, v3 physics (...)', several joined by '; '."""
    return "; ".join(dict.fromkeys(SIMULATORS[task.simulator].title for task in spec.tasks))


def require_installed(simulator: str, task: str) -> None:
    """Raises EnvironmentUnavailableError, saying what to install and what to run instead."""
    info = SIMULATORS[simulator]
    if not info.installed:
        missing = ", ".join(module for module in info.modules if not _found(module))
        licence = f" (licence: {info.licence})" if info.licence else ""
        raise EnvironmentUnavailableError(
            f"task.name: '{task}' needs {info.title}, which is not installed here (no module {missing}). "
            f"Install it with: {info.install}{licence}. Tasks that may run now: {', '.join(info.instead)}."
        )


def _found(module: str) -> bool:
    try:
        spec = find_spec(module)
    except ValueError:  # a module that something put into sys.modules without a spec
        return True
    # A bare folder of that name, or a file, is not the package.
    return spec is not None and spec.origin is not None and spec.submodule_search_locations is not None
