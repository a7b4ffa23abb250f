"""Lets these tests and the worker processes that they start import `scripted_simulator`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # worker processes inherit the search path
