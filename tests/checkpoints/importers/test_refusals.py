"""Files that are hostile, damaged, of another architecture or for other tasks: refused, and nothing is written."""

from __future__ import annotations

import os
import pickle
import random
import re
import struct
import zipfile
from dataclasses import replace

import published
import pytest
import torch

from flowmbpo.checkpoints.importers.conversion import import_checkpoint
from flowmbpo.checkpoints.importers.layouts import PickledStatistics
from flowmbpo.errors import CheckpointError, ConfigError, FlowMBPOError


@pytest.fixture
def refused(tmp_path):
    """The message with which a file (content, or bytes) is refused; nothing may have been written."""

    def run(content, error=CheckpointError, **options):
        source = tmp_path / "source.pt"
        if isinstance(content, bytes):
            source.write_bytes(content)
        else:
            torch.save(content, source)
        before = source.read_bytes()
        with pytest.raises(error) as caught:
            import_checkpoint(source, out=tmp_path / "out.pt", **options)
        assert source.read_bytes() == before
        assert sorted(file.name for file in tmp_path.iterdir()) == ["source.pt"]
        return str(caught.value)

    return run


def small(task_set="mt30"):
    """A tiny file's content in the layout that PWM uses."""
    return published.tdmpc2_file(published.tiny(task_set))


class Hostile:
    """Unpickling this runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["model", "obs_rms", "beside"])
@pytest.mark.parametrize("form", ["archive", "legacy", "pickle"])
def test_hostile_pickles_execute_nothing(tmp_path, place, form):
    marker = tmp_path / "executed"
    bad = Hostile(f"touch {marker}")
    content = {"model": bad} if place == "model" else small() | {place: bad}
    if place == "obs_rms":
        content = {"world_model": {}, "actor": {}, "critic": {}, "obs_rms": bad}
    source = tmp_path / "source.pt"
    if form == "pickle":
        source.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, source, _use_new_zipfile_serialization=form == "archive")
    with pytest.raises(CheckpointError, match=r"Nothing of it was run|another kind of file"):
        import_checkpoint(source, out=tmp_path / "out.pt")
    assert not marker.exists() and not (tmp_path / "out.pt").exists()


def test_stand_in_is_allowed_only_while_a_file_is_read(refused):
    refused({"nothing": 1})
    assert "RunningMeanStd" not in str(torch.serialization.get_safe_globals())
    assert PickledStatistics not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": torch.zeros(2)}, "no checkpoint that is known here"),
        ([torch.zeros(2)], "holds a list"),
        (b"no archive at all", "no checkpoint at all|another kind of file"),
        ({"model": {"_encoder.rgb.2.weight": torch.zeros(2)}}, "a model of images"),
        ({"world_model": 1, "actor": {}, "critic": {}}, "not a state dict"),
    ],
)
def test_foreign_content_is_refused(refused, content, message):
    assert re.search(message, refused(content))


def test_altered_architectures_name_the_tensor(refused):
    def altered(change):
        content = small()
        change(content["model"])
        return refused(content)

    assert "_dynamics.1.ln.bias: is missing" in altered(lambda s: s.pop("_dynamics.1.ln.bias"))
    assert "_extra.weight: not known" in altered(lambda s: s.update({"_extra.weight": torch.zeros(2)}))
    assert "_reward" in altered(lambda s: s.update({"_reward.0.weight": torch.zeros(20, 7)}))
    assert "_pi's output is 14 wide" in altered(
        lambda s: s.update({"_pi.2.weight": torch.zeros(14, 20), "_pi.2.bias": torch.zeros(14)})
    )
    assert "_dynamics.0.bias: holds numbers that are not finite" in altered(
        lambda s: s["_dynamics.0.bias"].fill_(float("nan"))
    )
    assert "101 bins" in altered(
        lambda s: s.update(
            {
                **{"_reward.2.weight": torch.zeros(1, 20), "_reward.2.bias": torch.zeros(1)},
                **{"_Qs.params.8": torch.zeros(2, 1, 20), "_Qs.params.9": torch.zeros(2, 1)},
            }
        )
    )


def test_other_task_sets_are_refused(refused):
    assert "which is mt30" in refused(small(), task_set="mt80")
    assert "which is mt80" in refused(small("mt80"), task_set="mt30")
    assert "no task set is called 'mt31'" in refused(small(), ConfigError, task_set="mt31")
    assert "is not one of the tasks of mt30" in refused(small(), ConfigError, task="mw-reach")
    assert "no task is called 'walker-stnad'" in refused(small(), ConfigError, task="walker-stnad")


def test_mixed_widths_are_refused(refused):
    """30 embeddings beside MT80's observations belong to no published set."""
    w = published.tiny("mt30")
    mixed = replace(w, obs=39)
    assert "30 tasks at 39 observations" in refused(published.tdmpc2_file(mixed))
    assert "24 observations and 6 actions, but the file was trained with 39" in refused(
        published.tdmpc2_file(mixed), task_set="mt30"
    )


