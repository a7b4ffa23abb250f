"""A run's record says exactly which code it ran."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from flowmbpo.runs.directory import git_state


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(package.parent), *command], check=True)
    return package


def test_clean_and_changed_checkouts_are_told_apart(checkout: Path) -> None:
    clean = git_state(checkout)
    assert clean is not None and len(clean["commit"]) == 40 and clean["dirty"] is False
    (checkout / "__init__.py").write_text("x = 2\n")
    assert git_state(checkout) == {**clean, "dirty": True}


def test_new_source_file_counts_as_a_change_but_not_one_elsewhere(checkout: Path) -> None:
    (checkout.parent / "notes.txt").write_text("x")
    clean = git_state(checkout)
    assert clean is not None and not clean["dirty"]
    (checkout / "module.py").write_text("x = 3\n")
    changed = git_state(checkout)
    assert changed is not None and changed["dirty"]


def test_package_installed_below_a_checkout_has_no_commit_of_its_own(checkout: Path) -> None:
    installed = checkout.parent / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert git_state(installed) is None


def test_package_outside_any_checkout_has_no_commit(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text("")
    assert git_state(tmp_path) is None
