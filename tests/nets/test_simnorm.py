"""SimNorm's groups are simplices in the interleaved layout, and `center` projects onto their tangent space."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowmbpo.nets.simnorm import center, simnorm


def logits(batch=5, dim=24, seed=0):
    return torch.randn(batch, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@given(group=st.integers(2, 9), groups=st.integers(1, 7), seed=st.integers(0, 1000))
def test_every_group_sums_to_one_and_is_positive(group, groups, seed):
    z = simnorm(5.0 * logits(3, group * groups, seed), group)
    by_hand = torch.stack([z[:, g::groups].sum(-1) for g in range(groups)])
    torch.testing.assert_close(by_hand, torch.ones_like(by_hand), rtol=0, atol=1e-12)
    assert (z > 0).all()


def test_a_group_is_every_gth_coordinate():
    # D = 6, V = 3, so G = 2 groups: coordinates 0, 2, 4 and 1, 3, 5.
    row = torch.tensor([[0.0, 5.0, 1.0, 5.0, 2.0, 5.0]], dtype=torch.float64)
    total = sum(torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64).exp())
    expected = torch.tensor(
        [[1 / total, 1 / 3, torch.e / total, 1 / 3, torch.e**2 / total, 1 / 3]], dtype=torch.float64
    )
    torch.testing.assert_close(simnorm(row, 3), expected, rtol=0, atol=1e-15)


def test_center_is_the_orthogonal_projection_with_zero_group_sums():
    dim, group = 24, 8
    matrix = center(torch.eye(dim, dtype=torch.float64), group)
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-15)
    torch.testing.assert_close(matrix @ matrix, matrix, rtol=0, atol=1e-15)
    assert matrix.trace() == pytest.approx(dim - dim // group)  # one direction lost per group
    sums = torch.stack([matrix[:, g :: dim // group].sum(-1) for g in range(dim // group)])
    assert sums.abs().max() < 1e-15


def test_simnorm_does_not_see_the_group_means():
    x = logits()
    torch.testing.assert_close(simnorm(center(x, 8), 8), simnorm(x, 8), rtol=0, atol=1e-15)
