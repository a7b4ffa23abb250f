"""One tensor mapped onto another of other widths, block by block and column by column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from flowmbpo.stages.transfer.layout import TASK, Axis, PartLayout, TakenTensor, bias_of


def adapt(source: Tensor, fresh: Tensor, old: Sequence[Axis], new: Sequence[Axis]) -> TakenTensor:
    """`source`, with axes `old`, as a tensor of `fresh`'s shape with axes `new`.

    Blocks are matched by name, their entries by position. Input columns that the source lacks are zero in every
    output that it has; outputs that it lacks are as in `fresh`. Surplus entries are left out.
    """
    taken, copied, changes = source.to(fresh), source.numel(), []
    pairs = sorted(zip(old, new, strict=True), key=lambda pair: pair[1].fill == "fresh")  # inputs before outputs
    for before, after in pairs:
        assert before.dim == after.dim
        if before.blocks == after.blocks:
            continue
        kept, places = _matching(before, after)
        copied = copied // source.shape[before.dim] * len(kept) if source.shape[before.dim] else 0
        shape = list(taken.shape)
        shape[after.dim] = after.width
        base = fresh.clone() if after.fill == "fresh" else taken.new_zeros(shape)
        index = torch.tensor(places, dtype=torch.long, device=fresh.device)
        kept_index = torch.tensor(kept, dtype=torch.long, device=fresh.device)
        taken = base.index_copy(after.dim, index, taken.index_select(after.dim, kept_index))
        changes.extend(_changes(before, after))
    return TakenTensor(taken, "adapted" if changes else "loaded", "; ".join(changes), copied)


def fold_task(
    state: Mapping[str, Tensor], parts: Mapping[str, PartLayout], embedding: Float[Tensor, " E"]
) -> dict[str, Tensor]:
    """The state of the agent that knows this one task alone: W [x, e] + b = W_x x + (W_e e + b).

    Each weight that reads the task embedding loses those columns, and the bias beside it takes their effect.
    """
    folded = dict(state)
    for part in parts.values():
        for weight_name in part.first_weights:
            if weight_name not in state:
                continue
            bias_name, axis = bias_of(weight_name), part.axes[weight_name][0]
            start, width = axis.place(TASK)
            weight, bias = state[weight_name], state[bias_name]
            before, read, behind = torch.split(weight, [start, width, weight.shape[axis.dim] - start - width], axis.dim)
            effect = torch.tensordot(read.double(), embedding.double(), dims=([axis.dim], [0]))
            folded[weight_name] = torch.cat([before, behind], dim=axis.dim)
            folded[bias_name] = (bias.double() + effect.view(bias.shape)).to(bias)
    return folded


def _matching(old: Axis, new: Axis) -> tuple[list[int], list[int]]:
    """Positions in the source and in the target of the entries that both have."""
    kept: list[int] = []
    places: list[int] = []
    for name, _ in new.blocks:
        (start, width), (place, room) = old.place(name), new.place(name)
        shared = min(width, room)
        kept.extend(range(start, start + shared))
        places.extend(range(place, place + shared))
    return kept, places


def _changes(old: Axis, new: Axis) -> list[str]:
    said = []
    what, begin = ("columns", "at zero") if new.fill == "zero" else ("outputs", "as initialised")
    for name in dict.fromkeys(name for name, _ in (*old.blocks, *new.blocks)):
        before, after = old.place(name)[1], new.place(name)[1]
        if after > before:
            said.append(f"{name} {before} -> {after} {what}: {after - before} new, {begin}")
        elif after < before:
            said.append(f"{name} {before} -> {after} {what}: {before - after} dropped")
    return said
