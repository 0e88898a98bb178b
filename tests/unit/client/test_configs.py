from __future__ import annotations

import ast
import datetime
import enum
import json
import math
from collections import OrderedDict, namedtuple
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mle_client.attrdict import AttrDict
from mle_client.configs import (
    config_from_text,
    config_text,
    config_yaml,
    load_config,
    load_json_config,
    load_yaml_config,
)


@pytest.fixture
def save(tmp_path):
    def save_as(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return save_as


def same(one: object, other: object) -> bool:
    """Equal in value and in type, all the way down; NaN equals NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return len(one) == len(other) and all(
            same(k, key) and same(one[k], other[key]) for k, key in zip(one, other, strict=True)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return repr(one) == repr(other)
    return one == other


@pytest.mark.parametrize(
    ("load", "text"), [(load_yaml_config, "a: 1e3"), (load_json_config, '{"a": 1e3,}')]
)
def test_a_kind_that_is_named_is_loaded_whatever_the_file_is_called(save, load, text) -> None:
    path = save("settings.txt", text)
    assert load(path) == {"a": 1000.0}
    assert load(path, True).a == 1000.0


# --- YAML -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("extension", ["yaml", "yml", "YAML"])
def test_yaml_is_loaded_whatever_its_extension_is(save, extension) -> None:
    path = save(f"c.{extension}", "a:\n  b: [1, 'größe', null, true]\n")
    assert load_config(path) == {"a": {"b": [1, "größe", None, True]}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1e3", 1000.0),
        ("+2E+2", 200.0),
        ("1.5e3", 1500.0),
        (".5e1", 5.0),
        ("1_000e1", 10000.0),
        ("0.1", 0.1),
        ("1.", 1.0),
        ("-.inf", -math.inf),
        ("10", 10),
        ("'1e-3'", "1e-3"),
        ("1e", "1e"),
        ("e3", "e3"),
        ("1e3x", "1e3x"),
        ("0x1e3", 0x1E3),
        ("1.2.3e4", "1.2.3e4"),
    ],
)
def test_numbers_with_an_exponent_are_floats_in_yaml(save, text, value) -> None:
    loaded = load_config(save("c.yaml", f"x: {text}\n"))["x"]
    assert same(loaded, value)


def test_yaml_of_everyone_else_stays_as_it_is(save) -> None:
    load_config(save("c.yaml", "x: 1e3\n"))
    assert yaml.safe_load("1e3") == "1e3"


def test_yaml_builds_no_objects(save) -> None:
    with pytest.raises(ValueError, match=r"c\.yaml, line 2: could not determine a constructor"):
        load_config(save("c.yaml", "a: 1\nb: !!python/object/apply:os.getcwd []\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", r"c\.yaml, line 3: "),
        ("a: 1\n\tb: 2\n", r"c\.yaml, line 2: "),
        ("a: 1\nb: \x07\n", r"c\.yaml, line 2: special characters"),
        ("a: *nothing\n", r"c\.yaml, line 1: found undefined alias"),
        ("a: 2024-13-45\n", r"c\.yaml: month must be in"),
    ],
)
def test_malformed_yaml_is_refused_with_file_and_line(save, text, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(save("c.yaml", text))


# --- JSON -----------------------------------------------------------------------------------------
def test_comments_and_trailing_commas_of_json_are_passed_over(save) -> None:
    text = """
    // of JavaScript
    {   # of Python
        "url": "http://x/#a", /* of
        C */ "quoted": "\\"// no comment /* nor this */ # nor this, ]",
        "list": [1, 2, /* last */ ],  // with a comma, }
        "empty": [],
        "ends_in_backslash": "\\\\", # ,
    }
    """
    assert load_config(save("c.json", text)) == {
        "url": "http://x/#a",
        "quoted": '"// no comment /* nor this */ # nor this, ]',
        "list": [1, 2],
        "empty": [],
        "ends_in_backslash": "\\",
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
tricky = st.dictionaries(st.text('/#*",]}\\ \n', max_size=8), st.text('/#*",]}\\ \n', max_size=8))


@given(json_values | tricky, st.sampled_from([None, 2]))
def test_plain_json_means_what_it_always_meant(tmp_path_factory, value, indent) -> None:
    path = tmp_path_factory.mktemp("json") / "c.json"
    path.write_text(json.dumps({"x": value}, ensure_ascii=False, indent=indent), encoding="utf-8",
                    errors="surrogatepass")  # fmt: skip
    try:
        expected = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        with pytest.raises(ValueError, match="not UTF-8"):
            load_config(path)
    else:
        assert same(load_config(path), expected)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{\n  "a": 1,\n  "b": 2 3\n}', 3),
        ('{ /* one\ntwo */ "a": }', 2),
        ('{"a": 1}\n/* without an end', 2),
        ('{\n"a": "without an end // }\n}', 2),
        ('{"a": 1,, }', 1),
    ],
)
def test_malformed_json_is_refused_with_file_and_line(save, text, line) -> None:
    with pytest.raises(ValueError, match=rf"c\.json, line {line}: "):
        load_config(save("c.json", text))


# --- both -----------------------------------------------------------------------------------------
def test_attributes_are_there_on_request(save) -> None:
    config = load_config(save("c.yaml", "net: {lr: 0.1}\n"), return_dotmap=True)
    assert isinstance(config, AttrDict)
    config.net.lr = 0.2
    assert config.toDict() == {"net": {"lr": 0.2}}
    assert type(load_config(save("d.yaml", "net: {lr: 0.1}\n"))["net"]) is dict


@pytest.mark.parametrize("name", ["c.yaml", "c.json"])
@pytest.mark.parametrize("text", ["", " \n", "# nothing but a comment\n"])
def test_an_empty_file_is_an_empty_configuration(save, name, text) -> None:
    assert load_config(save(name, text)) == {}


def test_a_byte_order_mark_is_no_part_of_the_configuration(save) -> None:
    assert load_config(save("c.json", '\ufeff{"a": 1}')) == {"a": 1}
    assert load_config(save("c.yaml", "\ufeffa: 1")) == {"a": 1}


def test_other_files_are_refused(save, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"c\.toml: only \.yaml, \.yml and \.json"):
        load_config(save("c.toml", "a = 1"))
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "nothing.yaml")
    (tmp_path / "c.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ValueError, match=r"c\.json: not UTF-8"):
        load_config(tmp_path / "c.json")


# --- as text --------------------------------------------------------------------------------------
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False, allow_infinity=False).filter(lambda c: c.real or c.imag)
)
keys = st.text() | st.integers() | st.none() | st.tuples(st.integers(), st.text())
configs = st.dictionaries(
    keys,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(keys, inner),
        max_leaves=10,
    ),
)


@given(configs)
def test_a_configuration_of_literals_comes_back_equal_in_value_and_type(config) -> None:
    literal, json_text = config_text(config)
    assert same(config_from_text(literal, json_text), config)
    ast.literal_eval(literal)
    literal.encode()
    json_text.encode()


@given(configs)
def test_json_is_made_only_where_the_literal_does_not_suffice(config) -> None:
    literal, json_text = config_text(config)
    assert (json_text == "") == same(ast.literal_eval(literal), config)
    if json_text:
        json.loads(json_text)


def test_nan_is_text_in_the_literal_and_itself_in_the_json() -> None:
    literal, json_text = config_text({"a": math.nan, "b": [math.inf, -math.inf], 3: ("nan",)})
    assert ast.literal_eval(literal) == {"a": "nan", "b": [math.inf, -math.inf], 3: ("nan",)}
    assert math.isnan(json.loads(json_text)["a"])
    assert math.isnan(config_from_text(literal, json_text)["a"])
    assert config_from_text(literal, json_text)[3] == ("nan",)


class Color(enum.IntEnum):
    RED = 1


class Mode(str, enum.Enum):  # noqa: UP042  # what configurations of older code hold
    FAST = "fast"


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (np.float32(0.5), 0.5),
        (np.longdouble(0.5), 0.5),
        (np.int8(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.array(0.5, np.longdouble), 0.5),
        (np.array([0.5], np.longdouble), [0.5]),
        (np.datetime64("2024-01-02", "ns"), "2024-01-02T00:00:00.000000000"),
        (np.array(["2024-01-02"], "M8[D]"), ["2024-01-02"]),
        (np.clongdouble(1), "(1+0j)"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (Path("a/b"), "a/b"),
        (print, str(print)),
        (complex(math.nan, 1), "(nan+1j)"),
        (Color.RED, 1),
        (Mode.FAST, "fast"),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (AttrDict(a=AttrDict(b=1)), {"a": {"b": 1}}),
        (namedtuple("Point", "x y")(1, 2), (1, 2)),
        ({1}, {1}),
        (set(), set()),
        (frozenset({1}), "frozenset({1})"),
        ({frozenset({1}): 1}, {"frozenset({1})": 1}),
        ({(1, math.nan): 1}, {(1, "nan"): 1}),
        ({math.nan: 1}, {"nan": 1}),
        (range(3), "range(0, 3)"),
        (..., "Ellipsis"),
        ("a\0b\udc80\n'\"", "a\0b\udc80\n'\""),
    ],
    ids=[
        "float32",
        "longdouble",
        "int8",
        "numpy bool",
        "numpy text",
        "array",
        "array of no dimension",
        "extended array",
        "nanoseconds",
        "days",
        "extended complex",
        "date",
        "path",
        "function",
        "complex nan",
        "enumeration",
        "text enumeration",
        "ordered dict",
        "attribute dict",
        "named tuple",
        "set",
        "empty set",
        "frozen set",
        "frozen key",
        "nan in a key",
        "nan key",
        "range",
        "ellipsis",
        "odd text",
    ],
)
def test_what_is_no_literal_becomes_the_nearest_one(value, stored) -> None:
    literal, json_text = config_text({"x": value})
    assert same(ast.literal_eval(literal), {"x": stored})
    assert json_text == ""


def test_integers_of_thousands_of_digits_come_back() -> None:
    config = {"x": 10**5000}
    assert config_from_text(*config_text(config)) == config


def test_keys_that_cannot_be_keys_of_a_literal_become_text() -> None:
    class Frozen(dict[str, int]):
        def __hash__(self) -> int:  # type: ignore[override]
            return 1

    assert config_from_text(*config_text({Frozen(a=1): 2})) == {"{'a': 1}": 2}


def test_nan_beside_values_that_json_does_not_know_is_still_found() -> None:
    config = {"a": math.nan, (1, 2): {b"x", 1j}, "big": [10**5000, b"y", {3}]}
    back = config_from_text(*config_text(config))
    assert math.isnan(back.pop("a"))
    assert back == {(1, 2): {b"x", 1j}, "big": [10**5000, b"y", {3}]}


def test_json_whose_keys_coincide_is_not_mixed_up_with_the_literal() -> None:
    config = {1: math.nan, "1": 2, "b": math.nan}
    back = config_from_text(*config_text(config))
    assert back == {1: "nan", "1": 2, "b": "nan"}


def test_very_deep_and_circular_configurations_end_in_text() -> None:
    circular: dict[str, object] = {}
    circular["self"] = circular
    deep: list[object] = []
    for _ in range(500):
        deep = [deep]
    for config in (circular, {"x": deep}):
        assert isinstance(ast.literal_eval(config_text(config)[0]), dict)


@pytest.mark.parametrize("text", ["{'a': 1", "{'a': nan}", "", "(" * 10_000, "{[]: 1}", "a\0b"])
def test_text_that_is_no_literal_stays_text(text) -> None:
    assert config_from_text(text) == text


# --- as a YAML file -------------------------------------------------------------------------------
yaml_keys = st.text() | st.integers() | st.none() | st.booleans()
yaml_configs = st.dictionaries(
    yaml_keys,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(yaml_keys, inner),
        max_leaves=10,
    ),
)


@given(yaml_configs)
def test_a_configuration_written_as_yaml_is_loaded_as_it_was(tmp_path_factory, config) -> None:
    path = tmp_path_factory.mktemp("yaml") / "config_dict.yaml"
    path.write_bytes(config_yaml(config))
    assert same(load_config(path), config)


@pytest.mark.parametrize("text", ["1e3", "-2E+5", "1.5e3", ".5e1", "1_0e3", "0.1", "yes", "~", "="])
def test_text_that_looks_like_another_type_stays_text_in_yaml(tmp_path, text) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(config_yaml({"x": [text]}))
    assert load_config(path) == {"x": [text]}
    assert yaml.safe_load(path.read_text()) == {"x": [text]}


def test_yaml_of_a_configuration_keeps_order_and_simplifies_what_yaml_does_not_know(
    tmp_path,
) -> None:
    config = {"b": (1, (2,)), "a": np.float32(0.5), (1, "x"): 1j, "s": {(1,), 2}, "n": 10**5000}
    path = tmp_path / "c.yaml"
    path.write_bytes(config_yaml(config))
    loaded = load_config(path)
    assert list(loaded) == ["b", "a", "(1, 'x')", "s", "n"]
    assert loaded == {
        "b": [1, [2]],
        "a": 0.5,
        "(1, 'x')": "1j",
        "s": {"(1,)", 2},
        "n": hex(10**5000),
    }
    assert config_yaml({"größe": [1]}).decode() == "größe:\n- 1\n"


def test_configurations_of_the_same_text_are_not_the_same_object() -> None:
    one, other = config_from_text("{'a': [1]}"), config_from_text("{'a': [1]}")
    one["a"].append(2)
    assert other == config_from_text("{'a': [1]}") == {"a": [1]}
