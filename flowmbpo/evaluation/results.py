"""Evaluations as files: JSON with everything, CSV with one row per episode, and a README over both."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmbpo.errors import StorageError
from flowmbpo.evaluation.returns import Evaluation
from flowmbpo.files import refused, write_bytes_atomic

REQUIRED = ("checkpoint", "checkpoint_sha256", "seed")
HASH_DIGITS = 12

README_HEAD = """\
# Evaluations

Returns of whole episodes in the real environment. Each evaluation is a `.json` file (everything that
is known about it) and a `.csv` file (one row per episode). The checkpoint is named by the SHA-256 of
its file: compare with `sha256sum`. `+-` is the population standard deviation over episodes. The last
column says what acted: the checkpoint's policy, or a planner, its values and its settings.

| evaluation | checkpoint | SHA-256 | task | seed | episodes | return | success | planner |
|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class ResultFiles:
    """Where one evaluation was written; the README is shared by all of its folder."""

    json: Path
    csv: Path
    readme: Path


def write_results(folder: Path, evaluation: Evaluation, meta: Mapping[str, Any]) -> ResultFiles:
    """Write `evaluation` into `folder` under `{checkpoint stem}-{hash}-seed{seed}`.

    `meta` holds at least the checkpoint's path, its `checkpoint_sha256` and the `seed`, and must be
    JSON-able; `task` is filled in from the evaluation where absent, and `planner` (what acted: its
    `kind`, and a planner's `values` and `settings`) as the policy. An evaluation of the same checkpoint
    and seed that is already there and differs is kept: the new one gets `-2`, `-3`, ...

    Raises ValueError where `meta` lacks a key or shadows one of the evaluation's own, StorageError
    when the disk refuses.
    """
    figures = evaluation.to_dict()
    missing, shadowed = set(REQUIRED) - meta.keys(), figures.keys() & meta.keys()
    if missing or shadowed:
        raise ValueError(f"meta lacks {sorted(missing)} and must not hold {sorted(shadowed)}")
    task = "+".join(dict.fromkeys(evaluation.tasks))
    meta = {"task": task, "planner": {"kind": "policy"}, **meta}
    document = json.dumps({**meta, **figures}, indent=2, allow_nan=False) + "\n"
    stem = f"{Path(meta['checkpoint']).stem}-{meta['checkpoint_sha256'][:HASH_DIGITS]}-seed{meta['seed']}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(folder, error) from error
    path = _claim(folder, stem, document.encode())
    files = ResultFiles(json=path, csv=path.with_suffix(".csv"), readme=folder / "README.md")
    try:
        write_bytes_atomic(files.csv, _table(evaluation, planner_label(meta["planner"])).encode())
        write_bytes_atomic(files.json, document.encode())
    except StorageError:
        if not path.stat().st_size:  # the bare claim; a file with content is an evaluation
            path.unlink()
        raise
    write_bytes_atomic(files.readme, _readme(folder).encode())
    return files


def _claim(folder: Path, stem: str, document: bytes) -> Path:
    """The first free name, taken by an empty file, or that of an evaluation with this very content."""
    for number in itertools.count(1):
        path = folder / (f"{stem}.json" if number == 1 else f"{stem}-{number}.json")
        try:
            with open(path, "xb"):
                return path
        except FileExistsError:
            if path.read_bytes() == document:
                return path
        except OSError as error:
            raise refused(path, error) from error
    raise AssertionError("itertools.count ended")


def planner_label(planner: Mapping[str, Any]) -> str:
    """What acted, of an evaluation's `planner` entry: `policy`, or `mppi on critic: horizon 3, samples 512, ...`."""
    if "settings" not in planner:
        return str(planner["kind"])
    settings = ", ".join(f"{key} {value}" for key, value in planner["settings"].items())
    return f"{planner['kind']} on {planner['values']}: {settings}"


def _table(evaluation: Evaluation, planner: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("episode", "task", "return", "length", "success", "planner"))
    columns = zip(evaluation.tasks, evaluation.returns, evaluation.lengths, evaluation.successes, strict=True)
    for episode, (task, total, length, success) in enumerate(columns):
        writer.writerow((episode, task, repr(total), length, "" if success is None else success, planner))
    return text.getvalue()


def _readme(folder: Path) -> str:
    return README_HEAD + "".join(_readme_row(path) for path in sorted(folder.glob("*-seed*.json")))


def _readme_row(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        cells = (
            f"`{found['checkpoint']}`",
            f"`{found['checkpoint_sha256']}`",
            found["task"],
            found["seed"],
            found["episodes"],
            f"{found['return_mean']:.1f} +- {found['return_std']:.1f}",
            "-" if found["success"] is None else f"{found['success']:.2f}",
            planner_label(found.get("planner", {"kind": "policy"})),  # earlier files name none
        )
    except (OSError, ValueError, KeyError, TypeError):
        # Somebody else's file, or an evaluation that is just being written: no reason to lose ours.
        return f"| `{path.stem}` | not readable | | | | | | | |\n"
    return f"| `{path.stem}` | " + " | ".join(str(cell) for cell in cells) + " |\n"
