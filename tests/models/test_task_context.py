"""Rows of the task context stay together through selection, repetition and splitting."""

from __future__ import annotations

import torch

from flowmbpo.models.task_context import TaskContext


def context(rows: int, task_dim: int) -> TaskContext:
    """Row i holds i in every column."""
    column = torch.arange(float(rows))
    return TaskContext(column.unsqueeze(-1).repeat(1, task_dim), column.unsqueeze(-1).repeat(1, 2), column)


def test_rows_keep_the_order_of_the_index():
    index = torch.tensor([3, 0, 3])
    chosen = context(4, 2).rows(index)
    assert torch.equal(chosen.discount, index.float())
    assert torch.equal(chosen.embedding[:, 1], index.float())
    assert torch.equal(chosen.action_mask[:, 1], index.float())


def test_chunks_are_those_of_torch():
    parts = context(7, 0).chunk(3)
    expected = torch.arange(7.0).chunk(3)
    assert [part.discount.tolist() for part in parts] == [column.tolist() for column in expected]
    assert [tuple(part.embedding.shape) for part in parts] == [(3, 0), (3, 0), (1, 0)]
    assert parts[2].action_mask.tolist() == [[6.0, 6.0]]


def test_repetition_puts_whole_copies_behind_each_other():
    assert context(2, 1).repeat(2).embedding.flatten().tolist() == [0.0, 1.0, 0.0, 1.0]


def test_embedding_is_appended_behind_the_input():
    x = torch.full((2, 3), 9.0)
    assert context(2, 1).append_to(x).tolist() == [[9.0, 9.0, 9.0, 0.0], [9.0, 9.0, 9.0, 1.0]]


def test_without_an_embedding_the_input_is_not_copied():
    x = torch.zeros(2, 3)
    assert context(2, 0).append_to(x) is x
