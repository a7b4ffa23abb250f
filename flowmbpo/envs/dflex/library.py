"""The import of dflex: guarded build, stand-ins, quiet, and its licence stated."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.utils.cpp_extension

from flowmbpo.envs.adapters import import_library
from flowmbpo.envs.dflex.kernels import load_built
from flowmbpo.envs.dflex.settings import READ_URDF
from flowmbpo.envs.dflex.stand_ins import give_numpy_inf
from flowmbpo.envs.mujoco import environment_variables
from flowmbpo.envs.simulators import SIMULATORS, require_installed
from flowmbpo.errors import EnvironmentUnavailableError

log = logging.getLogger("flowmbpo")

_OLD_ARCHITECTURE = "compute_50"


def load_dflex(task: str) -> ModuleType:
    """The module `dflex`, compiled where it must be; `task` is who asks.

    Raises EnvironmentUnavailableError where it is not installed, cannot be compiled or imported, or
    where the task needs urchin and that is missing.
    """
    require_installed("dflex", task)
    spec = importlib.util.find_spec("dflex")
    assert spec is not None and spec.origin is not None
    if task in READ_URDF and importlib.util.find_spec("urchin") is None:
        raise EnvironmentUnavailableError(
            f"task.name: '{task}' is a URDF model, which dflex reads with the package urchin; it is not installed: "
            "pip install urchin"
        )
    _state_licence()
    # What compiled kernels depend on beside their source.
    cuda = torch.version.cuda if torch.cuda.is_available() else "none"
    target = f"torch {torch.__version__}, {sys.implementation.cache_tag}, cuda {cuda}"
    module = sys.modules.get("dflex") or load_built(Path(spec.origin).parent, target, _import)
    give_numpy_inf(importlib.import_module("dflex.envs.dflex_env"))
    return module


@functools.cache
def _state_licence() -> None:
    """Once in every process that uses it."""
    log.warning("this run uses dflex, which is under the %s. It is not part of flowmbpo.", SIMULATORS["dflex"].licence)


def _import() -> ModuleType:
    # This environment's scripts (ninja), also where the environment is not activated.
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
    with environment_variables({"PATH": path}), _native_architecture():
        return import_library(
            "dflex",
            lambda: importlib.import_module("dflex"),
            "It needs a C++ compiler and ninja, and with CUDA an nvcc of torch's CUDA version",
        )


@contextlib.contextmanager
def _native_architecture() -> Iterator[None]:
    """dflex asks nvcc for compute_50, which CUDA 13 dropped; without that torch takes the present GPU's own.

    TORCH_CUDA_ARCH_LIST, which a flag would override, is heard again.
    """
    original: Callable[..., Any] = torch.utils.cpp_extension.load_inline

    def load_inline(*args: Any, **kwargs: Any) -> Any:
        flags = kwargs.get("extra_cuda_cflags") or []
        kwargs["extra_cuda_cflags"] = [flag for flag in flags if _OLD_ARCHITECTURE not in flag]
        return original(*args, **kwargs)

    vars(torch.utils.cpp_extension)["load_inline"] = load_inline
    try:
        yield
    finally:
        vars(torch.utils.cpp_extension)["load_inline"] = original
