"""The comparison's mapping of weights, on networks built by hand as PWM builds them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flowmbpo.nets.mlp import normed_mlp
from flowmbpo.nets.simnorm import simnorm

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pwm_reference.py"
LATENT, GROUP = 32, 8


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("pwm_reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


class LinearNorm(nn.Linear):
    """A linear layer that owns its LayerNorm, with an activation or groups of neighbours."""

    def __init__(self, inputs: int, outputs: int, *, last: bool) -> None:
        super().__init__(inputs, outputs)
        self.ln = nn.LayerNorm(outputs)
        nn.init.normal_(self.ln.weight)
        nn.init.normal_(self.ln.bias)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln(super().forward(x))
        return x.unflatten(-1, (-1, GROUP)).softmax(-1).flatten(-2) if self.last else nn.functional.mish(x)


def test_latents_agree_up_to_the_order_of_their_coordinates(reference):
    torch.manual_seed(0)
    theirs = nn.Sequential(LinearNorm(LATENT + 3, 16, last=False), LinearNorm(16, LATENT, last=True))
    ours = normed_mlp(LATENT + 3, (16,), LATENT, normed_output=True)
    order = torch.arange(LATENT).view(-1, GROUP).t().flatten()
    with torch.no_grad():
        reference._copy_normed(ours, theirs, lambda parameter: parameter, inputs=order, outputs=order)
    z, rest = torch.rand(5, LATENT), torch.randn(5, 3)
    expected = theirs(torch.cat([z, rest], dim=-1))
    found = simnorm(ours(torch.cat([z[:, order], rest], dim=-1)), GROUP)
    torch.testing.assert_close(found, expected[:, order])
    assert (found - expected).abs().max() > 0.01  # the order matters here


def test_a_folder_without_pwm_is_named(reference, tmp_path):
    with pytest.raises(SystemExit, match=str(tmp_path)):
        reference.load_module(tmp_path)


def test_nested_targets_are_built(reference):
    config = {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}
    built = reference._instantiate({"_target_": "builtins.dict", "layer": config, "plain": {"width": 4}}, extra=5)
    assert isinstance(built["layer"], nn.Linear)
    assert (built["plain"], built["extra"]) == ({"width": 4}, 5)
