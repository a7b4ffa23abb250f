"""What a path holds, of the formats that can be converted; and where else to look when it is near."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from flowmbpo.data.convert.dflex import DflexSource, Squash
from flowmbpo.data.convert.mmbench import MMBenchSource
from flowmbpo.data.convert.source import Source, known_task, set_tasks
from flowmbpo.data.convert.tdmpc2 import CHUNK, TDMPC2Source, chunk_files
from flowmbpo.data.dataset.format import MANIFEST, nearby
from flowmbpo.data.foreign import open_archive
from flowmbpo.errors import DataError
from flowmbpo.spec import TaskInfo

Format = Literal["auto", "tdmpc2", "mmbench", "pwm-dflex"]
_SHOWN = 4  # names of tensors in a message
_WHERE = "`flowmbpo data where` shows how published files are laid out."
_DFLEX_FILE = re.compile(r"ep_data_(\w+?)(?:Env)?_ep\d+")  # as SHAC names what it records


def open_source(
    path: Path,
    form: Format = "auto",
    *,
    set_name: str | None = None,
    task: str | None = None,
    drop_padding: bool = False,
    squash: Squash = "auto",
) -> Source:
    """The published source at `path`, in the format `form` or the one that it looks like.

    Raises DataError on a path that holds none, naming the one above or below where that does.
    """
    if not path.exists():
        raise DataError(f"{path}: does not exist. {_WHERE}")
    if path.is_dir() and (path / MANIFEST).is_file():
        raise DataError(f"{path}: is a dataset of flowmbpo already; train on it as it is.")
    kind = _looks_like(path) if form == "auto" else form
    if kind == "pwm-dflex":
        if set_name is not None:
            raise DataError(f"--set {set_name}: PWM's dflex data are of one task, which --task names; leave it away.")
        if path.is_dir():
            raise DataError(f"{path}: is a folder; PWM's dflex data are one file per task. Name one of {_some(path)}.")
        return DflexSource(path, _dflex_task(path, task), squash)
    source: Source
    if kind == "mmbench":
        source = _mmbench(path, set_name, task)
    elif task is not None:
        raise DataError(f"--task {task}: the chunks in {path} hold all tasks of a set; leave it away.")
    else:
        files = chunk_files(path)
        if not files:
            what = "is one file of a set" if path.is_file() else "holds no chunk_*.pt"
            raise DataError(f"{path}: {what}.{nearby(path, chunk_files)} {_WHERE}")
        source = TDMPC2Source(files, set_name)
    source.drop_padding = drop_padding
    return source


def _looks_like(path: Path) -> Format:
    if CHUNK.fullmatch(path.name) if path.is_file() else chunk_files(path):
        return "tdmpc2"
    files = [path] if path.is_file() else _archives(path)
    if not files:
        raise DataError(f"{path}: holds neither chunk_*.pt nor other .pt files.{nearby(path, chunk_files)} {_WHERE}")
    tensors = open_archive(files[0]).tensors
    if "episode" in tensors:
        return "mmbench"
    if {"obs", "action", "reward"} <= tensors.keys():
        return "tdmpc2" if "task" in tensors else "pwm-dflex"
    names = list(tensors)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    raise DataError(
        f"{files[0]}: is no published set of episodes. Checkpoints are read by `flowmbpo checkpoint import`; a set of "
        f"episodes holds obs, action and reward, and this file {', '.join(names[:_SHOWN]) or 'no tensor'}{more}."
    )


def _archives(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.pt") if path.is_file())


def _mmbench(path: Path, set_name: str | None, task: str | None) -> Source:
    if path.is_file():
        name = task or path.stem
        return MMBenchSource(_plain(name), [name], [path])
    files = {_plain(file.stem): file for file in _archives(path)}
    if not files:
        raise DataError(f"{path}: holds no <task>.pt. {_WHERE}")
    label, names = set_name or "mmbench", list(files)
    if task is not None:
        label, names = _plain(task), [_plain(task)]
        if label not in files:
            raise DataError(f"{path}: holds no demonstrations of {task}; it has {_some(path)}.")
    elif set_name is not None:
        names = [info.name for info in set_tasks(set_name)]
        missing = ", ".join(f"{name}.pt" for name in names if name not in files)
        if missing:
            raise DataError(f"{path}: --set {set_name} needs files that are not there: {missing}.")
    return MMBenchSource(label, names, [files[name] for name in names])


def _plain(name: str) -> str:
    known = known_task(name)
    return known.name if known else name


def _dflex_task(path: Path, task: str | None) -> TaskInfo:
    from flowmbpo.envs.tasks import all_tasks

    known = {re.sub("^dflex|[-_]", "", info.name): info for info in all_tasks("dflex")}
    recorded = _DFLEX_FILE.fullmatch(path.stem)
    asked = task or (recorded[1] if recorded else path.stem)
    found = known.get(re.sub("^dflex|[-_]", "", asked.lower()))
    if found is None:
        names = ", ".join(info.name for info in known.values())
        raise DataError(f"{path}: '{asked}' is no task of dflex. Say which one it is with --task; there are {names}.")
    return found


def _some(folder: Path) -> str:
    return ", ".join(path.name for path in _archives(folder)[:6]) or "its files"
