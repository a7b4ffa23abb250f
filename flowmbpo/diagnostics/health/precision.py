"""Float64 for as long as a measurement lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from flowmbpo.models.task_context import TaskContext


@contextmanager
def in_double(module: nn.Module) -> Iterator[None]:
    """Inside, floating-point parameters and buffers are float64; afterwards the very tensors from before are back.

    In place and not on a copy: hooks and patched functions that hold on to the modules then see the same
    weights. Gradients stored in `.grad` are set aside meanwhile.
    """
    parameters = [p for p in module.parameters() if p.is_floating_point()]
    kept = [(p, p.data, p.grad) for p in parameters]
    buffers = [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
        if buffer.is_floating_point()
    ]
    try:
        for parameter in parameters:
            parameter.grad = None
            parameter.data = parameter.data.double()
        for owner, name, buffer in buffers:
            setattr(owner, name, buffer.double())
        yield
    finally:
        for parameter, data, gradient in kept:
            parameter.grad = None
            parameter.data = data
            parameter.grad = gradient
        for owner, name, buffer in buffers:
            setattr(owner, name, buffer)


def context_in_double(context: TaskContext) -> TaskContext:
    """The same rows in float64, without a gradient to the task embedding."""
    return replace(
        context,
        embedding=context.embedding.detach().double(),
        action_mask=context.action_mask.double(),
        discount=context.discount.double(),
    )
