"""What tensors a torch archive holds and where they lie in the file, without running any of its pickle.

Run as a script in a process of its own (`flowmbpo.data.convert.tensors` does): prints one JSON document. Of the
pickle only shapes, types and places are taken. Every name that it may refer to is replaced by an inert stand-in of
this file, so that nothing of torch, of tensordict (of any version) or of anything else is called; a name without one
ends the reading. The tensors themselves are never loaded: whoever asked maps them from the file.

Imports the standard library alone: the process runs isolated from installed packages.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_MEMORY = 1 << 30  # a pickle that asks for more is no list of tensors
_LARGEST_PICKLE = 64 << 20
_BLOCK = 1 << 22
_MOST_ENTRIES = 1 << 20  # a dictionary that holds another one twice, and so on, never ends
_MALFORMED = (
    pickle.UnpicklingError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    RecursionError,
)
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., lengths of name and of extra field

# Element types: bytes of an element, and numpy's letter ("bf" has none; its reader widens the bits).
_STORAGES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": "bf",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
    "UntypedStorage": "u1",
}
_DTYPES = {
    "float32": "f4",
    "float64": "f8",
    "float16": "f2",
    "bfloat16": "bf",
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint8": "u1",
    "bool": "b1",
}


class Refused(Exception):
    """The archive is damaged, foreign, or asks for more than tensors; the message says which."""


@dataclass(frozen=True)
class Dtype:
    """An element type, by its letter in `_DTYPES`."""

    letter: str

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return 2 if self.letter == "bf" else int(self.letter[1])


@dataclass(frozen=True)
class Storage:
    """One member of the archive that holds numbers."""

    key: str
    dtype: Dtype


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    dtype: Dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Collection:
    """Stands for a TensorDict of any version: its state, and nothing that it could do."""

    state: dict[str, Any]

    def __new__(cls, *_: Any) -> Collection:  # unpickling calls no __init__
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: Any) -> None:
        # Objects with __slots__ pickle as a pair: the dictionary, then the slots.
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.state.update(part)


def _make_collection(_cls: Any, state: Any) -> Collection:
    made = Collection()
    made.__setstate__(state)
    return made


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    if not isinstance(storage, Storage):
        raise Refused("a tensor in it has no storage")
    return StoredTensor(storage, storage.dtype, int(offset), _whole(shape), _whole(stride))


def _typed_tensor(
    storage: Any, offset: Any, shape: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> StoredTensor:
    if not isinstance(storage, Storage) or not isinstance(dtype, Dtype):
        raise Refused("a tensor in it has no storage")
    return StoredTensor(storage, dtype, int(offset), _whole(shape), _whole(stride))


def _first(value: Any, *_: Any) -> Any:
    return value


def _subclass_tensor(rebuild: Any, _cls: Any, arguments: Any, _state: Any) -> Any:
    if rebuild not in (_tensor, _typed_tensor):
        raise Refused("a tensor in it is of an unknown kind")
    return rebuild(*arguments)


def _size(shape: Any = ()) -> tuple[int, ...]:
    return _whole(shape)


def _dictionary(*items: Any) -> dict[Any, Any]:
    return dict(*items)


def _ignored(*_: Any) -> None:
    return None


def _whole(numbers: Any) -> tuple[int, ...]:
    return tuple(int(number) for number in numbers)


_STAND_INS: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _subclass_tensor,
    ("torch", "Tensor"): _ignored,  # named beside a subclass's arguments
    ("torch", "Size"): _size,
    ("torch", "device"): _ignored,
    ("collections", "OrderedDict"): _dictionary,
    ("builtins", "set"): _ignored,  # tensordict 0.2 keeps its locks' holders so; protocol 2 calls the module as below
    ("__builtin__", "set"): _ignored,
    ("tensordict._reductions", "_make_td"): _make_collection,
    ("tensordict.utils", "_StringOnlyDict"): dict,
}
_STAND_INS |= {("torch", name): Dtype(letter) for name, letter in (_STORAGES | _DTYPES).items()}
_STAND_INS |= {("torch.storage", "UntypedStorage"): Dtype("u1")}


class InertUnpickler(pickle.Unpickler):
    """Builds stand-ins and plain containers; raises Refused on any name that is not listed."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for `module.name`."""
        found = _STAND_INS.get((module, name))
        if found is None and module.partition(".")[0] == "tensordict":
            return Collection  # one of its helpers: kept as its state, like all the rest
        if found is None:
            raise Refused(
                f"it refers to {module}.{name}, which is no part of a file of tensors. Nothing of it was run; "
                "do not load this file with anything else either, unless you trust who made it"
            )
        return found

    def persistent_load(self, pid: Any) -> Storage:
        """The storage that a tensor's entry names: ("storage", type, key, location, elements)."""
        if not isinstance(pid, tuple) or len(pid) < 3 or pid[0] != "storage" or not isinstance(pid[1], Dtype):
            raise Refused("it names a storage in an unknown way")
        return Storage(str(pid[2]), pid[1])


