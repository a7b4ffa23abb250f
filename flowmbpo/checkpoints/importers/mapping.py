"""The config of an imported model: its widths from the shapes, its training PWM's published values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowmbpo.checkpoints.importers.foreign import BIN_RANGE, GROUP, ForeignModel, Layer, Network, hidden_units
from flowmbpo.checkpoints.importers.sizes import size_class
from flowmbpo.checkpoints.importers.statistics import Statistics
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.task import TaskConfig
from flowmbpo.presets.load import experiment_from_dict

PHASE = "stage-a"


def imported_config(model: ForeignModel, task: TaskConfig, name: str) -> ExperimentConfig:
    """A complete config that builds the imported agent. Raises ConfigError where the shapes allow none."""
    document = {
        "name": name,
        "phase": PHASE,
        "description": f"Imported from a {model.format} file.",
        "task": task.model_dump(mode="json"),
        "model": _model(model),
        "actor": _actor(model),
        "critic": _critic(model),
        "training": _training(model),
    }
    return experiment_from_dict(document, f"the shapes of this {model.format} file")


def config_name(model: ForeignModel, task: TaskConfig) -> str:
    """`tdmpc2-mt30-48m`: format, task or set, size where it is a published one."""
    size = size_class(model)
    return "-".join(part for part in (model.format, task.set or task.name, size and size.lower()) if part)


def _model(model: ForeignModel) -> dict[str, Any]:
    options: dict[str, Any] = {
        "latent_dim": model.latent_dim,
        "simnorm_dim": GROUP,
        "task_dim": model.task_dim,
        "encoder": {"kind": "mlp", "units": hidden_units(model.encoder)},
        "dynamics": {"kind": "mlp", "units": hidden_units(model.dynamics), "geometry": "tangent"},
        "reward": _reward(model),
    }
    if model.termination is not None:
        options["termination"] = {"units": hidden_units(model.termination)}
    return options


def _reward(model: ForeignModel) -> dict[str, Any]:
    units = hidden_units(model.reward)
    if model.bins == 1:
        return {"kind": "scalar", "units": units}
    # PWM's actor and critic are in units of the reward without its symexp.
    decode = "symlog" if model.pwm is not None else "symexp"
    low, high = BIN_RANGE
    return {"kind": "two_hot", "units": units, "bins": model.bins, "low": low, "high": high, "decode": decode}


def _actor(model: ForeignModel) -> dict[str, Any]:
    published = {"kind": "gaussian", "init_logstd": -1.0, "min_logstd": -1.427}
    known = None if model.pwm is None else model.pwm.actor
    return published if known is None else published | {"units": hidden_units(known)}


def _critic(model: ForeignModel) -> dict[str, Any]:
    if model.pwm is None:
        return {"units": [400, 200], "ensemble": 3, "reduction": "min"}
    critic = model.pwm.critic
    return {"units": hidden_units(critic), "ensemble": critic[0].weight.shape[0], "reduction": "min"}


def _training(model: ForeignModel) -> dict[str, Any]:
    """PWM's published values are the defaults; these are what an imported model needs besides."""
    standardised = model.pwm is not None and model.pwm.reward is not None
    return {
        "gamma": 0.99 if model.pwm is not None else "task",
        "actor_input_gradient": "detached",
        "reward_normalization": "standardize" if standardised else "none",
    }


State = dict[str, Tensor]


@dataclass(frozen=True)
class Target:
    """What is imported for: widths of the task or set, and its tasks' rows of the embedding table."""

    obs_dim: int
    action_dim: int
    rows: tuple[int, ...]


def latent_order(latent_dim: int, group: int = GROUP) -> Tensor:
    """[D] indices: coordinate i here is coordinate `order[i]` there."""
    return torch.arange(latent_dim).view(-1, group).T.reshape(-1)


