"""A checkpoint of another architecture is described tensor by tensor."""

from __future__ import annotations

import torch

from flowmbpo.checkpoints.payload import architecture_mismatch


def test_equal_architectures_have_no_mismatch() -> None:
    assert architecture_mismatch(torch.nn.Linear(2, 3).state_dict(), torch.nn.Linear(2, 3).state_dict()) is None


def test_other_shapes_are_named_with_both_shapes() -> None:
    message = architecture_mismatch(torch.nn.Linear(2, 3).state_dict(), torch.nn.Linear(4, 3).state_dict())
    assert message is not None
    assert "1 of another shape: weight is (3, 4), needed (3, 2)" in message


def test_missing_and_unexpected_tensors_are_counted_and_the_first_are_named() -> None:
    needed = {f"layer{index}": torch.zeros(1) for index in range(6)}
    message = architecture_mismatch(needed, {"other": torch.zeros(1)})
    assert message is not None
    assert "6 missing: layer0, layer1, layer2, layer3 and 2 more" in message
    assert "1 unexpected: other" in message
