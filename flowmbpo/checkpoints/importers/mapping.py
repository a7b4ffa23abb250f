"""A published model as an agent of this project: its config told by the shapes, its weights permuted and renamed.

SimNorm groups are contiguous there and interleaved here (flowmbpo.nets.simnorm), so every latent axis is reordered and
input columns are cut to the task's widths; nothing else of the function changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowmbpo.checkpoints.importers.foreign import (
    BIN_RANGE,
    GROUP,
    ForeignModel,
    Layer,
    Network,
    RunningStatistics,
    hidden_units,
    size_class,
)
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.task import TaskConfig
from flowmbpo.presets.load import experiment_from_dict
from flowmbpo.spec import EnvSpec

State = dict[str, Tensor]

NORM = ("weight", "bias")  # of a LayerNorm, where a layer has one


def imported_config(model: ForeignModel, task: TaskConfig) -> ExperimentConfig:
    """A complete config that builds the imported agent, named `tdmpc2-mt30-48m`: format, task or set, published size.

    Widths come from the shapes, training from PWM's published values (the defaults but for what stands here). Raises
    ConfigError where the shapes allow none.
    """
    size = size_class(model)
    options: dict[str, Any] = {
        "latent_dim": model.latent_dim,
        "simnorm_dim": GROUP,
        "task_dim": model.task_dim,
        "encoder": {"kind": "mlp", "units": hidden_units(model.encoder)},
        "dynamics": {"kind": "mlp", "units": hidden_units(model.dynamics), "geometry": "tangent"},
        "reward": _reward_options(model),
    }
    if model.termination is not None:
        options["termination"] = {"units": hidden_units(model.termination)}
    actor: dict[str, Any] = {"kind": "gaussian", "init_logstd": -1.0, "min_logstd": -1.427}
    if model.actor is not None:
        actor["units"] = hidden_units(model.actor)
    critic: dict[str, Any] = {"units": [400, 200], "ensemble": 3, "reduction": "min"}
    if model.critic is not None:
        critic |= {"units": hidden_units(model.critic), "ensemble": model.critic[0].weight.shape[0]}
    document = {
        "name": "-".join(part for part in (model.format, task.set or task.name, size and size.lower()) if part),
        "phase": "stage-a",
        "description": f"Imported from a {model.format} file.",
        "task": task.model_dump(mode="json"),
        "model": options,
        "actor": actor,
        "critic": critic,
        "training": {
            "gamma": 0.99 if model.critic is not None else "task",
            "actor_input_gradient": "detached",
            "reward_normalization": "none" if model.reward_statistics is None else "standardize",
        },
    }
    return experiment_from_dict(document, f"the shapes of this {model.format} file")


def _reward_options(model: ForeignModel) -> dict[str, Any]:
    units = hidden_units(model.reward)
    if model.bins == 1:
        return {"kind": "scalar", "units": units}
    # PWM's actor and critic are in units of the reward without its symexp.
    decode = "symlog" if model.critic is not None else "symexp"
    low, high = BIN_RANGE
    return {"kind": "two_hot", "units": units, "bins": model.bins, "low": low, "high": high, "decode": decode}


def map_agent(model: ForeignModel, spec: EnvSpec, rows: Sequence[int]) -> State:
    """The agent's tensors that the file holds, for the tasks of `spec`; its other tensors are untrained.

    `rows` are those tasks' rows of the embedding table.
    """
    axes = _Axes(model, spec, rows)
    state: State = {}
    if model.embeddings is not None:
        state["world_model.tasks.embeddings"] = model.embeddings[list(rows)] / axes.embedding_scale
    first = axes.observed(model.encoder[0])
    if model.obs_statistics is not None and model.obs_statistics.seen:
        first = _fold_normalisation(first, model.obs_statistics, spec.obs_dim)
    state |= _named("world_model.encoder.", axes.to_latent((first, *model.encoder[1:])))
    state |= _named("world_model.dynamics.network.", axes.to_latent(axes.from_latent(model.dynamics)))
    state |= _named("world_model.reward_head.network.", axes.from_latent(model.reward))
    if model.termination is not None:
        state |= _named("world_model.termination_head.", axes.from_latent(model.termination))
    return state | _pwm_actor(model, axes) | _pwm_critic(model, axes) | _scales(model)


def map_planner(model: ForeignModel, spec: EnvSpec, rows: Sequence[int]) -> dict[str, Any] | None:
    """The policy prior and the Q functions, for planning; None where the file lacks one of them."""
    if model.pi is None or model.q is None:
        return None
    axes = _Axes(model, spec, rows)
    means = torch.arange(spec.action_dim)
    pi = axes.from_latent(model.pi)
    low, high = model.log_std_bounds
    return {
        "kind": "tdmpc2",
        "pi": _named("", (*pi[:-1], _select_outputs(pi[-1], torch.cat([means, model.action_dim + means])))),
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

    def __init__(self, model: ForeignModel, spec: EnvSpec, rows: Sequence[int]) -> None:
        self.order = torch.arange(model.latent_dim).view(-1, GROUP).T.reshape(-1)  # ours i is their order[i]
        self.task = torch.arange(model.task_dim)
        self.action = torch.arange(spec.action_dim)
        self.obs = torch.arange(spec.obs_dim)
        self.obs_dim = model.obs_dim
        self.embedding_scale = 1.0
        if model.embeddings is not None and not model.capped:
            longest = float(model.embeddings[list(rows)].norm(dim=-1).max())
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

    def with_task_columns(self, network: Network) -> Network:
        """A network on z alone as one on [z, task]: PWM's actor and critic, whose task columns are 0."""
        first, *others = self.from_latent(network)
        zeros = first.weight.new_zeros(*first.weight.shape[:-1], len(self.task))
        return (replace(first, weight=torch.cat([first.weight, zeros], dim=-1)), *others)

    def _columns(self, layer: Layer, columns: Tensor, task_start: int) -> Layer:
        weight = layer.weight.index_select(-1, columns)
        if self.embedding_scale != 1.0:
            weight[..., task_start : task_start + len(self.task)] *= self.embedding_scale
        return replace(layer, weight=weight)


