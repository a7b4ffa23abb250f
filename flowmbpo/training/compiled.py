"""The updates' arithmetic as compiled programs (`compute.compile`).

A compiled function cannot draw from a generator: it receives its random numbers, drawn ahead in the order and from the
generator in which it would draw them itself. Compiled and eager updates differ by rounding alone.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from flowmbpo.nets.noise import DrawnAhead, Noted, Request
from flowmbpo.training.updates import EAGER, Passes

Function = Callable[..., Any]


def compiler_fault() -> str | None:
    """Why nothing can be compiled on this machine; None where it can."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "no C++ compiler works (g++ or clang++; CXX names another)"
    return None


def compiled(threads: int | None = None) -> Passes:
    """Every pass compiled at its first call, which takes a minute or two; seconds where the cache holds it.

    Programs are kept in TORCHINDUCTOR_CACHE_DIR, by default in the user's cache folder. `threads` may compile at once.
    """
    import torch._inductor.config as inductor  # loads the compiler: not for runs that do without

    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "flowmbpo" / "compiled"))
    inductor.compile_threads = threads or inductor.compile_threads
    whole = _whole(EAGER.targets), _whole(EAGER.critic)
    return Passes(_Drawing(EAGER.model), _Drawing(EAGER.actor), *whole)


def _whole(function: Function) -> Function:
    """In one piece, with shapes as they are: updates keep theirs.

    Loops end in single elements: the masked vectors that torch 2.13 ends them in let numbers through that do not exist,
    and once a gradient of them is NaN (seen at 16 units, with a termination head and a two-hot critic).
    """
    program: Function = torch.compile(
        function, dynamic=False, fullgraph=True, options={"cpp.enable_loop_tail_vec": False}
    )
    return program


class _Drawing:
    """A function whose last argument is a generator, compiled; every call draws as many numbers as the first."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._requests: list[Request] | None = None

        def with_numbers(numbers: list[Tensor], arguments: tuple[Any, ...]) -> object:
            result: object = function(*arguments, DrawnAhead(numbers))
            return result

        self._program = _whole(with_numbers)

    def __call__(self, *arguments: Any) -> Any:
        *others, generator = arguments
        if self._requests is None:
            self._requests = self._noted(others, generator.device)
        return self._program([request.draw(generator) for request in self._requests], tuple(others))

    def _noted(self, others: list[Any], device: torch.device) -> list[Request]:
        """What a call draws, found out on a copy: running statistics move with every call."""
        noted = Noted(torch.Generator(device).manual_seed(0))
        self._function(*copy.deepcopy(others), cast(torch.Generator, noted))
        return noted.requests
