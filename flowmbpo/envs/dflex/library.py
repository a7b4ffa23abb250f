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
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch
import torch.utils.cpp_extension

from flowmbpo.envs.dflex.kernels import load_built
from flowmbpo.envs.dflex.settings import SETTINGS
from flowmbpo.envs.dflex.stand_ins import give_numpy_inf, import_stand_ins
from flowmbpo.envs.simulators import SIMULATORS, require_installed
from flowmbpo.errors import EnvironmentUnavailableError

log = logging.getLogger("flowmbpo")

_OLD_ARCHITECTURE = "compute_50"
_TAIL = 15  # lines of compiler output in an error


def package_folder(task: str) -> Path:
    """The folder of the installed package; raises EnvironmentUnavailableError, with what to do, where there is none."""
    require_installed("dflex", task)
    spec = importlib.util.find_spec("dflex")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def load_dflex(task: str) -> ModuleType:
    """The module `dflex`, compiled where it must be; `task` is who asks.

    Raises EnvironmentUnavailableError where it is not installed, cannot be compiled or imported, or
    where the task needs urchin and that is missing.
    """
    package = package_folder(task)
    if SETTINGS[task].reads_urdf and importlib.util.find_spec("urchin") is None:
        raise EnvironmentUnavailableError(
            f"task.name: '{task}' is a URDF model, which dflex reads with the package urchin; it is not installed: "
            "pip install urchin"
        )
    _state_licence()
    loaded = sys.modules.get("dflex")
    if loaded is not None:
        return _made_usable(loaded)
    return load_built(package, _kernel_target(), _import)


@functools.cache
def _state_licence() -> None:
    """Once in every process that uses it."""
    log.warning("this run uses dflex, which is under the %s. It is not part of flowmbpo.", SIMULATORS["dflex"].licence)


def _kernel_target() -> str:
    """What compiled kernels depend on beside their source."""
    cuda = torch.version.cuda if torch.cuda.is_available() else "none"
    return f"torch {torch.__version__}, {sys.implementation.cache_tag}, cuda {cuda}"


def _import() -> ModuleType:
    before = set(sys.modules)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            with import_stand_ins(), _tools_on_path(), _native_architecture(), _output_into(output):
                module = importlib.import_module("dflex")
        except (ImportError, RuntimeError, OSError, AttributeError) as error:
            # Half of it imported: a second try must start afresh.
            for name in set(sys.modules) - before:
                if name.partition(".")[0] == "dflex":
                    del sys.modules[name]
            output.seek(0)
            raise _import_failure(error, output.read()) from error
    return _made_usable(module)


def _made_usable(module: ModuleType) -> ModuleType:
    give_numpy_inf(importlib.import_module("dflex.envs.dflex_env"))
    return module


def _import_failure(error: Exception, output: str) -> EnvironmentUnavailableError:
    failure = EnvironmentUnavailableError(
        f"dflex is installed and cannot be imported: {type(error).__name__}: {error}. It needs a C++ compiler and "
        f"ninja, and with CUDA an nvcc of torch's CUDA version. Installed by: {SIMULATORS['dflex'].install}"
    )
    lines = output.strip().splitlines()
    if lines:
        failure.add_note("the end of its output:\n" + "\n".join(lines[-_TAIL:]))
    return failure


@contextlib.contextmanager
def _tools_on_path() -> Iterator[None]:
    """This environment's scripts (ninja) on PATH, also where the environment is not activated."""
    saved = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = os.pathsep.join((sysconfig.get_path("scripts"), saved))
    try:
        yield
    finally:
        os.environ["PATH"] = saved


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


@contextlib.contextmanager
def _output_into(file: IO[str]) -> Iterator[None]:
    """What is printed, by this process or by the compiler that it starts, goes to `file`."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(file.fileno(), 1)
    try:
        with contextlib.redirect_stdout(file):
            yield
    finally:
        file.flush()
        os.dup2(saved, 1)
        os.close(saved)