def _select_outputs(layer: Layer, rows: Tensor) -> Layer:
    norm = tuple(tensor.index_select(-1, rows) for tensor in layer.norm)
    return Layer(layer.weight.index_select(-2, rows), layer.bias.index_select(-1, rows), norm)


def _named(prefix: str, network: Network) -> State:
    """By the names of `flowmbpo.nets.mlp.normed_mlp`."""
    state: State = {}
    for number, layer in enumerate(network):
        linear = f"{prefix}{number}.linear." if layer.norm else f"{prefix}{number}."
        state |= {f"{linear}weight": layer.weight, f"{linear}bias": layer.bias}
        state |= {f"{prefix}{number}.norm.{kind}": tensor for kind, tensor in zip(NORM, layer.norm, strict=False)}
    return _copied(state)


def _copied(state: State) -> State:
    return {name: tensor.contiguous().clone() for name, tensor in state.items()}


def _fold_normalisation(layer: Layer, statistics: RunningStatistics, obs_dim: int) -> Layer:
    """The layer on o that equals this one on (o - offset) / scale."""
    weight = layer.weight.double()
    columns = weight[:, :obs_dim] / statistics.scale
    bias = layer.bias.double() - columns @ statistics.offset
    return replace(layer, weight=torch.cat([columns, weight[:, obs_dim:]], dim=-1).float(), bias=bias.float())


def _pwm_actor(model: ForeignModel, axes: _Axes) -> State:
    if model.actor is None or model.logstd is None:
        return {}
    state = {"actor.logstd": model.logstd}
    for number, layer in enumerate(axes.with_task_columns(model.actor)):
        place = 3 * number
        state |= {f"actor.mean.{place}.weight": layer.weight, f"actor.mean.{place}.bias": layer.bias}
        state |= {f"actor.mean.{place + 2}.{kind}": tensor for kind, tensor in zip(NORM, layer.norm, strict=False)}
    return _copied(state)


def _pwm_critic(model: ForeignModel, axes: _Axes) -> State:
    state: State = {}
    for number, layer in enumerate(() if model.critic is None else axes.with_task_columns(model.critic)):
        state[f"critic.network.weights.{number}"] = layer.weight.transpose(-1, -2)
        state[f"critic.network.biases.{number}"] = layer.bias.unsqueeze(-2)
        for kind, tensor in zip(("weights", "biases"), layer.norm, strict=False):
            state[f"critic.network.norm_{kind}.{number}"] = tensor.unsqueeze(-2)
    return _copied(state)


def _scales(model: ForeignModel) -> State:
    """PWM's running statistics as ours: exact moments of rewards, and the spread of returns.

    The square takes in the epsilon that PWM adds to the variance, so that the scales agree exactly.
    """
    state: State = {}
    reward, returns = model.reward_statistics, model.return_statistics
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


def _moments(statistics: RunningStatistics) -> tuple[Tensor, Tensor]:
    mean = statistics.offset[0]
    return mean, statistics.scale[0].square() + mean.square()
