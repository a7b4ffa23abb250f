"""Random generators go on where they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowmbpo.checkpoints import rng
from flowmbpo.checkpoints.load import load
from flowmbpo.checkpoints.save import CheckpointStore
from flowmbpo.errors import CheckpointError


def test_draws_continue_through_a_checkpoint_file(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    state = {"config": {}, "epoch": 1, "env_steps": 1, "agent": {}, "rng": rng.capture({"policy": generator})}
    path = CheckpointStore(tmp_path).save("latest", state)
    expected, expected_global = torch.rand(4, generator=generator), torch.rand(4)
    fresh = torch.Generator()
    rng.restore(load(path).payload["rng"], {"policy": fresh})
    assert torch.equal(torch.rand(4, generator=fresh), expected)
    assert torch.equal(torch.rand(4), expected_global)


def test_generators_of_other_names_are_refused() -> None:
    state = rng.capture({"policy": torch.Generator()})
    with pytest.raises(CheckpointError, match=r"\['policy'\].*\['model'\]"):
        rng.restore(state, {"model": torch.Generator()})


def test_state_of_another_device_seeds_the_generator_deterministically() -> None:
    state = rng.capture({"policy": torch.Generator().manual_seed(1)})
    state["devices"]["policy"] = "cuda"
    first, second = torch.Generator(), torch.Generator()
    rng.restore(state, {"policy": first})
    rng.restore(state, {"policy": second})
    assert torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=second))
    other = rng.capture({"policy": torch.Generator().manual_seed(2)})
    other["devices"]["policy"] = "cuda"
    rng.restore(other, {"policy": second})
    assert first.initial_seed() != second.initial_seed()