def describe(path: str, *, checksums: bool) -> dict[str, Any]:
    """Every tensor of the archive `path` by its key ("a.b" inside nested ones), and what identifies the file.

    Offsets and strides are in bytes, offsets from the start of the file. With `checksums`, every byte of the
    tensors is read and held against the archive's CRC-32. Raises Refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _describe(path, archive, checksums)
    except zipfile.BadZipFile as error:
        raise Refused(
            f"it is no complete torch archive ({error}): truncated, damaged, or saved in torch's old format "
            "(load and save it again with a current torch)"
        ) from error
    except _MALFORMED as error:
        raise Refused(f"its list of tensors cannot be read ({type(error).__name__}: {error})") from error
    except MemoryError as error:
        raise Refused("its list of tensors asks for absurd amounts of memory") from error


def _describe(path: str, archive: zipfile.ZipFile, checksums: bool) -> dict[str, Any]:
    members = {info.filename: info for info in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise Refused("two of its members have the same name")
    roots = [name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Refused("it is no archive that torch.save wrote (no data.pkl)")
    root = roots[0]
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
        raise Refused("it was written on a big-endian machine; save it again on another")
    entry = members[f"{root}data.pkl"]
    if entry.file_size > _LARGEST_PICKLE:
        raise Refused(f"its list of tensors has {entry.file_size} bytes: tensors were pickled as something else")
    with archive.open(entry) as file:
        content = InertUnpickler(file).load()
    tensors = dict(_leaves(content, "", iter(range(_MOST_ENTRIES))))
    if not tensors:
        raise Refused("it holds no tensors under names")
    used = {tensor.storage.key: members.get(f"{root}data/{tensor.storage.key}") for tensor in tensors.values()}
    with open(path, "rb") as file:
        starts = {key: _start(file, key, member) for key, member in used.items()}
        placed = {name: _placed(name, tensor, starts[tensor.storage.key]) for name, tensor in tensors.items()}
        if checksums:
            for key, (start, size) in starts.items():
                _check(file, key, start, size, used[key])
    identity = "".join(f"{info.filename} {info.file_size} {info.CRC};" for info in archive.infolist())
    return {"tensors": placed, "identity": identity}


def _leaves(content: Any, prefix: str, budget: Iterator[int]) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of a TensorDict, or of a plain dictionary of tensors; of `budget` one is spent on every entry."""
    entries = content.state.get("_tensordict", {}) if isinstance(content, Collection) else content
    if not isinstance(entries, dict):
        raise Refused(f"it holds a {type(content).__name__}, no TensorDict")
    for name, value in entries.items():
        if next(budget, None) is None:
            raise Refused(f"it nests more than {_MOST_ENTRIES} entries")
        if isinstance(value, StoredTensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Collection | dict):
            yield from _leaves(value, f"{prefix}{name}.", budget)


def _start(file: Any, key: str, member: zipfile.ZipInfo | None) -> tuple[int, int]:
    """Where a member's bytes begin in the file, and how many there are."""
    if member is None:
        raise Refused(f"its storage {key} is missing")
    if member.compress_type != zipfile.ZIP_STORED:
        raise Refused(f"its storage {key} is compressed, which torch.save never does")
    file.seek(member.header_offset)
    signature, name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if signature != b"PK\x03\x04":
        raise Refused(f"its storage {key} does not lie where the archive's directory says: damaged")
    start = member.header_offset + _LOCAL_HEADER.size + name + extra
    if start + member.file_size > os.fstat(file.fileno()).st_size:
        raise Refused(f"its storage {key} reaches beyond the end of the file: damaged")
    return start, member.file_size


def _placed(name: str, tensor: StoredTensor, place: tuple[int, int]) -> dict[str, Any]:
    start, available = place
    size = tensor.dtype.size
    if len(tensor.shape) != len(tensor.stride) or min((tensor.offset, *tensor.shape, *tensor.stride)) < 0:
        raise Refused(f"the tensor '{name}' has no valid shape")
    reach = sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride, strict=True))
    if 0 not in tensor.shape and (tensor.offset + reach + 1) * size > available:
        raise Refused(f"the tensor '{name}' of shape {list(tensor.shape)} is longer than its storage: damaged")
    return {
        "dtype": tensor.dtype.letter,
        "shape": tensor.shape,
        "offset": start + tensor.offset * size,
        "strides": [step * size for step in tensor.stride],
    }


def _check(file: Any, key: str, start: int, size: int, member: zipfile.ZipInfo | None) -> None:
    assert member is not None
    file.seek(start)
    found, left = 0, size
    while left:
        block = file.read(min(left, _BLOCK))
        if not block:
            raise Refused("it ends early: truncated")
        found = zlib.crc32(block, found)
        left -= len(block)
    if found != member.CRC:
        raise Refused(f"the checksum of its storage {key} is wrong: damaged; fetch it again")


def main() -> None:
    """`archive.py PATH [--checksums]`: a JSON document on stdout, {"refused": reason} where there is one."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        document = describe(sys.argv[1], checksums="--checksums" in sys.argv[2:])
    except Refused as error:
        document = {"refused": str(error)}
    except OSError as error:
        document = {"refused": f"it cannot be read: {error.strerror or error}"}
    json.dump(document, sys.stdout)


if __name__ == "__main__":
    main()
