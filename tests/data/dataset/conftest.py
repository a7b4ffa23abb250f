"""Small datasets of made-up episodes."""

import sys
from pathlib import Path

import pytest

from flowmbpo.data.dataset.writer import DatasetWriter

sys.path.append(str(Path(__file__).parent))  # tests import the episodes themselves, too

from made_up import TASKS, fill


@pytest.fixture
def make_dataset(tmp_path):
    """make_dataset(lengths, tasks=TASKS, name='data') -> a finished Dataset."""

    def make(lengths, tasks=TASKS, name="data"):
        with DatasetWriter.create(tmp_path / name, "pair", tasks, {"sources": ["made up"]}) as writer:
            fill(writer, tasks, lengths)
            return writer.finish()

    return make
