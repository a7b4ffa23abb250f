"""Counting floating-point operations as they happen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, `flops` adds up the FLOPs of matrix products by torch's own formulas.

    torch's FlopCounterMode also attributes them to modules by hooks, which fail under
    `torch.autograd.grad` (a Jacobian penalty) and on views taken without gradients; nothing here
    needs to know the module.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        out = func(*args, **options)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += int(formula(*args, **options, out_val=out))
        return out
