"""Values that a device is still computing: on their way to this process, without waiting for them.

`fetch` starts the transfer of a torch tensor on a CUDA device, or of a jax array, and returns at
once what will hold the value; whoever wants it asks from time to time whether it has come.  What
user code does with the tensor afterwards changes nothing: torch's transfer is queued behind the
computation on the tensor's own stream, and of a jax array, which a later step may be given for good
(`donate_argnums`), a copy is made on its device.

It imports neither library: whoever has such a value has done so.  Of other devices, and of arrays
that lie on several, it knows nothing; they are read as numpy reads them, which waits.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

# Host memory that a device writes to is allocated by the page, and while that is done the device
# may have to wait; so there are many places for one number in a piece.
_PLACES: Final = 1024
_FLAGS: Final = "flags"  # the key of their places


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A value that has not come yet.

    Args:
        dtype, shape: of the array that `get` returns.
        is_ready: () -> whether `get` would return at once.
        get: () -> the value, an array in host memory.  Call it when it is ready; of jax it waits
            until then.  Raises what the library raises where the computation has failed.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_ready: Callable[[], bool]
    get: Callable[[], np.ndarray[Any, Any]]


def fetch(value: Any) -> Pending | None:
    """Start to fetch a value.  None: it is here already, or cannot be fetched without waiting."""
    torch = sys.modules.get("torch")
    if torch is not None and type(value) in _tensor_types(torch):
        return _fetch_tensor(torch, value) if value.is_cuda else None
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, getattr(jax, "Array", ())):
        return _fetch_array(jax, value)
    return None


def is_plain_tensor(value: Any) -> bool:
    """Whether a tensor of torch lies in host memory, and its value is what that memory holds."""
    torch = sys.modules.get("torch")
    is_tensor = torch is not None and type(value) in _tensor_types(torch)
    return is_tensor and bool(value.is_cpu) and not value.is_quantized


# --- torch ----------------------------------------------------------------------------------------
def _tensor_types(torch: Any) -> tuple[type, ...]:
    """Those whose values are what their memory holds; empty while torch is being imported."""
    try:
        return torch.Tensor, torch.nn.Parameter
    except AttributeError:
        return ()


def _fetch_tensor(torch: Any, tensor: Any) -> Pending | None:
    """Queue copies of a tensor, and behind it of a flag, into host memory.

    Whether the flag is there is seen without a call of CUDA's: one from another thread may break
    the capture of a graph.
    """
    is_odd = tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_conj()
    if is_odd or torch.cuda.is_current_stream_capturing():
        return None
    tensor = tensor.detach()
    if tensor.is_floating_point() and tensor.dtype not in _numpy_floats(torch):
        tensor = tensor.float()
    flag, flagged = _place(torch, _FLAGS, torch.uint8)
    flagged[...] = 0
    key = tensor.dtype if not tensor.ndim else None
    place, array = _place(torch, key, tensor.dtype, tensor.shape)
    place.copy_(tensor, non_blocking=True)
    flag.copy_(_one(torch, tensor.device), non_blocking=True)
    kept: list[np.ndarray[Any, Any]] = []

    def get() -> np.ndarray[Any, Any]:
        if not kept:
            kept.append(array.copy())
            _places(_FLAGS).append((flag, flagged))
            if key is not None:
                _places(key).append((place, array))
        return kept[0]

    # Once it was got its place may be another value's.
    return Pending(array.dtype, array.shape, lambda: bool(kept) or bool(flagged), get)


def _numpy_floats(torch: Any) -> tuple[Any, ...]:
    return torch.float16, torch.float32, torch.float64


@functools.cache
def _one(torch: Any, device: Any) -> Any:
    """What a flag is set to, on a device; the first time it is waited for."""
    one = torch.ones((), dtype=torch.uint8, device=device)
    torch.cuda.current_stream(device).synchronize()  # it is for all streams
    return one


def _place(
    torch: Any, key: Any, dtype: Any, shape: tuple[int, ...] = ()
) -> tuple[Any, np.ndarray[Any, Any]]:
    """Host memory that the device can write to: as a tensor and as an array.

    Args:
        key: of those for one number that are used again; None for others.
    """
    # Made in inference mode, it could not be written to outside of that.
    with torch.inference_mode(False):
        settings = {"dtype": dtype, "device": "cpu", "pin_memory": True}
        if key is None:
            place = torch.empty(shape, **settings)
            return place, place.numpy()
        places = _places(key)
        while True:
            try:
                return places.pop()
            except IndexError:
                piece = torch.empty(_PLACES, **settings)
                places.extend((place, place.numpy()) for place in piece.unbind())


@functools.cache
def _places(key: Any) -> list[tuple[Any, np.ndarray[Any, Any]]]:
    """Places for one number of a type that nobody uses just now."""
    return []


# --- jax ------------------------------------------------------------------------------------------
def _fetch_array(jax: Any, array: Any) -> Pending | None:
    if isinstance(array, jax.core.Tracer) or not isinstance(array.dtype, np.dtype):
        return None  # has no value, or none that is a number
    if len(array.sharding.device_set) > 1:
        if not array.is_fully_replicated:
            return None
        array = array.addressable_data(0)
    (device,) = array.devices()
    if device.platform == "cpu" and array.is_ready():
        return None
    try:
        copy = _copying(jax)(array)
        copy.copy_to_host_async()
    except Exception:  # a mesh is set, or a function is traced: then it is waited for
        return None
    return Pending(array.dtype, array.shape, copy.is_ready, lambda: np.asarray(copy))


@functools.cache
def _copying(jax: Any) -> Callable[[Any], Any]:
    """What makes a copy of an array on its device; compiled once for each shape and type."""
    compiled: Callable[[Any], Any] = jax.jit(jax.numpy.copy)
    return compiled
