"""World models of TD-MPC2 and Newt (Hansen et al. 2024), whichever layout their file has."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

import torch
from torch import Tensor

from flowmbpo.checkpoints.importers.foreign import (
    LOG_STD_BOUNDS,
    ForeignModel,
    Network,
    check_model,
    finite,
    plain_tensors,
    take_network,
)
from flowmbpo.checkpoints.importers.layouts import COPIES, NEWT, OLDEST, common_names
from flowmbpo.errors import CheckpointError

_OLDEST_NOTE = (
    "The oldest files have a layer without weights ahead of the encoder that no published code names. It is taken "
    "to pass observations on unchanged; a symlog there has been reported. Check returns before relying on this import."
)


def read_tdmpc2(state: Mapping[str, object], layout: str) -> ForeignModel:
    """The model of a state dict in `layout`. Raises CheckpointError naming the tensor that does not fit."""
    stored = plain_tensors(state, "model")
    tensors = common_names(stored, layout)
    log_std_bounds = _take_log_std_bounds(tensors)
    embeddings = tensors.pop("_task_emb.weight", None)
    model = ForeignModel(
        format=layout,
        encoder=take_network(tensors, "_encoder.state.", normed_output=True),
        dynamics=take_network(tensors, "_dynamics.", normed_output=True),
        reward=take_network(tensors, "_reward.", normed_output=False),
        embeddings=None if embeddings is None else finite("_task_emb.weight", embeddings),
        capped=layout != NEWT,
        termination=_take_optional(tensors, "_termination."),
        pi=_take_optional(tensors, "_pi."),
        q=_take_optional(tensors, "_Qs.", ensemble=True),
        action_masks=_take_masks(tensors),
        log_std_bounds=log_std_bounds,
        dropped=tuple(sorted({_copy_of(name) for name in stored if name.startswith(COPIES)})),
        notes=(_OLDEST_NOTE,) if layout == OLDEST else (),
    )
    if tensors:
        raise CheckpointError(f"{', '.join(sorted(tensors)[:4])}: not known in this layout: another architecture")
    check_model(model)
    return model


def _take_optional(tensors: dict[str, Tensor], prefix: str, *, ensemble: bool = False) -> Network | None:
    if not any(name.startswith(prefix) for name in tensors):
        return None
    return take_network(tensors, prefix, normed_output=False, ensemble=ensemble)


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


def _copy_of(name: str) -> str:
    return "_Qs.target" if name.startswith("_Qs.") else name.split(".", maxsplit=1)[0]
