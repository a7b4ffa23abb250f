"""A published model as an agent of this project: its config told by the shapes, its weights permuted and renamed.

SimNorm groups are contiguous there and interleaved here (flowmbpo.nets.simnorm), so every latent axis is reordered and
input columns are cut to the task's widths; nothing else of the function changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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

KINDS = ("weight", "bias")


def imported_config(model: ForeignModel, task: TaskConfig) -> ExperimentConfig:
    """A complete config that builds the imported agent, named `tdmpc2-mt30-48m`: format, task or set, published size.

    Widths come from the shapes, training from PWM's published values (the defaults but for what stands here). Raises
    ConfigError where the shapes allow none.
    """
    size = size_class(model)
    units = {part: hidden_units(network) for part, network in model.networks.items()}
    options: dict[str, Any] = {
        "latent_dim": model.latent_dim,
        "simnorm_dim": GROUP,
        "task_dim": model.task_dim,
        "encoder": {"kind": "mlp", "units": units["encoder"]},
        "dynamics": {"kind": "mlp", "units": units["dynamics"], "geometry": "tangent"},
        "reward": {"kind": "scalar", "units": units["reward"]},
    }
    critics = model.networks.get("critic")
    if model.bins != 1:
        low, high = BIN_RANGE
        # PWM's actor and critic are in units of the reward without its symexp.
        decode = "symexp" if critics is None else "symlog"
        options["reward"] |= {"kind": "two_hot", "bins": model.bins, "low": low, "high": high, "decode": decode}
    if "termination" in units:
        options["termination"] = {"units": units["termination"]}
    actor: dict[str, Any] = {"kind": "gaussian", "init_logstd": -1.0, "min_logstd": -1.427}
    if "actor" in units:
        actor["units"] = units["actor"]
    ensemble = 3 if critics is None else critics[0].weight.shape[0]
    document = {
        "name": "-".join(part for part in (model.format, task.set or task.name, size and size.lower()) if part),
        "phase": "stage-a",
        "description": f"Imported from a {model.format} file.",
        "task": task.model_dump(mode="json"),
        "model": options,
        "actor": actor,
        "critic": {"units": units.get("critic", [400, 200]), "ensemble": ensemble, "reduction": "min"},
        "training": {
            "gamma": "task" if critics is None else 0.99,
            "actor_input_gradient": "detached",
            "reward_normalization": "standardize" if "rew_rms" in model.statistics else "none",
        },
    }
    return experiment_from_dict(document, f"the shapes of this {model.format} file")


def map_agent(model: ForeignModel, spec: EnvSpec, rows: Sequence[int]) -> State:
    """The agent's tensors that the file holds, for the tasks of `spec`; its other tensors are untrained.

    `rows` are those tasks' rows of the embedding table.
    """
    axes = _Axes(model, spec, rows)
    state: State = {}
    if model.embeddings is not None:
        state["world_model.tasks.embeddings"] = model.embeddings[list(rows)] / axes.embedding_scale
    networks, observed = model.networks, model.statistics.get("obs_rms")
    first = axes.observed(networks["encoder"][0])
    if observed is not None and observed.seen:
        first = _fold_normalisation(first, observed, spec.obs_dim)
    state |= _named("world_model.encoder.", axes.to_latent((first, *networks["encoder"][1:])))
    state |= _named("world_model.dynamics.network.", axes.to_latent(axes.from_latent(networks["dynamics"])))
    state |= _named("world_model.reward_head.network.", axes.from_latent(networks["reward"]))
    if "termination" in networks:
        state |= _named("world_model.termination_head.", axes.from_latent(networks["termination"]))
    return state | _pwm_networks(model, axes) | _scales(model)


def map_planner(model: ForeignModel, spec: EnvSpec, rows: Sequence[int]) -> dict[str, Any] | None:
    """The policy prior and the Q functions, for planning; None where the file lacks one of them."""
    if not {"policy_prior", "q_functions"} <= model.networks.keys():
        return None
    axes = _Axes(model, spec, rows)
    means = torch.arange(spec.action_dim)
    pi = axes.from_latent(model.networks["policy_prior"])
    low, high = model.log_std_bounds
    return {
        "kind": "tdmpc2",
        "pi": _named("", (*pi[:-1], _select_outputs(pi[-1], torch.cat([means, model.action_dim + means])))),
        "q": _named("", axes.from_latent(model.networks["q_functions"])),
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

    def with_task_columns(self, network: Network | None) -> Network:
        """A network on z alone as one on [z, task]: PWM's actor and critic, whose task columns are 0."""
        if network is None:
            return ()
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
        names = (*(f"{linear}{kind}" for kind in KINDS), *(f"{prefix}{number}.norm.{kind}" for kind in KINDS))
        state |= _copied(names, layer.tensors)
    return state


def _copied(names: Iterable[str], tensors: Iterable[Tensor]) -> State:
    """Copies under these names; a layer without a LayerNorm has tensors for the first two alone."""
    return {name: tensor.contiguous().clone() for name, tensor in zip(names, tensors, strict=False)}


def _fold_normalisation(layer: Layer, statistics: RunningStatistics, obs_dim: int) -> Layer:
    """The layer on o that equals this one on (o - offset) / scale."""
    weight = layer.weight.double()
    columns = weight[:, :obs_dim] / statistics.scale
    bias = layer.bias.double() - columns @ statistics.offset
    return replace(layer, weight=torch.cat([columns, weight[:, obs_dim:]], dim=-1).float(), bias=bias.float())


def _pwm_networks(model: ForeignModel, axes: _Axes) -> State:
    """PWM's actor, whose LayerNorms stand behind the activation, and its critics, transposed for batched products."""
    state: State = {}
    if model.logstd is not None:
        state |= _copied(["actor.logstd"], [model.logstd])
    for number, layer in enumerate(axes.with_task_columns(model.networks.get("actor"))):
        places = (f"actor.mean.{3 * number + place}.{kind}" for place in (0, 2) for kind in KINDS)
        state |= _copied(places, layer.tensors)
    for number, layer in enumerate(axes.with_task_columns(model.networks.get("critic"))):
        names = (f"critic.network.{kind}.{number}" for kind in ("weights", "biases", "norm_weights", "norm_biases"))
        rows = (tensor.unsqueeze(-2) for tensor in layer.tensors[1:])
        state |= _copied(names, (layer.weight.transpose(-1, -2), *rows))
    return state


def _scales(model: ForeignModel) -> State:
    """PWM's running statistics as ours: exact moments of rewards, and the spread of returns.

    The square takes in the epsilon that PWM adds to the variance, so that the scales agree exactly.
    """
    state: State = {}
    reward, returns = (model.statistics.get(name) for name in ("rew_rms", "ret_rms"))
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
