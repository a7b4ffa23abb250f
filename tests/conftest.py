"""What holds for every test: one thread, no network, no display, repeatable examples."""

from __future__ import annotations

import fcntl
import os
import pickle

# Before anything imports torch, matplotlib or wandb: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_ERROR_REPORTING"] = "false"

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# Timings on a loaded machine say nothing about the code, and a failure must repeat: no deadline, no random seed.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The top of the checkout that is tested."""
    return REPOSITORY


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], Any]], tuple[Path, Any]]:
    """Fill a folder, and answer with it and what filling it gave: once for every process of a parallel session."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def filled(name: str, fill: Callable[[Path], Any]) -> tuple[Path, Any]:
        folder, answer = base / name, base / f"{name}.pickle"
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not answer.exists():
                answer.write_bytes(pickle.dumps(fill(folder)))
        return folder, pickle.loads(answer.read_bytes())

    return filled


@pytest.fixture(scope="session", autouse=True)
def shipped_names_are_listed_once():
    """Every message about an unknown preset lists the names of all and their controls, which takes most of a second."""
    from flowmbpo.presets.library import Library

    folder, kept = REPOSITORY / "presets", {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("names", "controls"):
            whole = getattr(Library, name)

            def listed(library, name=name, whole=whole):
                if library.folder != folder:
                    return whole(library)
                if name not in kept:
                    kept[name] = tuple(whole(library))
                return list(kept[name])

            patch.setattr(Library, name, listed)
        yield
