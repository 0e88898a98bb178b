"""torch's file format, written so that the bytes of each tensor are copied once.

`torch.save` pickles the structure and then has every storage pass through a writer that computes
its checksum on the way: 10 to 15 times the time of a copy.  Here the same pickler and the same zip
layout are used, the storages are copied, and checksums are left to whoever reads the bytes out.
A state whose structure was seen before (names, types, shapes, which tensors share memory) is not
pickled again: that takes longer than copying small tensors.

What this cannot express goes through `torch.save` itself, which is slower and right.  It imports
torch inside functions; whoever has a model has it loaded.
"""

from __future__ import annotations

import ctypes
import io
import pickle
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final

from mle_client.snapshot import SnapshotFull, SnapshotWriter
from mle_client.zip_layout import Layout, lay_out

# What torch's own writer aligns storages to; the file says so.
_ALIGNMENT_BYTES: Final = 64
_CPU: Final = "cpu"
_DEVICES: Final = frozenset((_CPU, "cuda"))  # whose storages are copied here
_PICKLE_PROTOCOL: Final = 2  # the one that `weights_only=True` reads
# A process saves a model or two, over and over.  A layout has some 500 bytes a tensor.
_LAYOUTS: Final = 8
_layouts: dict[tuple[Any, ...], Layout] = {}
_layouts_lock: Final = threading.Lock()


class _Inexpressible(Exception):
    """A storage that the fast layout has no way for."""


def write_state_dict(state_dict: Mapping[str, Any], out: SnapshotWriter) -> None:
    """Write what `torch.save(state_dict, file)` would; `out` must be empty.

    Raises:
        SnapshotFull: there is no room.
        ValueError: a parameter has no values yet.
        Exception: torch cannot save it; what `torch.save` raises then.
    """
    structure, storages = _structure(state_dict)
    layout = _layouts.get(structure) if structure else None
    if layout is None:
        _check_initialised(state_dict)
        try:
            content, pickled = _pickle(state_dict)
        except Exception:
            _write_slowly(state_dict, out)
            return
        layout = lay_out(_records(content, pickled), _ALIGNMENT_BYTES)
        if structure and _ids(storages) == _ids(pickled):
            _remember(structure, layout)
        storages = pickled
    if all(device.type == _CPU for device in {storage.device for storage in storages}):
        # Looked up before the first copy: after it, nothing is in the caches.
        memories = [_memory(storage) for storage in storages]
        out.write_all(chain.from_iterable(zip(layout.pieces, memories, strict=True)))
    else:
        for piece, storage in zip(layout.pieces, storages, strict=True):
            out.write(piece)
            if storage.device.type == _CPU:
                out.write(_memory(storage))
            else:
                _copy_from_device(storage, out)
    out.write(layout.ending)
    out.note_checksums(layout.checksums)


# --- what is pickled ------------------------------------------------------------------------------
def _structure(state_dict: Mapping[str, Any]) -> tuple[tuple[Any, ...], list[Any]]:
    """All that a state's pickle depends on, and the storages in the order of their first use.

    Both are empty unless it is a dict of ordinary tensors.
    """
    import torch

    if type(state_dict) not in (dict, OrderedDict):
        return (), []
    ordinary, strided = (torch.Tensor, torch.nn.Parameter), torch.strided
    storages: dict[int, tuple[int, Any]] = {}
    devices: set[Any] = set()
    parts: list[Any] = [type(state_dict)]
    for name, tensor in state_dict.items():
        if (
            type(tensor) not in ordinary
            or type(name) is not str
            or tensor.layout is not strided
            or tensor.is_nested
            or tensor.is_quantized
            or tensor.is_conj()
            or tensor.is_neg()
            or tensor.__dict__
        ):
            return (), []
        storage, device = tensor.untyped_storage(), tensor.device
        devices.add(device)
        index, _ = storages.setdefault(storage._cdata, (len(storages), storage))
        parts.append(
            (
                name,
                type(tensor),
                tensor.dtype,
                tensor.shape,
                tensor.stride(),
                tensor.storage_offset(),
                tensor.requires_grad,
                index,
                storage.nbytes(),
                device,
            )
        )
    if not _DEVICES.issuperset(device.type for device in devices):
        return (), []
    if extra := getattr(state_dict, "__dict__", None):  # a module's versions
        try:
            parts.append(pickle.dumps(extra, _PICKLE_PROTOCOL))
        except Exception:  # it can be anything; then the pickler below says what is wrong
            return (), []
    return tuple(parts), [storage for _, storage in storages.values()]


