"""Which task or task set, on which simulator, how many environments, disturbed how."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from flowmbpo.config.base import FolderName, FrozenConfig, PositiveInt, UnitInterval


class PerturbationConfig(FrozenConfig):
    """Seeded random impulses on the torso (tasks whose body moves freely) or on one joint (others).

    `rate` is their probability per agent step (0: none), `magnitude` the sudden change of velocity
    in m/s or rad/s, `skew` in [-1, 1] the preference for the positive direction of pushes along x
    (-1: all of them backwards) or, where joints are pushed, of every push; 0 is symmetric. Pushes
    along y, where a torso can move there too, go either way equally often.
    """

    rate: UnitInterval = 0.0
    magnitude: Annotated[float, Field(gt=0.0, le=100.0)] = 1.0
    skew: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.0

    @property
    def suffix(self) -> str:
        """What a disturbed task's name ends in, so that its results never mix with the plain task's."""
        if self.rate == 0.0:
            return ""
        return f"+push_r{_exact(self.rate)}_m{_exact(self.magnitude)}_s{_exact(self.skew)}"


class TaskConfig(FrozenConfig):
    """One task by `name`, or several by `set`: a shipped one, or any name together with its `tasks`.

    `only` is the one member of a set that all environments run: the agent keeps the widths, ids and embeddings
    of the whole set (a policy for one task of a multi-task model).

    `backend: auto` takes the task's own simulator (for `ant` and `hopper`: dflex where it is
    installed, otherwise MuJoCo); `workers: null` one process per core.
    """

    name: str | None = "toy-pendulum-swingup"
    set: FolderName | None = None
    tasks: tuple[str, ...] | None = None
    only: str | None = None
    backend: str = "auto"
    perturbation: PerturbationConfig = PerturbationConfig()
    num_envs: PositiveInt = 128
    workers: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_task_or_one_set(self) -> TaskConfig:
        if self.set is None:
            if self.name is None:
                raise ValueError("name one task (task.name) or one task set (task.set)")
            if self.tasks is not None:
                raise ValueError("tasks needs a set that they make up: give task.set a name of your own")
            if self.only is not None:
                raise ValueError(f"only '{self.only}' picks a member of a set, and no task.set is named")
        elif self.name is not None:
            raise ValueError(f"name '{self.name}' and set '{self.set}' exclude each other: set one of them to null")
        elif self.backend != "auto":
            raise ValueError(f"backend '{self.backend}' is for a single task; the tasks of a set take their own")
        elif self.tasks is not None and len(set(self.tasks)) < max(len(self.tasks), 1):
            raise ValueError("tasks of a set must be at least one, each named once")
        return self


def _exact(value: float) -> str:
    """The shortest text that reads back as `value`: 0.05, 1, -0.5. Zero has no sign."""
    return repr(value + 0.0).removesuffix(".0")
