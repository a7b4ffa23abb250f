"""A published model's weights in one form, whatever file they came from.

Axes are theirs: weights [out, in] (an ensemble's [N, out, in]), latent groups contiguous, inputs
ordered [obs, task] and [z, task, action].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from flowmbpo.checkpoints.importers.statistics import Statistics
from flowmbpo.errors import CheckpointError

GROUP = 8  # SimNorm's, in every published model; a file does not store it
BIN_RANGE = (-10.0, 10.0)  # of the two-hot heads, in every published model; not stored either
LOG_STD_BOUNDS = (-10.0, 2.0)  # TD-MPC2's, where a file does not store them


@dataclass(frozen=True)
class Layer:
    """A linear layer, and the LayerNorm that goes with it where there is one."""

    weight: Tensor
    bias: Tensor
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None

    @property
    def inputs(self) -> int:
        """Input width."""
        return self.weight.shape[-1]

    @property
    def outputs(self) -> int:
        """Output width."""
        return self.weight.shape[-2]

    def tensors(self) -> list[Tensor]:
        """Those that it has."""
        return [t for t in (self.weight, self.bias, self.norm_weight, self.norm_bias) if t is not None]


Network = tuple[Layer, ...]


@dataclass(frozen=True)
class PWMParts:
    """What only PWM's own files hold: actor (activation before LayerNorm), critic, running statistics."""

    actor: Network | None
    logstd: Tensor | None
    critic: Network
    obs: Statistics | None
    reward: Statistics | None
    returns: Statistics | None


@dataclass(frozen=True)
class ForeignModel:
    """Weights of one file. `embeddings` [tasks, E]; `capped` where lookups scale them down to norm 1."""

    format: str
    encoder: Network
    dynamics: Network
    reward: Network
    embeddings: Tensor | None = None
    capped: bool = True
    termination: Network | None = None
    pi: Network | None = None
    q: Network | None = None
    action_masks: Tensor | None = None
    log_std_bounds: tuple[float, float] = LOG_STD_BOUNDS
    pwm: PWMParts | None = None
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def latent_dim(self) -> int:
        """Width of z."""
        return self.encoder[-1].outputs

    @property
    def task_dim(self) -> int:
        """Width of the task embedding, 0 without one."""
        return 0 if self.embeddings is None else self.embeddings.shape[1]

    @property
    def tasks(self) -> int:
        """Tasks that it knows."""
        return 1 if self.embeddings is None else self.embeddings.shape[0]

    @property
    def obs_dim(self) -> int:
        """Width of the observation."""
        return self.encoder[0].inputs - self.task_dim

    @property
    def action_dim(self) -> int:
        """Width of the action."""
        return self.dynamics[0].inputs - self.latent_dim - self.task_dim

    @property
    def bins(self) -> int:
        """Outputs of the reward head."""
        return self.reward[-1].outputs


def hidden_units(network: Network) -> list[int]:
    """Widths of all layers but the last."""
    return [layer.outputs for layer in network[:-1]]


def count(network: Network | None) -> int:
    """Number of scalars."""
    return 0 if network is None else sum(t.numel() for layer in network for t in layer.tensors())


def plain_tensors(state: Mapping[Any, object], part: str) -> dict[str, Tensor]:
    """The entries that hold numbers, by names without torch's `module.` prefix.

    TD-MPC2's current files also hold tensors without storage, sizes and devices: bookkeeping of tensordict.
    Raises CheckpointError, naming the file's `part`, on keys that are no names.
    """
    found = {}
    for name, value in state.items():
        if not isinstance(name, str):
            raise CheckpointError(
                f"{part}: has the key {name!r:.60} ({type(name).__name__}), where names of tensors are needed: another "
                "kind of file"
            )
        if isinstance(value, Tensor) and not value.is_meta:
            found[name.removeprefix("module.")] = value
    return found


def take_network(state: dict[str, Tensor], prefix: str, *, normed_output: bool, ensemble: bool = False) -> Network:
    """Remove the layers `{prefix}{i}.weight, .bias, .ln.weight, .ln.bias` from `state`.

    Every layer but the last has a LayerNorm; the last has one where `normed_output`. The tensors of an `ensemble`
    have its axis ahead. Raises CheckpointError where tensors are missing, do not fit each other, or are not finite.
    """
    numbers = sorted(_layer_numbers(state, prefix))
    if not numbers or numbers != list(range(len(numbers))):
        raise CheckpointError(
            f"{prefix}*: holds layers {numbers or 'none'}, where 0, 1, 2, ... are expected: another architecture"
        )
    layers = []
    for number in numbers:
        normed = normed_output or number < numbers[-1]
        name = f"{prefix}{number}."
        norm = (_take(state, f"{name}ln.weight"), _take(state, f"{name}ln.bias")) if normed else (None, None)
        layers.append(Layer(_take(state, f"{name}weight"), _take(state, f"{name}bias"), *norm))
    network = tuple(layers)
    check_chain(network, prefix, ensemble=ensemble)
    return network


