"""The arguments of `MLELogger`, checked: each becomes a value that the rest can rely on.

A refusal names the argument and says what to give instead.
"""

from __future__ import annotations

import numbers
import operator
import os
import threading
from collections.abc import Sequence
from typing import Any, Final

from mle_client import configs, layout
from mle_client import messages as m
from mle_client.retention import Policy, Rule
from mle_client.ring import SPILL_BYTES

MODEL_TYPES: Final = ("torch", "tensorflow", "jax", "sklearn", "numpy", "no-model-type")
# More seeds of one configuration than anybody runs; a number above is a mistake.
_MAX_SEEDS: Final = 10**6
# What a checkpoint is marked with where nobody says: every tick has it.
_DEFAULT_TIME: Final = "num_updates"


# What update() does where there is no room: it never waits, or it waits up to a bound.
DROP_NEWEST: Final = "drop_newest"
BLOCK: Final = "block"
ON_FULL_VARIABLE: Final = "MLE_ON_FULL"
SPILL_BYTES_VARIABLE: Final = "MLE_SPILL_BYTES"


def checked_wait(on_full: object, block_timeout: object) -> float:
    """Seconds that one update() may wait for room.

    Args:
        on_full: `DROP_NEWEST`, `BLOCK`, or None for what the variable MLE_ON_FULL says.
        block_timeout: of `BLOCK`.

    Raises:
        TypeError, ValueError: one of them is something else; says what to give instead.
    """
    said_by = "on_full" if on_full is not None else ON_FULL_VARIABLE
    policy = on_full if on_full is not None else os.environ.get(ON_FULL_VARIABLE) or DROP_NEWEST
    if policy not in (DROP_NEWEST, BLOCK):
        raise ValueError(f"{said_by}={policy!r}: give {DROP_NEWEST!r} or {BLOCK!r}")
    if isinstance(block_timeout, bool) or not isinstance(block_timeout, numbers.Real):
        raise TypeError(f"block_timeout={block_timeout!r}: give a number of seconds")
    seconds = float(block_timeout)
    if not 0.0 <= seconds < threading.TIMEOUT_MAX:
        raise ValueError(
            f"block_timeout={block_timeout!r}: give a number of seconds, 0 or more, with an end"
        )
    return seconds if policy == BLOCK else 0.0


def spill_bytes() -> int:
    """How many bytes a logger may keep on disk, by the variable MLE_SPILL_BYTES.

    Raises:
        ValueError: it is no such number; says what to give instead.
    """
    said = os.environ.get(SPILL_BYTES_VARIABLE) or str(SPILL_BYTES)
    if not (said.isascii() and said.isdigit()):
        raise ValueError(
            f"{SPILL_BYTES_VARIABLE}={said!r}: give a whole number of bytes, such as {SPILL_BYTES}"
        )
    return int(said)


def checked_model_type(model_type: object) -> str:
    """One of `MODEL_TYPES`.  Raises: ValueError: it is none."""
    if model_type not in MODEL_TYPES or not isinstance(model_type, str):
        raise ValueError(f"model_type={model_type!r}: give one of {', '.join(MODEL_TYPES)}")
    return model_type


def checked_seed_id(seed_id: object) -> str:
    """The seed's name.  Raises: TypeError, ValueError: none can be made of it."""
    if isinstance(seed_id, numbers.Integral):
        seed_id = f"seed_{int(seed_id)}"
    if not isinstance(seed_id, str):
        raise TypeError(f"seed_id={seed_id!r}: give a number or a string")
    if not layout.is_seed_id(seed_id):
        raise ValueError(
            f"seed_id={seed_id!r}: it is part of a file name, so it may not be empty, hold a "
            "slash or be longer than 200 bytes"
        )
    return seed_id


def checked_num_seeds(num_seeds: object) -> int | None:
    """How many seeds there are.  Raises: TypeError, ValueError: it is no such number."""
    if num_seeds is None:
        return None
    advice = f"give a whole number from 1 to {_MAX_SEEDS:,}, or None"
    try:
        if isinstance(num_seeds, bool):
            raise TypeError
        count = operator.index(num_seeds)  # type: ignore[arg-type]  # raises what is caught below
    except TypeError:
        raise TypeError(f"num_seeds={num_seeds!r}: {advice}") from None
    if not 1 <= count <= _MAX_SEEDS:
        raise ValueError(f"num_seeds is too {'small' if count < 1 else 'large'}: {advice}")
    return count


