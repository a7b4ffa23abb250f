"""Which axes of an agent's tensors follow its tasks, and what must agree for the rest to mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from flowmbpo.config.actors import FlowActorConfig
from flowmbpo.config.dynamics import FlowDynamicsConfig, _ODEDynamicsConfig
from flowmbpo.config.model import EncoderConfig, TwoHotRewardConfig
from flowmbpo.flows.paths import tau_width
from flowmbpo.stages.transfer.source import Architecture

Action = Literal["loaded", "adapted", "reinitialised", "dropped"]
TASK = "task"  # the block of the task embedding
EMBEDDING = "task_embedding"
PREFIXES = {
    EMBEDDING: "world_model.tasks.",
    "encoder": "world_model.encoder.",
    "dynamics": "world_model.dynamics.",
    "reward": "world_model.reward_head.",
    "termination": "world_model.termination_head.",
    "decoder": "world_model.decoder.",
    "actor": "actor.",
    "critic": "critic.",
    "target_critic": "target_critic.",
    "reward_normalizer": "reward_normalizer.",
    "return_scale": "return_scale.",
}
PARTS = tuple(PREFIXES)

Blocks = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class TakenTensor:
    """The target's new tensor, where it comes from, what was changed, and how many of its entries are the source's."""

    tensor: Tensor
    action: Action
    detail: str = ""
    copied: int = 0


@dataclass(frozen=True)
class Axis:
    """An axis made of named blocks, in their order.

    `fill` says what an entry starts as that the source lacks: `zero` (an input that changes nothing until it is
    learnt) or `fresh` (an output, as the target was initialised).
    """

    dim: int
    blocks: Blocks
    fill: Literal["zero", "fresh"]

    def place(self, block: str) -> tuple[int, int]:
        """First entry and width of a block; width 0 where there is none."""
        start = 0
        for name, width in self.blocks:
            if name == block:
                return start, width
            start += width
        return start, 0


@dataclass(frozen=True)
class PartLayout:
    """A part of an agent: what its weights mean (config keys and values), and its tensors' axes, by full name."""

    name: str
    meaning: Mapping[str, object] = field(default_factory=dict)
    axes: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)

    @property
    def first_weights(self) -> list[str]:
        """The weights that read inputs, the task embedding among them."""
        return [name for name, axes in self.axes.items() if axes[0].fill == "zero"]


def bias_of(weight: str) -> str:
    """The bias beside a weight: `x.bias` of `x.weight`, and a critic's `x.biases.0` of `x.weights.0`."""
    return weight.replace(".weights.", ".biases.").replace(".weight", ".bias")


def describe(a: Architecture) -> dict[str, PartLayout]:
    """Every part that agents of this architecture may have, by name; the embedding table is no network."""
    reward, units = a.model.reward, {"reward_normalization": a.reward_normalization}
    meaning: dict[str, object] = {"kind": reward.kind, "activation": a.model.activation, **units}
    if isinstance(reward, TwoHotRewardConfig):
        meaning |= {"bins": reward.bins, "low": reward.low, "high": reward.high}
    symlog = isinstance(reward, TwoHotRewardConfig) and reward.decode == "symlog"
    returns: dict[str, object] = {"ensemble": a.critic.ensemble, "activation": a.critic.activation, **units}
    returns |= {"rewards in": "symlog" if symlog else "their own units"}
    returns |= {"bins": a.critic.bins, "symlog_range": a.critic.symlog_range}
    features = _features(a)
    parts = (
        _encoder(a),
        _dynamics(a),
        _reader("reward", meaning, "network.0.linear.weight", *features, ("action", a.spec.action_dim)),
        _reader("termination", {"activation": a.model.activation}, "0.linear.weight", *features),
        _decoder(a),
        _actor(a),
        _reader("critic", returns, "network.weights.0", *features),
        _reader("target_critic", returns, "network.weights.0", *features),
        PartLayout("reward_normalizer", units),
        PartLayout("return_scale", units),
    )
    return {part.name: part for part in parts}


