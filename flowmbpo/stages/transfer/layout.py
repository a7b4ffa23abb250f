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
    """A part of an agent: what its weights mean (config keys and values), and its tensors' axes, by full name.

    `biases` gives the bias beside each weight that reads the task embedding.
    """

    name: str
    meaning: Mapping[str, object] = field(default_factory=dict)
    axes: Mapping[str, tuple[Axis, ...]] = field(default_factory=dict)
    biases: Mapping[str, str] = field(default_factory=dict)


def describe(architecture: Architecture) -> dict[str, PartLayout]:
    """Every part that agents of this architecture may have, by name; the embedding table is no network."""
    units = {"reward_normalization": architecture.reward_normalization}
    parts = (
        _encoder(architecture),
        _dynamics(architecture),
        _reward(architecture, units),
        PartLayout("termination", {}, *_reads("termination", "0.linear", _features(architecture))),
        _actor(architecture),
        _critic("critic", architecture, units),
        _critic("target_critic", architecture, units),
        PartLayout("reward_normalizer", units),
        PartLayout("return_scale", units),
    )
    return {part.name: part for part in parts}


def _reads(part: str, layer: str, inputs: Blocks) -> tuple[dict[str, tuple[Axis, ...]], dict[str, str]]:
    """Axes and bias of a part's Linear that reads `inputs`."""
    linear = PREFIXES[part] + layer
    return {f"{linear}.weight": (Axis(1, inputs, "zero"),)}, {f"{linear}.weight": f"{linear}.bias"}


def _encoder(a: Architecture) -> PartLayout:
    encoder = a.model.encoder
    meaning: dict[str, object] = {"latent_dim": a.model.latent_dim, "kind": encoder.kind}
    if not isinstance(encoder, EncoderConfig):  # the observation is the state: no groups, no weights
        return PartLayout("encoder", meaning)
    meaning |= {"simnorm_dim": a.model.simnorm_dim, "units": encoder.units}
    inputs: Blocks = (("obs", a.spec.obs_dim), (TASK, a.model.task_dim))
    return PartLayout("encoder", meaning, *_reads("encoder", "0.linear", inputs))


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
    return PartLayout("dynamics", meaning, *_reads("dynamics", layer, inputs))


def _reward(a: Architecture, units: Mapping[str, object]) -> PartLayout:
    config = a.model.reward
    meaning = {"kind": config.kind, **units}
    if isinstance(config, TwoHotRewardConfig):
        meaning |= {"bins": config.bins, "low": config.low, "high": config.high}
    inputs = (*_features(a), ("action", a.spec.action_dim))
    return PartLayout("reward", meaning, *_reads("reward", "network.0.linear", inputs))


def _features(a: Architecture) -> Blocks:
    """[z, task]."""
    return (("z", a.model.latent_dim), (TASK, a.model.task_dim))


def _actor(a: Architecture) -> PartLayout:
    config, prefix = a.actor, PREFIXES["actor"]
    meaning: dict[str, object] = {"kind": config.kind}
    actions = Axis(0, (("action", a.spec.action_dim),), "fresh")
    head = 3 * len(config.units)  # Linear, Mish and LayerNorm per hidden layer
    if not isinstance(config, FlowActorConfig):
        axes, biases = _reads("actor", "mean.0", _features(a))
        outputs = (f"mean.{head}.weight", f"mean.{head}.bias", "logstd")
        return PartLayout("actor", meaning, axes | {prefix + name: (actions,) for name in outputs}, biases)
    meaning["linear_start"] = config.linear_start
    inputs: Blocks = (*_features(a), ("action", a.spec.action_dim), ("tau", 1))
    axes, biases = _reads("actor", "velocity.0", inputs)
    outputs = (f"velocity.{head}.weight", f"velocity.{head}.bias", "log_noise_std")
    axes |= {prefix + name: (actions,) for name in outputs}
    if config.linear_start:
        start, start_bias = _reads("actor", "start", _features(a))
        weight = f"{prefix}start.weight"
        axes |= {weight: (*start[weight], actions), f"{prefix}start.bias": (actions,)}
        biases |= start_bias
    return PartLayout("actor", meaning, axes, biases)


def _critic(name: str, a: Architecture, units: Mapping[str, object]) -> PartLayout:
    reward = a.model.reward
    symlog = isinstance(reward, TwoHotRewardConfig) and reward.decode == "symlog"
    meaning = {"ensemble": a.critic.ensemble, **units, "rewards in": "symlog" if symlog else "their own units"}
    weight, bias = (f"{PREFIXES[name]}network.{tensor}.0" for tensor in ("weights", "biases"))
    return PartLayout(name, meaning, {weight: (Axis(1, _features(a), "zero"),)}, {weight: bias})
