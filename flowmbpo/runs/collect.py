"""A dataset recorded in real environments, by policies that need no learning and by those of checkpoints."""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
import statistics
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowmbpo.checkpoints.load import load
from flowmbpo.config.task import TaskConfig
from flowmbpo.data.behaviour import Behaviour, NoiseBehaviour, RandomBehaviour
from flowmbpo.data.dataset.writer import DatasetWriter
from flowmbpo.envs.contract import VectorEnv
from flowmbpo.envs.make import make_env
from flowmbpo.envs.resolve import resolve
from flowmbpo.envs.simulators import simulators
from flowmbpo.errors import CheckpointError, ConfigError, nearest
from flowmbpo.evaluation.episodes import record_episodes
from flowmbpo.json_documents import Document
from flowmbpo.models.agent import Agent
from flowmbpo.presets.load import experiment_from_dict
from flowmbpo.runs.evaluate import load_agent, steps_of
from flowmbpo.runs.start import resolve_device
from flowmbpo.spec import EnvSpec
from flowmbpo.stages.initial import untrained_parts

log = logging.getLogger("flowmbpo")

_SEED_DOMAIN = 0xDA7A  # keeps the episodes of datasets apart from those of training and evaluation
_ASKED = re.compile(r"(?::([^:]*?))?(?:~([^/~]*?))?(?:@(\d+))?")  # what may follow a policy: :TASK ~NOISE @EPISODES


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
    ends = [*(sign.start() for sign in re.finditer("[:~@]", text) if sign.start()), len(text)]
    existing = [end for end in reversed(ends) if _exists(text[:end])]
    asked = next(filter(None, (_ASKED.fullmatch(text, end) for end in (*existing, *ends))))
    name, (task, number, count) = text[: asked.start()], asked.groups()
    episodes = int(count) if count else None
    if episodes == 0:
        raise ConfigError(f"--policy {text}: 0 episodes; leave the policy away instead")
    if name in ("random", "noise") and task is None and number is None:
        return PolicyRequest("random" if name == "random" else "noise", episodes=episodes)
    try:
        noise = None if number is None else float(number)
    except ValueError:
        noise = math.nan
    if noise is not None and not 0.0 <= noise < math.inf:
        raise ConfigError(
            f"--policy {text}: '{number}' is no standard deviation of noise; "
            "use a number of 0 or more, as in CKPT~0.3@20"
        )
    path = Path(os.path.expanduser(name))  # unlike Path's, leaves an unknown ~user as it is
    return PolicyRequest("checkpoint", path, task or None, episodes, noise)


def _exists(name: str) -> bool:
    return os.path.exists(os.path.expanduser(name))  # unlike Path's, False for names that the system refuses


@dataclass(frozen=True)
class RecordingPolicy:
    """A policy that records `episodes` of each of its tasks. `members`: the dataset's task id to the agent's own.

    `record` is what the dataset says of it: its `kind`, and a checkpoint's `noise` and whether it was `sampled`.
    """

    episodes: int
    members: dict[int, int]
    agent: Agent | None
    record: dict[str, Any]

    def behaviour(self, spec: EnvSpec, task: int, num_envs: int, seed: int) -> Behaviour:
        """It, acting in `num_envs` environments of a task of the dataset's `spec`."""
        if self.agent is not None:
            return _CheckpointBehaviour(
                self.agent, self.members[task], self.record["noise"], self.record["sampled"], seed
            )
        behaviour = RandomBehaviour if self.record["kind"] == "random" else NoiseBehaviour
        return behaviour((num_envs, spec.tasks[task].action_dim), torch.Generator().manual_seed(seed))


class _CheckpointBehaviour(Behaviour):
    """An agent in one task, which it knows under an id and padded to widths of its own."""

    def __init__(self, agent: Agent, member: int, noise: float, sampled: bool, seed: int) -> None:
        self._agent, self._member, self._noise = agent, member, noise
        self._device = next(agent.parameters()).device
        self._task = agent.spec.tasks[member]
        self._samples = torch.Generator(self._device).manual_seed(seed) if sampled else None
        self._noises = torch.Generator().manual_seed(seed + 1)

    def act(self, obs: Float[Tensor, "N O"], first: Bool[Tensor, " N"]) -> Float[Tensor, "N A"]:
        own = torch.zeros(len(obs), self._agent.spec.obs_dim, device=self._device)
        own[:, : self._task.obs_dim] = obs[:, : self._task.obs_dim].to(self._device)
        ids = torch.full((len(obs),), self._member, device=self._device)
        chosen = self._agent.act(own, ids, self._samples)[:, : self._task.action_dim].cpu()
        if self._noise:
            chosen = chosen + self._noise * torch.randn(chosen.shape, generator=self._noises)
        return chosen


