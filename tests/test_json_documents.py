import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flowmbpo.json_documents import Document, json_value


@dataclass(frozen=True)
class Inner(Document):
    derived: ClassVar = ("double",)
    x: float

    @property
    def double(self):
        return 2.0 * self.x


@dataclass(frozen=True)
class Outer(Document):
    parts: tuple[Inner, ...]
    by_name: dict[str, Inner]
    path: Path
    absent: None = None


def test_fields_come_first_then_derived_properties():
    assert list(Inner(1.5).to_dict().items()) == [("x", 1.5), ("double", 3.0)]


def test_nested_documents_become_plain_objects():
    outer = Outer((Inner(1.0),), {"a": Inner(2.0)}, Path("a/b"))
    assert json.loads(json.dumps(outer.to_dict())) == {
        "parts": [{"x": 1.0, "double": 2.0}],
        "by_name": {"a": {"x": 2.0, "double": 4.0}},
        "path": "a/b",
        "absent": None,
    }


def test_numbers_that_json_lacks_become_null():
    assert json_value([math.nan, -math.inf, 1, True, {"a": (math.inf,)}]) == [None, None, 1, True, {"a": [None]}]
