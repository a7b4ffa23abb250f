"""Which task a task starts from."""

import pytest
import torch

from flowmbpo.errors import ConfigError
from flowmbpo.stages.transfer.agent import transfer
from flowmbpo.stages.transfer.embeddings import match_tasks

KNOWN = ("reacher-easy", "cheetah-run", "walker-stand", "walker-walk", "humanoid-stand")


def starts(specs, task, known=KNOWN, embedding_from=None, **widths):
    (start,) = match_tasks(specs(task, **widths), specs(*known, **widths), embedding_from)
    return start.source, start.how


@pytest.mark.parametrize(
    ("task", "source"),
    [
        ("walker-run", "walker-stand"),  # its body and widths; of the two names, the one that shares its last letter
        ("cheetah-jump", "cheetah-run"),
        ("reacher-hard", "reacher-easy"),
    ],
)
def test_an_unknown_task_starts_from_its_own_body(specs, task, source):
    assert starts(specs, task) == (source, "nearest")


def test_the_body_counts_before_the_widths(specs):
    known = ("cheetah-run", "walker-stand")
    assert starts(specs, "walker-crawl", known, walker_crawl=(5, 3)) == ("walker-stand", "nearest")


def test_without_the_body_the_same_widths_are_nearest(specs):
    known = ("humanoid-stand", "cheetah-run", "reacher-easy")
    assert starts(specs, "hopper-stand", known, hopper_stand=(4, 2)) == ("reacher-easy", "nearest")


def test_without_body_and_widths_the_name_decides(specs):
    known = ("reacher-easy", "cheetah-run", "humanoid-stand")
    assert starts(specs, "hopper-stand", known, hopper_stand=(15, 4)) == ("humanoid-stand", "nearest")


def test_of_equally_near_tasks_the_first_is_taken(specs):
    """'hop-c' has as much in common with 'hop-a' as with 'hop-b'."""
    widths = {"hop_a": (4, 2), "hop_b": (4, 2), "hop_c": (4, 2)}
    assert starts(specs, "hop-c", ("hop-b", "hop-a"), **widths) == ("hop-b", "nearest")


def test_a_known_task_is_itself_whatever_is_named(specs):
    assert starts(specs, "walker-walk", embedding_from="reacher-easy") == ("walker-walk", "known")


def test_a_perturbed_task_is_known_by_its_plain_name(specs):
    assert starts(specs, "walker-walk+push0.1") == ("walker-walk", "known")


def test_the_named_task_goes_before_the_nearest(specs):
    assert starts(specs, "walker-run", embedding_from="reacher-easy") == ("reacher-easy", "named")


def test_an_unknown_name_is_refused_with_those_that_there_are(specs):
    with pytest.raises(ConfigError, match=r"'walker-stnd'\. Did you mean 'walker-stand'\? Its tasks: reacher-easy, "):
        starts(specs, "walker-run", embedding_from="walker-stnd")


def test_rows_are_those_of_the_chosen_tasks(make_agent, specs, source_of):
    source, target = make_agent(specs(*KNOWN)), make_agent(specs("walker-run", "walker-walk", "cheetah-jump"), seed=1)
    report = transfer(source_of(source), target, embedding_from="humanoid-stand")
    table = source.world_model.tasks.embeddings
    assert torch.equal(target.world_model.tasks.embeddings, table[[4, 3, 4]])
    assert [start.how for start in report.tasks] == ["named", "known", "named"]
    assert report.dropped_tasks == ("reacher-easy", "cheetah-run", "walker-stand")
