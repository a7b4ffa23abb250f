"""The memory that a vector environment shares with its workers. Imports no torch."""

from __future__ import annotations

import ctypes
import multiprocessing
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class StepArrays:
    """One step of N copies; row i belongs to copy i, and only its worker writes its results."""

    action: np.ndarray  # float32 [N, A]
    obs: np.ndarray  # float32 [N, O]
    final_obs: np.ndarray  # float32 [N, O]
    reward: np.ndarray  # float32 [N]
    success: np.ndarray  # float32 [N]
    terminated: np.ndarray  # bool [N]
    truncated: np.ndarray  # bool [N]
    busy: np.ndarray  # int32 [W]: the copy that each worker is at, -1 while it waits


class SharedBuffers:
    """Shared memory for `StepArrays`. Anonymous: it ends with the last process that maps it."""

    def __init__(self, num_envs: int, obs_dim: int, action_dim: int, workers: int) -> None:
        self._shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            "action": ("float32", (num_envs, action_dim)),
            "obs": ("float32", (num_envs, obs_dim)),
            "final_obs": ("float32", (num_envs, obs_dim)),
            "reward": ("float32", (num_envs,)),
            "success": ("float32", (num_envs,)),
            "terminated": ("bool", (num_envs,)),
            "truncated": ("bool", (num_envs,)),
            "busy": ("int32", (max(workers, 1),)),
        }
        context = multiprocessing.get_context("spawn")
        self._memory: dict[str, Any] = {
            name: context.RawArray(ctypes.c_byte, np.dtype(dtype).itemsize * int(np.prod(shape)))
            for name, (dtype, shape) in self._shapes.items()
        }

    def arrays(self) -> StepArrays:
        """Numpy views of the memory, in whichever process this is called."""
        return StepArrays(
            **{
                name: np.frombuffer(self._memory[name], dtype=dtype).reshape(shape)
                for name, (dtype, shape) in self._shapes.items()
            }
        )
