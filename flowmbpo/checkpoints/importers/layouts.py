"""TD-MPC2's layouts of a state dict, told apart and brought to one set of names.

The common names are those of the files that PWM uses, with Q layers as `_Qs.{layer}.{name}`, stacked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from flowmbpo.errors import CheckpointError

TDMPC2 = "tdmpc2"
CURRENT = "tdmpc2-current"
OLDEST = "tdmpc2-oldest"
NEWT = "newt"

COPIES = ("_target_Qs", "_detach_Qs", "_Qs.target.")
"""Prefixes of what repeats the Q functions: slow averages, and copies without gradient."""

_LAYER_NAMES = ("weight", "bias", "ln.weight", "ln.bias")
# The oldest networks are written out as Linear, LayerNorm, activation, Linear, ...; the dynamics' last
# LayerNorm stands apart, and the encoder begins with a layer that has no weights.
_OLDEST = {
    "_dynamics.": {"0.0": "0", "0.1": "0.ln", "0.3": "1", "0.4": "1.ln", "0.6": "2", "1": "2.ln"},
    "_reward.": {"0": "0", "1": "0.ln", "3": "1", "4": "1.ln", "6": "2"},
    "_pi.": {"0": "0", "1": "0.ln", "3": "1", "4": "1.ln", "6": "2"},
    "_encoder.state.": {
        str(3 * layer + place): f"{layer}{name}" for layer in range(8) for place, name in ((1, ""), (2, ".ln"))
    },
}
_NEWT_Q = re.compile(r"_Qs\.online\._Qs\.(\d{1,3})\.(.+)")
_FLAT_Q = re.compile(r"_Qs\.params\.(\d{1,3})")
_NAMED_Q = re.compile(r"_Qs\.params\.(\d{1,3}\..+)")


def recognise_layout(names: Mapping[str, object]) -> str | None:
    """Which layout the names belong to; None for none of them."""
    if any(name.startswith("_Qs.online.") for name in names):
        return NEWT
    if "_encoder.state.1.weight" in names and "_encoder.state.0.weight" not in names:
        return OLDEST
    if "_encoder.state.0.weight" not in names:
        return None
    if "_Qs.params.0.weight" in names or "log_std_min" in names:
        return CURRENT
    return TDMPC2


def common_names(tensors: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The same tensors by the common names. Raises CheckpointError on a name that has none."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(COPIES)}
    if layout == OLDEST:
        kept = {_name_of_oldest(name): tensor for name, tensor in kept.items()}
    return _stack_members(kept) if layout == NEWT else {_q_name(name): tensor for name, tensor in kept.items()}


def _name_of_oldest(name: str) -> str:
    for prefix, places in _OLDEST.items():
        if name.startswith(prefix):
            place, _, kind = name.removeprefix(prefix).rpartition(".")
            if place not in places:
                raise CheckpointError(f"{name}: is no layer of the oldest TD-MPC2 files: another architecture")
            return f"{prefix}{places[place]}.{kind}"
    return name


def _q_name(name: str) -> str:
    flat, named = _FLAT_Q.fullmatch(name), _NAMED_Q.fullmatch(name)
    if flat:
        layer, kind = divmod(int(flat[1]), len(_LAYER_NAMES))
        return f"_Qs.{layer}.{_LAYER_NAMES[kind]}"
    return f"_Qs.{named[1]}" if named else name


def _stack_members(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Newt's Q networks, one per member, as one network with a leading ensemble axis."""
    members: dict[str, dict[int, Tensor]] = {}
    rest = {}
    for name, tensor in tensors.items():
        match = _NEWT_Q.fullmatch(name)
        if match:
            members.setdefault(match[2], {})[int(match[1])] = tensor
        else:
            rest[name] = tensor
    for name, found in members.items():
        if sorted(found) != list(range(len(found))) or len({t.shape for t in found.values()}) != 1:
            raise CheckpointError(f"_Qs.online._Qs.*.{name}: members {sorted(found)} do not make one ensemble")
        rest[f"_Qs.{name}"] = torch.stack([found[member] for member in range(len(found))])
    return rest