def check_chain(network: Network, where: str, *, ensemble: bool) -> None:
    """Make sure that a network's layers fit each other, as those of an `ensemble` or alone. Raises CheckpointError."""
    needed = "[members, out, in]" if ensemble else "[out, in]"
    members = network[0].weight.shape[:-2]
    for number, layer in enumerate(network):
        weight = layer.weight.shape
        if len(weight) != (3 if ensemble else 2) or 0 in weight or weight[:-2] != members:
            raise CheckpointError(
                f"{where}{number}.weight: is {tuple(weight)}, {needed} is needed: another architecture"
            )
        shape = (*layer.weight.shape[:-2], layer.outputs)
        for tensor in layer.tensors()[1:]:
            if tuple(tensor.shape) != shape:
                raise CheckpointError(
                    f"{where}{number}: a tensor is {tuple(tensor.shape)} beside a weight of "
                    f"{tuple(layer.weight.shape)}; {shape} is needed: another architecture"
                )
    for number, (first, second) in enumerate(pairwise(network)):
        if first.outputs != second.inputs:
            raise CheckpointError(
                f"{where}{number + 1}.weight: has {second.inputs} inputs, but the layer before it {first.outputs} "
                "outputs: another architecture"
            )


def check_model(model: ForeignModel) -> None:
    """Make sure that the parts of a model fit each other. Raises CheckpointError."""
    if model.embeddings is not None and (model.embeddings.ndim != 2 or 0 in model.embeddings.shape):
        raise CheckpointError(f"_task_emb.weight: is {tuple(model.embeddings.shape)}, a matrix is needed")
    if min(len(model.encoder), len(model.dynamics), len(model.reward)) < 2:
        raise CheckpointError("encoder, dynamics and reward need a hidden layer each: another architecture")
    z, e, a = model.latent_dim, model.task_dim, model.action_dim
    if model.obs_dim < 1 or a < 1 or z % GROUP:
        raise CheckpointError(
            f"the shapes leave {model.obs_dim} observations, {a} actions and a latent of {z}, which must be a "
            f"multiple of {GROUP}: another architecture"
        )
    pwm = model.pwm
    widths = (
        ("_dynamics's last layer", model.dynamics[-1].outputs, z),
        ("_reward's input", model.reward[0].inputs, z + e + a),
        ("_termination's input", z + e if model.termination is None else model.termination[0].inputs, z + e),
        ("_pi's input", z + e if model.pi is None else model.pi[0].inputs, z + e),
        ("_pi's output", 2 * a if model.pi is None else model.pi[-1].outputs, 2 * a),
        ("_Qs' input", z + e + a if model.q is None else model.q[0].inputs, z + e + a),
        ("_Qs' output", model.bins if model.q is None else model.q[-1].outputs, model.bins),
        ("the actor's input", z if pwm is None or pwm.actor is None else pwm.actor[0].inputs, z),
        ("the actor's output", a if pwm is None or pwm.actor is None else pwm.actor[-1].outputs, a),
        ("the critic's input", z if pwm is None else pwm.critic[0].inputs, z),
        ("the critic's output", 1 if pwm is None else pwm.critic[-1].outputs, 1),
    )
    for what, found, needed in widths:
        if found != needed:
            raise CheckpointError(
                f"{what} is {found} wide where the other shapes ask for {needed}: another architecture"
            )
    if model.bins == 2 or (model.bins == 1 and model.pwm is None):
        raise CheckpointError(
            f"_reward: has {model.bins} outputs, and a file does not say how they are decoded; 101 bins (and PWM's "
            "single output) are known"
        )


def finite(name: str, tensor: Tensor) -> Tensor:
    """`tensor` as float32. Raises CheckpointError where it is not finite or no matrix of numbers."""
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


def _take(state: dict[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise CheckpointError(f"{name}: is missing: another architecture, or a damaged file")
    return finite(name, state.pop(name))


def _layer_numbers(state: Mapping[str, Tensor], prefix: str) -> Iterator[int]:
    found = {name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)}
    for number in found:
        if not (number.isdecimal() and len(number) < 4):
            raise CheckpointError(f"{prefix}{number}: is no numbered layer: another architecture")
        yield int(number)
