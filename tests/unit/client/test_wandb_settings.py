"""What `wandb_config` becomes, and what of it never leaves the training process."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from mle_client.wandb_settings import checked_wandb_config

# The README of mle-logging has this one; there, it ends in KeyError: 'name'.
README = {"key": "sadfasd", "entity": "me", "project": "some-project", "group": "some-group"}


def test_the_key_is_dropped() -> None:
    settings = checked_wandb_config(README, "seed_1", "base")
    assert "key" not in settings
    assert "sadfasd" not in repr(settings)


def test_mle_loggings_own_example_is_taken() -> None:
    assert checked_wandb_config(README, "seed_1", "base") == {
        "project": "some-project",
        "entity": "me",
        "group": "some-group",
        "name": "seed_1",
        "job_type": "base",
        "tags": ["seed_1", "base"],
    }


@pytest.mark.parametrize("config", [None, {}, {"project": None, "entity": "", "key": None}])
def test_nothing_has_to_be_given(config: dict[str, Any] | None) -> None:
    assert checked_wandb_config(config, "seed_1", "base") == {
        "project": "prototyping",
        "entity": None,
        "group": None,
        "name": "seed_1",
        "job_type": "seed_1",
        "tags": ["seed_1"],
    }


@pytest.mark.parametrize(
    ("config", "config_name", "name", "job_type"),
    [
        ({"name": "seed0"}, "base", "seed_7", "seed_7"),
        ({"name": "mine"}, "base", "mine", "seed_7"),
        ({"name": "mine", "group": "g"}, "base", "mine", "base"),
        ({"group": "g"}, "", "seed_7", "pholder_config"),
        ({"group": "g", "job_type": "eval"}, "base", "seed_7", "eval"),
    ],
)
def test_name_and_job_type_are_mle_loggings_unless_given(
    config: dict[str, Any], config_name: str, name: str, job_type: str
) -> None:
    settings = checked_wandb_config(config, "seed_7", config_name)
    assert (settings["name"], settings["job_type"]) == (name, job_type)


def test_the_callers_dict_is_not_written_to() -> None:
    config = MappingProxyType(dict(README))
    checked_wandb_config(config, "seed_1", "base")
    assert dict(config) == README


@pytest.mark.parametrize(
    ("config", "error", "says"),
    [
        ({"projet": "x"}, ValueError, "'projet'"),
        ({"mode": "online"}, ValueError, "'mode'"),
        ({"project": 3}, TypeError, r"wandb_config\['project'\] is a int: give a string"),
        ({"group": ["a"]}, TypeError, "group"),
        ({"project": "a/b:c"}, ValueError, "no / :"),
        ({"name": "x" * 129}, ValueError, "128"),
        ({"entity": "a\nb"}, ValueError, "printable"),
        ({"entity": "\ud800"}, ValueError, "printable"),
        (["project"], TypeError, "a list: give a dict"),
        ("project", TypeError, "a str: give a dict"),
    ],
)
def test_bad_settings_are_refused_at_once(config: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        checked_wandb_config(config, "seed_1", "base")


@pytest.mark.parametrize("config", [{"key": "sadfasd", "x": 1}, {"key": "sadfasd", "project": 3}])
def test_no_error_shows_the_key(config: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        checked_wandb_config(config, "seed_1", "base")
    assert "sadfasd" not in str(caught.value)


def test_names_that_are_made_up_here_keep_to_wandbs_limits() -> None:
    settings = checked_wandb_config({"group": "g"}, "s" * 200, "c" * 200)
    assert len(settings["name"]) == len(settings["job_type"]) == 128
    assert settings["tags"] == []  # 64 characters each, at most
