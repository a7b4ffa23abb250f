"""An imported checkpoint against what its source's tensors mean."""

from __future__ import annotations

from pathlib import Path

import published
import torch
from torch import Tensor

from flowmbpo.checkpoints.load import load
from flowmbpo.envs.resolve import resolve
from flowmbpo.models.agent import Agent
from flowmbpo.nets.mlp import normed_mlp
from flowmbpo.nets.two_hot import symexp, two_hot_expectation
from flowmbpo.presets.load import experiment_from_dict
from flowmbpo.runs.evaluate import load_agent

ROWS = 24


def interleaved(z: Tensor) -> Tensor:
    """A latent of contiguous groups in this project's order: member v of group g at v G + g."""
    groups = z.shape[-1] // published.GROUP
    places = [(i % groups) * published.GROUP + i // groups for i in range(z.shape[-1])]
    return z[..., places]


def opened(path: Path) -> tuple[Agent, dict]:
    """The agent of a checkpoint, and its payload."""
    loaded = load(path)
    config = experiment_from_dict(loaded.payload["config"])
    return load_agent(loaded, config, resolve(config.task).spec), loaded.payload


def inputs(agent: Agent, seed: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Observations, task ids and actions as the agent's tasks have them: zero-padded."""
    g = torch.Generator().manual_seed(seed)
    tasks = agent.spec.tasks
    task = torch.arange(ROWS) % len(tasks)
    obs = 2.0 * torch.randn(ROWS, agent.spec.obs_dim, generator=g)
    action = 2.0 * torch.rand(ROWS, agent.spec.action_dim, generator=g) - 1.0
    for row, t in enumerate(task.tolist()):
        obs[row, tasks[t].obs_dim :] = 0.0
        action[row, tasks[t].action_dim :] = 0.0
    return obs, task, action


def padded(x: Tensor, width: int) -> Tensor:
    """With zero columns up to `width`."""
    return torch.cat([x, x.new_zeros(len(x), width - x.shape[-1])], -1)


@torch.no_grad()
def differences(path: Path, state: dict, layout: str, w: published.Widths, rows: list[int] | None = None) -> dict:
    """Largest absolute difference per function. `rows` are the file's ids of the imported tasks."""
    agent, payload = opened(path)
    obs, task, action = inputs(agent)
    theirs = torch.tensor(rows)[task] if rows is not None else task
    expected = published.evaluate(state, layout, w, padded(obs, w.obs), theirs, padded(action, w.action))
    model = agent.world_model
    context = model.context(task)
    z = interleaved(expected.z).float()
    found = {
        "encode": model.encode(obs, context) - interleaved(expected.z),
        "next": model.next(z, action, context) - interleaved(expected.z_next),
        "reward": model.reward(z, action, context) - expected.reward,
    }
    planner = payload.get("planner")
    if planner is not None:
        found["q"] = _q_values(planner, torch.cat([z, context.embedding, action], -1)) - expected.q
        a, width = agent.spec.action_dim, w.action
        wanted = torch.cat([expected.pi[:, :a], expected.pi[:, width : width + a]], -1)
        found["pi"] = _network(planner["pi"])(torch.cat([z, context.embedding], -1)) - wanted
    return {name: float(difference.abs().max()) for name, difference in found.items()}


def _q_values(planner: dict, x: Tensor) -> Tensor:
    members = len(planner["q"]["2.bias"])
    networks = [_network({name: t[m] for name, t in planner["q"].items()}) for m in range(members)]
    bins = torch.linspace(planner["low"], planner["high"], planner["bins"])
    return torch.stack([symexp(two_hot_expectation(network(x), bins)) for network in networks])


def _network(state: dict) -> torch.nn.Module:
    first, last = state["0.linear.weight"], state["2.weight"]
    units = [len(first), len(state["1.linear.weight"])]
    network = normed_mlp(first.shape[1], units, len(last), normed_output=False)
    network.load_state_dict(state)
    return network
