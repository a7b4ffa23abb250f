"""Which task or task set a published checkpoint is imported for, and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from flowmbpo.checkpoints.importers.foreign import ForeignModel
from flowmbpo.checkpoints.importers.mapping import Target
from flowmbpo.checkpoints.importers.tdmpc2 import NEWT
from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.resolve import task_spec
from flowmbpo.envs.task_sets import task_set
from flowmbpo.envs.tasks import task_info, task_names
from flowmbpo.errors import CheckpointError, ConfigError, nearest
from flowmbpo.spec import EnvSpec

PUBLISHED_SETS = ("mt30", "mt80")


@dataclass(frozen=True)
class Purpose:
    """The task or set, in the config's terms and in numbers, and what was chosen for the user."""

    task: TaskConfig
    spec: EnvSpec
    target: Target
    notes: tuple[str, ...] = ()


def choose_purpose(model: ForeignModel, set_name: str | None, task: str | None) -> Purpose:
    """What `model` is imported for, checked against its shapes.

    `set_name` and `task` are the user's choices. Raises ConfigError for names that are not known,
    CheckpointError where the model was trained for something else.
    """
    if set_name is not None:
        task_set(set_name)
    if task is not None:
        task_info(task, key="--task")
    if model.embeddings is None:
        purpose = _single(model, set_name, task)
    elif model.format == NEWT and model.tasks == NEWT_TASKS:
        purpose = _from_newt(model, set_name, task)
    else:
        purpose = _whole_set(model, set_name, task)
    _check_masks(model, purpose)
    return purpose


def guess_set(model: ForeignModel) -> str | None:
    """The published set that a model's shapes are those of; None where they are of none."""
    return next((name for name in PUBLISHED_SETS if _fits(model, _set_spec(name))), None)


def _single(model: ForeignModel, set_name: str | None, task: str | None) -> Purpose:
    if set_name is not None:
        raise CheckpointError(
            f"--task-set {set_name}: this file holds no task embedding, so it was trained on one task. Name that with "
            f"--task; {_tasks_of_width(model)}"
        )
    if task is None:
        raise CheckpointError(
            f"the file was trained on one task, and does not say which. Name it with --task; {_tasks_of_width(model)}"
        )
    config = TaskConfig(name=task)
    spec = task_spec(config)
    padded = model.format == NEWT and (model.obs_dim, model.action_dim) == (NEWT_OBS_DIM, NEWT_ACTION_DIM)
    if padded and spec.obs_dim <= NEWT_OBS_DIM and spec.action_dim <= NEWT_ACTION_DIM:
        padding = f"{NEWT_OBS_DIM} observations and {NEWT_ACTION_DIM} actions"
        note = f"Newt pads every task to {padding}; {task}'s columns are kept."
        return Purpose(config, spec, Target(spec.obs_dim, spec.action_dim, ()), (note,))
    _check_widths(model, spec, f"--task {task}: ", _tasks_of_width(model))
    return Purpose(config, spec, Target(model.obs_dim, model.action_dim, ()))


def _whole_set(model: ForeignModel, set_name: str | None, task: str | None) -> Purpose:
    name = set_name or guess_set(model)
    if name is None:
        raise CheckpointError(
            f"the file holds embeddings of {model.tasks} tasks at {model.obs_dim} observations and "
            f"{model.action_dim} actions; the published sets are {_published()}. Name the set with --task-set."
        )
    spec = _set_spec(name)
    if len(spec.tasks) != model.tasks:
        raise CheckpointError(
            f"--task-set {name}: has {len(spec.tasks)} tasks, but the file holds embeddings of {model.tasks}"
            f"{_own_set(model)}."
        )
    _check_widths(model, spec, f"task set {name}: ", f"the published sets are {_published()}")
    only = None if task is None else _member(spec, task)
    config = TaskConfig(name=None, set=name, only=only)
    return Purpose(config, task_spec(config), Target(model.obs_dim, model.action_dim, tuple(range(model.tasks))))


def _from_newt(model: ForeignModel, set_name: str | None, task: str | None) -> Purpose:
    """Of Newt's tasks those of a set: MT30, unless the user chooses otherwise."""
    if model.obs_dim > NEWT_OBS_DIM or model.action_dim > NEWT_ACTION_DIM:
        raise CheckpointError(
            f"the file reads {model.obs_dim} observations and {model.action_dim} actions, where Newt's states have "
            f"{NEWT_OBS_DIM} and {NEWT_ACTION_DIM}: a model of image features cannot be imported"
        )
    rows = newt_rows(task_set("mt80").tasks)
    if _of_one_task(model) and (task is None or set_name is not None):
        raise CheckpointError("the file holds a model that Newt finetuned on one task; name it with --task alone")
    if task is not None and set_name is None and (_of_one_task(model) or task not in task_set("mt30").tasks):
        config = TaskConfig(name=None, set=f"newt-{task}", tasks=(task,), only=task)
        spec = EnvSpec(task_spec(TaskConfig(name=task)).tasks, config.set or "")
    else:
        chosen = set_name or "mt30"
        spec = _set_spec(chosen)
        config = TaskConfig(name=None, set=chosen, only=None if task is None else _member(spec, task))
    missing = [each.name for each in spec.tasks if each.name not in rows]
    if missing:
        raise CheckpointError(
            f"{spec.label}: Newt was not trained on {', '.join(missing)}. Choose --task-set mt30, or one --task."
        )
    notes = (
        f"Of Newt's {NEWT_TASKS} tasks those of {spec.label} are kept, with their columns of its {model.obs_dim} "
        f"observations and {model.action_dim} actions.",
    )
    places = tuple(rows[each.name] for each in spec.tasks)
    return Purpose(config, spec, Target(spec.obs_dim, spec.action_dim, places), notes)


