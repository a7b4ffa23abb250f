"""Everything that can be known of a run before it starts."""

from __future__ import annotations

from typing import Any

import torch

from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.data.dataset.sampler import match_tasks
from flowmbpo.envs.episodes import assign_tasks
from flowmbpo.envs.resolve import ResolvedTask, resolve
from flowmbpo.models.agent import build_meta_agent, seeded_agent
from flowmbpo.parity.comparison import reference_parity
from flowmbpo.parity.cost import estimate_cost, parameter_counts, solved_widths
from flowmbpo.runs.start import (
    check_num_envs,
    dataset_facts,
    first_actions,
    open_dataset,
    pinned,
    resolve_device,
    still_needed,
)
from flowmbpo.stages.initial import load_initial


def dry_run(config: ExperimentConfig) -> dict[str, Any]:
    """What `train --dry-run` reports: resolve, build, count, read what the run starts from, and write nothing.

    Raises ConfigError, CheckpointError or DataError.
    """
    task = resolve(config.task)
    config = pinned(config, task)
    check_num_envs(config, task)
    dataset = open_dataset(config)
    if dataset is not None:
        match_tasks(dataset, task.spec, task.only)
    report = None
    if config.initial is not None:
        initial = load_initial(config.initial)
        config = initial.adopt(config, task.spec)
        with torch.random.fork_rng(devices=[]):
            report = initial.take_over(seeded_agent(config, task.spec))
        distils = report.to_distill and initial.options.distill_updates > 0
        config, _ = first_actions(config, report, distils and dataset is None)
    spec, tasks, agent = task.spec, task.running.tasks, build_meta_agent(config, task.spec)
    gaps = reference_parity(config, agent)
    parameters = parameter_counts(agent)
    return {
        "name": config.name,
        "config": config.model_dump(mode="json"),
        "task": {
            "name": task.label,
            "tasks": [info.name for info in tasks],
            "simulator": ", ".join(dict.fromkeys(info.simulator for info in tasks)),
            "obs_dim": spec.obs_dim,
            "action_dim": spec.action_dim,
            "episode_length": max(info.episode_length for info in tasks),
            "discount": min(info.discount for info in tasks),
            "notice": "\n".join(task.notices) or None,
        },
        "device": str(resolve_device(config.device)),
        **total_steps(config, task),
        "needs": still_needed(config),
        "initial": None if report is None else report.lines(),
        "data": None if dataset is None else dataset_facts(dataset, task),
        "parameters": {**parameters, "total": sum(parameters.values())},
        "solved_widths": solved_widths(agent),
        "gap_to_mlp_gaussian_percent": {"model": gaps.model.gap_percent, "actor": gaps.actor.gap_percent},
        "compute": estimate_cost(config, spec).to_dict(),
    }


def total_steps(config: ExperimentConfig, task: ResolvedTask) -> dict[str, int]:
    """Agent and environment steps of the whole run, random episodes included (fewer where episodes end early).

    Offline there are none.
    """
    if config.training.mode == "offline":
        return {"agent_steps": 0, "env_steps": 0}
    longest = max(info.episode_length for info in task.running.tasks)
    training = config.own_training
    each = training.random_episodes * longest + training.epochs * training.horizon
    assigned = assign_tasks(task.spec, config.task.num_envs, config.seed, task.only)
    repeats = [task.spec.tasks[member].action_repeat for member in assigned]
    return {"agent_steps": len(repeats) * each, "env_steps": sum(repeats) * each}
