"""Policies that record data: named ones, and those of checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.checkpoints.load import load
from flowmbpo.data.behaviour import Behaviour, NoiseBehaviour, RandomBehaviour
from flowmbpo.envs.resolve import resolve
from flowmbpo.errors import CheckpointError, ConfigError, nearest
from flowmbpo.models.agent import Agent
from flowmbpo.presets.load import experiment_from_dict
from flowmbpo.runs.evaluate import load_agent
from flowmbpo.spec import EnvSpec
from flowmbpo.stages.initial import untrained_parts


@dataclass(frozen=True)
class PolicyRequest:
    """One policy: 'random', 'noise', or a checkpoint's, perhaps for one task only and for so many episodes.

    `noise` is the Gaussian noise on this checkpoint's actions; None takes the recording's.
    """

    kind: Literal["random", "noise", "checkpoint"]
    checkpoint: Path | None = None
    task: str | None = None
    episodes: int | None = None
    noise: float | None = None

    def name(self, noise: float = 0.0) -> str:
        """As it is shown to people: as it was asked for, with its noise or that of the recording."""
        if self.checkpoint is None:
            return self.kind
        task = f":{self.task}" if self.task else ""
        noise = noise if self.noise is None else self.noise
        return f"{self.checkpoint}{task}" + (f"~{noise:g}" if noise else "")


def parse_policy(text: str) -> PolicyRequest:
    """`random`, `noise` or `CKPT[:TASK][~NOISE]`, each perhaps with `@EPISODES`. Raises ConfigError.

    What exists as a path the way it is written is that path, whatever signs are in it.
    """
    name, at, count = text.rpartition("@")
    if not at or not count.isdecimal() or _exists(text):
        name, count = text, ""
    episodes = int(count) if count else None
    if episodes == 0:
        raise ConfigError(f"--policy {text}: 0 episodes; leave the policy away instead")
    if name in ("random", "noise"):
        return PolicyRequest("random" if name == "random" else "noise", episodes=episodes)
    name, noise = _own_noise(text, name)
    path, _, task = name.rpartition(":") if not _exists(name) else (name, "", "")
    if not path:
        path, task = name, ""
    return PolicyRequest("checkpoint", _path(path), task or None, episodes, noise)


def _own_noise(text: str, name: str) -> tuple[str, float | None]:
    """The name without its `~NOISE`, and that. Raises ConfigError."""
    rest, tilde, number = name.rpartition("~")
    path, colon, _ = number.rpartition(":")
    named = bool(colon) and _exists(f"{rest}~{path}")  # a path with a tilde, and a task
    if not rest or not tilde or "/" in number or named or _exists(name):
        return name, None
    try:
        noise = float(number)
    except ValueError:
        noise = math.nan
    if not 0.0 <= noise < math.inf:
        raise ConfigError(
            f"--policy {text}: '{number}' is no standard deviation of noise; "
            "use a number of 0 or more, as in CKPT~0.3@20"
        )
    return rest, noise


def _path(name: str) -> Path:
    return Path(os.path.expanduser(name))  # unlike Path's, leaves an unknown ~user as it is


def _exists(name: str) -> bool:
    return os.path.exists(_path(name))  # unlike Path's, False for names that the system refuses


@dataclass(frozen=True)
class Disturbance:
    """What is added to a checkpoint's actions: Gaussian noise of this standard deviation, or samples of the policy."""

    noise: float = 0.0
    sample: bool = False


@dataclass(frozen=True)
class RecordingPolicy:
    """A policy that records `episodes` of each of its tasks. `members`: the dataset's task id to the agent's own."""

    kind: str
    episodes: int
    members: dict[int, int]
    agent: Agent | None
    disturbance: Disturbance
    record: dict[str, Any]

    def behaviour(self, spec: EnvSpec, task: int, num_envs: int, seed: int) -> Behaviour:
        """It, acting in `num_envs` environments of a task of the dataset's `spec`."""
        width, own = spec.action_dim, spec.tasks[task].action_dim
        if self.agent is not None:
            return _CheckpointBehaviour(self.agent, self.members[task], width, self.disturbance, seed)
        generator = torch.Generator().manual_seed(seed)
        if self.kind == "random":
            return RandomBehaviour(own, width, generator)
        return NoiseBehaviour(own, width, num_envs, generator)