def map_agent(model: ForeignModel, target: Target) -> State:
    """The agent's tensors that the file holds; its other tensors are untrained."""
    axes = _Axes(model, target)
    state: State = {}
    if model.embeddings is not None:
        state["world_model.tasks.embeddings"] = model.embeddings[list(target.rows)] / axes.embedding_scale
    first = axes.observed(model.encoder[0])
    if model.pwm is not None and model.pwm.obs is not None and model.pwm.obs.seen:
        first = _fold_normalisation(first, model.pwm.obs, target.obs_dim)
    state |= _named("world_model.encoder.", axes.to_latent((first, *model.encoder[1:])))
    state |= _named("world_model.dynamics.network.", axes.to_latent(axes.from_latent(model.dynamics)))
    state |= _named("world_model.reward_head.network.", axes.from_latent(model.reward))
    if model.termination is not None:
        state |= _named("world_model.termination_head.", axes.from_latent(model.termination))
    if model.pwm is not None:
        state |= _pwm_parts(model, axes)
    return state


def map_planner(model: ForeignModel, target: Target) -> dict[str, Any] | None:
    """The policy prior and the Q functions, for planning; None where the file lacks one of them."""
    if model.pi is None or model.q is None:
        return None
    axes = _Axes(model, target)
    means = torch.arange(target.action_dim)
    rows = torch.cat([means, model.action_dim + means])  # means, then log-stds
    pi = axes.from_latent(model.pi)
    low, high = model.log_std_bounds
    return {
        "kind": "tdmpc2",
        "pi": _named("", (*pi[:-1], _select_outputs(pi[-1], rows))),
        "q": _named("", axes.from_latent(model.q)),
        "log_std_min": low,
        "log_std_max": high,
        "bins": model.bins,
        "low": BIN_RANGE[0],
        "high": BIN_RANGE[1],
    }


class _Axes:
    """Where the columns of the networks' inputs go.

    Embeddings that lookups do not cap are divided by a power of two which their columns are multiplied
    by: the task table here scales longer ones down, and this leaves it nothing to scale.
    """

    def __init__(self, model: ForeignModel, target: Target) -> None:
        self.order = latent_order(model.latent_dim)
        self.task = torch.arange(model.task_dim)
        self.action = torch.arange(target.action_dim)
        self.obs = torch.arange(target.obs_dim)
        self.obs_dim = model.obs_dim
        self.embedding_scale = 1.0
        if model.embeddings is not None and not model.capped:
            longest = float(model.embeddings[list(target.rows)].norm(dim=-1).max())
            self.embedding_scale = 2.0 ** max(math.ceil(math.log2(max(longest, 1.0))), 0)

    def observed(self, layer: Layer) -> Layer:
        """A first layer on [obs, task]."""
        return self._columns(layer, torch.cat([self.obs, self.obs_dim + self.task]), len(self.obs))

    def from_latent(self, network: Network) -> Network:
        """A network whose input is [z], [z, task] or [z, task, action]."""
        first = network[0]
        latent = len(self.order)
        columns = torch.cat([self.order, latent + self.task, latent + len(self.task) + self.action])
        return (self._columns(first, columns[columns < first.inputs], latent), *network[1:])

    def to_latent(self, network: Network) -> Network:
        """A network whose output is a latent."""
        return (*network[:-1], _select_outputs(network[-1], self.order))

    def _columns(self, layer: Layer, columns: Tensor, task_start: int) -> Layer:
        weight = layer.weight.index_select(-1, columns)
        if self.embedding_scale != 1.0:
            weight[..., task_start : task_start + len(self.task)] *= self.embedding_scale
        return Layer(weight, layer.bias, layer.norm_weight, layer.norm_bias)


def _select_outputs(layer: Layer, rows: Tensor) -> Layer:
    norm = (layer.norm_weight, layer.norm_bias)
    return Layer(
        layer.weight.index_select(-2, rows),
        layer.bias.index_select(-1, rows),
        *(None if tensor is None else tensor.index_select(-1, rows) for tensor in norm),
    )


