"""Files of TD-MPC2 in its three layouts compute here what their tensors mean."""

from __future__ import annotations

from itertools import pairwise

import parity
import published
import pytest
import torch
from slowness import slow

# float32 against double precision: errors of some 1e-6 are rounding, a wrong column is of order 1.
TOLERANCE = 1e-5


@pytest.mark.parametrize("task_set", ["mt30", "mt80"])
@pytest.mark.parametrize("size", ["1M", slow("5M"), slow("19M"), slow("48M"), slow("317M")])
@pytest.mark.parametrize("layout", ["tdmpc2", "tdmpc2-current"])
def test_imported_model_computes_what_the_file_means(imported, layout, size, task_set):
    w = published.widths(size, task_set)
    content = published.tdmpc2_file(w) if layout == "tdmpc2" else published.current_file(w, task_set)
    path, outcome = imported(content)
    assert (outcome["format"], outcome["size"], outcome["task"]) == (layout, size, task_set)
    found = parity.differences(path, content["model"], layout, w)
    assert set(found) == {"encode", "next", "reward", "q", "pi"}
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("size", ["1M", slow("5M"), slow("19M"), slow("48M"), slow("317M")])
def test_oldest_single_task_files_compute_what_they_mean(imported, size):
    w = published.single(size, 17, 6)
    content = published.oldest_file(w)
    path, outcome = imported(content, task="cheetah-run")
    assert (outcome["format"], outcome["size"], outcome["task"]) == ("tdmpc2-oldest", size, "cheetah-run")
    assert any("symlog" in note for note in outcome["notes"])
    found = parity.differences(path, content["model"], "tdmpc2-oldest", w)
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("make", [published.tdmpc2_file, lambda w: published.current_file(w, None, metas=False)])
def test_single_task_files_of_newer_layouts(imported, make):
    w = published.single("1M", 24, 6)
    content = make(w)
    path, outcome = imported(content, task="walker-stand")
    found = parity.differences(path, content["model"], outcome["format"], w)
    assert max(found.values()) < TOLERANCE, found


def test_termination_head_is_kept(imported):
    w = published.single("1M", 24, 6)
    content = published.current_file(w, None, episodic=True)
    path, _ = imported(content, task="walker-stand")
    agent, _ = parity.opened(path)
    obs, task, action = parity.inputs(agent)
    z = published.evaluate(content["model"], "tdmpc2-current", w, obs, task, action).z
    names = published.layer_names("tdmpc2-current", "termination", 3)
    wanted = published.run(content["model"], names, z).squeeze(-1)
    logit = agent.world_model.termination_logit(parity.interleaved(z).float(), agent.world_model.context(task))
    assert (logit - wanted).abs().max() < TOLERANCE


def test_bounds_of_the_prior_are_read_or_known(imported):
    w = published.widths("1M", "mt30")
    content = published.current_file(w, "mt30")
    content["model"] |= {"log_std_min": torch.tensor(-5), "log_std_dif": torch.tensor(7)}
    _, payload = parity.opened(imported(content)[0])
    assert (payload["planner"]["log_std_min"], payload["planner"]["log_std_max"]) == (-5.0, 2.0)


def test_planner_can_be_left_out_and_is_named_as_dropped(imported):
    path, outcome = imported(published.tdmpc2_file(published.widths("1M", "mt30")), keep_planner=False)
    assert "planner" not in parity.opened(path)[1]
    assert outcome["dropped"] == ["_target_Qs", "_pi", "_Qs"]


def test_files_without_target_networks_are_read(imported):
    _, outcome = imported(published.tdmpc2_file(published.widths("1M", "mt30"), targets=False))
    assert outcome["dropped"] == [] and outcome["planner"]


def test_untrained_parts_are_fresh_and_named(imported):
    path, outcome = imported(published.tdmpc2_file(published.widths("1M", "mt30")))
    assert outcome["untrained"] == ["actor", "critic"]
    agent, payload = parity.opened(path)
    assert payload["imported"]["untrained"] == ["actor", "critic"]
    assert payload["epoch"] == payload["agent_steps"] == payload["env_steps"] == 0
    assert agent.actor.logstd.eq(-1.0).all()


def test_import_leaves_torchs_global_generator_alone(imported):
    before = torch.get_rng_state()
    imported(published.tdmpc2_file(published.widths("1M", "mt30")))
    assert torch.equal(before, torch.get_rng_state())


def test_one_member_of_the_set_can_be_what_runs(imported):
    path, outcome = imported(published.tdmpc2_file(published.widths("1M", "mt30")), task="hopper-hop")
    assert outcome["task"] == "hopper-hop"
    config = parity.opened(path)[1]["config"]
    assert (config["task"]["set"], config["task"]["only"]) == ("mt30", "hopper-hop")
    assert config["training"]["gamma"] == "task" and config["training"]["reward_normalization"] == "none"


COUNTS = {  # encoder, dynamics, reward, with the embedding, all of TD-MPC2
    ("mt30", "1M"): (64_640, 287_616, 276_965, 632_101, 1_426_427),
    ("mt30", "5M"): (155_904, 826_880, 615_013, 1_599_717, 5_241_066),
    ("mt30", "19M"): (1_670_656, 2_176_512, 1_754_213, 5_603_301, 16_031_210),
    ("mt30", "48M"): (7_974_912, 6_102_272, 4_904_805, 18_983_909, 48_242_410),
    ("mt30", "317M"): (56_512_544, 28_495_904, 23_269_477, 108_280_805, 317_316_889),
    ("mt80", "48M"): (8_059_136, 6_159_616, 4_962_149, 19_188_581, 48_791_146),
}


@pytest.mark.parametrize(("task_set", "size"), COUNTS)
def test_parameter_counts_are_the_published_ones(monkeypatch, task_set, size):
    """By shapes alone: the tensors are one number each, expanded."""
    from flowmbpo.checkpoints.importers.foreign import part_parameters, size_class
    from flowmbpo.checkpoints.importers.layouts import TDMPC2, read_tdmpc2

    def shapes_only(state, names, dims, g, lead=()):
        for layer, (fan_in, fan_out) in zip(names, pairwise(dims), strict=True):
            state |= {name: torch.ones(()).expand(*lead, fan_out) for name in layer}
            state[layer[0]] = torch.ones(()).expand(*lead, fan_out, fan_in)

    monkeypatch.setattr(published, "draw_network", shapes_only)
    state = published.model_state("tdmpc2", published.widths(size, task_set), 0)
    monkeypatch.setattr("flowmbpo.checkpoints.importers.foreign.finite", lambda name, tensor: tensor)
    model = read_tdmpc2(state, TDMPC2)
    parts = part_parameters(model)
    compared = sum(parts[part] for part in ("encoder", "dynamics", "reward", "task_embedding"))
    found = (parts["encoder"], parts["dynamics"], parts["reward"], compared, parts["total"])
    assert found == COUNTS[task_set, size]
    assert size_class(model) == size