def _of_one_task(model: ForeignModel) -> bool:
    """Whether all rows of the table are one embedding, as Newt leaves them after finetuning."""
    return model.embeddings is not None and bool((model.embeddings == model.embeddings[0]).all())


def _check_masks(model: ForeignModel, purpose: Purpose) -> None:
    """The action dimensions that a file stores must be those of the tasks it is imported for."""
    masks = model.action_masks
    if masks is None:
        return
    rows = purpose.target.rows or (0,)
    if masks.ndim != 2 or masks.shape[0] <= max(rows) or masks.shape[1] != model.action_dim:
        raise CheckpointError(f"_action_masks: is {tuple(masks.shape)}, the model has {model.action_dim} actions")
    for row, task in zip(rows, purpose.spec.tasks, strict=True):
        stored = int(masks[row].sum())
        if stored != task.action_dim or not bool((masks[row, :stored] == 1).all()):
            raise CheckpointError(
                f"_action_masks: row {row} leaves {stored} actions, but {task.name} has {task.action_dim}: the "
                f"file was trained on other tasks than {purpose.spec.label}'s"
            )


def _check_widths(model: ForeignModel, spec: EnvSpec, where: str, advice: str) -> None:
    if (spec.obs_dim, spec.action_dim) != (model.obs_dim, model.action_dim):
        raise CheckpointError(
            f"{where}has {spec.obs_dim} observations and {spec.action_dim} actions, but the file was trained with "
            f"{model.obs_dim} and {model.action_dim}; {advice}"
        )


def _fits(model: ForeignModel, spec: EnvSpec) -> bool:
    wanted = (len(spec.tasks), spec.obs_dim, spec.action_dim)
    return wanted == (model.tasks, model.obs_dim, model.action_dim)


def _member(spec: EnvSpec, task: str) -> str:
    names = [each.plain_name for each in spec.tasks]
    if task not in names:
        raise ConfigError(f"--task {task}: is not one of the tasks of {spec.label}.{nearest(task, names)}")
    return task


def _set_spec(name: str) -> EnvSpec:
    return task_spec(TaskConfig(name=None, set=name))


def _own_set(model: ForeignModel) -> str:
    own = guess_set(model)
    return "" if own is None else f", which is {own}: leave --task-set away"


def _published() -> str:
    described = [(name, _set_spec(name)) for name in PUBLISHED_SETS]
    return ", ".join(f"{name} ({len(s.tasks)} tasks, {s.obs_dim} and {s.action_dim})" for name, s in described)


def _tasks_of_width(model: ForeignModel) -> str:
    fitting = [name for name in _plain_tasks() if _widths(name) == (model.obs_dim, model.action_dim)]
    what = f"{model.obs_dim} observations and {model.action_dim} actions"
    return f"tasks of {what}: {', '.join(fitting)}." if fitting else f"no task here has {what}."


def _plain_tasks() -> Mapping[str, None]:
    return dict.fromkeys(task_info(name).name for name in task_names())


def _widths(name: str) -> tuple[int, int]:
    info = task_info(name)
    return info.obs_dim, info.action_dim


NEWT_TASKS = 200
NEWT_OBS_DIM = 128  # every task is zero-padded to these
NEWT_ACTION_DIM = 16
_MISSING = "mw-shelf-place"  # of the 50 of Meta-World, Newt has all but this one
_SUITE = 19  # of MT30's tasks so many are DMControl's own; the other 11 are in Newt's second block
_SECOND_BLOCK = 21
_META_WORLD = 37
_DMCONTROL = 30


def newt_rows(mt80: Sequence[str]) -> MappingProxyType[str, int]:
    """Row of every task known here, from the names of MT80 in their order."""
    rows = {name: row for row, name in enumerate(mt80[:_SUITE])}
    rows |= {"quadruped-walk": _SUITE, "quadruped-run": _SUITE + 1}
    rows |= {name: _SECOND_BLOCK + place for place, name in enumerate(mt80[_SUITE:_DMCONTROL])}
    meta_world = [name for name in mt80[_DMCONTROL:] if name != _MISSING]
    rows |= {name: _META_WORLD + place for place, name in enumerate(meta_world)}
    return MappingProxyType(rows)
