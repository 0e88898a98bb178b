"""Arguments of the logger: what is taken, and what a refusal says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mle_client import arguments
from mle_client.retention import Policy, TopK


@pytest.mark.parametrize("given", [4, np.int64(4), np.uint8(4)], ids=type)
def test_a_number_of_seeds_may_be_of_any_integer_type(given: Any) -> None:
    assert type(arguments.checked_num_seeds(given)) is int
    assert arguments.checked_num_seeds(given) == 4
    assert arguments.checked_num_seeds(None) is None


@pytest.mark.parametrize("given", [4.0, "4", True, np.float64(4), [4], b"4"], ids=repr)
def test_what_is_no_integer_is_no_number_of_seeds(given: Any) -> None:
    with pytest.raises(TypeError, match=r"num_seeds=.*: give a whole number from 1 to 1,000,000"):
        arguments.checked_num_seeds(given)


@pytest.mark.parametrize("given", [0, -3, 10**6 + 1, 2**70, 10**5000], ids=int.bit_length)
def test_a_number_of_seeds_has_bounds(given: int) -> None:
    with pytest.raises(ValueError, match=r"num_seeds is too (small|large): give a whole number"):
        arguments.checked_num_seeds(given)


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("c.yaml", "- 1\n- 2\n", "list"),
        ("c.yaml", "hello\n", "str"),
        ("c.yaml", "0\n", "int"),
        ("c.json", "[]", "list"),
        ("c.json", '[["a", 1]]', "list"),
    ],
    ids=["list", "text", "number", "empty list", "pairs"],
)
def test_a_configuration_file_without_names_is_refused_with_advice(
    tmp_path: Path, name: str, text: str, kind: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{name} holds a {kind}.*write `name: value`"):
        arguments.loaded_config(str(path), None)


@pytest.mark.parametrize(("name", "text"), [("c.yaml", ""), ("c.yaml", "~"), ("c.json", "null")])
def test_a_configuration_file_may_hold_nothing(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert arguments.loaded_config(str(path), None) == {}


# --- names ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "name"),
    [(3, "seed_3"), (-1, "seed_-1"), (np.int64(4), "seed_4"), ("seed_5", "seed_5"), ("a b", "a b")],
)
def test_a_seed_is_a_number_or_a_name(given: Any, name: str) -> None:
    assert arguments.checked_seed_id(given) == name


@pytest.mark.parametrize("given", [None, 1.0, b"1", ["seed_1"], np.float64(1)], ids=repr)
def test_what_is_neither_is_no_seed(given: Any) -> None:
    with pytest.raises(TypeError, match=r"seed_id=.*: give a number or a string"):
        arguments.checked_seed_id(given)


@pytest.mark.parametrize("given", ["", ".", "..", "a/b", "a\0b", "x" * 201, 10**300])
def test_a_seed_s_name_is_part_of_a_file_name(given: Any) -> None:
    with pytest.raises(ValueError, match="part of a file name"):
        arguments.checked_seed_id(given)


def test_the_types_of_models_are_those_of_mle_logging() -> None:
    for model_type in ("torch", "tensorflow", "jax", "sklearn", "numpy", "no-model-type"):
        assert arguments.checked_model_type(model_type) == model_type
    for given in ("pytorch", "", None, 3, ["torch"]):
        with pytest.raises(ValueError, match=r"model_type=.*: give one of torch, tensorflow"):
            arguments.checked_model_type(given)


@pytest.mark.parametrize("given", [None, 3, ["exp"], object()])
def test_a_folder_is_a_path(given: Any) -> None:
    with pytest.raises(TypeError, match=r"experiment_dir=.*: give the path of a folder"):
        arguments.checked_experiment_dir(given, "")


@pytest.mark.parametrize("given", ["", b"exp", "a\0b"])
def test_a_folder_has_a_name(given: Any) -> None:
    with pytest.raises(ValueError, match=r"experiment_dir=.*: give the path of a folder"):
        arguments.checked_experiment_dir(given, "")


def test_the_root_of_all_folders_is_refused_by_any_name(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/")
    for given in ("/", "//", "/tmp/..", str(link), link):
        with pytest.raises(ValueError, match='experiment_dir is "/"'):
            arguments.checked_experiment_dir(given, "config_1")


def test_a_configuration_s_name_is_a_folder_in_it(tmp_path: Path) -> None:
    assert arguments.checked_experiment_dir("exp/", "") == "exp/"
    assert arguments.checked_experiment_dir("exp/", "config_1") == "exp/config_1"
    assert arguments.checked_experiment_dir(tmp_path, "c") == f"{tmp_path}/c"


# --- checkpoints ----------------------------------------------------------------------------------
def policy(**given: Any) -> Policy:
    names = ("every_k", "top_k", "metric", "minimize", "time_name")
    return arguments.checked_policy(*map(given.get, names), rules=given.get("rules", ()))


def test_without_a_word_only_the_latest_checkpoint_is_kept() -> None:
    assert policy() == Policy()
    assert policy(metric="loss", minimize=False) == Policy(minimize=False)  # nothing to go by it


def test_a_policy_is_made_of_mle_logging_s_arguments() -> None:
    rules = [TopK("acc", 1, "max")]
    given = policy(
        every_k=2, top_k=3, metric="loss", minimize=False, time_name="epoch", rules=rules
    )
    assert given == Policy(2, 3, "loss", False, "epoch", tuple(rules))


def test_checkpoints_are_marked_with_the_update_where_nobody_says() -> None:
    assert policy(every_k=2).time_name == "num_updates"
    assert policy(top_k=2, metric="loss").time_name == "num_updates"
    assert policy(rules=[TopK("loss", 1)]).time_name is None


def test_the_best_of_what_is_asked() -> None:
    with pytest.raises(ValueError, match="save_top_k_ckpt=3 needs top_k_metric_name"):
        policy(top_k=3)


def test_a_text_tells_no_checkpoints_apart() -> None:
    with pytest.raises(ValueError, match=r"ckpt_time_to_track='time' is a text: give"):
        policy(every_k=2, time_name="time")


@pytest.mark.parametrize(("given", "is_min"), [(None, True), (True, True), (np.False_, False)])
def test_small_values_are_good_unless_it_is_said_otherwise(given: Any, is_min: bool) -> None:
    assert policy(top_k=1, metric="loss", minimize=given).minimize is is_min


@pytest.mark.parametrize("given", ["max", "min", 3, []])
def test_what_is_no_truth_does_not_say_which_values_are_good(given: Any) -> None:
    with pytest.raises(TypeError, match="top_k_minimize_metric"):
        policy(top_k=1, metric="loss", minimize=given)


@pytest.mark.parametrize(
    "given",
    [
        {"every_k": 0}, {"every_k": 1.5}, {"every_k": True}, {"top_k": -1, "metric": "loss"},
        {"top_k": 1, "metric": ""}, {"top_k": 1, "metric": 3}, {"every_k": 1, "time_name": ""},
        {"rules": TopK("loss", 1)}, {"rules": ["TopK"]}, {"rules": 3},
    ],
)  # fmt: skip
def test_what_makes_no_policy_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=r"give|needs"):
        policy(**given)


# --- the configuration ----------------------------------------------------------------------------
def test_a_file_goes_before_a_dict(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("lr: 0.1\n")
    assert arguments.loaded_config(str(path), {"lr": 1}) == {"lr": 0.1}
    assert arguments.loaded_config(None, {"lr": 1}) == {"lr": 1}
    assert arguments.loaded_config(None, None) == {}
    with pytest.raises(TypeError, match="config_dict is a list: give a dict"):
        arguments.loaded_config(None, [1])  # type: ignore[arg-type]


def test_the_configuration_is_copied_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "größe.yaml"
    path.write_bytes(b"lr:   0.1  # \xff\r\n")
    assert arguments.config_file(str(path), {"x": 1}) == ("größe.yaml", b"lr:   0.1  # \xff\r\n")
    name, content = arguments.config_file(None, {"lr": 0.1})
    assert (name, content) == ("config_dict.yaml", b"lr: 0.1\n")
    assert arguments.config_file(None, None) == ("", b"")


def test_a_configuration_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments.m, "MAX_CONFIG_BYTES", 10)
    path = tmp_path / "c.yaml"
    for size in (10, 11):
        path.write_bytes(b"#" * size)
        if size == 10:
            assert len(arguments.config_file(str(path), None)[1]) == 10
            continue
        with pytest.raises(ValueError, match="may have 10 bytes"):
            arguments.config_file(str(path), None)


def test_a_package_that_is_missing_is_named_with_what_to_install() -> None:
    arguments.require("json", "use_tboard", "tboard")
    with pytest.raises(ModuleNotFoundError, match=r"use_wandb needs no_such_thing: pip install"):
        arguments.require("no_such_thing", "use_wandb", "wandb")


def test_update_never_waits_unless_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arguments.checked_wait(None, 10.0) == 0.0
    assert arguments.checked_wait("block", 10) == 10.0
    monkeypatch.setenv("MLE_ON_FULL", "block")
    assert arguments.checked_wait(None, 2.5) == 2.5
    assert arguments.checked_wait("drop_newest", 2.5) == 0.0


@pytest.mark.parametrize(
    ("on_full", "block_timeout", "error"),
    [
        ("wait", 10.0, ValueError),
        (True, 10.0, ValueError),
        ("block", "10", TypeError),
        ("block", True, TypeError),
        ("block", None, TypeError),
        ("block", -1, ValueError),
        ("block", float("inf"), ValueError),
        ("drop_newest", float("nan"), ValueError),
    ],
)
def test_what_is_no_bounded_wait_is_refused(
    on_full: Any, block_timeout: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="give"):
        arguments.checked_wait(on_full, block_timeout)


def test_a_wrong_policy_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLE_ON_FULL", "drop")
    with pytest.raises(ValueError, match="MLE_ON_FULL='drop': give 'drop_newest' or 'block'"):
        arguments.checked_wait(None, 10.0)


def test_the_bound_on_disk_may_be_said_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arguments.spill_bytes() == 2**30
    monkeypatch.setenv("MLE_SPILL_BYTES", "4096")
    assert arguments.spill_bytes() == 4096
    for wrong in ("1GiB", "-1", "1e9", "٣"):
        monkeypatch.setenv("MLE_SPILL_BYTES", wrong)
        with pytest.raises(ValueError, match="whole number of bytes"):
            arguments.spill_bytes()
