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
from torch.nn import functional

from flowmbpo.checkpoints.importers.foreign import (
    GROUP,
    HIGH,
    LOW,
    ForeignModel,
    Layer,
    Network,
    hidden_units,
    size_class,
)
from flowmbpo.checkpoints.importers.layouts import NEWT
from flowmbpo.config.experiment import ExperimentConfig
from flowmbpo.config.task import TaskConfig
from flowmbpo.presets.load import experiment_from_dict
from flowmbpo.spec import EnvSpec

State = dict[str, Tensor]

KINDS = ("weight", "bias")
_PREFIXES = {
    "encoder": "world_model.encoder.",
    "dynamics": "world_model.dynamics.network.",
    "reward": "world_model.reward_head.network.",
    "termination": "world_model.termination_head.",
}


def imported_config(model: ForeignModel, task: TaskConfig) -> ExperimentConfig:
    """A complete config that builds the imported agent, named `tdmpc2-mt30-48m`: format, task or set, published size.

    Widths come from the shapes, training from PWM's published values (the defaults but for what stands here). Raises
    ConfigError where the shapes allow none.
    """
    size = size_class(model)
    units = {part: hidden_units(network) for part, network in model.networks.items()}
    critics = model.networks.get("critic")
    reward: dict[str, Any] = {"kind": "scalar", "units": units["reward"]}
    if model.bins != 1:
        # PWM's actor and critic are in units of the reward without its symexp.
        decode = "symexp" if critics is None else "symlog"
        reward |= {"kind": "two_hot", "bins": model.bins, "low": LOW, "high": HIGH, "decode": decode}
    document = {
        "name": "-".join(part for part in (model.format, task.set or task.name, size and size.lower()) if part),
        "phase": "stage-a",
        "description": f"Imported from a {model.format} file.",
        "task": task.model_dump(mode="json"),
        "model": {
            "latent_dim": model.latent_dim,
            "simnorm_dim": GROUP,
            "task_dim": model.task_dim,
            "encoder": {"kind": "mlp", "units": units["encoder"]},
            "dynamics": {"kind": "mlp", "units": units["dynamics"], "geometry": "tangent"},
            "reward": reward,
            **({"termination": {"units": units["termination"]}} if "termination" in units else {}),
        },
        "actor": {
            **{"kind": "gaussian", "init_logstd": -1.0, "min_logstd": -1.427},
            **({"units": units["actor"]} if "actor" in units else {}),
        },
        "critic": {
            "units": units.get("critic", [400, 200]),
            "ensemble": 3 if critics is None else critics[0].weight.shape[0],
            "reduction": "min",
        },
        "training": {
            "gamma": "task" if critics is None else 0.99,
            "actor_input_gradient": "detached",
            "reward_normalization": "standardize" if "rew_rms" in model.statistics else "none",
        },
    }
    return experiment_from_dict(document, f"the shapes of this {model.format} file")


