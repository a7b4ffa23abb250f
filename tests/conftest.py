"""What holds for every test: one thread, no network, no display, repeatable examples."""

from __future__ import annotations

import os

# Before anything imports torch, matplotlib or wandb: they read these once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_ERROR_REPORTING"] = "false"

from pathlib import Path

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
