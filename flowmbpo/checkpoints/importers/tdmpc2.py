"""World models of TD-MPC2 and Newt (Hansen et al. 2024), whichever layout their file has.

The layouts of a state dict are told apart and brought to one set of names: those of the files that PWM uses, with Q
layers as `_Qs.{layer}.{name}`, stacked.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Set
from math import isfinite

import torch
from torch import Tensor

from flowmbpo.checkpoints.importers.foreign import LOG_STD_BOUNDS, ForeignModel, check_model
from flowmbpo.checkpoints.importers.state_dict import finite, numbered_through, plain_tensors, take_network
from flowmbpo.errors import CheckpointError

TDMPC2 = "tdmpc2"
CURRENT = "tdmpc2-current"
OLDEST = "tdmpc2-oldest"
NEWT = "newt"

PARTS = {
    "encoder": "_encoder.state.",
    "dynamics": "_dynamics.",
    "reward": "_reward.",
    "termination": "_termination.",
    "policy_prior": "_pi.",
    "q_functions": "_Qs.",
}
"""Networks by the prefixes of their common names; those that are not required are Newt's, or a planner's."""
REQUIRED = ("encoder", "dynamics", "reward")
NORMED = ("encoder", "dynamics")  # behind their last layer, too

COPIES = ("_target_Qs", "_detach_Qs", "_Qs.target.")
"""Prefixes of what repeats the Q functions: slow averages, and copies without gradient."""

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
_NUMBERED_Q = numbered_through("_Qs.params.", "_Qs.")

_OLDEST_NOTE = (
    "The oldest files have a layer without weights ahead of the encoder that no published code names. It is taken "
    "to pass observations on unchanged; a symlog there has been reported. Check returns before relying on this import."
)


def recognise_layout(names: Set[str]) -> str | None:
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


def _name_of_oldest(name: str) -> str:
    prefix = next((prefix for prefix in _OLDEST if name.startswith(prefix)), None)
    if prefix is None:
        return _q_name(name)
    place, _, kind = name.removeprefix(prefix).rpartition(".")
    if place not in _OLDEST[prefix]:
        raise CheckpointError(f"{name}: is no layer of the oldest TD-MPC2 files: another architecture")
    return f"{prefix}{_OLDEST[prefix][place]}.{kind}"


def _q_name(name: str) -> str:
    return _NUMBERED_Q.get(name, name.replace("_Qs.params.", "_Qs."))


def _stack_members(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Newt's Q networks, one per member, as one network with a leading ensemble axis."""
    matches = {name: _NEWT_Q.fullmatch(name) for name in tensors}
    members: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for name, match in matches.items():
        if match:
            members[match[2]][int(match[1])] = tensors[name]
    stacked = {name: tensor for name, tensor in tensors.items() if not matches[name]}
    for name, held in members.items():
        if sorted(held) != list(range(len(held))) or len({t.shape for t in held.values()}) != 1:
            raise CheckpointError(f"_Qs.online._Qs.*.{name}: members {sorted(held)} do not make one ensemble")
        stacked[f"_Qs.{name}"] = torch.stack([held[member] for member in range(len(held))])
    return stacked


def read_tdmpc2(state: Mapping[str, object], layout: str) -> ForeignModel:
    """The model of a state dict in `layout`. Raises CheckpointError naming the tensor that does not fit."""
    tensors = plain_tensors(state, "model")
    copied = [name for name in tensors if name.startswith(COPIES)]
    copies = {"_Qs.target" if name.startswith("_Qs.") else name.partition(".")[0] for name in copied}
    for name in copied:
        del tensors[name]
    if layout == NEWT:
        tensors = _stack_members(tensors)
    else:
        rename = _name_of_oldest if layout == OLDEST else _q_name
        tensors = {rename(name): tensor for name, tensor in tensors.items()}
    log_std_bounds = _take_log_std_bounds(tensors)
    embeddings = tensors.pop("_task_emb.weight", None)
    networks = {
        name: take_network(tensors, prefix, normed_output=name in NORMED, ensemble=name == "q_functions")
        for name, prefix in PARTS.items()
        if name in REQUIRED or any(tensor.startswith(prefix) for tensor in tensors)
    }
    model = ForeignModel(
        format=layout,
        networks=networks,
        embeddings=None if embeddings is None else finite("_task_emb.weight", embeddings),
        capped=layout != NEWT,
        action_masks=_take_masks(tensors),
        log_std_bounds=log_std_bounds,
        dropped=tuple(sorted(copies)),
        notes=(_OLDEST_NOTE,) if layout == OLDEST else (),
    )
    if tensors:
        raise CheckpointError(f"{', '.join(sorted(tensors)[:4])}: not known in this layout: another architecture")
    check_model(model)
    return model


def _take_masks(tensors: dict[str, Tensor]) -> Tensor | None:
    """Which of the action columns are each task's own: 0 or 1."""
    masks = tensors.pop("_action_masks", None)
    if masks is None:
        return None
    if masks.layout != torch.strided:
        raise CheckpointError(f"_action_masks: is a {masks.layout} tensor, where a dense one is needed")
    wrong = masks[(masks != 0) & (masks != 1)]
    if wrong.numel():
        raise CheckpointError(f"_action_masks: holds {wrong[0].item()}, where 0 and 1 are allowed: a damaged file")
    return masks


def _take_log_std_bounds(tensors: dict[str, Tensor]) -> tuple[float, float]:
    """(lowest, highest) log-std of the policy prior: stored as the lowest and the range, or known."""
    low, span = tensors.pop("log_std_min", None), tensors.pop("log_std_dif", None)
    if low is None and span is None:
        return LOG_STD_BOUNDS
    if low is None or span is None:
        missing = "log_std_min" if low is None else "log_std_dif"
        raise CheckpointError(f"{missing}: is missing: another architecture, or a damaged file")
    if low.numel() != 1 or span.numel() != 1 or low.is_complex() or span.is_complex():
        raise CheckpointError(f"log_std_min, log_std_dif: are {tuple(low.shape)} and {tuple(span.shape)}, not numbers")
    lowest, width = float(low), float(span)
    if not (isfinite(lowest) and isfinite(lowest + width) and width > 0.0):
        raise CheckpointError(
            f"log_std_min, log_std_dif: are {lowest:g} and {width:g}, where a finite bound and a range above 0 are "
            "needed: a damaged file"
        )
    return lowest, lowest + width
