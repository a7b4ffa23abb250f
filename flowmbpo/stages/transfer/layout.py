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

    @property
    def width(self) -> int:
        """Entries of all blocks."""
        return sum(width for _, width in self.blocks)

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


def describe(architecture: Architecture) -> dict[str, PartLayout]:
    """Every part that agents of this architecture may have, by name; the embedding table is no network."""
    units = {"reward_normalization": architecture.reward_normalization}
    parts = (
        _encoder(architecture),
        _dynamics(architecture),
        _reward(architecture, units),
        PartLayout("termination", {}, _reads("termination", "0.linear.weight", _features(architecture))),
        _actor(architecture),
        _critic("critic", architecture, units),
        _critic("target_critic", architecture, units),
        PartLayout("reward_normalizer", units),
        PartLayout("return_scale", units),
    )
    return {part.name: part for part in parts}


def bias_of(weight: str) -> str:
    """The bias beside a weight: `x.bias` of `x.weight`, and a critic's `x.biases.0` of `x.weights.0`."""
    return weight.replace(".weights.", ".biases.").replace(".weight", ".bias")


def _reads(part: str, weight: str, inputs: Blocks) -> dict[str, tuple[Axis, ...]]:
    """Axes of a part's weight that reads `inputs`."""
    return {PREFIXES[part] + weight: (Axis(1, inputs, "zero"),)}


def _encoder(a: Architecture) -> PartLayout:
    encoder = a.model.encoder
    meaning: dict[str, object] = {"latent_dim": a.model.latent_dim, "kind": encoder.kind}
    if not isinstance(encoder, EncoderConfig):  # the observation is the state: no groups, no weights
        return PartLayout("encoder", meaning)
    meaning |= {"simnorm_dim": a.model.simnorm_dim, "units": encoder.units}
    inputs: Blocks = (("obs", a.spec.obs_dim), (TASK, a.model.task_dim))
    return PartLayout("encoder", meaning, _reads("encoder", "0.linear.weight", inputs))


def _dynamics(a: Architecture) -> PartLayout:
    config = a.model.dynamics
    meaning: dict[str, object] = {key: getattr(config, key) for key in ("kind", "geometry", "spectral_norm")}
    inputs: Blocks = (("state", a.model.latent_dim), (TASK, a.model.task_dim), ("action", a.spec.action_dim))
    layer = "network.0.linear"
    if isinstance(config, FlowDynamicsConfig):
        meaning["mode"] = config.mode
        if config.mode == "generative":
            inputs = (*inputs, ("x", a.model.latent_dim))
    if isinstance(config, _ODEDynamicsConfig):
        meaning["tau_features"] = config.tau_features
        inputs = (*inputs, ("tau", tau_width(config.tau_features)))
        layer = "velocity.network.0.linear"
    return PartLayout("dynamics", meaning, _reads("dynamics", f"{layer}.weight", inputs))


def _reward(a: Architecture, units: Mapping[str, object]) -> PartLayout:
    config = a.model.reward
    meaning = {"kind": config.kind, **units}
    if isinstance(config, TwoHotRewardConfig):
        meaning |= {"bins": config.bins, "low": config.low, "high": config.high}
    inputs = (*_features(a), ("action", a.spec.action_dim))
    return PartLayout("reward", meaning, _reads("reward", "network.0.linear.weight", inputs))


def _features(a: Architecture) -> Blocks:
    """[z, task]."""
    return (("z", a.model.latent_dim), (TASK, a.model.task_dim))


def _actor(a: Architecture) -> PartLayout:
    config = a.actor
    meaning: dict[str, object] = {"kind": config.kind}
    actions = Axis(0, (("action", a.spec.action_dim),), "fresh")
    inputs, network, noise = _features(a), "mean", "logstd"
    if isinstance(config, FlowActorConfig):
        inputs, network, noise = (*inputs, ("action", a.spec.action_dim), ("tau", 1)), "velocity", "log_noise_std"
        meaning["linear_start"] = config.linear_start
    head = 3 * len(config.units)  # Linear, Mish and LayerNorm per hidden layer
    axes = _reads("actor", f"{network}.0.weight", inputs)
    outputs = [f"{network}.{head}.weight", f"{network}.{head}.bias", noise]
    if isinstance(config, FlowActorConfig) and config.linear_start:
        axes |= _reads("actor", "start.weight", _features(a))
        outputs += ["start.weight", "start.bias"]
    for name in outputs:
        axes[PREFIXES["actor"] + name] = (*axes.get(PREFIXES["actor"] + name, ()), actions)
    return PartLayout("actor", meaning, axes)


def _critic(name: str, a: Architecture, units: Mapping[str, object]) -> PartLayout:
    reward = a.model.reward
    symlog = isinstance(reward, TwoHotRewardConfig) and reward.decode == "symlog"
    meaning = {"ensemble": a.critic.ensemble, **units, "rewards in": "symlog" if symlog else "their own units"}
    return PartLayout(name, meaning, _reads(name, "network.weights.0", _features(a)))
