"""From a checkpoint to its diagnoses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowmbpo.checkpoints.loader import Loaded, load, load_replay, resolve
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.load import experiment_from_dict
from flowmbpo.data.replay import ReplayBuffer
from flowmbpo.diagnostics.diagnosis import Diagnosis
from flowmbpo.diagnostics.effort import Effort
from flowmbpo.diagnostics.registry import DIAGNOSTICS
from flowmbpo.diagnostics.subject import Origin, Subject
from flowmbpo.envs.assignment import assign_tasks
from flowmbpo.envs.base import VectorEnv
from flowmbpo.envs.make import make_env
from flowmbpo.errors import CheckpointError, ConfigError
from flowmbpo.models.agent import Agent
from flowmbpo.runs.build import env_spec, resolve_device, seeded_agent, set_up_compute
from flowmbpo.runs.evaluate import config_for_task, load_agent

log = logging.getLogger("flowmbpo")


@dataclass(frozen=True)
class DiagnoseOutcome:
    """What `diagnose --json` prints: the checkpoint, the task, and one document per diagnostic."""

    origin: Origin
    config: str
    task: str
    seed: int
    diagnoses: tuple[Diagnosis, ...]

    @property
    def healthy(self) -> bool:
        """Whether every diagnosis is."""
        return all(diagnosis.healthy for diagnosis in self.diagnoses)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "checkpoint": self.origin.checkpoint,
            "checkpoint_sha256": self.origin.sha256,
            "epoch": self.origin.epoch,
            "env_steps": self.origin.env_steps,
            "config": self.config,
            "task": self.task,
            "seed": self.seed,
            "healthy": self.healthy,
            **{diagnosis.name: diagnosis.to_dict() for diagnosis in self.diagnoses},
        }


def newest_checkpoint(folder: Path = Path("outputs")) -> Path:
    """The latest checkpoint of the run under `folder` that was saved last. Raises CheckpointError."""
    found = sorted(folder.glob("**/checkpoints/latest.pt"), key=lambda file: (file.stat().st_mtime, str(file)))
    if not found:
        raise CheckpointError(
            f"no checkpoint is named, and there is none under {folder}/ to take; "
            "name a checkpoint or a run directory, or train first: flowmbpo train"
        )
    return found[-1]


def diagnose(
    names: Sequence[str],
    checkpoint: Path,
    *,
    task: str | None = None,
    device: str = "auto",
    seed: int = 0,
    effort: Effort | None = None,
    progress: Callable[[str], None] | None = None,
) -> DiagnoseOutcome:
    """Run the named diagnostics on a checkpoint. Raises CheckpointError, ConfigError, EnvironmentUnavailableError."""
    chosen = effort or Effort()
    subject = load_subject(checkpoint, task=task, device=device, seed=seed, episodes=chosen.episodes)
    diagnoses = []
    for name in names:
        if progress is not None:
            progress(name)
        diagnoses.append(DIAGNOSTICS[name](subject, chosen))
    spec = env_spec(subject.config)
    label = spec.label if subject.only is None else spec.tasks[subject.only].name
    return DiagnoseOutcome(subject.origin, subject.config.name, label, seed, tuple(diagnoses))


def load_subject(checkpoint: Path, *, task: str | None, device: str, seed: int, episodes: int) -> Subject:
    """The checkpoint's agent with its replay buffer (where it has one) and its environment."""
    path = resolve(checkpoint)
    target = resolve_device(device)
    loaded = load(path, target)
    config = experiment_from_dict(loaded.payload["config"], str(path))
    only = None if task is None else _member(config, task)
    spec = env_spec(config)
    set_up_compute(config)
    payload = loaded.payload

    def open_env(copies: int) -> VectorEnv:
        enough = copies if only is not None else max(copies, len(spec.tasks))
        return make_env(config.task, num_envs=enough, seed=config.seed, device=str(target), only=only)

    return Subject(
        load_agent(loaded, config).to(target),
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
        replay=None if task is not None else _replay(loaded, config, target),
        optimisers=payload.get("optimisers"),
        initial=lambda: _initial_agent(config),
        episodes=episodes,
        only=only,
    )


def _member(config: ExperimentConfig, task: str) -> int | None:
    """The id of `task` in the set that was trained on. Raises ConfigError for a task that the model never saw."""
    changed, only = config_for_task(config, task)
    if changed.task.name != config.task.name:
        raise ConfigError(
            f"--task {task}: the checkpoint was trained on {env_spec(config).label} alone, so its model knows nothing "
            f"of {task}'s rewards; leave --task away (`flowmbpo eval --task` measures its policy elsewhere)"
        )
    return only


def _initial_agent(config: ExperimentConfig) -> Agent:
    with torch.random.fork_rng(devices=[]):
        return seeded_agent(config, env_spec(config)).eval()


def _replay(loaded: Loaded, config: ExperimentConfig, device: torch.device) -> ReplayBuffer | None:
    """The run's buffer; None, and said so, where the checkpoint came without it."""
    try:
        state = load_replay(loaded, device)
    except CheckpointError as error:
        log.warning("%s Diagnosed on fresh episodes in its place.", error)
        return None
    if state is None:
        return None
    spec = env_spec(config)
    lanes = len(state["head"])
    assigned = torch.tensor(assign_tasks(spec, lanes, config.seed))
    buffer = ReplayBuffer(config.training.wm_buffer_size, lanes, spec.obs_dim, spec.action_dim, assigned, device)
    buffer.load_state_dict(state)
    return buffer