def checked_policy(
    every_k: int | None,
    top_k: int | None,
    metric: str | None,
    minimize: bool | None,
    time_name: str | None,
    rules: Sequence[Rule],
) -> Policy:
    """Which checkpoints are kept.

    Args:
        every_k, top_k, metric, minimize, time_name: mle-logging's `save_every_k_ckpt`,
            `save_top_k_ckpt`, `top_k_metric_name`, `top_k_minimize_metric`, `ckpt_time_to_track`.
        rules: of `mle_client.retention`.

    Raises:
        TypeError, ValueError: they do not make sense; says what to give.
    """
    if top_k is not None and metric is None:
        raise ValueError(
            f"save_top_k_ckpt={top_k} needs top_k_metric_name, a statistic that update() gets"
        )
    if time_name == "time":
        raise ValueError(
            "ckpt_time_to_track='time' is a text: give 'time_elapsed', 'num_updates' or a clock "
            "of yours"
        )
    if time_name is None and (every_k is not None or top_k is not None):
        time_name = _DEFAULT_TIME
    if minimize is None or minimize in (True, False):  # numpy's truths, too
        minimize = minimize is None or bool(minimize)
    return Policy(
        every_k=every_k,
        top_k=top_k,
        top_k_metric=metric if top_k is not None else None,
        minimize=minimize,
        time_name=time_name,
        rules=rules,  # type: ignore[arg-type]  # made a tuple, or refused, there
    )


def loaded_config(fname: str | None, given: dict[str, Any] | None) -> dict[str, Any]:
    """The configuration: the file's, else the dict given, else an empty one.

    Raises:
        TypeError: `given` is no dict.
        OSError, ValueError: the file cannot be read, or holds no dict.
    """
    if fname is not None:
        config = configs.load_config(fname)
        if config is not None and not isinstance(config, dict):
            raise ValueError(
                f"{fname} holds a {type(config).__name__}, and a configuration is names with their "
                'values: write `name: value` in YAML, or {"name": value} in JSON'
            )
        return config or {}
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise TypeError(f"config_dict is a {type(given).__name__}: give a dict")
    return given


def config_file(fname: str | None, given: dict[str, Any] | None) -> tuple[str, bytes]:
    """Name and bytes of the configuration file that goes into the experiment's folder.

    Raises:
        ValueError: it is too large.
        OSError: it cannot be read.
    """
    if fname is not None:
        with open(fname, "rb") as file:
            content = file.read(m.MAX_CONFIG_BYTES + 1)
        name = os.path.basename(fname)
    elif given is not None:
        name, content = "config_dict.yaml", configs.config_yaml(given)
    else:
        return "", b""
    if len(content) > m.MAX_CONFIG_BYTES:
        raise ValueError(f"a configuration may have {m.MAX_CONFIG_BYTES} bytes; this one has more")
    return name, content


def checked_experiment_dir(base: object, config_name: str) -> str:
    """The experiment's folder.  Raises: TypeError, ValueError: it is no path of a folder."""
    try:
        path = os.fspath(base)  # type: ignore[call-overload]  # raises what is caught below
    except TypeError:
        raise TypeError(f"experiment_dir={base!r}: give the path of a folder") from None
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"experiment_dir={base!r}: give the path of a folder")
    if os.path.realpath(path) == "/":
        raise ValueError('experiment_dir is "/": give the folder that the log shall go into')
    return os.path.join(path, config_name) if config_name else path


def require(package: str, parameter: str, extra: str) -> None:
    """Raise unless an optional package is installed.  Raises: ModuleNotFoundError: it is not."""
    from importlib.util import find_spec  # few scripts need it

    if find_spec(package) is None:
        raise ModuleNotFoundError(
            f"{parameter} needs {package}: pip install 'mle-daemon[{extra}]'", name=package
        )
