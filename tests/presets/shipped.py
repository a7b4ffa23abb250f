"""What ships, read and resolved once for all tests of presets."""

from functools import cache

from flowmbpo.presets.library import Library
from flowmbpo.presets.load import all_presets

LIBRARY = Library()


@cache
def configs():
    """Every shipped preset and control by its name."""
    return {config.name: config for config in all_presets()}
