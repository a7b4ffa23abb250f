"""Another architecture is described tensor by tensor; random generators go on where they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowmbpo.checkpoints.load import load
from flowmbpo.checkpoints.payload import architecture_mismatch, capture_rng, restore_rng
from flowmbpo.checkpoints.save import CheckpointStore
from flowmbpo.errors import CheckpointError


def test_equal_architectures_have_no_mismatch() -> None:
    assert architecture_mismatch(torch.nn.Linear(2, 3).state_dict(), torch.nn.Linear(2, 3).state_dict()) is None


def test_other_shapes_are_named_with_both_shapes() -> None:
    message = architecture_mismatch(torch.nn.Linear(2, 3).state_dict(), torch.nn.Linear(4, 3).state_dict())
    assert message is not None
    assert "1 of another shape: weight is (3, 4), needed (3, 2)" in message


def test_missing_and_unexpected_tensors_are_counted_and_named() -> None:
    needed = {f"layer{index}": torch.zeros(1) for index in range(6)}
    message = architecture_mismatch(needed, {"other": torch.zeros(1)})
    assert message is not None
    assert "6 missing: layer0, layer1, layer2, layer3 and 2 more" in message
    assert "1 unexpected: other" in message


def test_draws_continue_through_a_checkpoint_file(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    torch.rand(5, generator=generator)
    state = {
        "config": {},
        "epoch": 1,
        "agent_steps": 1,
        "env_steps": 1,
        "agent": {},
        "rng": capture_rng({"policy": generator}),
    }
    path = CheckpointStore(tmp_path).save("latest", state)
    expected, expected_global = torch.rand(4, generator=generator), torch.rand(4)
    fresh = torch.Generator()
    restore_rng(load(path).payload["rng"], {"policy": fresh})
    assert torch.equal(torch.rand(4, generator=fresh), expected)
    assert torch.equal(torch.rand(4), expected_global)


def test_generators_of_other_names_are_refused() -> None:
    state = capture_rng({"policy": torch.Generator()})
    with pytest.raises(CheckpointError, match=r"\['policy'\].*\['model'\]"):
        restore_rng(state, {"model": torch.Generator()})


def test_state_of_another_device_seeds_the_generator_deterministically() -> None:
    state = capture_rng({"policy": torch.Generator().manual_seed(1)})
    state["devices"]["policy"] = "cuda"
    first, second = torch.Generator(), torch.Generator()
    restore_rng(state, {"policy": first})
    restore_rng(state, {"policy": second})
    assert torch.equal(torch.rand(3, generator=first), torch.rand(3, generator=second))
    other = capture_rng({"policy": torch.Generator().manual_seed(2)})
    other["devices"]["policy"] = "cuda"
    restore_rng(other, {"policy": second})
    assert first.initial_seed() != second.initial_seed()