def _features(a: Architecture) -> Blocks:
    return (("z", a.model.latent_dim), (TASK, a.model.task_dim))


def _reader(name: str, meaning: Mapping[str, object], weight: str, *inputs: tuple[str, int]) -> PartLayout:
    return PartLayout(name, meaning, {PREFIXES[name] + weight: (Axis(1, inputs, "zero"),)})


def _encoder(a: Architecture) -> PartLayout:
    encoder = a.model.encoder
    meaning: dict[str, object] = {"latent_dim": a.model.latent_dim, "kind": encoder.kind}
    normalizes, obs = encoder.normalize_steps > 0, ("obs", a.spec.obs_dim)
    meaning["normalizes"] = normalizes
    axes = {}
    if normalizes:
        statistics = ("count", "total", "total_square")
        axes = {f"{PREFIXES['encoder']}normalizer.{name}": (Axis(0, (obs,), "fresh"),) for name in statistics}
    if not isinstance(encoder, EncoderConfig):  # the observation is the state: no groups, no weights
        return PartLayout("encoder", meaning, axes)
    meaning |= {"simnorm_dim": a.model.simnorm_dim, "units": encoder.units, "activation": a.model.activation}
    weight = f"{PREFIXES['encoder']}{'encoder.' if normalizes else ''}0.linear.weight"
    return PartLayout("encoder", meaning, axes | {weight: (Axis(1, (obs, (TASK, a.model.task_dim)), "zero"),)})


def _decoder(a: Architecture) -> PartLayout:
    config, obs = a.model.decoder, ("obs", a.spec.obs_dim)
    if config is None:
        return PartLayout("decoder", {})
    first = f"{PREFIXES['decoder']}0.linear.weight"
    head = f"{PREFIXES['decoder']}{len(config.units)}."
    axes = {head + name: (Axis(0, (obs,), "fresh"),) for name in ("weight", "bias")}
    return PartLayout(
        "decoder",
        {"units": config.units, "activation": a.model.activation},
        axes | {first: (Axis(1, _features(a), "zero"),)},
    )


def _dynamics(a: Architecture) -> PartLayout:
    config = a.model.dynamics
    meaning: dict[str, object] = {key: getattr(config, key) for key in ("kind", "geometry", "spectral_norm")}
    meaning["activation"] = a.model.activation
    inputs: Blocks = (("state", a.model.latent_dim), (TASK, a.model.task_dim), ("action", a.spec.action_dim))
    weight = "network.0.linear.weight"
    if isinstance(config, FlowDynamicsConfig):
        meaning["mode"] = config.mode
        if config.mode == "generative":
            inputs = (*inputs, ("x", a.model.latent_dim))
    if isinstance(config, _ODEDynamicsConfig):
        meaning["tau_features"] = config.tau_features
        inputs = (*inputs, ("tau", tau_width(config.tau_features)))
        weight = f"velocity.{weight}"
    return _reader("dynamics", meaning, weight, *inputs)


def _actor(a: Architecture) -> PartLayout:
    config = a.actor
    meaning: dict[str, object] = {"kind": config.kind, "activation": config.activation}
    action = ("action", a.spec.action_dim)
    inputs, network, outputs = _features(a), "mean", ["logstd"]
    axes: dict[str, tuple[Axis, ...]] = {}
    if isinstance(config, FlowActorConfig):
        inputs, network, outputs = (*inputs, action, ("tau", 1)), "velocity", ["log_noise_std"]
        meaning["linear_start"] = config.linear_start
        if config.linear_start:
            axes = {"start.weight": (Axis(1, _features(a), "zero"),)}
            outputs += ["start.weight", "start.bias"]
    head = 3 * len(config.units)  # Linear, activation and LayerNorm per hidden layer
    axes[f"{network}.0.weight"] = (Axis(1, inputs, "zero"),)
    for name in (f"{network}.{head}.weight", f"{network}.{head}.bias", *outputs):
        axes[name] = (*axes.get(name, ()), Axis(0, (action,), "fresh"))
    return PartLayout("actor", meaning, {PREFIXES["actor"] + name: axis for name, axis in axes.items()})
