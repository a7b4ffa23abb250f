"""The `compute` diagnosis: what it reports, and that measuring changes nothing (its counts: parity/test_cost.py)."""

import json

import pytest
import torch
from matplotlib.figure import Figure

from flowmbpo.diagnostics.compute import measure_compute
from flowmbpo.diagnostics.interface import Effort


@pytest.fixture(scope="module")
def subject(make_subject):
    return make_subject("training.preactivation_penalty=0.1", "training.actor_input_gradient=detached")


@pytest.fixture(scope="module")
def diagnosis(subject):
    return measure_compute(subject, Effort())


def test_document_has_every_figure_and_no_gap(diagnosis):
    document = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert document["measured"].keys() == {"model", "actor", "critic"}
    assert all(update["flops"] > 0 and update["seconds"] > 0 for update in document["measured"].values())
    assert document["nfe"] == 2 and document["compute_index"] > 0
    assert document["rss_mb"] > 50 and document["gpu_mb"] is None
    assert document["threads"] == torch.get_num_threads()


def test_seconds_of_an_epoch_count_every_update(diagnosis):
    counts = diagnosis.cost.updates_per_epoch
    assert diagnosis.epoch_seconds == pytest.approx(sum(diagnosis.measured[n].seconds * counts[n] for n in counts))


def test_penalty_is_part_of_a_measured_actor_update(make_subject):
    plain, penalised = (
        measure_compute(make_subject(f"training.preactivation_penalty={weight}"), Effort()).measured["actor"].flops
        for weight in (0.0, 0.1)
    )
    assert penalised > plain


def test_measuring_leaves_weights_gradients_and_the_global_generator_alone(subject):
    before = {name: value.clone() for name, value in subject.agent.state_dict().items()}
    state = torch.get_rng_state()
    measure_compute(subject, Effort())
    assert all(torch.equal(value, before[name]) for name, value in subject.agent.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in subject.agent.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_picture_and_table_show_every_update(diagnosis):
    figure = Figure()
    diagnosis.draw(figure)
    assert [len(axes.patches) for axes in figure.axes] == [3, 3]
    names = [name for name, _ in diagnosis.rows()]
    assert {"model update", "actor update", "critic update"} <= set(names)