def test_single_task_files_need_a_task_of_their_widths(refused):
    content = published.tdmpc2_file(replace(published.tiny("mt30"), tasks=0, task_dim=0, obs=17))
    assert "Name it with --task" in refused(content) and "cheetah-run" in refused(content)
    assert "trained on one task" in refused(content, task_set="mt30")
    assert "hopper-hop: has 15 observations and 4 actions, but the file was trained with 17 and 6" in refused(
        content, task="hopper-hop"
    )


def test_action_masks_of_other_tasks_are_refused(refused):
    content = published.current_file(published.tiny("mt30"), "mt30")
    content["model"]["_action_masks"][7] = 1.0
    assert "pendulum-swingup has 1" in refused(content)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.5, -1.0])
def test_action_masks_of_other_numbers_are_refused(refused, value):
    content = published.current_file(published.tiny("mt30"), "mt30")
    content["model"]["_action_masks"][3, 2] = value
    assert f"_action_masks: holds {value}, where 0 and 1 are allowed" in refused(content)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"log_std_min": torch.tensor(float("nan"))}, "are nan and 12"),
        ({"log_std_min": torch.tensor(float("-inf"))}, "are -inf and 12"),
        ({"log_std_dif": torch.tensor(-12.0)}, "are -10 and -12, where a finite bound and a range above 0"),
        ({"log_std_dif": torch.tensor(0.0)}, "are -10 and 0"),
        ({"log_std_dif": torch.tensor(float("inf"))}, "are -10 and inf"),
        ({"log_std_dif": torch.tensor([1.0, 2.0])}, "not numbers"),
        ({"log_std_min": torch.tensor(1j)}, "not numbers"),
    ],
)
def test_bounds_of_the_prior_that_allow_nothing_are_refused(refused, changed, message):
    content = published.current_file(published.tiny("mt30"), "mt30")
    content["model"] |= changed
    assert message in refused(content)


@pytest.mark.parametrize("missing", ["log_std_min", "log_std_dif"])
def test_half_of_the_priors_bounds_is_refused(refused, missing):
    content = published.current_file(published.tiny("mt30"), "mt30")
    del content["model"][missing]
    assert f"{missing}: is missing" in refused(content)


def test_networks_of_too_few_or_many_ensemble_axes_are_refused(refused):
    content = small()
    flat = {name: tensor[0] if name.startswith("_Qs.") else tensor for name, tensor in content["model"].items()}
    assert "_Qs.0.weight: is (20, 26), [members, out, in] is needed" in refused({"model": flat})
    stacked = {name: tensor[None] if name.startswith("_reward.") else tensor for name, tensor in flat.items()}
    assert "_reward.0.weight: is (1, 20, 26), [out, in] is needed" in refused({"model": stacked})
    none = {n: t[:0] if n.startswith("_Qs.") else t for n, t in content["model"].items()}
    assert "_Qs.0.weight: is (0, 20, 26), [members, out, in] is needed" in refused({"model": none})
    uneven = {n: t[:1] if n.startswith("_Qs.params.8") else t for n, t in content["model"].items()}
    assert "_Qs.2" in refused({"model": uneven | {"_Qs.params.9": content["model"]["_Qs.params.9"][:1]}})


