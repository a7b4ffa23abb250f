"""Everything that can be known of a run before it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.data.dataset.sampler import match_tasks
from flowmbpo.envs.resolve import backend_notice, only_id, running_tasks
from flowmbpo.models.agent import build_meta_agent, seeded_agent
from flowmbpo.parity.comparison import parity, reference_config
from flowmbpo.parity.cost import ComputeCost, estimate_cost
from flowmbpo.parity.parameters import parameter_counts, solved_widths
from flowmbpo.runs.build import env_name, env_spec, pinned, resolve_device
from flowmbpo.runs.offline import dataset_facts, open_dataset
from flowmbpo.runs.preconditions import check_lanes, still_needed
from flowmbpo.spec import EnvSpec
from flowmbpo.stages.initial import load_initial


@dataclass(frozen=True)
class DryRun:
    """What `train --dry-run` reports."""

    config: ExperimentConfig
    env: str
    device: str
    spec: EnvSpec
    parameters: dict[str, int]
    widths: dict[str, Any]
    model_gap_percent: float | None
    actor_gap_percent: float | None
    cost: ComputeCost
    env_steps: int
    initial: list[str] | None
    data: dict[str, Any] | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        spec, tasks = self.spec, running_tasks(self.config.task).tasks
        return {
            "name": self.config.name,
            "config": self.config.model_dump(mode="json"),
            "task": {
                "name": self.env,
                "tasks": [task.name for task in tasks],
                "simulator": ", ".join(dict.fromkeys(task.simulator for task in tasks)),
                "obs_dim": spec.obs_dim,
                "action_dim": spec.action_dim,
                "episode_length": max(task.episode_length for task in tasks),
                "discount": min(task.discount for task in tasks),
                "notice": backend_notice(self.config.task),
            },
            "device": self.device,
            "env_steps": self.env_steps,
            "needs": still_needed(self.config),
            "initial": self.initial,
            "data": self.data,
            "parameters": {**self.parameters, "total": sum(self.parameters.values())},
            "solved_widths": self.widths,
            "gap_to_mlp_gaussian_percent": {"model": self.model_gap_percent, "actor": self.actor_gap_percent},
            "compute": self.cost.to_dict(),
        }


def dry_run(config: ExperimentConfig) -> DryRun:
    """Resolve, build, count, read what the run starts from. Trains nothing and writes nothing.

    Raises ConfigError, CheckpointError or DataError.
    """
    config = pinned(config)
    spec = env_spec(config)
    check_lanes(config, spec)
    dataset = open_dataset(config)
    if dataset is not None:
        match_tasks(dataset, spec, only_id(config.task))
    report = None
    if config.initial is not None:
        initial = load_initial(config.initial)
        config = initial.adopt(config)
        with torch.random.fork_rng(devices=[]):
            report = initial.take_over(seeded_agent(config, spec))
    agent = build_meta_agent(config, spec)
    gaps = parity(reference_config(config), config, spec, spec)
    return DryRun(
        config=config,
        env=env_name(config),
        device=str(resolve_device(config.device)),
        spec=spec,
        parameters=parameter_counts(agent),
        widths=solved_widths(agent),
        model_gap_percent=gaps.model.gap_percent,
        actor_gap_percent=gaps.actor.gap_percent,
        cost=estimate_cost(config, spec),
        env_steps=total_env_steps(config),
        initial=None if report is None else report.lines(),
        data=None if dataset is None else dataset_facts(dataset, config),
    )


def total_env_steps(config: ExperimentConfig) -> int:
    """Agent steps of the whole run, random episodes included (fewer where episodes end early); offline none."""
    if config.training.mode == "offline":
        return 0
    longest = max(task.episode_length for task in running_tasks(config.task).tasks)
    random_steps = config.training.random_episodes * longest
    return config.task.num_envs * (random_steps + config.training.epochs * config.training.horizon)
