"""The networks' random numbers: from a generator, or drawn ahead for a compiled function, which cannot hold one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Request(NamedTuple):
    """One draw of a function: what is drawn, and like what."""

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """The numbers."""
        if self.kind == "sign":
            return torch.randint(0, 2, self.shape, generator=generator, device=self.device).to(self.dtype) * 2.0 - 1.0
        sample = torch.randn if self.kind == "normal" else torch.rand
        return sample(self.shape, generator=generator, dtype=self.dtype, device=self.device)


class DrawnAhead:
    """Numbers in the order in which they are asked for."""

    def __init__(self, numbers: Sequence[Tensor]) -> None:
        self.numbers = numbers
        self.taken = 0

    def take(self, request: Request) -> Tensor:
        """The next, which were drawn for just such a request."""
        numbers = self.numbers[self.taken]
        assert numbers.shape == request.shape, f"{request} meets {tuple(numbers.shape)}"
        self.taken += 1
        return numbers


class Noted:
    """A generator whose draws are written down."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.requests: list[Request] = []

    def take(self, request: Request) -> Tensor:
        """The generator's next numbers."""
        self.requests.append(request)
        return request.draw(self.generator)


def standard_normal(like: Float[Tensor, "*S"], generator: torch.Generator | None) -> Float[Tensor, "*S"]:
    """N(0, 1) of the same shape, type and device."""
    return _draw("normal", like, like.shape, generator)


def uniform(like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Float[Tensor, "..."]:
    """U[0, 1) of the given shape, of the same type and device."""
    return _draw("uniform", like, shape, generator)


def rademacher(like: Float[Tensor, "*S"], generator: torch.Generator | None) -> Float[Tensor, "*S"]:
    """-1 or 1 with equal probability, of the same shape, type and device."""
    return _draw("sign", like, like.shape, generator)


def _draw(kind: str, like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    request = Request(kind, tuple(shape), like.dtype, like.device)
    if isinstance(generator, DrawnAhead | Noted):
        return generator.take(request)
    return request.draw(generator)
