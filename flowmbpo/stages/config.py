"""The config of a stage: a preset, or what a checkpoint was trained with, placed on its task, weights and data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowmbpo.config.actors import FlowActorConfig
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.task import TaskConfig
from flowmbpo.config.training import TrainingConfig
from flowmbpo.envs.resolve import resolve
from flowmbpo.envs.task_sets import TASK_SETS
from flowmbpo.envs.tasks import task_info
from flowmbpo.errors import ConfigError
from flowmbpo.presets.load import experiment_from_dict, load_experiment, override
from flowmbpo.presets.overrides import config_name

Stage = Literal["pretrain", "finetune", "specialize", "policy", "train"]
FROM = "+from-"
EARLIER = "earlier-"
LONGEST_NAME = 128  # of a chain of stages: it is part of file names (255 bytes) and of W&B groups
DEFAULT_PRESET = "quickstart"
OFFLINE_STARTS = 512
"""Start states of an actor update without an environment, where the config names none (PWM's)."""
STAGES: dict[Stage, tuple[str, dict[str, str]]] = {
    "pretrain": ("stage-a", {"mode": "offline"}),
    "finetune": ("stage-b", {"mode": "online", "learn": "all"}),
    "specialize": ("stage-c", {"mode": "online", "learn": "all"}),
    "policy": ("phase3", {"mode": "offline", "learn": "policy"}),
    "train": ("train", {"mode": "online"}),
}
"""The phase of a run without a preset, and what every run of a stage has of `training`."""


@dataclass(frozen=True)
class Request:
    """What a stage's command line asks for; `source` is the config inside the checkpoint `checkpoint`."""

    stage: Stage
    preset: str | None = None
    checkpoint: Path | None = None
    source: ExperimentConfig | None = None
    data: Path | None = None
    task: str | None = None
    embedding_from: str | None = None
    overrides: Sequence[str] = ()
    seed: int | None = None
    device: str | None = None
    track: Sequence[str] | None = None
    learn: Literal["all", "model"] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is a training from scratch that no stage changes: a preset as it is, by default the smallest."""
        return self.stage == "train" and self.checkpoint is None and self.data is None

    @property
    def flags(self) -> dict[str, Any]:
        """The command line's own settings, which win over preset and overrides."""
        return {"seed": self.seed, "device": self.device, "track": self.track}


def stage_config(request: Request) -> ExperimentConfig:
    """The resolved config of the run. Raises ConfigError.

    `--set` wins over everything. The name says where the weights come from: `mini3-c-flow+from-mini3-b-flow`;
    what flags change of the experiment marks it as overrides do (`config_name`).
    """
    if request.is_plain:
        preset = request.preset or DEFAULT_PRESET
        return load_experiment(preset, request.overrides, task=request.task, **request.flags)
    base = _base(request)
    document = base.model_dump(mode="json")
    document |= {"task": _task(request, base.task).model_dump(mode="json"), "training": _training(request, base)}
    if request.data is not None:
        path = str(request.data.expanduser().absolute())  # the run may be resumed or diagnosed from elsewhere
        document["data"] = (document["data"] or {}) | {"path": path}
    if request.checkpoint is not None:
        begun = {"checkpoint": str(request.checkpoint.absolute()), "sha256": None}
        document["initial"] = (document["initial"] or {}) | begun
        document["evaluation"]["at_start"] = True
    staged = experiment_from_dict(document, base.name)
    config = override(staged, [*_settings(request), *request.overrides], **request.flags)
    name = config_name(staged, config)
    if request.source is not None:
        name = chained_name(name, request.source.name)
    return config.model_copy(update={"name": name, "task": resolve(config.task).config})


def _settings(request: Request) -> list[str]:
    """Flags that change the experiment, as overrides. Raises ConfigError."""
    flags = [] if request.learn is None else [f"training.learn={request.learn}"]
    if request.checkpoint is not None:  # what is asked for by name holds for a policy that is taken over too
        episodes = [text for text in request.overrides if text.partition("=")[0].strip() == "training.random_episodes"]
        flags += [text.replace("training.", "initial.", 1) for text in episodes]
    if request.embedding_from is not None:
        if request.checkpoint is None:
            raise ConfigError(
                f"--embedding-from {request.embedding_from}: is a task of the checkpoint that the run starts from; "
                "name that with --from CKPT"
            )
        flags.append(f"initial.embedding_from={request.embedding_from}")
    return flags


def chained_name(name: str, source: str) -> str:
    """`name+from-source`; where that grows too long for a folder, the earliest stages shrink to six hex digits."""
    whole = name + FROM + source
    if len(whole) <= LONGEST_NAME:
        return whole
    kept, *earlier = whole.split(FROM)
    digits = hashlib.sha256(whole.encode()).hexdigest()[:6]
    for stage in earlier:
        if len(kept + FROM + stage + FROM + EARLIER + digits) > LONGEST_NAME:
            break
        kept += FROM + stage
    return kept + FROM + EARLIER + digits


def _base(request: Request) -> ExperimentConfig:
    if request.preset is not None:
        preset = load_experiment(request.preset)
        if preset.training.mode == "offline" and STAGES[request.stage][1]["mode"] == "online":
            raise ConfigError(
                f"--preset {request.preset} is of an offline stage (training.mode offline), and `{request.stage}` "
                "learns online: take a preset of its own (`flowmbpo presets list`), or use `flowmbpo pretrain` "
                "(stage A) or `flowmbpo train --from CKPT --data DIR` (phase 3)"
            )
        return preset
    if request.source is None:
        raise ConfigError(
            f"`{request.stage}` needs a preset (--preset NAME, see `flowmbpo presets list`) "
            "or a checkpoint to take the config from (--from CKPT)"
        )
    source, phase = request.source, STAGES[request.stage][0]
    fresh: dict[str, Any] = {"name": phase, "phase": phase, "description": "", "cost": "", "high_cost": False}
    fresh |= {"task": source.task.model_copy(update={"only": None}), "data": None, "initial": None}
    # Widths that an earlier stage adopted are adopted anew; another kind that is asked for may not have them.
    dynamics = source.model.dynamics.model_copy(update={"solved_units": None})
    fresh["model"] = source.model.model_copy(update={"dynamics": dynamics})
    if isinstance(source.actor, FlowActorConfig):
        fresh["actor"] = source.actor.model_copy(update={"solved_units": None})
    return source.model_copy(update=fresh)


def _task(request: Request, own: TaskConfig) -> TaskConfig:
    """Where the run takes place. A stage for one task takes the set (and so the embeddings) of its checkpoint."""
    if request.task is None or request.source is None:
        return own if request.task is None else placed(own, request.task)
    theirs = request.source.task
    shipped = [name for name in (own.set, theirs.set) if name in TASK_SETS]
    if request.preset is not None and len(set(shipped)) > 1:
        raise ConfigError(
            f"--preset {request.preset} is for the task set '{own.set}', and the checkpoint {request.checkpoint} "
            f"knows '{theirs.set}': take a preset of its set, or leave --preset away"
        )
    chosen = {"name": theirs.name, "set": theirs.set, "tasks": theirs.tasks, "only": None, "backend": theirs.backend}
    return placed(own.model_copy(update=chosen), request.task)


def placed(known: TaskConfig, task: str) -> TaskConfig:
    """`known` with `task` alone running: a member of its set, a new member, or the one task of a single-task run."""
    if known.set is None:
        return known.model_copy(update={"name": task, "backend": known.backend if task == known.name else "auto"})
    resolved = resolve(known)
    spec, member = resolved.spec, resolved.member(task)
    if member is not None:
        return known.model_copy(update={"only": spec.tasks[member].plain_name})
    added = task_info(task).name
    members = (*(info.plain_name for info in spec.tasks), added)
    return known.model_copy(update={"set": f"{known.set}-with-{added}", "tasks": members, "only": added})


def _training(request: Request, base: ExperimentConfig) -> dict[str, Any]:
    training = base.training.model_dump(mode="json") | STAGES[request.stage][1]
    narrow = ("model", "policy") if request.stage == "train" else ("policy",) if request.stage == "pretrain" else ()
    if request.preset is None and training["learn"] in narrow:
        training["learn"] = "all"  # what an earlier stage left alone is no choice for this one
    if request.preset is None and base.training.mode == "offline" and training["mode"] == "online":
        fields = TrainingConfig.model_fields  # an offline run states nothing of collection
        training |= {key: fields[key].default for key in ("actor_batch_size", "random_episodes")}
    if training["mode"] == "offline":
        training |= {"pretrain_steps": 0, "updates_per_step": None}
        training["actor_batch_size"] = training["actor_batch_size"] or OFFLINE_STARTS
    return training