def load_policy(
    request: PolicyRequest,
    spec: EnvSpec,
    wanted: Sequence[int],
    episodes: int,
    disturbance: Disturbance,
    device: torch.device,
) -> RecordingPolicy:
    """The policy for the tasks `wanted` of `spec`, as far as it knows them: matched by plain name.

    Raises ConfigError where it knows none of them or not the one that was named, CheckpointError, also where its
    policy is as it was initialised.
    """
    count = episodes if request.episodes is None else request.episodes
    if request.noise is not None:
        disturbance = replace(disturbance, noise=request.noise)
    if request.checkpoint is None:
        record: dict[str, Any] = {"kind": request.kind, "episodes": count}
        return RecordingPolicy(request.kind, count, {task: task for task in wanted}, None, disturbance, record)
    _check_named(request.checkpoint)
    loaded = load(request.checkpoint, device)
    path = loaded.path
    config = experiment_from_dict(loaded.payload["config"], str(path))
    if "actor" in untrained_parts(loaded.payload):
        raise CheckpointError(
            f"--policy {path}: its policy was never trained, only its world model. Name a checkpoint of a later stage; "
            "'random' and 'noise' record without one."
        )
    own = resolve(config.task).spec
    names = [task.plain_name for task in own.tasks]
    only = request.task or config.task.only
    if only is not None and only not in names:
        raise ConfigError(f"--policy {path}:{only}: it was trained on {', '.join(names)}; name one of them")
    allowed = names if only is None else [only]
    plain = {task: spec.tasks[task].plain_name for task in wanted}
    members = {task: names.index(name) for task, name in plain.items() if name in allowed}
    if not members:
        raise ConfigError(
            f"--policy {path}: acts in {', '.join(allowed)}, and the dataset is of {', '.join(plain.values())}: "
            "it would supply nothing"
        )
    record = {
        "kind": "checkpoint",
        "checkpoint": path.name,
        "config": config.name,
        "sha256": loaded.sha256,
        "epoch": int(loaded.payload["epoch"]),
        "agent_steps": int(loaded.payload["agent_steps"]),
        "env_steps": int(loaded.payload["env_steps"]),
        "tasks": [spec.tasks[task].name for task in members],
        "noise": disturbance.noise,
        "sampled": disturbance.sample,
        "episodes": count,
    }
    agent = load_agent(loaded, config, own).to(device)
    return RecordingPolicy("checkpoint", count, members, agent, disturbance, record)


def _check_named(path: Path) -> None:
    """Raises ConfigError for a bare name that nothing has."""
    name = str(path)
    if path.suffix != ".pt" and path.name == name and not _exists(name):
        raise ConfigError(
            f"--policy {name}: neither 'random', 'noise' nor a checkpoint.{nearest(name, ('random', 'noise'))} "
            "A checkpoint is a .pt file or a run directory that is there."
        )


class _CheckpointBehaviour(Behaviour):
    """An agent in one task, which it knows under an id and padded to widths of its own."""

    def __init__(self, agent: Agent, member: int, width: int, disturbance: Disturbance, seed: int) -> None:
        self._agent, self._member, self._width, self._noise = agent, member, width, disturbance.noise
        self._device = next(agent.parameters()).device
        self._task = agent.spec.tasks[member]
        self._samples = torch.Generator(self._device).manual_seed(seed) if disturbance.sample else None
        self._noises = torch.Generator().manual_seed(seed + 1)

    def act(self, obs: Float[Tensor, "N O"], first: Bool[Tensor, " N"]) -> Float[Tensor, "N A"]:
        own = torch.zeros(len(obs), self._agent.spec.obs_dim, device=self._device)
        own[:, : self._task.obs_dim] = obs[:, : self._task.obs_dim].to(self._device)
        ids = torch.full((len(obs),), self._member, device=self._device)
        chosen = self._agent.act(own, ids, self._samples)[:, : self._task.action_dim].cpu()
        if self._noise:
            chosen = chosen + self._noise * torch.randn(chosen.shape, generator=self._noises)
        action = torch.zeros(len(obs), self._width)
        action[:, : self._task.action_dim] = chosen.clamp(-1.0, 1.0)
        return action
