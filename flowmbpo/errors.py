"""Errors meant for people: each names the key or file, the value, what is allowed, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FlowMBPOError(Exception):
    """Base of every error that the command line prints as one short message.

    `kind` is the stable name in the JSON error document; `exit_code` the process's status (1 failure, 2 user error).
    """

    kind = "failure"
    exit_code = 1


class ConfigError(FlowMBPOError):
    """A preset, a key or a value that cannot be used."""

    kind = "config"
    exit_code = 2


class RunDirectoryError(FlowMBPOError):
    """A run directory that is taken, missing, or does not fit the request."""

    kind = "run-directory"
    exit_code = 2


class EnvironmentUnavailableError(FlowMBPOError):
    """A task that exists but cannot run on this machine or in this version."""

    kind = "environment-unavailable"
    exit_code = 2


class EnvironmentFailure(FlowMBPOError):
    """A simulator or a worker that broke while running."""

    kind = "environment"


class CheckpointError(FlowMBPOError):
    """A checkpoint that is damaged, foreign, or of another architecture."""

    kind = "checkpoint"
    exit_code = 2


class DataError(FlowMBPOError):
    """Stored data that is damaged or does not fit."""

    kind = "data"
    exit_code = 2


class StorageError(FlowMBPOError):
    """The disk refused a write (full, read-only, gone)."""

    kind = "storage"


class NonFiniteError(FlowMBPOError):
    """Non-finite losses, gradients or derivatives: stopped rather than believed."""

    kind = "non-finite"


class Interrupted(FlowMBPOError):
    """Stopped on request at a step boundary, saved, and resumable."""

    kind = "interrupted"
    exit_code = 75


def nearest(value: str, allowed: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the closest allowed name, or an empty string."""
    matches = difflib.get_close_matches(value, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""