def map_weights(model: ForeignModel, spec: EnvSpec, rows: Sequence[int]) -> tuple[State, dict[str, Any] | None]:
    """The agent's tensors that the file holds, for the tasks of `spec` (others are untrained), and its planner's.

    `rows` are those tasks' rows of the embedding table. The planner is None where the file lacks the policy prior or
    the Q functions.
    """
    table, scale = None, 1.0
    if model.embeddings is not None:
        table = model.embeddings[list(rows)]
        # Embeddings that lookups do not cap are divided by a power of two which their columns are multiplied by: the
        # task table here scales longer ones down, and this leaves it nothing to scale.
        if model.format == NEWT:
            scale = 2.0 ** math.ceil(math.log2(max(float(table.norm(dim=-1).max()), 1.0)))
    networks = _on_our_axes(model, spec, scale)
    observed = model.seen("obs_rms")
    if observed is not None:
        # The first layer on o that equals it on (o - offset) / scale.
        first, *others = networks["encoder"]
        weight = first.weight.double()
        columns = weight[:, : spec.obs_dim] / observed.scale
        bias = first.bias.double() - columns @ observed.offset
        weight = torch.cat([columns, weight[:, spec.obs_dim :]], dim=-1)
        networks["encoder"] = (replace(first, weight=weight.float(), bias=bias.float()), *others)
    state = _scales(model)
    if table is not None:
        state["world_model.tasks.embeddings"] = table / scale
    for part, prefix in _PREFIXES.items():
        state |= _named(prefix, networks.get(part, ()))
    if model.logstd is not None:
        state |= _copied(["actor.logstd"], [model.logstd])
    for number, layer in enumerate(networks.get("actor", ())):  # its LayerNorms stand behind the activation
        places = (f"actor.mean.{3 * number + place}.{kind}" for place in (0, 2) for kind in KINDS)
        state |= _copied(places, layer.tensors)
    for number, layer in enumerate(networks.get("critic", ())):  # transposed for batched products
        names = (f"critic.network.{kind}.{number}" for kind in ("weights", "biases", "norm_weights", "norm_biases"))
        vectors = (tensor.unsqueeze(-2) for tensor in layer.tensors[1:])
        state |= _copied(names, (layer.weight.transpose(-1, -2), *vectors))
    if not {"policy_prior", "q_functions"} <= networks.keys():
        return state, None
    low, high = model.log_std_bounds
    return state, {
        "kind": "tdmpc2",
        "pi": _named("", networks["policy_prior"]),
        "q": _named("", networks["q_functions"]),
        "log_std_min": low,
        "log_std_max": high,
        "bins": model.bins,
        "low": LOW,
        "high": HIGH,
    }


def _on_our_axes(model: ForeignModel, spec: EnvSpec, scale: float) -> dict[str, Network]:
    """The networks with latents in our order, inputs and actions cut to the tasks', and task columns times `scale`.

    Inputs are [obs, task] or [z], [z, task], [z, task, action]. PWM's actor and critic read z alone: here they get task
    columns that are 0.
    """
    z, e = model.latent_dim, model.task_dim
    order = torch.arange(z).view(-1, GROUP).T.reshape(-1)  # ours i is their order[i]
    obs, task, action = (torch.arange(width) for width in (spec.obs_dim, e, spec.action_dim))
    outputs = {"encoder": order, "dynamics": order, "policy_prior": torch.cat([action, model.action_dim + action])}
    networks = {}
    for part, network in model.networks.items():
        first, start = network[0], z
        columns = torch.cat([order, z + task, z + e + action])
        if part == "encoder":
            columns, start = torch.cat([obs, model.obs_dim + task]), len(obs)
        weight = first.weight.index_select(-1, columns[columns < first.inputs])
        weight[..., start : start + e] *= scale
        if part in ("actor", "critic"):
            weight = functional.pad(weight, (0, e))
        layers = [replace(first, weight=weight), *network[1:]]
        if part in outputs:
            rows, last = outputs[part], layers[-1]
            bias, *norm = (tensor.index_select(-1, rows) for tensor in last.tensors[1:])
            layers[-1] = Layer(last.weight.index_select(-2, rows), bias, tuple(norm))
        networks[part] = tuple(layers)
    return networks


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


def _scales(model: ForeignModel) -> State:
    """PWM's running statistics as ours: exact moments of rewards, and the spread of returns.

    The square takes in the epsilon that PWM adds to the variance, so that the scales agree exactly.
    """
    state: State = {}
    reward, returns = model.seen("rew_rms"), model.seen("ret_rms")
    if reward is not None:
        count, mean = torch.tensor(reward.count, dtype=torch.float64), reward.offset[0]
        square = reward.scale[0].square() + mean.square()
        for name, total in (("count", count), ("total", count * mean), ("total_square", count * square)):
            state[f"reward_normalizer.moments.{name}"] = total
    if returns is not None:
        state["return_scale.mean"] = returns.offset
        state["return_scale.square"] = returns.scale.square() + returns.offset.square()
        state["return_scale.weight"] = torch.ones((), dtype=torch.float64)
    return state
