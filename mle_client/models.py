"""`load_model`: from a checkpoint file to a model.

It reads what `save_model` wrote, and the files of mle-logging.  By default nothing runs that the
file chose: torch loads weights only, and pickles are `unpickling`'s.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import zipfile
from typing import Any, Final

from mle_client.errors import LogDamaged, LogNotFound
from mle_client.serializers import model_extension
from mle_client.unpickling import UnsafeModel as UnsafeModel
from mle_client.unpickling import load_restricted

_NPY: Final = b"\x93NUMPY"
_NPZ: Final = b"PK\x03\x04"
_KERAS_ENDINGS: Final = (".h5", ".keras")
# What readers raise for bytes that are not theirs.
_UNREADABLE: Final = (EOFError, IndexError, KeyError, RuntimeError, ValueError)
_NAMES_SHOWN: Final = 5  # of other files in the folder, in an error


def load_model(
    ckpt_path: str | os.PathLike[str],
    model_type: str,
    model: Any = None,
    *,
    weights_only: bool = True,
) -> Any:
    """Load a stored model.

    Args:
        ckpt_path: the file.
        model_type: as it was saved: "torch", "tensorflow", "jax", "sklearn" or "numpy".
        model: torch: the module whose parameters are to be set; without it you get the state dict.
            tensorflow: the model whose weights are to be set.  Not used for the others.
        weights_only: refuse a file that would run code of its own choice.  Data, arrays and
            scikit-learn's estimators load; classes and functions of your own, and what was saved
            by value because it was defined in a script, need False.  **False runs whatever the
            file says: only for files that you trust.**

    Returns:
        torch, tensorflow: `model`, with the stored values; torch without a model: the state dict,
        on the CPU.  jax, sklearn, numpy: the object that was saved.  A file of numpy's own is
        returned as its array, or, of several, as a dict.

    Raises:
        LogNotFound: there is no such file (also a FileNotFoundError).
        LogDamaged: it is no checkpoint of this type, or no longer.
        UnsafeModel: it would run code; names what it asks for.
        ValueError: there is no such type of model, or tensorflow was given no model.
    """
    from mle_client.control import publish_before_reading

    model_extension(model_type)  # a wrong type is an error before anything is asked for
    path = os.fspath(ckpt_path)
    if model_type == "tensorflow" and model is None:
        raise ValueError("model_type='tensorflow' stores weights: pass the model they belong to")
    publish_before_reading(path)
    if model_type == "tensorflow":
        return _load_keras(path, model)
    if not os.path.isfile(path):
        raise LogNotFound(path, f"there is no such file{_suggestion(path)}")
    if model_type == "torch":
        return _load_torch(path, model, weights_only)
    if model_type == "numpy":
        return _load_numpy(path, weights_only)
    return _load_pickle(path, weights_only)


def _load_torch(path: str, model: Any, weights_only: bool) -> Any:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=weights_only)
    except pickle.UnpicklingError as error:
        if weights_only and zipfile.is_zipfile(path):
            cause = str(error).partition("Please file an issue")[0].strip()
            raise UnsafeModel(path, f"more than weights ({cause})") from error
        raise LogDamaged(path, f"no torch checkpoint: {error}") from error
    except _UNREADABLE as error:
        raise LogDamaged(path, f"no torch checkpoint: {error!r}") from error
    if model is None:
        return state
    model.load_state_dict(state)
    return model


def _load_pickle(path: str, weights_only: bool) -> Any:
    with open(path, "rb") as file:
        try:
            return load_restricted(file, path) if weights_only else pickle.load(file)
        except UnsafeModel:
            raise
        except (pickle.UnpicklingError, *_UNREADABLE) as error:
            raise LogDamaged(path, f"no pickle, or only a part of one: {error!r}") from error


def _load_numpy(path: str, weights_only: bool) -> Any:
    import numpy as np

    with open(path, "rb") as file:
        start = file.read(len(_NPY))
        if not start.startswith((_NPY, _NPZ)):
            return _load_pickle(path, weights_only)
        file.seek(0)
        try:
            found = np.load(file, allow_pickle=not weights_only)
            return dict(found) if start.startswith(_NPZ) else found
        except (OSError, zipfile.BadZipFile, pickle.UnpicklingError, *_UNREADABLE) as error:
            if weights_only and "allow_pickle" in str(error):
                raise UnsafeModel(path, "pickled objects in an array") from error
            raise LogDamaged(path, f"no array: {error!r}") from error


def _load_keras(path: str, model: Any) -> Any:
    if path.endswith(_KERAS_ENDINGS) or not os.path.isfile(path):
        # TensorFlow's own format is several files, whose names begin with the path.
        if not os.path.exists(path) and not os.path.exists(f"{path}.index"):
            raise LogNotFound(path, f"there is no such file{_suggestion(path)}")
        model.load_weights(path)
        return model
    with tempfile.TemporaryDirectory() as folder:
        link = os.path.join(folder, "model.weights.h5")  # keras takes no other ending
        os.symlink(os.path.abspath(path), link)
        model.load_weights(link)
    return model


def _suggestion(path: str) -> str:
    folder = os.path.dirname(path) or "."
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return f", nor a folder {folder}"
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
    return f"; in that folder there is {shown}" if names else "; that folder is empty"
