"""The marker of tests that need dflex itself."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "dflex: needs dflex, which the user installs; skipped where it is absent")