def load_policy(
    request: PolicyRequest,
    spec: EnvSpec,
    wanted: Sequence[int],
    device: torch.device,
    *,
    episodes: int,
    noise: float,
    sample: bool,
) -> RecordingPolicy:
    """The policy for the tasks `wanted` of `spec`, as far as it knows them: matched by plain name.

    Raises ConfigError where it knows none of them or not the one that was named, CheckpointError, also where its
    policy is as it was initialised.
    """
    count = episodes if request.episodes is None else request.episodes
    if request.checkpoint is None:
        return RecordingPolicy(count, {task: task for task in wanted}, None, {"kind": request.kind, "episodes": count})
    name = str(request.checkpoint)
    if request.checkpoint.suffix != ".pt" and request.checkpoint.name == name and not _exists(name):
        raise ConfigError(
            f"--policy {name}: neither 'random', 'noise' nor a checkpoint.{nearest(name, ('random', 'noise'))} "
            "A checkpoint is a .pt file or a run directory that is there."
        )
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
        **steps_of(loaded),
        "tasks": [spec.tasks[task].name for task in members],
        "noise": noise if request.noise is None else request.noise,
        "sampled": sample,
        "episodes": count,
    }
    return RecordingPolicy(count, members, load_agent(loaded, config, own).to(device), record)


@dataclass(frozen=True)
class CollectOutcome(Document):
    """What `data collect --json` prints. `recorded`: what each policy, by its place in the list, did in each task."""

    path: str
    set: str
    episodes: int
    transitions: int
    fingerprint: str
    policies: list[dict[str, Any]]
    recorded: list[dict[str, Any]]


def collect(
    dest: Path,
    config: TaskConfig,
    requests: Sequence[PolicyRequest],
    *,
    episodes: int,
    noise: float = 0.0,
    sample: bool = False,
    seed: int = 0,
    num_envs: int = 16,
    workers: int | None = None,
    device: str = "cpu",
    report: Callable[[dict[str, Any]], None] | None = None,
) -> CollectOutcome:
    """Record `episodes` (or a policy's own number of) episodes of every task by every policy into a dataset.

    A checkpoint supplies the tasks that it was trained on, matched by plain name; a single task's supplies that one.
    Its actions get Gaussian `noise`, and are drawn from its policy with `sample`. Equal arguments give equal datasets;
    `num_envs` changes which episodes come out, `workers` and `device` only the speed. An interrupted call is repeated:
    what is there up to the last finished policy of a task is kept, and the end is the same. `report` hears each row of
    `CollectOutcome.recorded`.

    Raises ConfigError, CheckpointError, EnvironmentUnavailableError, EnvironmentFailure, DataError, StorageError.
    """
    resolved = resolve(config)
    spec, only = resolved.spec, resolved.only
    wanted = range(len(spec.tasks)) if only is None else [only]
    target = resolve_device(device)
    policies = [
        load_policy(request, spec, wanted, target, episodes=episodes, noise=noise, sample=sample)
        for request in requests
    ]
    for notice in resolved.notices:
        log.warning("%s", notice)
    asked = {
        "kind": "collected",
        "tasks": [spec.tasks[task].name for task in wanted],
        "policies": [policy.record for policy in policies],
        "seed": seed,
        "num_envs": num_envs,
        "simulators": simulators(spec),
    }
    units = [(task, place) for task in wanted for place, policy in enumerate(policies) if task in policy.members]
    begun = {**asked, "recorded": []}
    with DatasetWriter.begin(
        dest, spec.label, spec.tasks, begun, lambda source: {**source, "recorded": None}
    ) as writer:
        rows: list[dict[str, Any]] = list(writer.source["recorded"])
        for task, own in itertools.groupby(units[len(rows) :], key=lambda unit: unit[0]):
            most = max(policy.episodes for policy in policies if task in policy.members)
            with closing(make_env(resolved.alone(task), min(num_envs, most), workers, device=str(target))) as env:
                for _, place in own:
                    rows.append(_record(writer, env, policies[place], task, place, seed))
                    writer.source = {**asked, "recorded": rows}
                    writer.checkpoint(seal=True)
                    if report is not None:
                        report(rows[-1])
        made = writer.finish()
        figures = made.episodes, made.transitions, made.fingerprint, made.source["policies"], made.source["recorded"]
        return CollectOutcome(str(made.path), made.set_name, *figures)


def _record(
    writer: DatasetWriter, env: VectorEnv, policy: RecordingPolicy, task: int, place: int, seed: int
) -> dict[str, Any]:
    """All episodes of one policy, by its place in the list, in one task; seeds are of their own for every such pair."""
    drawn = np.random.SeedSequence([_SEED_DOMAIN, seed, task, place]).generate_state(2, np.uint64)
    behaviour = policy.behaviour(env.spec, task, env.num_envs, int(drawn[1] >> np.uint64(2)))
    returns, transitions, successes, faults = [], 0, [], 0
    for episode in record_episodes(env, behaviour, policy.episodes, int(drawn[0] >> np.uint64(1))):
        writer.add(task, episode.obs, episode.action, episode.reward, episode.terminated, source=place)
        returns.append(float(episode.reward.sum(dtype=np.float64)))
        transitions += len(episode.reward)
        faults += episode.faults
        if episode.success is not None:
            successes.append(episode.success)
    return {
        "task": env.spec.tasks[task].name,
        "policy": place,
        "episodes": policy.episodes,
        "transitions": transitions,
        "return_mean": statistics.fmean(returns),
        "return_std": statistics.pstdev(returns),
        "success": statistics.fmean(successes) if successes else None,
        "faults": faults,
    }
