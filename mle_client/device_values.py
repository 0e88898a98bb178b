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


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A value that has not come yet.

    Args:
        dtype, shape: of the array that `get` returns.
        is_ready: () -> whether `get` would return at once.
        get: () -> the value, an array in host memory; waits for it.  Call it once.  Raises what the
            library raises where the computation has failed.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_ready: Callable[[], bool]
    get: Callable[[], np.ndarray[Any, Any]]


def fetch(value: Any) -> Pending | None:
    """Start to fetch a value.  None: it is here already, or nothing that this module knows."""
    torch = sys.modules.get("torch")
    if torch is not None and type(value) in _tensor_types(torch):
        return _fetch_tensor(torch, value) if value.is_cuda else None
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, getattr(jax, "Array", ())):
        return _fetch_array(jax, value)
    return None


def is_plain_tensor(value: Any) -> bool:
    """Whether a tensor of torch lies in host memory, and its value is what that memory holds."""
    torch = sys.modules["torch"]
    return type(value) in _tensor_types(torch) and bool(value.is_cpu) and not value.is_quantized


# --- torch ----------------------------------------------------------------------------------------
def _tensor_types(torch: Any) -> tuple[type, ...]:
    """Those whose values are what their memory holds; empty while torch is being imported."""
    try:
        return torch.Tensor, torch.nn.Parameter
    except AttributeError:
        return ()


def _fetch_tensor(torch: Any, tensor: Any) -> Pending | None:
    if tensor.layout is not torch.strided or tensor.is_quantized:
        return None
    tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:  # which numpy does not know
        tensor = tensor.float()
    place, array = _place(torch, tensor)
    place.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(tensor.device))

    def get() -> np.ndarray[Any, Any]:
        arrived.synchronize()
        value = array.copy()
        if not value.shape:
            _places(tensor.dtype).append((place, array))
        return value

    return Pending(array.dtype, array.shape, arrived.query, get)


def _place(torch: Any, tensor: Any) -> tuple[Any, np.ndarray[Any, Any]]:
    """Host memory that the device can write to: as a tensor and as an array."""
    if tensor.ndim:
        place = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return place, place.numpy()
    places = _places(tensor.dtype)
    try:
        return places.pop()
    except IndexError:
        piece = torch.empty(_PLACES, dtype=tensor.dtype, pin_memory=True)
        places.extend((place, place.numpy()) for place in piece.unbind())
        return places.pop()


@functools.cache
def _places(dtype: Any) -> list[tuple[Any, np.ndarray[Any, Any]]]:
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
    copy = _copying(jax)(array)
    copy.copy_to_host_async()
    return Pending(array.dtype, array.shape, copy.is_ready, lambda: np.asarray(copy))


@functools.cache
def _copying(jax: Any) -> Callable[[Any], Any]:
    """What makes a copy of an array on its device; compiled once for each shape and type."""
    compiled: Callable[[Any], Any] = jax.jit(jax.numpy.copy)
    return compiled
