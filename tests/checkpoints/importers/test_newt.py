"""Newt's files: 200 tasks with text embeddings, of which those known here are kept."""

from __future__ import annotations

import parity
import published
import pytest
from slowness import slow

from flowmbpo.checkpoints.importers.target import newt_rows
from flowmbpo.envs.task_sets import task_set
from flowmbpo.errors import CheckpointError

TOLERANCE = 1e-5  # float32 against double precision; a wrong column is of order 1

# Rows of MT30's tasks: DMControl's 19, then past quadruped's two the 11 that TD-MPC2 added.
MT30_ROWS = [*range(19), *range(21, 32)]


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("size", ["S", slow("B"), slow("L"), slow("XL")])
def test_mt30s_tasks_compute_what_the_file_means(imported, size, prefix):
    """Embeddings of norm 16 are longer than the task table lets through: their scale moves into the columns."""
    w = published.newt(size)
    content = published.newt_file(w, prefix=prefix)
    path, outcome = imported(content)
    assert (outcome["format"], outcome["size"], outcome["task"]) == ("newt", size, "mt30")
    assert outcome["dropped"] == ["_Qs.target"]
    found = parity.differences(path, content["model"], "newt", w, MT30_ROWS)
    assert set(found) == {"encode", "next", "reward", "q", "pi"}
    assert max(found.values()) < TOLERANCE, found


def test_meta_world_task_alone(imported):
    w = published.newt("S")
    content = published.newt_file(w)
    path, outcome = imported(content, task="mw-reach")
    assert outcome["task"] == "mw-reach"
    row = newt_rows(task_set("mt80"))["mw-reach"]
    assert row == 72  # 36th of Meta-World's 49, which begin at 37
    found = parity.differences(path, content["model"], "newt", w, [row])
    assert max(found.values()) < TOLERANCE, found


def test_single_task_file_is_cut_to_its_tasks_widths(imported):
    enc, mlp, latent, layers, q = published.NEWT_SIZES["S"]
    w = published.Widths(enc, mlp, latent, layers, q, 0, 0, 128, 16)
    content = published.newt_file(w)
    content["model"]["_action_masks"] = published.action_masks((4,) * 10, 16)  # a row per copy of hopper-hop
    path, _ = imported(content, task="hopper-hop")
    found = parity.differences(path, content["model"], "newt", w)
    assert max(found.values()) < TOLERANCE, found


def test_task_that_newt_lacks_is_named(imported):
    with pytest.raises(CheckpointError, match="mw-shelf-place"):
        imported(published.newt_file(published.newt("S")), task_set="mt80")


def test_finetuned_file_needs_its_task(imported):
    content = published.newt_file(published.newt("S"))
    content["model"]["_task_emb.weight"][:] = content["model"]["_task_emb.weight"][18].clone()
    content["model"]["_action_masks"] = published.action_masks((4,) * 200, 16)
    with pytest.raises(CheckpointError, match="finetuned on one task"):
        imported(content)
    path, _ = imported(content, task="hopper-hop")
    found = parity.differences(path, content["model"], "newt", published.newt("S"), [18])
    assert max(found.values()) < TOLERANCE, found


def test_models_of_image_features_are_refused(imported):
    enc, mlp, latent, layers, q = published.NEWT_SIZES["S"]
    with pytest.raises(CheckpointError, match="image features"):
        imported(published.newt_file(published.Widths(enc, mlp, latent, layers, q, 200, 512, 128 + 384, 16)))


def test_rows_follow_newts_order():
    rows = newt_rows(task_set("mt80"))
    assert [rows[name] for name in task_set("mt30")] == MT30_ROWS
    assert (rows["quadruped-walk"], rows["quadruped-run"], rows["mw-assembly"]) == (19, 20, 37)
    assert rows["mw-hand-insert"] == 85 and "mw-shelf-place" not in rows
    assert len(rows) == 81 == len(set(rows.values()))
