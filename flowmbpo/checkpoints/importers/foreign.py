"""A published model's weights in one form, whatever file they came from; how they are taken out of it, and checked.

Axes are theirs: weights [out, in] (an ensemble's [N, out, in]), latent groups contiguous, inputs
ordered [obs, task] and [z, task, action]. Messages name the tensor that does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowmbpo.errors import CheckpointError

GROUP = 8  # SimNorm's, in every published model; a file does not store it
LOW, HIGH = -10.0, 10.0  # bins of the two-hot heads, in every published model; not stored either
LOG_STD_BOUNDS = (-10.0, 2.0)  # TD-MPC2's, where a file does not store them
LAYER_TENSORS = ("weight", "bias", "ln.weight", "ln.bias")

# (first encoder width, width of the other networks, encoder layers): latent widths differ by task set.
_SIZES = {
    (256, 384, 2): "1M",
    (256, 512, 2): "5M",
    (1024, 1024, 3): "19M",
    (1792, 1792, 4): "48M",
    (4096, 4096, 5): "317M",
    (128, 256, 2): "S",
    (2048, 2048, 4): "XL",
}
_NEWT_SIZES = {(256, 512, 2): "B", (1024, 1024, 3): "L"}


@dataclass(frozen=True)
class Layer:
    """A linear layer, and weight and bias of the LayerNorm that goes with it where there is one."""

    weight: Tensor
    bias: Tensor
    norm: tuple[Tensor, ...] = ()

    @property
    def inputs(self) -> int:
        """Input width."""
        return self.weight.shape[-1]

    @property
    def outputs(self) -> int:
        """Output width."""
        return self.weight.shape[-2]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, the weight first."""
        return (self.weight, self.bias, *self.norm)


Network = tuple[Layer, ...]


@dataclass(frozen=True)
class RunningStatistics:
    """What PWM subtracts and divides by, flat, in double precision, from `count` samples (it starts from 1e-4)."""

    offset: Tensor
    scale: Tensor
    count: float


@dataclass
class ForeignModel:
    """Weights of one file: its networks by part, TD-MPC2's (see `layouts.PARTS`) or PWM's; and what their shapes say.

    `embeddings` [tasks, E]: lookups scale them down to norm 1, but for Newt's. PWM's own are the actor (activation
    before LayerNorm) with its `logstd`, the critic, which is always there, and running `statistics` by its names.
    """

    format: str
    networks: dict[str, Network]
    embeddings: Tensor | None
    action_masks: Tensor | None = None
    log_std_bounds: tuple[float, float] = LOG_STD_BOUNDS
    logstd: Tensor | None = None
    statistics: dict[str, RunningStatistics] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises CheckpointError where the embeddings are no table, or the parts do not fit each other."""
        networks, table = self.networks, self.embeddings
        if table is not None and (table.ndim != 2 or 0 in table.shape):
            raise CheckpointError(f"_task_emb.weight: is {tuple(table.shape)}, a matrix is needed")
        self.tasks, self.task_dim = (1, 0) if table is None else table.shape
        self.latent_dim = networks["encoder"][-1].outputs
        self.obs_dim = networks["encoder"][0].inputs - self.task_dim
        self.action_dim = networks["dynamics"][0].inputs - self.latent_dim - self.task_dim
        self.bins = networks["reward"][-1].outputs
        if min(len(networks[name]) for name in ("encoder", "dynamics", "reward")) < 2:
            raise CheckpointError("encoder, dynamics and reward need a hidden layer each: another architecture")
        z, e, a = self.latent_dim, self.task_dim, self.action_dim
        if self.obs_dim < 1 or a < 1 or z % GROUP:
            raise CheckpointError(
                f"the shapes leave {self.obs_dim} observations, {a} actions and a latent of {z}, which must be a "
                f"multiple of {GROUP}: another architecture"
            )
        for part, whose, inputs, outputs in (
            ("dynamics", "_dynamics's", z + e + a, z),
            ("reward", "_reward's", z + e + a, self.bins),
            ("termination", "_termination's", z + e, 1),
            ("policy_prior", "_pi's", z + e, 2 * a),
            ("q_functions", "_Qs'", z + e + a, self.bins),
            ("actor", "the actor's", z, a),
            ("critic", "the critic's", z, 1),
        ):
            held = (networks[part][0].inputs, networks[part][-1].outputs) if part in networks else (inputs, outputs)
            for what, width, needed in zip(("input", "output"), held, (inputs, outputs), strict=True):
                if width != needed:
                    raise CheckpointError(
                        f"{whose} {what} is {width} wide where other shapes ask for {needed}: another architecture"
                    )
        if self.bins == 2 or (self.bins == 1 and "critic" not in networks):
            raise CheckpointError(
                f"_reward: has {self.bins} outputs, and a file does not say how they are decoded; 101 bins (and PWM's "
                "single output) are known"
            )

    def seen(self, name: str) -> RunningStatistics | None:
        """The running statistics of this name, if any data went into them."""
        held = self.statistics.get(name)
        return held if held is not None and held.count >= 1.0 else None


def hidden_units(network: Network) -> list[int]:
    """Widths of all layers but the last."""
    return [layer.outputs for layer in network[:-1]]


def size_class(model: ForeignModel) -> str | None:
    """TD-MPC2's size (`48M`), Newt's (`B`), or None for a model of other widths."""
    encoder, dynamics = model.networks["encoder"], model.networks["dynamics"]
    widths = (hidden_units(encoder)[0], hidden_units(dynamics)[0], len(encoder))
    return (_SIZES | (_NEWT_SIZES if model.format == "newt" else {})).get(widths)


def part_parameters(model: ForeignModel) -> dict[str, int]:
    """Learnable scalars by part; `total` as TD-MPC2 counts them (no copies of the Q functions)."""
    counts = {}
    for name, network in model.networks.items():
        counts[name] = sum(tensor.numel() for layer in network for tensor in layer.tensors)
        if name == "reward" and model.embeddings is not None:
            counts["task_embedding"] = model.embeddings.numel()
    if model.logstd is not None:
        counts["actor"] += model.logstd.numel()
    return counts | {"total": sum(counts.values())}


def plain_tensors(state: object, part: str) -> dict[str, Tensor]:
    """The entries that hold numbers, by names without torch's `module.` prefix.

    TD-MPC2's current files also hold tensors without storage, sizes and devices: bookkeeping of tensordict.
    Raises CheckpointError, naming the file's `part`, on another thing than a state dict, and on keys that are no names.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{part}: is a {type(state).__name__}, not a state dict")
    tensors = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise CheckpointError(
                f"{part}: has the key {name!r:.60} ({type(name).__name__}), where names of tensors are needed: another "
                "kind of file"
            )
        if isinstance(value, Tensor) and not value.is_meta:
            tensors[name.removeprefix("module.")] = value
    return tensors


