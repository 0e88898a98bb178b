from __future__ import annotations

import pytest

from mle_client.attrdict import AttrDict


def test_a_key_is_an_attribute_and_the_dict_a_mapping() -> None:
    values = AttrDict(a=1, b=2)
    assert values.a == values["a"] == 1
    assert list(values.keys()) == ["a", "b"]
    assert {**values} == {"a": 1, "b": 2} == values


def test_a_key_named_like_a_method_is_reached_by_brackets_and_the_method_still_works() -> None:
    values = AttrDict(keys=1, items=2)
    assert values["keys"] == 1
    assert list(values.keys()) == ["keys", "items"]


def test_setting_and_deleting_an_attribute_changes_the_key() -> None:
    values = AttrDict(a=1)
    values.b = 2
    del values.a
    assert values == {"b": 2}
    with pytest.raises(AttributeError):
        del values.a


def test_a_method_cannot_be_replaced_by_accident() -> None:
    values = AttrDict()
    with pytest.raises(AttributeError):
        values.keys = 3
    assert dict(values) == {}


def test_what_is_missing_is_an_error_that_names_what_there_is() -> None:
    values = AttrDict(train_loss=1)
    with pytest.raises(AttributeError, match=r"no 'test_loss' here; there is 'train_loss'$"):
        _ = values.test_loss
    with pytest.raises(KeyError, match="there is 'train_loss'"):
        _ = values["test_loss"]
    assert values.get("test_loss") is None
    many = AttrDict((f"key_{i}", i) for i in range(30))
    with pytest.raises(AttributeError, match=r"'key_19' …$"):
        _ = many.nothing


def test_nested_reaches_dicts_in_lists_and_todict_undoes_it() -> None:
    plain = {"a": {"b": 1}, "c": [{"d": 2}, 3]}
    values = AttrDict.nested(plain)
    assert (values.a.b, values.c[0].d, values.c[1]) == (1, 2, 3)
    assert type(values.toDict()["a"]) is dict
    assert values.toDict() == plain


def test_copies_keep_the_type_and_are_independent() -> None:
    values = AttrDict(a=1)
    other = values.copy()
    other.a = 2
    assert (values.a, other.a, type(other)) == (1, 2, AttrDict)


def test_keys_are_listed_for_completion() -> None:
    assert "train_loss" in dir(AttrDict(train_loss=1))