def _named(prefix: str, network: Network) -> State:
    """By the names of `flowmbpo.nets.mlp.normed_mlp`."""
    state: State = {}
    for number, layer in enumerate(network):
        name = f"{prefix}{number}."
        if layer.norm_weight is None or layer.norm_bias is None:
            state |= {f"{name}weight": layer.weight, f"{name}bias": layer.bias}
        else:
            state |= {f"{name}linear.weight": layer.weight, f"{name}linear.bias": layer.bias}
            state |= {f"{name}norm.weight": layer.norm_weight, f"{name}norm.bias": layer.norm_bias}
    return {name: tensor.contiguous().clone() for name, tensor in state.items()}


def _fold_normalisation(layer: Layer, statistics: Statistics, obs_dim: int) -> Layer:
    """The layer on o that equals this one on (o - offset) / scale."""
    weight = layer.weight.double()
    columns = weight[:, :obs_dim] / statistics.scale
    bias = layer.bias.double() - columns @ statistics.offset
    folded = torch.cat([columns, weight[:, obs_dim:]], dim=-1)
    return Layer(folded.float(), bias.float(), layer.norm_weight, layer.norm_bias)


def _pwm_parts(model: ForeignModel, axes: _Axes) -> State:
    """Actor, critic and running scales. PWM's actor and critic read z alone: their task columns are 0."""
    assert model.pwm is not None
    state: State = {}
    if model.pwm.actor is not None and model.pwm.logstd is not None:
        state["actor.logstd"] = model.pwm.logstd.clone()
        for number, layer in enumerate(_with_task_columns(model.pwm.actor, axes)):
            place = 3 * number
            state |= {f"actor.mean.{place}.weight": layer.weight, f"actor.mean.{place}.bias": layer.bias}
            if layer.norm_weight is not None and layer.norm_bias is not None:
                state |= {f"actor.mean.{place + 2}.weight": layer.norm_weight}
                state |= {f"actor.mean.{place + 2}.bias": layer.norm_bias}
    for number, layer in enumerate(_with_task_columns(model.pwm.critic, axes)):
        state[f"critic.network.weights.{number}"] = layer.weight.transpose(-1, -2)
        state[f"critic.network.biases.{number}"] = layer.bias.unsqueeze(-2)
        if layer.norm_weight is not None and layer.norm_bias is not None:
            state[f"critic.network.norm_weights.{number}"] = layer.norm_weight.unsqueeze(-2)
            state[f"critic.network.norm_biases.{number}"] = layer.norm_bias.unsqueeze(-2)
    return {name: tensor.contiguous().clone() for name, tensor in state.items()} | _scales(
        model.pwm.reward, model.pwm.returns
    )


def _with_task_columns(network: Network, axes: _Axes) -> Network:
    first = axes.from_latent(network)[0]
    zeros = first.weight.new_zeros(*first.weight.shape[:-1], len(axes.task))
    widened = Layer(torch.cat([first.weight, zeros], dim=-1), first.bias, first.norm_weight, first.norm_bias)
    return (widened, *network[1:])


def _scales(reward: Statistics | None, returns: Statistics | None) -> State:
    """PWM's running statistics as ours: exact moments of rewards, and the spread of returns.

    The square takes in the epsilon that PWM adds to the variance, so that the scales agree exactly.
    """
    state: State = {}
    if reward is not None and reward.seen:
        count = torch.tensor(reward.count, dtype=torch.float64)
        mean, square = _moments(reward)
        prefix = "reward_normalizer.moments."
        state |= {f"{prefix}count": count, f"{prefix}total": count * mean, f"{prefix}total_square": count * square}
    if returns is not None and returns.seen:
        mean, square = _moments(returns)
        state |= {"return_scale.mean": mean.view(1), "return_scale.square": square.view(1)}
        state["return_scale.weight"] = torch.ones((), dtype=torch.float64)
    return state


def _moments(statistics: Statistics) -> tuple[Tensor, Tensor]:
    mean = statistics.offset[0]
    return mean, statistics.scale[0].square() + mean.square()
