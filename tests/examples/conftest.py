"""A stand-in for the command, which notes how it was called, and leaves the files that the scripts look at."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

STAND_IN = r"""#!/usr/bin/env bash
echo "$@" >> "$LOG"
finished() { mkdir -p "$1/checkpoints"; printf '{\n  "status": "%s"\n}\n' "$2" > "$1/run.json"; }
out=
args=("$@")
for index in "${!args[@]}"; do [ "${args[$index]}" != --out ] || out=${args[$((index + 1))]}; done
case "$1 $2" in
"data collect")
    mkdir -p "$3"
    printf '{\n "complete": true\n}\n' > "$3/dataset.json"
    ;;
esac
[ -n "$out" ] || exit 0
if [ -n "${INTERRUPTIBLE:-}" ] && [ ! -e "$out/checkpoints/latest.pt" ]; then
    stop() { finished "$out" interrupted; touch "$out/checkpoints/latest.pt"; exit 75; }
    trap stop USR1 TERM
    echo ready >> "$LOG"
    for _ in $(seq 600); do sleep 0.05; done
    exit 1
fi
finished "$out" done
touch "$out/checkpoints/latest.pt"
"""


class Scripts:
    """Runs the repository's examples with the stand-in, in a folder of its own that has `examples`."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder = folder
        self.log = folder / "calls.log"
        self.programs = folder / "bin"
        self.programs.mkdir(parents=True)
        (folder / "examples").symlink_to(repository / "examples")
        self.add("flowmbpo", STAND_IN)

    def add(self, name: str, text: str) -> None:
        """Put a program on the scripts' PATH."""
        program = self.programs / name
        program.write_text(text)
        program.chmod(0o755)

    def start(self, *words: str | Path, **variables: str) -> subprocess.Popen[str]:
        """Start `bash WORDS`, with these environment variables and no others of consequence."""
        path = f"{self.programs}{os.pathsep}/usr/bin{os.pathsep}/bin"
        environment = {"PATH": path, "LOG": str(self.log), **variables}
        return subprocess.Popen(
            ["bash", *map(str, words)],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str | Path, **variables: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        process = self.start(*words, **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    @property
    def calls(self) -> list[str]:
        """How the command was called so far."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def scripts(tmp_path: Path, repository: Path) -> Scripts:
    return Scripts(tmp_path, repository)


@pytest.fixture
def record() -> Callable[[Path, str, bool], None]:
    """Make a run directory of a given status, with or without a checkpoint."""

    def make(run: Path, status: str, checkpoint: bool) -> None:
        (run / "checkpoints").mkdir(parents=True)
        (run / "run.json").write_text(f'{{\n  "status": "{status}",\n  "outcome": {{\n    "status": "done"\n  }}\n}}\n')
        if checkpoint:
            (run / "checkpoints" / "latest.pt").touch()

    return make
