"""The import of dflex, on a package of that name that does what dflex's import does to its process."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch.utils.cpp_extension

from flowmbpo.envs.dflex import library
from flowmbpo.envs.dflex.kernels import SOURCE_CACHE, STAMP
from flowmbpo.envs.dflex.library import load_dflex
from flowmbpo.envs.dflex.stand_ins import find_extension, import_stand_ins, load_extension
from flowmbpo.errors import EnvironmentUnavailableError

PACKAGE = """
import os
import sys
import types
from pathlib import Path

import numpy as np
import torch.utils.cpp_extension
from gym import spaces

sys.path.insert(0, os.path.dirname(__file__))
np.set_printoptions(precision=2)
print("printed noise")
os.system("echo noise of the compiler")
sys.modules["kernels"] = types.ModuleType("kernels")
torch.utils.cpp_extension.load_inline(
    "kernels", extra_cuda_cflags=["-gencode=arch=compute_50,code=compute_50", "-O2"]
)
(Path(__file__).parent / "kernels" / "adjoint.gen").write_text("source")
from dflex import envs
"""
ENVIRONMENT = """
import numpy as np

def bound():
    return np.Inf * np.ones(2)
"""


def dflex_modules() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "dflex"]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A `dflex` to import; an installed one is set aside meanwhile."""
    aside = {name: sys.modules.pop(name) for name in dflex_modules()}
    folder = tmp_path / "dflex"
    (folder / "envs").mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "envs" / "__init__.py").write_text("from . import dflex_env\n")
    (folder / "envs" / "dflex_env.py").write_text(ENVIRONMENT)
    for path in folder.rglob("*.py"):
        os.utime(path, (1, 1))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.utils.cpp_extension, "load_inline", lambda *args, **kwargs: None)
    yield folder
    for name in dflex_modules():
        del sys.modules[name]
    sys.modules.update(aside)


def test_import_leaves_nothing_behind_in_the_process(package, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "kernels", type(sys)("kernels"))
    foreign = sys.modules["kernels"]
    path, options, shell_path = list(sys.path), np.get_printoptions(), os.environ["PATH"]
    names = set(sys.modules)
    module = load_dflex("dflex-ant")
    assert module is sys.modules["dflex"]
    assert sys.path == path
    assert np.get_printoptions() == options
    assert os.environ["PATH"] == shell_path
    assert sys.modules["kernels"] is foreign
    new = {name.partition(".")[0] for name in set(sys.modules) - names}
    missing = {name for name in ("gym", "urchin", "imp") if importlib.util.find_spec(name) is None}
    assert not new & missing
    assert capfd.readouterr().out == ""


def test_its_environments_find_numpys_old_infinity_and_nobody_else_does(package):
    load_dflex("dflex-ant")
    assert sys.modules["dflex.envs.dflex_env"].bound().tolist() == [np.inf, np.inf]
    assert "Inf" not in vars(np)


def test_the_old_gpu_architecture_is_not_asked_for(package, monkeypatch):
    flags = []
    recorder = lambda name, **kwargs: flags.append(kwargs["extra_cuda_cflags"])  # noqa: E731
    monkeypatch.setattr(torch.utils.cpp_extension, "load_inline", recorder)
    load_dflex("dflex-ant")
    assert flags == [["-O2"]]
    assert torch.utils.cpp_extension.load_inline is recorder


def test_the_licence_is_stated_once_in_a_process(package, caplog):
    library._state_licence.cache_clear()
    load_dflex("dflex-ant")
    load_dflex("dflex-ant")
    assert [record.getMessage() for record in caplog.records if "NON-COMMERCIAL" in record.getMessage()] == [
        "this run uses dflex, which is under the NVIDIA Source Code License, NON-COMMERCIAL. "
        "It is not part of flowmbpo."
    ]


def test_a_failed_build_shows_its_output_and_can_be_repeated(package):
    source = (package / "__init__.py").read_text()
    (package / "__init__.py").write_text(source + "raise RuntimeError('Error building extension')\n")
    with pytest.raises(EnvironmentUnavailableError, match="Error building extension") as caught:
        load_dflex("dflex-ant")
    assert "noise of the compiler" in caught.value.__notes__[0]
    assert not dflex_modules()
    assert not (package / "kernels" / STAMP).exists()
    (package / "__init__.py").write_text(source + "# another length, so that no cached bytecode is taken\n")
    load_dflex("dflex-ant")
    assert (package / "kernels" / STAMP).exists()
    assert (package / "kernels" / SOURCE_CACHE).exists()


def test_a_urdf_task_without_urchin_is_refused(package, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "urchin" else find(name))
    with pytest.raises(EnvironmentUnavailableError, match="pip install urchin"):
        load_dflex("dflex-cartpole")
    load_dflex("dflex-ant")


def test_a_module_that_is_there_gets_no_stand_in(monkeypatch):
    real = type(sys)("gym")
    monkeypatch.setitem(sys.modules, "gym", real)
    with import_stand_ins() as made:
        assert "gym" not in made
        assert sys.modules["gym"] is real
    assert sys.modules["gym"] is real


def test_an_extension_is_found_and_loaded_as_imp_did():
    spec = importlib.util.find_spec("_json")
    assert spec is not None
    if spec.origin is None or not spec.origin.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES)):
        pytest.skip("this Python has its extensions built in")
    file, path, description = find_extension(spec.name, ["nowhere", str(Path(spec.origin).parent)])
    with file:
        module = load_extension(spec.name, file, path, description)
    assert module.__name__ == spec.name
    assert module.__file__ == spec.origin
    with pytest.raises(ImportError, match="kernels"):
        find_extension("kernels", ["nowhere"])
