"""Running the command in this process, with the engine replaced where a test says so."""

import json
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from flowmbpo_cli.main import app


@dataclass
class Finished:
    """One finished command."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self):
        """The one JSON document on stdout: a second one, or anything else there, fails."""
        return json.loads(self.stdout)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Call `flowmbpo` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        result = CliRunner().invoke(app, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Finished(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture(scope="session")
def listed():
    """What `presets list` prints: for people, and its JSON document. Every preset is read for each."""
    text, document = (CliRunner().invoke(app, ["presets", "list", *flags]).stdout for flags in ([], ["--json"]))
    return text, json.loads(document)


@dataclass
class Engine:
    """Stands for the modules of `flowmbpo.runs`: keeps what it was asked for and answers with `outcome`."""

    outcome: dict[str, Any] = field(default_factory=lambda: {"run_dir": "outputs/x", "status": "done", "wall_s": 1.5})
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    error: BaseException | None = None
    chatter: str = ""

    def answer(self, name):
        def function(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            print(self.chatter, end="")
            if self.error is not None:
                raise self.error
            return self.outcome if name == "dry_run" else Outcome(self.outcome)

        return function


@dataclass
class Outcome:
    """What the engine returns."""

    document: dict[str, Any]

    def to_dict(self):
        """The JSON document."""
        return self.document


@pytest.fixture
def engine(monkeypatch):
    """An engine that trains nothing, in place of the modules of `flowmbpo.runs`."""
    stand_in = Engine()
    for place, name in (("train", "train"), ("evaluate", "evaluate_checkpoint"), ("start", "dry_run")):
        module = ModuleType(f"flowmbpo.runs.{place}")
        setattr(module, name, stand_in.answer(name))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return stand_in
