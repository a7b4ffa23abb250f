"""What a checkpoint may hold, and what it must: plain values that load without running code, and random states."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowmbpo.errors import CheckpointError

FORMAT = "flowmbpo-checkpoint"
REPLAY_FORMAT = "flowmbpo-replay"
VERSION, REPLAY_VERSION = 2, 1
REQUIRED = ("config", "epoch", "agent_steps", "env_steps", "agent")

_LEAVES = (bool, int, float, str, type(None), Tensor, torch.nn.Parameter)
_SHOWN = 4


def missing_keys(payload: Mapping[str, Any]) -> str:
    """What a whole checkpoint must hold and `payload` lacks, by name."""
    return ", ".join(key for key in REQUIRED if key not in payload)


def check_plain(value: Any, where: str) -> None:
    """Make sure that `value` survives a load with `weights_only=True`.

    Types are compared exactly: a numpy float is a `float` to isinstance, yet pickles as an object.
    Raises TypeError naming the place (an error of the program, not of its user).
    """
    kind = type(value)
    if kind in _LEAVES:
        return
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"{where}: key {key!r} is a {type(key).__name__}; checkpoints hold str and int keys")
            check_plain(item, f"{where}.{key}")
    elif kind in (list, tuple):
        for index, item in enumerate(value):
            check_plain(item, f"{where}[{index}]")
    else:
        raise TypeError(
            f"{where}: is a {kind.__module__}.{kind.__qualname__}; checkpoints hold tensors, numbers, "
            "strings, lists and dicts only"
        )


def architecture_mismatch(module_state: Mapping[str, Any], loaded_state: Mapping[str, Any]) -> str | None:
    """What differs between a module's state dict and a loaded one, or None where they fit.

    Entries other than tensors are compared by presence alone.
    """
    needed, held = (
        {name: tuple(value.shape) if isinstance(value, Tensor) else None for name, value in state.items()}
        for state in (module_state, loaded_state)
    )
    both = [name for name in needed if name in held and needed[name] != held[name]]
    found = {
        "missing": [name for name in needed if name not in held],
        "unexpected": [name for name in held if name not in needed],
        "of another shape": [f"{name} is {held[name]}, needed {needed[name]}" for name in both],
    }
    parts = []
    for title, names in found.items():
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            parts.append(f"{len(names)} {title}: {', '.join(names[:_SHOWN])}{more}")
    return f"the checkpoint is of another architecture: {'; '.join(parts)}" if parts else None


def capture_rng(generators: Mapping[str, torch.Generator]) -> dict[str, Any]:
    """States of the named generators, of torch's global one and, where a generator is on one, of every CUDA device."""
    devices = {name: generator.device.type for name, generator in generators.items()}
    return {
        "generators": {name: generator.get_state() for name, generator in generators.items()},
        "devices": devices,
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all() if "cuda" in devices.values() else []),
    }


def restore_rng(state: Mapping[str, Any], generators: Mapping[str, torch.Generator]) -> None:
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
