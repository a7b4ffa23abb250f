"""Layers and numbers taken out of a foreign state dict, and checked. Messages name the tensor that does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from flowmbpo.checkpoints.importers.foreign import Layer, Network
from flowmbpo.errors import CheckpointError

LAYER_TENSORS = ("weight", "bias", "ln.weight", "ln.bias")
MOST_LAYERS = 32  # of a network whose tensors are renamed


def numbered_through(prefix: str, common: str) -> dict[str, str]:
    """Common names of tensors that are numbered through: weight, bias, and those of its LayerNorm, layer by layer."""
    places = [(layer, name) for layer in range(MOST_LAYERS) for name in LAYER_TENSORS]
    return {f"{prefix}{number}": f"{common}{layer}.{name}" for number, (layer, name) in enumerate(places)}


def plain_tensors(state: Mapping[Any, object], part: str) -> dict[str, Tensor]:
    """The entries that hold numbers, by names without torch's `module.` prefix.

    TD-MPC2's current files also hold tensors without storage, sizes and devices: bookkeeping of tensordict.
    Raises CheckpointError, naming the file's `part`, on keys that are no names.
    """
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
    numbers = sorted(_layer_numbers(state, prefix))
    if not numbers or numbers != list(range(len(numbers))):
        raise CheckpointError(f"{prefix}*: holds layers {numbers or 'none'}, not 0, 1, 2, ...: another architecture")
    layers = []
    for number in numbers:
        count = 4 if normed_output or number < numbers[-1] else 2
        weight, bias, *norm = (_take(state, f"{prefix}{number}.{name}") for name in LAYER_TENSORS[:count])
        layers.append(Layer(weight, bias, tuple(norm)))
    _check_chain(layers, prefix, ensemble=ensemble)
    return tuple(layers)


def _check_chain(network: Sequence[Layer], where: str, *, ensemble: bool) -> None:
    """Make sure that a network's layers fit each other, as those of an `ensemble` or alone. Raises CheckpointError."""
    needed = "[members, out, in]" if ensemble else "[out, in]"
    for number, layer in enumerate(network):
        weight = tuple(layer.weight.shape)
        if len(weight) != (3 if ensemble else 2) or 0 in weight or weight[:-2] != network[0].weight.shape[:-2]:
            raise CheckpointError(f"{where}{number}.weight: is {weight}, {needed} is needed: another architecture")
        for tensor in layer.tensors[1:]:
            if tuple(tensor.shape) != weight[:-1]:
                raise CheckpointError(
                    f"{where}{number}: a tensor is {tuple(tensor.shape)} beside a weight of {weight}; {weight[:-1]} is "
                    "needed: another architecture"
                )
    for number, (first, second) in enumerate(pairwise(network)):
        if first.outputs != second.inputs:
            raise CheckpointError(
                f"{where}{number + 1}.weight: has {second.inputs} inputs, but the layer before it {first.outputs} "
                "outputs: another architecture"
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
    numbers = {name[len(prefix) :].partition(".")[0] for name in state if name.startswith(prefix)}
    for number in numbers:
        if not (number.isdecimal() and len(number) < 4):
            raise CheckpointError(f"{prefix}{number}: is no numbered layer: another architecture")
        yield int(number)
