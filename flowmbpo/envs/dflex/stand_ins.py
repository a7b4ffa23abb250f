"""Stand-ins for what dflex imports and this installation lacks, for the time of its import only.

Each is made only where the real package is missing, and none stays in `sys.modules`:

- `gym`: dflex takes `gym.spaces.Box` from it; gymnasium's is the same.
- `urchin`: reads URDF files. The stand-in is empty; tasks with a URDF model are refused without the real one.
- `imp`: gone in Python 3.12; dflex loads its cached kernels with it.
- `numpy.Inf`: gone in numpy 2; given to the one module that reads it, not to numpy.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

_ABSENT = object()


class NumpyWithInf(ModuleType):
    """numpy as its first version spelled it: everything is numpy's own, and `Inf` is there too."""

    def __init__(self) -> None:
        super().__init__("numpy")
        self.Inf = np.inf

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@contextmanager
def import_stand_ins() -> Iterator[tuple[str, ...]]:
    """Stand-ins for the missing modules while the context lasts; yields their names.

    `sys.path`, numpy's print options and the module name `kernels` (dflex's compiled extension),
    all of which dflex's import changes, are as before afterwards.
    """
    made = {name: make() for name, make in _MAKERS.items() if _missing(name)}
    saved_path, saved_print = list(sys.path), np.get_printoptions()
    saved_kernels = sys.modules.get("kernels", _ABSENT)
    sys.modules.update(made)
    try:
        yield tuple(made)
    finally:
        for name in made:
            del sys.modules[name]
        sys.path[:] = saved_path
        np.set_printoptions(**saved_print)
        sys.modules.pop("kernels", None)
        if isinstance(saved_kernels, ModuleType):
            sys.modules["kernels"] = saved_kernels


def give_numpy_inf(module: ModuleType) -> None:
    """Let `module`, which reads `np.Inf`, find it; numpy itself stays as it is."""
    if "Inf" not in vars(np):
        vars(module)["np"] = NumpyWithInf()


def _missing(name: str) -> bool:
    return name not in sys.modules and importlib.util.find_spec(name) is None


def _gym() -> ModuleType:
    from gymnasium import spaces

    module = ModuleType("gym")
    vars(module)["spaces"] = spaces
    return module


def _imp() -> ModuleType:
    module = ModuleType("imp")
    vars(module).update(find_module=find_extension, load_module=load_extension)
    return module


_MAKERS = {"gym": _gym, "urchin": lambda: ModuleType("urchin"), "imp": _imp}

Found = tuple[io.BufferedReader, str, tuple[str, str, int]]


def find_extension(name: str, folders: list[str]) -> Found:
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
    loader = importlib.machinery.ExtensionFileLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
