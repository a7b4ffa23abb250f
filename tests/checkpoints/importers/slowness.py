"""Sizes that take seconds: parameters of a test's slow runs."""

from __future__ import annotations

import pytest


def slow(value):
    """`value` as a parameter that the default run leaves out."""
    return pytest.param(value, marks=pytest.mark.slow)
