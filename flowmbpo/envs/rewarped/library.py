"""The import of rewarped and of Warp under it: quiet, with a stand-in for `gym`, its compiling announced."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flowmbpo.envs.dflex.shims import import_stand_ins
from flowmbpo.envs.simulators import SIMULATORS, require_installed
from flowmbpo.errors import EnvironmentUnavailableError

log = logging.getLogger("flowmbpo")

CLASSES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "rewarped-ant": ("rewarped.envs.dflex.ant", "Ant"),
        "rewarped-humanoid": ("rewarped.envs.dflex.humanoid", "Humanoid"),
        "rewarped-cartpole": ("rewarped.envs.dflex.cartpole", "Cartpole"),
    }
)
"""Where each task's class is: module and name."""

KERNELS = (
    "warp.sim.articulation",
    "warp.sim.integrator_euler",
    "rewarped.warp.collide",
    "rewarped.warp.integrator_featherstone",
)
"""The modules whose kernels Warp compiles for these tasks."""
_BINARIES = MappingProxyType({"cpu": ("o",), "cuda": ("ptx", "cubin")})
_TAIL = 15  # lines of output in an error


def load_task(task: str) -> tuple[Any, Any]:
    """The module `warp` and rewarped's class of `task`.

    Raises EnvironmentUnavailableError where rewarped is not installed or cannot be imported.
    """
    require_installed("rewarped", task)
    module, name = CLASSES[task]
    before = set(sys.modules)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            # Warp looks for a CUDA driver in its import and complains, from C, where there is none.
            with import_stand_ins(), _all_output_into(output.fileno()):
                environment = getattr(importlib.import_module(module), name)
                warp = importlib.import_module("warp")
        except (ImportError, RuntimeError, OSError, AttributeError) as error:
            # Half of it imported: a second try must start afresh.
            for loaded in set(sys.modules) - before:
                if loaded.partition(".")[0] in SIMULATORS["rewarped"].modules:
                    del sys.modules[loaded]
            output.seek(0)
            raise _import_failure(error, output.read()) from error
    return warp, environment


def announce_compilation(cache: Path, device: str) -> None:
    """Say so where kernels for `device` (cpu, cuda) are not yet in Warp's folder `cache`."""
    if not _is_compiled(cache, device):
        log.warning("compiling rewarped's kernels into %s: 1-3 minutes, once", cache)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the prints and the warnings of rewarped and Warp."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_compiled(cache: Path, device: str) -> bool:
    patterns = [[f"wp_{module}_*/*.{ending}" for ending in _BINARIES[device]] for module in KERNELS]
    return all(any(True for pattern in choices for _ in cache.glob(pattern)) for choices in patterns)


def _import_failure(error: Exception, output: str) -> EnvironmentUnavailableError:
    failure = EnvironmentUnavailableError(
        f"rewarped is installed and cannot be imported: {type(error).__name__}: {error}. It needs just the Warp that "
        "it names (warp-lang 1.3.3) and a folder for compiled kernels that can be written (WARP_CACHE_PATH names "
        f"another). Installed by: {SIMULATORS['rewarped'].install}"
    )
    lines = output.strip().splitlines()
    if lines:
        failure.add_note("the end of its output:\n" + "\n".join(lines[-_TAIL:]))
    return failure


@contextlib.contextmanager
def _all_output_into(descriptor: int) -> Iterator[None]:
    """What this process writes to its standard output and error, from C too, goes to the file `descriptor`."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = (os.dup(1), os.dup(2))
    try:
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        with (
            open(descriptor, "w", encoding="utf-8", closefd=False) as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            yield
    finally:
        for target, source in enumerate(saved, start=1):
            os.dup2(source, target)
            os.close(source)
