"""A checkpoint as the subject of diagnostics: its agent, its replay buffer, its environment."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from flowmbpo.checkpoints.load import AlteredReplayError, Loaded, load, load_replay, resolve
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.subject import Origin, Subject
from flowmbpo.envs.assignment import lane_tasks
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.make import make_env
from flowmbpo.envs.resolve import backend_notices, only_id, running_tasks
from flowmbpo.errors import CheckpointError, ConfigError, FlowMBPOError
from flowmbpo.models.agent import Agent
from flowmbpo.presets.load import experiment_from_dict
from flowmbpo.runs.build import env_spec, initial_agent, resolve_device, set_up_compute
from flowmbpo.runs.evaluate import config_for_task, load_agent

log = logging.getLogger("flowmbpo")

NEEDED = ("config", "agent", "epoch", "env_steps")
FRESH = "diagnosed on fresh episodes of its policy instead"


def newest_checkpoint(folder: Path = Path("outputs")) -> Path:
    """The latest checkpoint of the run under `folder` that was saved last. Raises CheckpointError."""
    found = sorted(folder.glob("**/checkpoints/latest.pt"), key=lambda file: (file.stat().st_mtime, str(file)))
    if not found:
        raise CheckpointError(
            f"no checkpoint is named, and there is none under {folder}/ to take; "
            "name a checkpoint or a run directory, or train first: flowmbpo train"
        )
    return found[-1]


def load_subject(checkpoint: Path, *, task: str | None, device: str, seed: int, episodes: int) -> Subject:
    """The checkpoint's agent with its replay buffer (where it has one) and its environment.

    Raises CheckpointError for a file that is missing, damaged or incomplete, ConfigError for a device
    or a task that cannot be had.
    """
    path = resolve(checkpoint)
    target = resolve_device(device)
    loaded = _load_whole(path, target)
    payload = loaded.payload
    missing = [key for key in NEEDED if key not in payload]
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}, so it cannot be diagnosed; name another checkpoint")
    config = experiment_from_dict(payload["config"], str(path))
    only = None if task is None else member(config, task)
    set_up_compute(config)
    agent = load_agent(loaded, config).to(target)
    replay, trouble = (None, "") if only is not None else _replay(loaded, config, target)
    for notice in backend_notices(config.task):
        log.warning("%s", notice)

    def open_env(copies: int) -> VectorEnv:
        enough = copies if only is not None else max(copies, len(running_tasks(config.task).tasks))
        return make_env(config.task, num_envs=enough, seed=config.seed, device=str(target), only=only)

    return Subject(
        agent,
        config,
        device=target,
        seed=seed,
        make_env=open_env,
        origin=Origin(
            checkpoint=str(path),
            sha256=loaded.sha256,
            epoch=int(payload["epoch"]),
            env_steps=int(payload["env_steps"]),
            nonfinite=int(payload.get("nonfinite", 0)),
        ),
        replay=replay,
        replay_trouble=trouble,
        optimisers=payload.get("optimisers"),
        initial=_initial(config),
        episodes=episodes,
        only=only,
    )


def _initial(config: ExperimentConfig) -> Callable[[], Agent] | None:
    """What builds the agent that the run began with; None, and said so, where its initial checkpoint is gone."""
    if config.initial is None:
        return lambda: initial_agent(config)
    try:
        began = initial_agent(config)
    except FlowMBPOError as error:
        log.warning("what the run began with cannot be rebuilt: %s It is not compared with that.", error)
        return None
    return lambda: began


def member(config: ExperimentConfig, task: str) -> int | None:
    """The id of `task` in the set that was trained on, None for the one task of a single-task run.

    Raises ConfigError for a task that the model never saw.
    """
    own = env_spec(config)
    if len(own.tasks) == 1 and task not in (config.task.name, own.label, own.tasks[0].name, own.tasks[0].plain_name):
        raise ConfigError(
            f"--task {task}: the checkpoint was trained on {own.label} alone, so its model knows nothing "
            f"of {task}'s rewards; leave --task away (`flowmbpo eval --task` measures its policy elsewhere)"
        )
    return config_for_task(config, task)[1] if config.task.set is not None else None


def _replay(loaded: Loaded, config: ExperimentConfig, device: torch.device) -> tuple[ReplayBuffer | None, str]:
    """The run's buffer, and what is wrong with its file; no buffer, and said so, where the checkpoint came without it.

    One that was altered since the checkpoint was saved is for `health` to look at, and for nothing else.
    """
    trouble = ""
    try:
        state = load_replay(loaded, device)
    except AlteredReplayError as error:
        trouble = str(error)
        log.warning("%s Only `health` looks at it; the rest is %s.", error, FRESH)
        state = _altered_state(loaded, device)
        if state is None:
            return None, trouble
    except CheckpointError as error:
        log.warning("%s It is %s.", error, FRESH)
        return None, ""
    if state is None:
        log.warning("%s holds no replay buffer: it is %s.", loaded.path, FRESH)
        return None, ""
    return _restored(state, config, device, loaded.path), trouble


def _altered_state(loaded: Loaded, device: torch.device) -> dict[str, Any] | None:
    """What an altered replay file still holds; None where it cannot be read at all."""
    try:
        return load_replay(loaded, device, verify=False)
    except CheckpointError as error:
        log.warning("%s", error)
        return None


def _load_whole(path: Path, device: torch.device) -> Loaded:
    """The checkpoint, loaded again where a run that was saving replaced it and took its replay file away meanwhile."""
    loaded = load(path, device)
    reference = loaded.payload.get("replay")
    if reference is not None and not (path.parent / Path(reference["file"]).name).is_file():
        return load(path, device)
    return loaded


def _restored(state: dict[str, Any], config: ExperimentConfig, device: torch.device, path: Path) -> ReplayBuffer:
    spec = env_spec(config)
    lanes = len(state["head"]) if "head" in state else config.task.num_envs
    assigned = torch.tensor(lane_tasks(spec, lanes, config.seed, only_id(config.task)))
    buffer = ReplayBuffer(config.training.wm_buffer_size, lanes, spec.obs_dim, spec.action_dim, assigned, device)
    try:
        buffer.load_state_dict(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return buffer
