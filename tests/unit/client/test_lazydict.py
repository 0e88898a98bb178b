"""Whatever looks at a value reads it, and nothing else does."""

from __future__ import annotations

import copy
import json
import pickle
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_client.attrdict import AttrDict
from mle_client.lazydict import Deferred, LazyDict, Once, Unread, load, load_nested, peek


class Counted(Unread):
    """A value that counts how often it is read."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.reads = 0

    def load(self) -> Any:
        self.reads += 1
        return self.value


def lazy(**values: Any) -> tuple[LazyDict, dict[str, Counted]]:
    unread = {key: Counted(value) for key, value in values.items()}
    return LazyDict(unread), unread


def takes_all(**values: Any) -> dict[str, Any]:
    return values


WAYS: dict[str, Callable[[LazyDict], Any]] = {
    "dict": dict,
    "AttrDict": AttrDict,
    "unpacked": lambda x: {**x},
    "keywords": lambda x: takes_all(**x),
    "keywords beside others": lambda x: takes_all(**x, **{}),
    "update": lambda x: (y := {}, y.update(x))[0],
    "comprehension": lambda x: {key: x[key] for key in x},
    "items": lambda x: dict(x.items()),
    "values": lambda x: dict(zip(x, x.values(), strict=True)),
    "get": lambda x: {key: x.get(key) for key in x},
    "attributes": lambda x: {key: getattr(x, key) for key in x},
    "toDict": lambda x: x.toDict(),
    "copy": copy.copy,
    "method copy": lambda x: x.copy(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "json": lambda x: json.loads(json.dumps(x)),
    "joined": lambda x: x | {},
    "joined from the left": lambda x: {} | x,
    "joined in place": lambda x: (y := {}, y.__ior__(x))[0],
    "setdefault": lambda x: {key: x.setdefault(key) for key in x},
    "pop": lambda x: {key: x.pop(key) for key in list(x)},
    "popitem": lambda x: dict(reversed([x.popitem() for _ in range(len(x))])),
    "repr": lambda x: eval(repr(x)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_look_at_values_sees_them_and_no_unread_one(way: str) -> None:
    values, _ = lazy(a=1, b=[2], c={"d": 3})
    seen = WAYS[way](values)
    assert isinstance(seen, dict)
    plain = dict.items(seen)
    assert dict(plain) == {"a": 1, "b": [2], "c": {"d": 3}}
    assert not any(isinstance(value, Unread) for _, value in plain)


@pytest.mark.parametrize("way", ["copy", "method copy", "deepcopy", "pickle"])
def test_copies_are_plain(way: str) -> None:
    values, _ = lazy(a=1)
    assert type(WAYS[way](values)) is AttrDict


def test_names_are_known_without_reading() -> None:
    values, unread = lazy(a=1, b=2)
    assert list(values) == list(values.keys()) == sorted(values) == ["a", "b"]
    assert list(reversed(values)) == ["b", "a"]
    assert len(values) == 2
    assert "a" in values
    assert "c" not in values
    assert bool(values)
    assert {"a", "b"} <= set(dir(values))
    assert isinstance(peek(values, "a"), Counted)
    assert [each.reads for each in unread.values()] == [0, 0]


def test_a_value_is_read_once_and_only_that() -> None:
    values, unread = lazy(a=[], b=2)
    assert values.a is values["a"] is values.get("a")
    assert unread["a"].reads == 1
    assert unread["b"].reads == 0
    load(values)
    assert unread["a"].reads == unread["b"].reads == 1


def test_what_reads_a_value_is_let_go_when_it_was_read() -> None:
    values, unread = lazy(a=1)
    gone = weakref.ref(unread.pop("a"))
    assert gone() is not None
    assert values.a == 1
    assert gone() is None


def test_a_value_that_cannot_be_read_is_tried_again() -> None:
    tries = iter([OSError("not now"), "value"])

    def make() -> str:
        found = next(tries)
        if isinstance(found, OSError):
            raise found
        return found

    values = LazyDict(a=Deferred(make))
    with pytest.raises(OSError, match="not now"):
        _ = values.a
    assert values.a == "value"


def test_an_absent_name_is_what_it_is_in_any_attrdict() -> None:
    values, unread = lazy(a=1)
    with pytest.raises(KeyError, match="no 'b' here; there is 'a'"):
        _ = values["b"]
    with pytest.raises(AttributeError, match="no 'b' here; there is 'a'"):
        _ = values.b
    with pytest.raises(KeyError, match="there is 'a'"):
        peek(values, "b")
    assert values.get("b") is None
    assert values.get("b", 5) == 5
    assert values.pop("b", 5) == 5
    with pytest.raises(KeyError):
        values.pop("b")
    with pytest.raises(KeyError):
        LazyDict().popitem()
    assert values.setdefault("b", 6) == values.b == 6
    assert unread["a"].reads == 0


def test_setting_and_deleting_need_no_reading() -> None:
    values, unread = lazy(a=1, b=2, c=3)
    values.a = 10
    values["b"] = 20
    del values["c"]
    values.update({"d": 4})
    values |= {"e": 5}
    assert values == {"a": 10, "b": 20, "d": 4, "e": 5}
    assert not any(each.reads for each in unread.values())


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2)),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2)),
)
def test_equality_is_that_of_the_values(one: dict[str, int], other: dict[str, int]) -> None:
    assert (lazy(**one)[0] == other) is (one == other)
    assert (other == lazy(**one)[0]) is (one == other)
    assert (lazy(**one)[0] == lazy(**other)[0]) is (one == other)
    assert (lazy(**one)[0] != other) is (one != other)
    assert (lazy(**one)[0] | lazy(**other)[0]) == one | other
    assert lazy(**one)[0] != 5


def test_a_lazy_dict_is_a_dict_that_cannot_be_hashed() -> None:
    assert isinstance(LazyDict(), dict)
    with pytest.raises(TypeError, match="unhashable"):
        hash(LazyDict())
    with pytest.raises(TypeError):
        _ = LazyDict() | 5
    with pytest.raises(TypeError):
        _ = 5 | LazyDict()


def test_patterns_see_values() -> None:
    values, _ = lazy(a=1)
    match values:
        case {"a": int(found)}:
            assert found == 1
        case _:
            raise AssertionError


def test_several_values_of_one_kind_are_read_together() -> None:
    class Together(Counted):
        groups: list[int] = []  # noqa: RUF012

        @classmethod
        def load_all(cls, unread: Sequence[Any]) -> list[Any]:
            cls.groups.append(len(unread))
            return [each.value for each in unread]

    values = LazyDict(a=Together(1), b=Counted(2), c=Together(3), d=4)
    assert dict(values.items()) == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert Together.groups == [2]


def test_dicts_inside_are_loaded_too() -> None:
    inner, unread = lazy(a=1)
    load_nested(LazyDict(inner=Deferred(lambda: inner), plain={"x": 1}))
    assert unread["a"].reads == 1


def test_what_several_share_is_read_once() -> None:
    unread = Counted([])
    once, gone = Once(unread), weakref.ref(unread)
    del unread
    assert once.load() is once.load()
    assert gone() is None


def test_threads_may_look_at_once() -> None:
    barrier = threading.Barrier(4)

    def make() -> list[int]:
        barrier.wait(10)  # all are reading it
        return []

    values = LazyDict(a=Deferred(make))
    seen: list[Any] = []
    threads = [threading.Thread(target=lambda: seen.append(values["a"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[]] * 4
    assert values["a"] is values["a"]
