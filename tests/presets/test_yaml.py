"""The traps of YAML 1.1 are closed, and what is written is read back."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flowmbpo.errors import ConfigError
from flowmbpo.presets.yaml import dump_document, parse_document, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000),
        ("3e-4", 0.0003),
        ("1E+2", 100),
        (".5", 0.5),
        ("-2.", -2),
        ("1e6", 1_000_000),
        ("010", 10),
        ("0x10", 16),
        ("0o17", 15),
        ("-.inf", float("-inf")),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("'1e3'", "1e3"),
        ('"true"', "true"),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("[1, 2.5, on]", [1, 2.5, "on"]),
        ("{a: {b: 1e1}}", {"a": {"b": 10}}),
    ],
)
def test_scalar_follows_yaml_1_2(text, value):
    parsed = parse_value(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


def test_whole_float_is_an_integer_only_where_that_is_exact():
    assert type(parse_value("1e15", "here")) is int
    assert type(parse_value("1e300", "here")) is float


def test_every_key_knows_its_line():
    document = parse_document("a: 1\nb:\n  c: 2\n\n  d: [3]\n", "file.yaml")
    assert document.origins == {
        ("a",): "file.yaml:1",
        ("b",): "file.yaml:2",
        ("b", "c"): "file.yaml:3",
        ("b", "d"): "file.yaml:5",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"file\.yaml:3: duplicate key 'a' \(first on line 1\)"),
        ("m:\n  a: 1\n  a: 1\n", r"file\.yaml:3: duplicate key 'm\.a'"),
        ("l:\n  - {a: 1, a: 2}\n", r"file\.yaml:2: duplicate key"),
        ("a:\n\tb: 1\n", r"file\.yaml:2: not valid YAML: .*spaces, not tabs"),
        ("a: [1, 2\n", r"file\.yaml:2: not valid YAML"),
        ("a: b: c\n", r"file\.yaml:1: not valid YAML"),
        ("a: 1\nb: &x 1\nc: *x\n", r"file\.yaml:3: aliases \(\*x\)"),
        ("a: !!python/object:os.system ls\n", r"file\.yaml:1: the tag '.*' is not supported"),
        ("- a\n- b\n", r"file\.yaml:1: a preset is a mapping"),
        ("[1]: 2\n", r"file\.yaml:1: a key must be a word"),
        ("a: \x00\n", r"file\.yaml: not valid YAML"),
    ],
)
def test_bad_yaml_is_refused_with_file_and_line(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_document(text, "file.yaml")


def test_an_empty_file_is_an_empty_mapping():
    assert parse_document("# nothing\n", "file.yaml").data == {}


_texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12) | st.sampled_from(
    ["on", "yes", "1e3", "3e-4", "0o7", "null", "~", "1:30", "true", "", " ", ".5", "=", "<<"]
)
_scalars = _texts | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()
_values = st.recursive(
    _scalars | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(_texts, _values, max_size=4))
def test_written_document_is_read_back_here_and_by_any_yaml_reader(data):
    text = dump_document(data)
    assert parse_document(text, "file.yaml").data == data
    assert yaml.safe_load(text) == data
