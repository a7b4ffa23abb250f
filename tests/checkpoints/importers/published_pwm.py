"""Synthetic files of PWM itself, and what they mean by plain tensor code."""

from __future__ import annotations

import sys
from itertools import pairwise
from types import ModuleType

import parity
import published
import torch
from published import Widths, layer_names, shapes
from torch import Tensor
from torch.nn import functional as F

from flowmbpo.models.agent import Agent

ACTOR_UNITS = (400, 200, 100)
CRITIC_UNITS = (400, 200)
CRITICS = 3
STATISTICS = "pwm.utils.running_mean_std"


class RunningMeanStd:
    """Pickled under PWM's own name by `save`."""

    def __init__(self, mean: Tensor, var: Tensor, count: float, **more: object) -> None:
        self.shape = tuple(mean.shape)
        self.mean = mean
        self.var = var
        self.count = count
        self.__dict__.update(more)


def save(content: dict, path) -> None:
    """torch.save with the statistics' class where PWM has it, and nowhere once the file is written."""
    names = ["pwm", "pwm.utils", STATISTICS]
    for name in names:
        sys.modules[name] = ModuleType(name)
    sys.modules[STATISTICS].RunningMeanStd = RunningMeanStd
    RunningMeanStd.__module__ = STATISTICS
    try:
        torch.save(content, path)
    finally:
        for name in names:
            del sys.modules[name]


def pwm_file(w: Widths, seed: int = 0, *, bins: int = 101, obs_rms=None, rew_rms=None, ret_rms=None) -> dict:
    """World model, actor, critic, statistics and optimisers, as PWM saves them."""
    g = torch.Generator().manual_seed(seed)
    world: dict[str, Tensor] = {}
    if w.tasks:
        world["_task_emb.weight"] = 1.5 * torch.randn(w.tasks, w.task_dim, generator=g) / w.task_dim**0.5
    dims = shapes(w)
    dims["reward"][-1] = bins
    for network in ("encoder", "dynamics", "reward"):
        published.draw_network(world, layer_names("pwm", network, len(dims[network]) - 1), dims[network], g)
    actor: dict[str, Tensor] = {"logstd": -1.0 + 0.1 * torch.randn(w.action, generator=g)}
    critic: dict[str, Tensor] = {}
    published.draw_network(actor, actor_names(), [w.latent, *ACTOR_UNITS, w.action], g)
    published.draw_network(critic, critic_names(), [w.latent, *CRITIC_UNITS, 1], g, (CRITICS,))
    state = {"world_model": world, "actor": actor, "critic": critic}
    state |= {"obs_rms": obs_rms, "rew_rms": rew_rms, "ret_rms": ret_rms}
    optimiser = {"state": {0: {"step": torch.tensor(5.0)}}, "param_groups": [{"lr": 5e-4, "betas": (0.7, 0.95)}]}
    return state | {"actor_opt": optimiser, "critic_opt": optimiser, "world_model_opt": optimiser}


def actor_names() -> list[tuple[str, ...]]:
    """A linear layer at 0, 3, 6, 9; its activation behind it, then its LayerNorm."""
    hidden = [
        (f"mu_net.{i}.weight", f"mu_net.{i}.bias", f"mu_net.{i + 2}.weight", f"mu_net.{i + 2}.bias") for i in (0, 3, 6)
    ]
    return [*hidden, ("mu_net.9.weight", "mu_net.9.bias")]


def critic_names() -> list[tuple[str, ...]]:
    """Four tensors per hidden layer, two at the end."""
    return [tuple(f"params.{i}" for i in range(a, b)) for a, b in pairwise((0, 4, 8, 10))]


def activation_first(state: dict, names: list, x: Tensor, member: int | None = None) -> Tensor:
    """Linear, Mish, LayerNorm per hidden layer; a plain last one."""
    for layer in names:
        tensors = [(state[n] if member is None else state[n][member]).double() for n in layer]
        x = F.linear(x, tensors[0], tensors[1])
        if len(tensors) == 4:
            x = F.layer_norm(F.mish(x), x.shape[-1:], tensors[2], tensors[3])
    return x


def embedding(content: dict, w: Widths, task: Tensor) -> Tensor:
    """Rows of the table; nothing for a single task."""
    if not w.tasks:
        return torch.zeros(len(task), 0, dtype=torch.float64)
    return published.embed(content["world_model"], task, capped=True)


@torch.no_grad()
def differences(agent: Agent, content: dict, w: Widths, *, normalise=lambda obs: obs) -> dict[str, float]:
    """Largest difference of every function, the two-hot expectation left as PWM's actor reads it."""
    obs, task, action = parity.inputs(agent)
    world, e = content["world_model"], embedding(content, w, task)
    names = {n: published.layer_names("pwm", n, len(d) - 1) for n, d in published.shapes(w).items()}
    z = published.run(world, names["encoder"], torch.cat([normalise(obs.double()), e], -1), simplex=True)
    x = torch.cat([z, e, action.double()], -1)
    logits = published.run(world, names["reward"], x)
    bins = torch.linspace(-10, 10, 101, dtype=torch.float64)
    reward = logits.squeeze(-1) if logits.shape[-1] == 1 else (logits.softmax(-1) * bins).sum(-1)
    mean = activation_first(content["actor"], actor_names(), z)
    values = [activation_first(content["critic"], critic_names(), z, member).squeeze(-1) for member in range(CRITICS)]
    context = agent.world_model.context(task)
    ours = parity.interleaved(z).float()
    found = {
        "encode": agent.world_model.encode(obs, context) - parity.interleaved(z),
        "next": agent.world_model.next(ours, action, context)
        - parity.interleaved(published.run(world, names["dynamics"], x, simplex=True)),
        "reward": agent.world_model.reward(ours, action, context) - reward,
        "actor": agent.actor.preactivation(ours, context, None) - mean,
        "critic": agent.critic(ours, context) - torch.stack(values),
    }
    return {name: float(difference.abs().max()) for name, difference in found.items()}
