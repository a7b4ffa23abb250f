"""A batch moves between devices as a whole."""

from dataclasses import fields

import torch

from flowmbpo.data.batch import Batch


def batch():
    horizon, size = 3, 2
    flags = torch.zeros(horizon, size, dtype=torch.bool)
    return Batch(
        obs=torch.zeros(horizon + 1, size, 4),
        action=torch.zeros(horizon, size, 1),
        reward=torch.zeros(horizon, size),
        terminated=flags,
        valid=~flags,
        task=torch.zeros(size, dtype=torch.long),
    )


def test_every_tensor_moves_to_the_device():
    moved = batch().to("meta")
    assert {getattr(moved, field.name).device.type for field in fields(Batch)} == {"meta"}


def test_a_batch_already_there_is_not_copied():
    here = batch()
    assert here.to("cpu") is here
