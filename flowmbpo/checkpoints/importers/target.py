"""Which task or task set a published checkpoint is imported for, and whether it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flowmbpo.checkpoints.importers.foreign import ForeignModel
from flowmbpo.checkpoints.importers.layouts import NEWT
from flowmbpo.config.task import TaskConfig
from flowmbpo.envs.resolve import resolve
from flowmbpo.envs.task_sets import task_set
from flowmbpo.envs.tasks import task_info, task_names
from flowmbpo.errors import CheckpointError, ConfigError, nearest
from flowmbpo.spec import EnvSpec

PUBLISHED_SETS = ("mt30", "mt80")
NEWT_TASKS = 200
NEWT_OBS_DIM = 128  # every task is zero-padded to these
NEWT_ACTION_DIM = 16


@dataclass(frozen=True)
class Purpose:
    """The task or set, in the config's terms and in numbers, its tasks' rows of the embedding table, and notes."""

    task: TaskConfig
    spec: EnvSpec
    rows: tuple[int, ...]
    notes: tuple[str, ...] = ()


def choose_purpose(model: ForeignModel, set_name: str | None, task: str | None) -> Purpose:
    """What `model` is imported for, checked against its shapes.

    `set_name` and `task` are the user's choices. Raises ConfigError for names that are not known,
    CheckpointError where the model was trained for something else.
    """
    if set_name is not None:
        task_set(set_name, key="--task-set")
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
    widths = (model.tasks, model.obs_dim, model.action_dim)
    return next((name for name, known in _published_widths().items() if known == widths), None)


def newt_rows(mt80: Sequence[str]) -> dict[str, int]:
    """Row in Newt's table of every task known here, from the names of MT80 in their order.

    Newt trains on one list of tasks: DMControl's 21 (19 of MT30's, then the quadruped's two), 16 of its own (11 of
    which are MT30's others), 49 of Meta-World's (all but mw-shelf-place); the rest run in simulators that this project
    does not have. Its names lack the `s` of `-backwards`.
    """
    meta_world = [name for name in mt80[30:] if name != "mw-shelf-place"]
    known = [*mt80[:19], "quadruped-walk", "quadruped-run", *mt80[19:30], *5 * [""], *meta_world]
    return {name: row for row, name in enumerate(known) if name}


def _single(model: ForeignModel, set_name: str | None, task: str | None) -> Purpose:
    infos, widths = map(task_info, task_names()), (model.obs_dim, model.action_dim)
    fitting = dict.fromkeys(info.name for info in infos if (info.obs_dim, info.action_dim) == widths)
    what = f"{model.obs_dim} observations and {model.action_dim} actions"
    advice = f"tasks of {what}: {', '.join(fitting)}." if fitting else f"no task here has {what}."
    if set_name is not None or task is None:
        asked = "" if set_name is None else f"--task-set {set_name}: "
        raise CheckpointError(
            f"{asked}the file holds no task embedding, so it was trained on one task, and does not say which. Name it "
            f"with --task; {advice}"
        )
    config = TaskConfig(name=task)
    spec = resolve(config).spec
    padded = model.format == NEWT and widths == (NEWT_OBS_DIM, NEWT_ACTION_DIM)
    if padded and spec.obs_dim <= NEWT_OBS_DIM and spec.action_dim <= NEWT_ACTION_DIM:
        padding = f"{NEWT_OBS_DIM} observations and {NEWT_ACTION_DIM} actions"
        return Purpose(config, spec, (), (f"Newt pads every task to {padding}; {task}'s columns are kept.",))
    _check_widths(model, spec, f"--task {task}: ", advice)
    return Purpose(config, spec, ())


def _whole_set(model: ForeignModel, set_name: str | None, task: str | None) -> Purpose:
    own = guess_set(model)
    name = set_name or own
    known = (f"{each} ({n} tasks, {obs} and {action})" for each, (n, obs, action) in _published_widths().items())
    published = f"the published sets are {', '.join(known)}"
    if name is None:
        raise CheckpointError(
            f"the file holds embeddings of {model.tasks} tasks at {model.obs_dim} observations and "
            f"{model.action_dim} actions; {published}. Name the set with --task-set."
        )
    config, spec = _of_set(name, task)
    if len(spec.tasks) != model.tasks:
        hint = "" if own is None else f", which is {own}: leave --task-set away"
        raise CheckpointError(
            f"--task-set {name}: has {len(spec.tasks)} tasks, but the file holds embeddings of {model.tasks}{hint}."
        )
    _check_widths(model, spec, f"task set {name}: ", published)
    return Purpose(config, spec, tuple(range(model.tasks)))


def _from_newt(model: ForeignModel, set_name: str | None, task: str | None) -> Purpose:
    """Of Newt's tasks those of a set: MT30, unless the user chooses otherwise."""
    if model.obs_dim > NEWT_OBS_DIM or model.action_dim > NEWT_ACTION_DIM:
        raise CheckpointError(
            f"the file reads {model.obs_dim} observations and {model.action_dim} actions, where Newt's states have "
            f"{NEWT_OBS_DIM} and {NEWT_ACTION_DIM}: a model of image features cannot be imported"
        )
    assert model.embeddings is not None
    finetuned = bool((model.embeddings == model.embeddings[0]).all())  # Newt then leaves one embedding in all rows
    if finetuned and (task is None or set_name is not None):
        raise CheckpointError("the file holds a model that Newt finetuned on one task; name it with --task alone")
    if task is not None and set_name is None and (finetuned or task not in task_set("mt30")):
        config = TaskConfig(name=None, set=f"newt-{task}", tasks=(task,), only=task)
        spec = resolve(config).spec
    else:
        config, spec = _of_set(set_name or "mt30", task)
    rows = newt_rows(task_set("mt80"))
    missing = [each.name for each in spec.tasks if each.name not in rows]
    if missing:
        lacking = ", ".join(missing)
        raise CheckpointError(
            f"{spec.label}: Newt was not trained on {lacking}. Choose --task-set mt30, or one --task."
        )
    note = (
        f"Of Newt's {NEWT_TASKS} tasks those of {spec.label} are kept, with their columns of its {model.obs_dim} "
        f"observations and {model.action_dim} actions."
    )
    return Purpose(config, spec, tuple(rows[each.name] for each in spec.tasks), (note,))


def _check_masks(model: ForeignModel, purpose: Purpose) -> None:
    """The action dimensions that a file stores must be those of the tasks it is imported for."""
    masks = model.action_masks
    if masks is None:
        return
    rows = purpose.rows or (0,)
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


def _published_widths() -> dict[str, tuple[int, int, int]]:
    """Tasks, observations and actions of the published sets."""
    specs = {name: _of_set(name, None)[1] for name in PUBLISHED_SETS}
    return {name: (len(spec.tasks), spec.obs_dim, spec.action_dim) for name, spec in specs.items()}


def _of_set(name: str, task: str | None) -> tuple[TaskConfig, EnvSpec]:
    """A task set, of which `task` alone runs where one is given, and its numbers."""
    spec = resolve(TaskConfig(name=None, set=name)).spec
    names = [each.plain_name for each in spec.tasks]
    if task is not None and task not in names:
        raise ConfigError(f"--task {task}: is not one of the tasks of {spec.label}.{nearest(task, names)}")
    return TaskConfig(name=None, set=name, only=task), spec
