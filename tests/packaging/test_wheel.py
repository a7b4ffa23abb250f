"""The wheel stands alone: built here, unpacked elsewhere, run from there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

from flowmbpo.presets.library import Library

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(out), str(repository)],
        check=True,
        capture_output=True,
        text=True,
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else; its dependencies are this interpreter's."""
    target = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index", "--target", str(target), str(wheel)],
        check=True,
    )
    return target


@pytest.fixture
def command(installed: Path, tmp_path: Path) -> Command:
    """Runs the wheel's `flowmbpo` from an empty folder; the checkout is not on the path."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = "import sys; sys.path[:] = [p for p in sys.path if p]; from flowmbpo_cli.main import main; main()"
        environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1", "TERM": "dumb"}
        return subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=120,
        )

    return run


def test_wheel_holds_both_packages_and_every_preset(wheel: Path, repository: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        path.relative_to(repository).as_posix()
        for package in ("flowmbpo", "flowmbpo_cli")
        for path in (repository / package).rglob("*.py")
    }
    folder = repository / "presets"
    presets = {f"flowmbpo/presets/files/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.yaml")}
    assert presets and sources
    assert presets | sources <= names


def test_wheel_holds_nothing_but_the_packages_and_the_presets(wheel: Path) -> None:
    for name in zipfile.ZipFile(wheel).namelist():
        top, suffix = name.split("/")[0], Path(name).suffix
        if top.endswith(".dist-info"):
            continue
        assert top in {"flowmbpo", "flowmbpo_cli"}, name
        assert suffix in {".py", ".yaml", ".typed", ".xml"}, name  # xml: robots and reachers


def test_metadata_names_the_command_the_licence_and_the_pinned_simulator(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (folder,) = {name.split("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    metadata = Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
    requires = metadata.get_all("Requires-Dist") or []
    assert metadata["Name"] == "flowmbpo"
    assert metadata["License-Expression"] == "MIT"
    assert "dm-control==1.0.28" in requires and "mujoco==3.3.0" in requires
    assert "flowmbpo = flowmbpo_cli.main:main" in archive.read(f"{folder}/entry_points.txt").decode()
    assert f"{folder}/licenses/LICENSE" in archive.namelist()


def test_wheel_run_elsewhere_is_the_installed_one(command: Command, installed: Path, repository: Path) -> None:
    shown = command("version")
    assert shown.returncode == 0, shown.stderr
    version = re.search(r'__version__ = "(.+)"', (repository / "flowmbpo/__init__.py").read_text())
    assert version is not None and version[1] in shown.stdout
    where = subprocess.run(
        [sys.executable, "-c", "import flowmbpo; print(flowmbpo.__file__)"],
        cwd=installed.parent,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(installed)


def test_wheel_run_elsewhere_lists_its_presets(command: Command) -> None:
    listed = command("presets", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    names = {entry["name"] for entry in json.loads(listed.stdout)}
    assert names == set(Library().names())


def test_wheel_run_elsewhere_shows_the_quickstart(command: Command) -> None:
    shown = command("presets", "show", "quickstart")
    assert shown.returncode == 0, shown.stderr
    assert yaml.safe_load(shown.stdout)["name"] == "quickstart"


def test_every_requirement_is_pinned_in_the_constraints(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.split("==")
        for line in (repository / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    requirements = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[\[<>=]", requirement)[0].lower() for requirement in requirements} - {"flowmbpo"}
    assert names <= pins.keys(), sorted(names - pins.keys())
    assert pins["torch"] == "2.13.0"
