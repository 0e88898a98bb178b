"""`mle_client.utils`: the helpers of `mle_logging.utils` that programs import, under its names.

A facade: configurations are `configs`', learning curves `plot`'s, which is imported when somebody
asks for it.  What is not here, `compat_names` has advice on.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mle_client.configs import load_config as load_config
from mle_client.configs import load_json_config as load_json_config
from mle_client.configs import load_yaml_config as load_yaml_config

if TYPE_CHECKING:
    visualize_1D_lcurves: Callable[..., tuple[Any, Any]]

_LATER = {"visualize_1D_lcurves": "plot"}

__all__ = [
    "load_config",
    "load_json_config",
    "load_pkl_object",
    "load_yaml_config",
    "save_pkl_object",
    "visualize_1D_lcurves",
]


def save_pkl_object(obj: Any, filename: str | os.PathLike[str]) -> None:
    """Pickle an object into a file.

    Args:
        obj: any that pickle takes.
        filename: of the file; one that is there is overwritten once all of the object is pickled.
    """
    pickled = pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)
    with open(filename, "wb") as file:
        file.write(pickled)


def load_pkl_object(filename: str | os.PathLike[str]) -> Any:
    """Load a pickled object, such as one that `MLELogger.save_extra` saved, also a moment ago.

    **Loading a pickle runs whatever it says: only files that you trust.**  `load_model` is the safe
    way to load a model.

    Args:
        filename: of the file.
    """
    from mle_client.control import publish_before_reading

    path = os.fspath(filename)
    publish_before_reading(path)
    with open(path, "rb") as file:
        return pickle.load(file)


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"mle_client.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
