"""Tensors are read from a foreign torch file without running its pickle."""

from __future__ import annotations

import copyreg
import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from flowmbpo.data import foreign
from flowmbpo.data.foreign import open_archive
from flowmbpo.errors import DataError


@pytest.fixture
def content():
    generator = torch.Generator().manual_seed(0)
    return {
        "obs": torch.randn(4, 5, 3, generator=generator),
        "action": torch.randn(4, 5, 2, generator=generator).to(torch.bfloat16),
        "reward": torch.randn(5, 4, generator=generator, dtype=torch.float64).T,  # not contiguous
        "task": torch.arange(20).reshape(4, 5),
        "terminated": torch.tensor([[True, False, False, True, False]] * 4),
        "half": torch.randn(4, 5, generator=generator).half()[:, ::2],
    }


@pytest.mark.parametrize("kind", ["tensordict", "locked", "dictionary"])
def test_every_tensor_is_mapped_with_its_values(tmp_path, content, kind):
    path = tmp_path / "file.pt"
    made = TensorDict(content, batch_size=(4,), device="cpu", names=["episode"])
    if kind == "locked":
        made.lock_()
    torch.save(content if kind == "dictionary" else made, path)
    archive = open_archive(path, checksums=True)
    assert {name: tensor.shape for name, tensor in archive.tensors.items()} == {n: t.shape for n, t in content.items()}
    for name, tensor in content.items():
        np.testing.assert_array_equal(archive.floats(name, 1, 3), tensor[1:3].float().numpy())
    assert archive.tensors["action"].dtype == torch.bfloat16
    np.testing.assert_array_equal(archive.column("task"), content["task"].numpy(), strict=True)


