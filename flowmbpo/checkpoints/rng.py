"""States of the random generators, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from flowmbpo.errors import CheckpointError


def capture(generators: Mapping[str, torch.Generator]) -> dict[str, Any]:
    """States of the named generators, of torch's global one and, where a generator is on one, of every CUDA device."""
    on_cuda = any(generator.device.type == "cuda" for generator in generators.values())
    cuda = torch.cuda.get_rng_state_all() if on_cuda else []
    return {
        "generators": {name: generator.get_state() for name, generator in generators.items()},
        "devices": {name: generator.device.type for name, generator in generators.items()},
        "torch": torch.get_rng_state(),
        "cuda": list(cuda),
    }


def restore(state: Mapping[str, Any], generators: Mapping[str, torch.Generator]) -> None:
    """Set the generators back in place.

    A generator that now lives on another kind of device cannot take the state: it is seeded from
    the state's bytes, so the resumed run is still determined, though not equal to an unbroken one.

    Raises CheckpointError when the names of the generators differ.
    """
    saved: Mapping[str, torch.Tensor] = state["generators"]
    if set(saved) != set(generators):
        raise CheckpointError(
            f"the checkpoint holds random states of {sorted(saved)}, this run needs {sorted(generators)}: "
            "it was saved by another version or for another task. Its weights can still be evaluated."
        )
    for name, generator in generators.items():
        value = saved[name].cpu()
        if state["devices"][name] == generator.device.type:
            generator.set_state(value)
        else:
            digest = hashlib.sha256(value.numpy().tobytes()).digest()
            generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    torch.set_rng_state(state["torch"].cpu())
    cuda = [value.cpu() for value in state["cuda"]]
    if cuda and torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