class _Pickler(pickle.Pickler):
    """Pickles as `torch.save` does: storages by number, their bytes elsewhere."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, _PICKLE_PROTOCOL)
        import torch

        self._torch = torch
        # By the address of torch's own object: number, type of the elements, storage.
        self.storages: dict[int, tuple[str, Any, Any]] = {}

    def persistent_id(self, obj: Any) -> Any:
        """The name of a storage, as torch writes it; None for everything else."""
        torch = self._torch
        if isinstance(obj, torch.storage.TypedStorage):
            storage, dtype, length = obj._untyped_storage, obj.dtype, obj._size()
            kind = getattr(torch, obj._pickle_storage_type())
        elif torch.is_storage(obj):
            storage, dtype, length = obj, torch.uint8, obj.nbytes()
            kind = torch.serialization.normalize_storage_type(type(obj))
        else:
            return None
        if storage.device.type not in _DEVICES:
            raise _Inexpressible(f"a storage on {storage.device}")
        key, known, _ = self.storages.setdefault(
            storage._cdata, (str(len(self.storages)), dtype, storage)
        )
        if known != dtype:
            raise _Inexpressible("a storage with elements of two types")
        return "storage", kind, key, torch.serialization.location_tag(storage), length


def _pickle(state_dict: Mapping[str, Any]) -> tuple[bytes, list[Any]]:
    """The pickled structure, and the storages that it refers to."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(state_dict)
    return file.getvalue(), [storage for _, _, storage in pickler.storages.values()]


def _check_initialised(state_dict: Mapping[str, Any]) -> None:
    import torch

    for name, value in state_dict.items():
        if torch.nn.parameter.is_lazy(value):
            raise ValueError(
                f"{name!r} of this model is not initialised: pass it one batch, then save it"
            )


def _records(content: bytes, storages: Sequence[Any]) -> list[tuple[str, bytes | int]]:
    """The files in the archive, by their names, in torch's order."""
    return [
        ("archive/data.pkl", content),
        ("archive/.format_version", b"1"),
        ("archive/.storage_alignment", str(_ALIGNMENT_BYTES).encode()),
        ("archive/byteorder", sys.byteorder.encode()),
        *((f"archive/data/{key}", storage.nbytes()) for key, storage in enumerate(storages)),
        ("archive/version", b"3\n"),
    ]


def _ids(storages: Sequence[Any]) -> list[int]:
    return [storage._cdata for storage in storages]


def _remember(structure: tuple[Any, ...], layout: Layout) -> None:
    with _layouts_lock:
        while len(_layouts) >= _LAYOUTS:
            del _layouts[next(iter(_layouts))]  # the oldest
        _layouts[structure] = layout


# --- what is copied -------------------------------------------------------------------------------
_view_of: Final = ctypes.pythonapi.PyMemoryView_FromMemory
_view_of.argtypes = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int
_view_of.restype = ctypes.py_object
_READ_ONLY: Final = 0x100  # PyBUF_READ


def _memory(storage: Any) -> Any:
    """The bytes of a storage in the processor's memory; valid as long as the storage."""
    size = storage.nbytes()
    return _view_of(storage.data_ptr(), size, _READ_ONLY) if size else b""


def _copy_from_device(storage: Any, out: SnapshotWriter) -> None:
    """Copy behind what the current stream is doing, straight into the snapshot, and wait for it."""
    import torch

    source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
    start = 0
    for view in out.reserve(storage.nbytes()):
        torch.frombuffer(view, dtype=torch.uint8).copy_(source[start : start + len(view)])
        start += len(view)


# --- the slow way ---------------------------------------------------------------------------------
class _Sink:
    """A file for torch's writer, whose destructor writes too: an error raised there would abort.

    So it keeps the first error and takes everything after that without a word.
    """

    def __init__(self, out: SnapshotWriter) -> None:
        self._out = out
        self.error: SnapshotFull | None = None

    def write(self, data: Any) -> int:
        """Pass it on, unless there was an error.  Returns: the number of bytes, in any case."""
        if self.error is None:
            try:
                self._out.write(data)
            except SnapshotFull as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Do nothing; torch asks for it."""


def _write_slowly(state_dict: Mapping[str, Any], out: SnapshotWriter) -> None:
    import torch

    sink = _Sink(out)
    torch.save(state_dict, sink)
    if sink.error is not None:
        raise sink.error
