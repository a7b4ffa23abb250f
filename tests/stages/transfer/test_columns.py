"""One tensor onto another, by hand."""

import torch

from flowmbpo.stages.transfer.columns import adapt, fold_task
from flowmbpo.stages.transfer.layout import Axis, PartLayout


def inputs(**blocks):
    return Axis(1, tuple(blocks.items()), "zero")


def outputs(width):
    return Axis(0, (("action", width),), "fresh")


def test_columns_follow_their_block():
    """[obs 2, task 1, action 2] onto [obs 3, task 0, action 1, tau 1]."""
    source = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0], [10.0, 20.0, 30.0, 40.0, 50.0]])
    fresh = torch.full((2, 5), 7.0)
    old, new = inputs(obs=2, task=1, action=2), inputs(obs=3, task=0, action=1, tau=1)
    mapped = adapt(source, fresh, (old,), (new,))
    assert mapped.tensor.tolist() == [[1.0, 2.0, 0.0, 4.0, 0.0], [10.0, 20.0, 0.0, 40.0, 0.0]]
    assert mapped.copied == 6
    assert mapped.detail == (
        "obs 2 -> 3 columns: 1 new, at zero; task 1 -> 0 columns: 1 dropped; action 2 -> 1 columns: 1 dropped;"
        " tau 0 -> 1 columns: 1 new, at zero"
    )


def test_new_outputs_are_whole_rows_of_a_fresh_network():
    """Old outputs ignore the new column, the new output is as initialised in all of its columns."""
    source = torch.tensor([[1.0, 2.0]])
    fresh = torch.full((2, 3), 7.0)
    mapped = adapt(source, fresh, (inputs(z=2, task=0), outputs(1)), (inputs(z=2, task=1), outputs(2)))
    assert mapped.tensor.tolist() == [[1.0, 2.0, 0.0], [7.0, 7.0, 7.0]]
    assert mapped.copied == 2


def test_surplus_outputs_are_left_out():
    mapped = adapt(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, 9.0]), (outputs(3),), (outputs(2),))
    assert mapped.tensor.tolist() == [1.0, 2.0]
    assert mapped.detail == "action 3 -> 2 outputs: 1 dropped"


def test_ensembles_are_mapped_member_by_member():
    source = torch.arange(12.0).view(2, 3, 2)  # [members, z 2 + task 1, units]
    old, new = (Axis(1, (("z", 2), ("task", width)), "zero") for width in (1, 2))
    mapped = adapt(source, torch.ones(2, 4, 2), (old,), (new,))
    assert torch.equal(mapped.tensor[:, :3], source)
    assert not mapped.tensor[:, 3].any()


def test_types_are_the_target_s():
    mapped = adapt(torch.ones(2, dtype=torch.float64), torch.zeros(3), (outputs(2),), (outputs(3),))
    assert mapped.tensor.dtype == torch.float32


def test_an_embedding_folds_into_the_bias():
    """W [x, e, u] + b with e = (2, -1): b' = b + 2 W_e1 - W_e2."""
    axis = inputs(z=1, task=2, action=1)
    part = PartLayout("reward", {}, {"x.weight": (axis,)})
    state = {"x.weight": torch.tensor([[1.0, 3.0, 5.0, 7.0], [2.0, 4.0, 6.0, 8.0]]), "x.bias": torch.tensor([0.5, 0.0])}
    folded = fold_task(state, {"reward": part}, torch.tensor([2.0, -1.0]))
    assert folded["x.weight"].tolist() == [[1.0, 7.0], [2.0, 8.0]]
    assert folded["x.bias"].tolist() == [1.5, 2.0]
    assert state["x.bias"].tolist() == [0.5, 0.0]  # the source is as it was
