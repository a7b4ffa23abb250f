"""Lets these tests import the synthetic files beside them, and imports them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from flowmbpo.checkpoints.importers.conversion import import_checkpoint

sys.path.append(str(Path(__file__).parent))


@pytest.fixture
def imported(tmp_path):
    """Save a file's content, import it, and give the new checkpoint's path with the outcome."""

    def run(content, **options):
        torch.save(content, tmp_path / "source.pt")
        out = tmp_path / "imported.pt"
        return out, import_checkpoint(tmp_path / "source.pt", out=out, **options)

    return run
