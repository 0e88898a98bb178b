"""Models and objects as bytes: what `save_model` and `save_extra` write into a snapshot.

The result is what the library's own way of saving gives, and is read by its own way of loading:
`torch.load(weights_only=True)`, `pickle.load`, `load_weights`.  An object that plain pickle can
express needs nothing but that to be read; only the rest goes through cloudpickle.

Every call copies: what is changed afterwards does not change what was written.  It imports no
library of models at import, and none whose model it was not given.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
import tempfile
from collections.abc import Iterable, Mapping
from types import FunctionType
from typing import Any, Final

import numpy as np

from mle_client.snapshot import SnapshotFull, SnapshotWriter

_PROTOCOL: Final = 5  # of pickle; arrays go through it without a copy
# Names of the script that runs: another process does not find them there.
_UNIMPORTABLE: Final = ("__main__", "__mp_main__")
_DEEPEST: Final = 8  # levels that are looked through for what cannot be pickled

_EXTENSIONS: Final = {
    "torch": ".pt",
    "tensorflow": ".pt",  # mle-logging's name for both
    "jax": ".pkl",
    "sklearn": ".pkl",
    "numpy": ".pkl",
}


# --- models ---------------------------------------------------------------------------------------
def model_extension(model_type: str) -> str:
    """The extension of a model's files.

    Raises:
        ValueError: there is no such type of model.
    """
    if model_type not in _EXTENSIONS:
        types = ", ".join(map(repr, _EXTENSIONS))
        raise ValueError(
            f"model_type={model_type!r} is none that can be saved: give one of {types}"
        )
    return _EXTENSIONS[model_type]


def check_model(model: Any, model_type: str) -> None:
    """See whether a model is one of its type, without looking into it.

    Raises:
        ModuleNotFoundError: the library of its type is not installed.
        TypeError: it is another kind of object.
        ValueError: there is no such type of model.
    """
    model_extension(model_type)
    what = f"a {_name(type(model))}"
    if model_type == "torch":
        if isinstance(model, Mapping) and not _holds_tensor(model):
            raise TypeError(
                "model_type='torch', but there is no tensor in this dict: pass the nn.Module or a "
                "state dict of tensors, or set model_type='numpy' for arrays"
            )
        if not isinstance(model, Mapping) and not _has_method(model, "state_dict"):
            raise TypeError(
                f"model_type='torch', but {what} has no state_dict(): pass the nn.Module, or set "
                "model_type to the library of your model"
            )
        _check_installed("torch")
    elif model_type == "tensorflow":
        if not _has_method(model, "save_weights"):
            raise TypeError(
                f"model_type='tensorflow', but {what} has no save_weights(): pass the keras.Model, "
                "or set model_type to the library of your model"
            )
    elif model is None:
        raise TypeError("there is no model to save: it is None")
    elif _is_torch_module(model):
        raise TypeError(f"{what} is a torch module, not of model_type={model_type!r}: set 'torch'")
    else:
        _check_pickled(model, model_type, what)


def write_model(model: Any, model_type: str, out: SnapshotWriter) -> None:
    """Write a model as its library does.

    Args:
        model: one that `check_model` accepts.  torch: a module, or whatever has a state_dict(), or
            a state dict; tensorflow: a keras model; else an object that can be pickled.
        model_type: one of torch, tensorflow, jax, sklearn, numpy.
        out: empty; to be aborted if this raises.

    Raises:
        SnapshotFull: there is no room.
        TypeError: it cannot be saved; names what in it cannot, and says what to do.
        ValueError: a parameter has no values yet.
    """
    if model_type == "torch":
        _write_torch(model, out)
    elif model_type == "tensorflow":
        _write_keras(model, out)
    else:
        write_object(model, out)


def _write_torch(model: Any, out: SnapshotWriter) -> None:
    from mle_client.torch_archive import write_state_dict

    state = model if isinstance(model, Mapping) else model.state_dict()
    try:
        write_state_dict(state, out)
    except (SnapshotFull, ValueError):
        raise
    except Exception as error:
        raise TypeError(
            f"torch cannot save the state of this {_name(type(model))}: {error}"
        ) from error


def _write_keras(model: Any, out: SnapshotWriter) -> None:
    """Have keras write the only kind of file it writes, and copy that."""
    in_memory, on_disk = out.directories
    for directory in (in_memory, on_disk):
        with tempfile.TemporaryDirectory(dir=directory) as folder:
            path = os.path.join(folder, "model.weights.h5")  # keras takes no other ending
            try:
                model.save_weights(path)
            except OSError:  # HDF5's error where shared memory is full
                if directory == on_disk:
                    raise
                continue
            with open(path, "rb") as file:
                for view in out.reserve(os.path.getsize(path)):
                    file.readinto(view)
            return


def _has_method(model: Any, name: str) -> bool:
    return callable(getattr(model, name, None)) and not isinstance(model, type)


def _holds_tensor(state: Mapping[Any, Any], depth: int = 4) -> bool:
    """Whether a tensor is in a dict, or in dicts inside it."""
    torch = sys.modules.get("torch")
    return torch is not None and any(
        isinstance(value, torch.Tensor)
        or (isinstance(value, Mapping) and depth > 0 and _holds_tensor(value, depth - 1))
        for value in state.values()
    )


def _check_pickled(model: Any, model_type: str, what: str) -> None:
    """Raise for what is no model of a type that is pickled."""
    is_estimator = _has_method(model, "fit") or _has_method(model, "predict")
    if isinstance(model, type):
        raise TypeError(f"{what} is a class: pass an instance of it")
    if model_type == "sklearn" and not is_estimator:
        raise TypeError(
            f"model_type='sklearn', but {what} has neither fit() nor predict(): pass the "
            "estimator, or set model_type='numpy' for arrays"
        )
    if model_type != "sklearn" and (is_estimator or isinstance(model, str | bytes | int | float)):
        raise TypeError(
            f"model_type={model_type!r}, but {what} is none: pass arrays, or containers of arrays"
            + (", or set model_type='sklearn'" if is_estimator else "")
        )


def _is_torch_module(model: Any) -> bool:
    torch = sys.modules.get("torch")  # whoever has a module has it loaded
    return torch is not None and isinstance(model, torch.nn.Module)


def _check_installed(library: str) -> None:
    if library not in sys.modules and importlib.util.find_spec(library) is None:
        raise ModuleNotFoundError(
            f"model_type={library!r} needs {library}: pip install mle-daemon[{library}]"
        )


def _name(kind: type) -> str:
    builtin = kind.__module__ == "builtins"
    return kind.__qualname__ if builtin else f"{kind.__module__}.{kind.__qualname__}"


# --- objects --------------------------------------------------------------------------------------
def write_object(obj: Any, out: SnapshotWriter) -> None:
    """Pickle an object.

    Args:
        obj: anything that plain pickle can express, else what cloudpickle can: lambdas, and
            functions and classes of the script that runs.
        out: empty; to be aborted if this raises.

    Raises:
        SnapshotFull: there is no room.
        TypeError: neither can; names what in it they cannot, and says what to do.
    """
    try:
        _PlainPickler(out, _PROTOCOL).dump(obj)
        return
    except (SnapshotFull, MemoryError):
        raise
    except Exception:  # whatever an object's own method raises; cloudpickle may know a way
        out.restart()
    try:
        _by_value(out).dump(obj)
    except (SnapshotFull, MemoryError):
        raise
    except Exception as error:
        where, culprit = _culprit(obj)
        which = f"its part {where}, a {_name(type(culprit))}," if where else "it"
        raise TypeError(
            f"a {_name(type(obj))} cannot be saved, because {which} cannot be pickled ({error}): "
            "leave that out, or give its class a __reduce__ method"
        ) from error


class _Unimportable(Exception):
    """A name that another process would not find."""


class _PlainPickler(pickle.Pickler):
    """Plain pickle, but for what it would write and nobody could read."""

    def reducer_override(self, obj: Any) -> Any:
        """How to pickle what is no basic type; called for each such object."""
        if isinstance(obj, type | FunctionType):
            if obj.__module__ in _UNIMPORTABLE:
                raise _Unimportable(obj.__qualname__)
            return NotImplemented
        return _reduce_array(obj)


def _by_value(out: Any) -> pickle.Pickler:
    """A pickler that writes the code of what cannot be imported."""
    import cloudpickle

    class ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            reduced = _reduce_array(obj)
            return super().reducer_override(obj) if reduced is NotImplemented else reduced

    pickler: pickle.Pickler = ByValuePickler(out, protocol=_PROTOCOL)
    return pickler


# numpy's own function that makes an array from a pickled buffer.
_FROM_BUFFER: Final = np.empty(0).__reduce_ex__(_PROTOCOL)[0]
_REGISTERED: Final = 2  # numpy's number for types that another library added, such as bfloat16


def _reduce_array(obj: Any) -> Any:
    """Arrays that would be copied to be pickled, as ones that are not; else NotImplemented."""
    kind = type(obj)
    if kind is np.ndarray:
        if obj.dtype.isbuiltin == _REGISTERED and obj.flags.c_contiguous and obj.size:
            raw = obj.view(f"u{obj.itemsize}")
            return _FROM_BUFFER, (pickle.PickleBuffer(raw), obj.dtype, obj.shape, "C")
    elif _is_jax_array(kind) and obj.is_fully_addressable and not obj.weak_type:
        return sys.modules["jax"].numpy.asarray, (np.asarray(obj),)
    return NotImplemented


def _is_jax_array(kind: type) -> bool:
    return kind.__name__ == "ArrayImpl" and kind.__module__.startswith("jax")


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        """Count the bytes."""
        return memoryview(data).nbytes


def _culprit(obj: Any) -> tuple[str, Any]:
    """Where in an object something is that cannot be pickled, as in code, and that something."""
    where = ""
    for _ in range(_DEEPEST):
        for step, part in _parts(obj):
            try:
                _by_value(_Nowhere()).dump(part)
            except Exception:
                where, obj = where + step, part
                break
        else:
            break
    return where, obj


def _parts(obj: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(obj, Mapping):
        return [(f"[{key!r}]", value) for key, value in obj.items()]
    if isinstance(obj, list | tuple):
        return [(f"[{index}]", value) for index, value in enumerate(obj)]
    return [(f".{name}", value) for name, value in getattr(obj, "__dict__", {}).items()]