def _mappings(path):
    """Address ranges at which the file is mapped into this process."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    return [range(*(int(end, 16) for end in line[0].split("-"))) for line in lines]


def test_tensors_stay_in_the_file(tmp_path, content):
    path = tmp_path / "file.pt"
    torch.save(TensorDict(content, batch_size=(4,)), path)
    before = path.read_bytes()
    archive = open_archive(path)
    for tensor in archive.tensors.values():
        assert any(tensor.data_ptr() in mapped for mapped in _mappings(path))
    archive.tensors["obs"].zero_()  # a private mapping: nothing reaches the file
    archive.floats("action", 0, 4)[:] = 0.0
    assert path.read_bytes() == before


def test_nested_tensordicts_are_found_by_their_path(tmp_path, content):
    path = tmp_path / "file.pt"
    torch.save(TensorDict({"obs": {"state": content["obs"]}}, batch_size=(4,)), path)
    assert list(open_archive(path).tensors) == ["obs.state"]


def _old_tensordict(tensors, *, pair):
    """TensorDict as tensordict 0.1 to 0.2 had it: in another module, with slots and no reduction of its own."""

    class TensorDict:
        __slots__ = ("_batch_size", "_device", "_is_locked", "_is_memmap", "_is_shared", "_lock_id", "_tensordict")

        def __getstate__(self):
            state = {name: getattr(self, name) for name in self.__slots__}
            return (None, state) if pair else state

    TensorDict.__module__, TensorDict.__qualname__ = "tensordict.tensordict", "TensorDict"
    made = TensorDict()
    made._tensordict = tensors
    made._batch_size, made._device = torch.Size((4, 5)), torch.device("cpu")
    made._is_locked = made._is_memmap = made._is_shared = False
    made._lock_id = set()
    return made


class _StringOnlyDict(dict):
    __module__, __qualname__ = "tensordict.utils", "_StringOnlyDict"


@pytest.mark.parametrize("pair", [False, True])
def test_files_of_the_first_tensordict_versions_are_read(tmp_path, content, monkeypatch, pair):
    """They name their class and its state; `pair` is how slots without a __getstate__ pickle."""
    saved = _old_tensordict(_StringOnlyDict(content), pair=pair)
    monkeypatch.setattr(sys.modules["tensordict.tensordict"], "TensorDict", type(saved))
    monkeypatch.setattr(sys.modules["tensordict.utils"], "_StringOnlyDict", _StringOnlyDict)
    path = tmp_path / "old.pt"
    torch.save(saved, path)
    pickled = zipfile.ZipFile(path).read("old/data.pkl")
    assert b"tensordict.tensordict\nTensorDict" in pickled
    assert b"tensordict.utils\n_StringOnlyDict" in pickled
    assert b"_make_td" not in pickled
    np.testing.assert_array_equal(open_archive(path).column("obs"), content["obs"].numpy())


class _Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", ["root", "inside"])
def test_a_hostile_pickle_executes_nothing(tmp_path, content, place):
    trace = tmp_path / "executed"
    import os

    hostile = _Hostile(os.system, f"touch {trace}")
    path = tmp_path / "hostile.pt"
    torch.save(hostile if place == "root" else {**content, "extra": hostile}, path)
    with pytest.raises(DataError, match=r"refers to posix\.system.*Nothing of it was run"):
        open_archive(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the file is what it claims to be
    assert trace.exists()


@pytest.mark.parametrize(
    "function, arguments",
    [
        (eval, ("1",)),
        (getattr, ("text", "upper")),
        (copyreg._reconstructor, (Path, object, None)),
        (torch.load, ("x",)),
        (subprocess.Popen, ("true",)),
    ],
)
def test_no_callable_outside_the_list_is_reached(tmp_path, function, arguments):
    path = tmp_path / "hostile.pt"
    torch.save({"obs": _Hostile(function, *arguments)}, path)
    with pytest.raises(DataError, match="refers to"):
        open_archive(path)


def test_the_stand_ins_reach_nothing_outside_their_file():
    for stand_in in (*foreign._TENSORDICT.values(), foreign._Collection):
        assert stand_in is dict or stand_in.__module__ == foreign.__name__


def test_nesting_that_never_ends_is_refused(tmp_path):
    """Of 60 dictionaries each holds the next one twice: a small file with 2^60 entries. Another holds itself."""
    deep = {"obs": torch.zeros(1)}
    for _ in range(60):
        deep = {"a": deep, "b": deep}
    torch.save(deep, tmp_path / "deep.pt")
    itself = {}
    itself["again"] = itself
    torch.save(itself, tmp_path / "itself.pt")
    with pytest.raises(DataError, match="nests more than"):
        open_archive(tmp_path / "deep.pt")
    with pytest.raises(DataError, match="cannot be read"):
        open_archive(tmp_path / "itself.pt")


def test_a_pickle_that_asks_for_absurd_memory_is_refused(tmp_path, content):
    """LONG_BINPUT with a huge index makes the standard unpickler allocate a table of that size."""
    path, bomb = tmp_path / "file.pt", tmp_path / "bomb.pt"
    torch.save(content, path)
    pickled = pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f" + pickle.STOP
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(bomb, "w") as target:
        for info in source.infolist():
            target.writestr(info, pickled if info.filename.endswith("data.pkl") else source.read(info))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="holds no tensors"):
        open_archive(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


def test_a_flipped_bit_is_found_by_the_checksums(tmp_path, content):
    path = tmp_path / "file.pt"
    torch.save(TensorDict(content, batch_size=(4,)), path)
    offset = content["obs"].numpy().tobytes()[:32]
    data = bytearray(path.read_bytes())
    data[data.find(offset) + 7] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"checksum of its member .*data/\d+ is wrong: damaged; fetch it again"):
        open_archive(path, checksums=True)


@pytest.mark.parametrize("kept", [0, 10, 500, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, content, kept):
    path = tmp_path / "file.pt"
    torch.save(TensorDict(content, batch_size=(4,)), path)
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(len(data) * kept)])
    with pytest.raises(DataError, match="no complete torch archive"):
        open_archive(path)


def test_a_tensor_longer_than_its_storage_is_refused(tmp_path):
    path, forged = tmp_path / "file.pt", tmp_path / "forged.pt"
    torch.save({"obs": torch.zeros(4, 5)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(forged, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith("data.pkl"):
                assert data.count(b"K\x04K\x05\x86") == 1  # the shape (4, 5)
                data = data.replace(b"K\x04K\x05\x86", b"K\x40K\x05\x86")
            target.writestr(info, data)
    with pytest.raises(DataError, match="longer than its storage"):
        open_archive(forged)


def test_the_old_file_format_of_torch_is_refused_with_advice(tmp_path, content):
    path = tmp_path / "file.pt"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match="load and save it again with a current torch"):
        open_archive(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.pt: cannot be read: .*No such file"):
        open_archive(tmp_path / "missing.pt")


def test_compressed_members_are_refused(tmp_path, content):
    """torch would map the compressed bytes as numbers."""
    path, packed = tmp_path / "file.pt", tmp_path / "packed.pt"
    torch.save(content, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(DataError, match=r"is compressed, which torch\.save never does"):
        open_archive(packed)
