"""The one Python object that PWM pickles into its checkpoints, as inert data."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from torch import Tensor

PICKLED_NAME = "pwm.utils.running_mean_std.RunningMeanStd"
EPSILON = 1e-5  # PWM divides by sqrt(var + EPSILON)
CLIP = 5.0  # and clips observations and rewards to +-CLIP
_FIELDS = {"shape", "mean", "var", "count"}


class Statistics:
    """Running mean and variance as PWM stores them; stands in for its class while a file is read.

    `count` is the number of samples, plus the 1e-4 that PWM starts from.
    """

    mean: Tensor
    var: Tensor
    count: float

    def __setstate__(self, state: Any) -> None:
        """Take the four fields that PWM writes. Raises UnpicklingError on anything else."""
        if not isinstance(state, dict) or set(state) != _FIELDS:
            raise pickle.UnpicklingError(f"a {PICKLED_NAME} with other fields than {', '.join(sorted(_FIELDS))}")
        mean, var, count = state["mean"], state["var"], state["count"]
        if not (isinstance(mean, Tensor) and isinstance(var, Tensor) and isinstance(count, (int, float, Tensor))):
            raise pickle.UnpicklingError(f"a {PICKLED_NAME} whose fields are no numbers")
        if mean.shape != var.shape:
            raise pickle.UnpicklingError(f"a {PICKLED_NAME} of mean {tuple(mean.shape)} and var {tuple(var.shape)}")
        self.mean, self.var, self.count = mean, var, float(count)

    @property
    def seen(self) -> bool:
        """Whether any data went into it."""
        return self.count >= 1.0

    @property
    def offset(self) -> Tensor:
        """What is subtracted, flat, in double precision."""
        return self.mean.double().flatten()

    @property
    def scale(self) -> Tensor:
        """What is divided by, flat, in double precision."""
        return torch.sqrt(self.var.double().flatten() + EPSILON)
