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
        shape, width = list(taken.shape), taken.shape[after.dim]
        shape[after.dim] = sum(room for _, room in after.blocks)
        mapped, kept = fresh.clone() if after.fill == "fresh" else taken.new_zeros(shape), 0
        for name, room in after.blocks:
            start, held = before.place(name)
            shared = min(held, room)
            part = taken.narrow(after.dim, start, shared)
            mapped.narrow(after.dim, after.place(name)[0], shared).copy_(part)
            kept += shared
        copied = copied // width * kept if width else 0
        taken = mapped
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


def _changes(old: Axis, new: Axis) -> list[str]:
    what, begin = ("columns", "at zero") if new.fill == "zero" else ("outputs", "as initialised")
    widths = {name: (old.place(name)[1], new.place(name)[1]) for name, _ in (*old.blocks, *new.blocks)}
    return [
        f"{name} {before} -> {after} {what}: "
        + (f"{after - before} new, {begin}" if after > before else f"{before - after} dropped")
        for name, (before, after) in widths.items()
        if after != before
    ]