def take_network(state: dict[str, Tensor], prefix: str, *, normed_output: bool, ensemble: bool = False) -> Network:
    """Remove the layers `{prefix}{i}.weight, .bias, .ln.weight, .ln.bias` from `state`.

    Every layer but the last has a LayerNorm; the last has one where `normed_output`. The tensors of an `ensemble`
    have its axis ahead. Raises CheckpointError where tensors are missing, do not fit each other, or are not finite.
    """
    found = {name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)}
    last = len(found) - 1
    if not found or found != set(map(str, range(len(found)))):
        held = ", ".join(sorted(found)) or "none"
        raise CheckpointError(f"{prefix}*: holds layers {held:.80}, not 0, 1, 2, ...: another architecture")
    needed = "[members, out, in]" if ensemble else "[out, in]"
    layers: list[Layer] = []
    for number in range(len(found)):
        where, count = f"{prefix}{number}", 4 if normed_output or number < last else 2
        names = [f"{where}.{name}" for name in LAYER_TENSORS[:count]]
        weight, bias, *norm = (finite(name, take(state, name)) for name in names)
        layers.append(Layer(weight, bias, tuple(norm)))
        shape, first = tuple(weight.shape), layers[0].weight.shape
        if len(shape) != (3 if ensemble else 2) or 0 in shape or shape[:-2] != first[:-2]:
            raise CheckpointError(f"{where}.weight: is {shape}, {needed} is needed: another architecture")
        for tensor in (bias, *norm):
            if tuple(tensor.shape) != shape[:-1]:
                raise CheckpointError(
                    f"{where}: a tensor is {tuple(tensor.shape)} beside a weight of {shape}; {shape[:-1]} is needed: "
                    "another architecture"
                )
        if number and layers[-2].outputs != layers[-1].inputs:
            raise CheckpointError(
                f"{where}.weight: has {shape[-1]} inputs, but the layer before it {layers[-2].outputs} outputs: "
                "another architecture"
            )
    return tuple(layers)


def finite(name: str, tensor: object) -> Tensor:
    """`tensor` as float32. Raises CheckpointError where it is not finite or no dense tensor of numbers."""
    if not isinstance(tensor, Tensor):
        raise CheckpointError(f"{name}: is a {type(tensor).__name__}, where a tensor is needed")
    if tensor.is_meta or not tensor.is_floating_point() or tensor.layout != torch.strided:
        stored = "without numbers" if tensor.is_meta else f"of {tensor.dtype}, {tensor.layout}"
        raise CheckpointError(f"{name}: is a tensor {stored}, where dense floating-point numbers are needed")
    single = tensor.detach().to(torch.float32)
    wrong = single[~torch.isfinite(single)]
    if wrong.numel():
        raise CheckpointError(
            f"{name}: holds numbers that are not finite ({float(wrong[0])}), so nothing can be computed with them: "
            "a damaged file, or one of a run that diverged"
        )
    return single


def take(state: dict[str, Tensor], name: str) -> Tensor:
    """Remove a tensor from `state`. Raises CheckpointError where it is missing."""
    if name not in state:
        raise CheckpointError(f"{name}: is missing: another architecture, or a damaged file")
    return state.pop(name)