@pytest.mark.parametrize("name", ["_reward.\u00b2.weight", f"_reward.{'9' * 5000}.weight", f"_Qs.params.{'9' * 5000}"])
def test_layer_numbers_that_are_none_are_refused(refused, name):
    content = small()
    content["model"][name] = torch.zeros(2)
    assert re.search("holds layers .*, not 0, 1, 2|not known in this layout", refused(content))


def test_weights_beyond_single_precision_are_refused(refused):
    content = small()
    content["model"]["_dynamics.0.bias"] = torch.full((20,), 1e300, dtype=torch.float64)
    assert "_dynamics.0.bias: holds numbers that are not finite (inf)" in refused(content)


def test_files_without_checksums_are_imported_and_it_is_said(tmp_path):
    source, out = tmp_path / "source.pt", tmp_path / "out.pt"
    found = []
    for form in (True, False):
        torch.save(small(), source, _use_new_zipfile_serialization=form)
        found.append(import_checkpoint(source, out=out, overwrite=True)["notes"])
    assert not found[0] and any("no checksums" in note for note in found[1])


@pytest.mark.parametrize("error", [AssertionError, struct.error, OverflowError, MemoryError, UnicodeError])
def test_whatever_damage_makes_the_reader_raise_is_refused(refused, monkeypatch, error):
    def damaged(*_, **__):
        raise error("damaged")

    monkeypatch.setattr(torch, "load", damaged)
    assert "cannot be read as a checkpoint (damaged)" in refused(small())


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_old_files_never_end_in_a_traceback(tmp_path):
    """Exchanged bytes among the pickles, and cut ends."""
    source, out = tmp_path / "source.pt", tmp_path / "out.pt"
    torch.save({"model": {"weight": torch.zeros(3)}}, source, _use_new_zipfile_serialization=False)
    whole = source.read_bytes()
    draw = random.Random(0)
    for attempt in range(300):
        damaged = bytearray(whole)
        for _ in range(1 + attempt % 3):
            damaged[draw.randrange(len(whole))] = draw.randrange(256)
        source.write_bytes(bytes(damaged) if attempt % 4 else whole[: draw.randrange(len(whole))])
        with pytest.raises(FlowMBPOError):
            import_checkpoint(source, out=out)


def test_damaged_files_are_refused(tmp_path):
    """Flipped bits anywhere in the archive, and cut ends."""
    source, out = tmp_path / "source.pt", tmp_path / "out.pt"
    torch.save(small(), source)
    whole = source.read_bytes()
    draw = random.Random(0)
    for attempt in range(20):
        place = draw.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        source.write_bytes(bytes(damaged) if attempt % 2 else whole[:place])
        try:
            import_checkpoint(source, out=out, overwrite=True)
        except FlowMBPOError:
            continue
        # What a flip may touch unseen is archive padding and dates: then the weights must be untouched.
        with zipfile.ZipFile(source) as archive:
            assert archive.testzip() is None and attempt % 2


def test_results_are_not_overwritten_unasked(tmp_path):
    source, out = tmp_path / "source.pt", tmp_path / "out.pt"
    torch.save(small(), source)
    import_checkpoint(source, out=out)
    with pytest.raises(CheckpointError, match="--overwrite"):
        import_checkpoint(source, out=out)
    import_checkpoint(source, out=out, overwrite=True)
    with pytest.raises(CheckpointError, match="flowmbpo already"):
        import_checkpoint(out, out=tmp_path / "again.pt")
    with pytest.raises(CheckpointError, match=r"end in \.pt"):
        import_checkpoint(source, out=tmp_path / "out.ckpt")
    with pytest.raises(CheckpointError, match="No such file"):
        import_checkpoint(tmp_path / "absent.pt", out=tmp_path / "again.pt")
