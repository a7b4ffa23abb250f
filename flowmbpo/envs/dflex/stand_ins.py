"""Stand-ins for what dflex imports and this installation lacks, for the time of its import only.

Each is made only where the real package is missing, and none stays in `sys.modules`:

- `gym`: dflex takes `gym.spaces.Box` from it; gymnasium's is the same.
- `urchin`: reads URDF files. The stand-in is empty; tasks with a URDF model are refused without the real one.
- `imp`: gone in Python 3.12; dflex loads its cached kernels with it.
- `numpy.Inf`: gone in numpy 2; given to the one module that reads it, not to numpy.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np


@contextmanager
def import_stand_ins() -> Iterator[tuple[str, ...]]:
    """Stand-ins for the missing modules while the context lasts; yields their names.

    `sys.path`, numpy's print options and the module name `kernels` (dflex's compiled extension),
    all of which dflex's import changes, are as before afterwards.
    """
    made = {}
    for name in ("gym", "urchin", "imp"):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            made[name] = ModuleType(name)
    if "gym" in made:
        vars(made["gym"])["spaces"] = importlib.import_module("gymnasium.spaces")
    if "imp" in made:
        vars(made["imp"]).update(find_module=find_extension, load_module=load_extension)
    saved_path, saved_print = list(sys.path), np.get_printoptions()
    saved_kernels = sys.modules.get("kernels")
    sys.modules.update(made)
    try:
        yield tuple(made)
    finally:
        for name in made:
            del sys.modules[name]
        sys.path[:] = saved_path
        np.set_printoptions(**saved_print)
        sys.modules.pop("kernels", None)
        if saved_kernels is not None:
            sys.modules["kernels"] = saved_kernels


def give_numpy_inf(module: ModuleType) -> None:
    """Let `module`, which reads `np.Inf`, find it; numpy itself stays as it is."""
    if "Inf" not in vars(np):
        vars(module)["np"] = ModuleType("numpy", "numpy, and Inf")
        vars(vars(module)["np"]).update(vars(np), Inf=np.inf)


def find_extension(name: str, folders: list[str]) -> tuple[io.BufferedReader, str, tuple[str, str, int]]:
    """An open file, path and description of the compiled extension `name`, as `imp.find_module` gave them.

    Raises ImportError where no folder has one.
    """
    for folder in folders:
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = Path(folder) / (name + suffix)
            if path.is_file():
                return path.open("rb"), str(path), (suffix, "rb", 3)
    raise ImportError(f"no compiled extension '{name}' in {', '.join(folders)}", name=name)


def load_extension(name: str, file: io.BufferedReader, path: str, description: tuple[str, str, int]) -> ModuleType:
    """The extension module at `path`, as `imp.load_module` gave it."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
