"""Ways of saving a model, ours and others', behind one interface.

Each is given a model and an empty folder.  `save` returns when training could go on; `wait` when
the bytes are on the disk, synced.  A library that is not installed raises `ImportError`.

It measures nothing.
"""

from __future__ import annotations

import importlib
import itertools
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from benchmarks.workspace import Workspace
from mle_client import MLELogger, runtime

LAYERS: Final = 10  # of the models; enough that what each array costs shows, few enough to be usual
_TIMEOUT_S: Final = 120.0
CLOCK: Final = "num_epochs"


class Saver(Protocol):
    """One way of saving one model, again and again."""

    def save(self) -> None:
        """Save; return when the model may be changed."""

    def wait(self) -> None:
        """Wait until all that was saved is on the disk."""

    def clean(self) -> None:
        """Remove what was saved; not timed."""

    def close(self) -> None:
        """End it."""


# --- models ---------------------------------------------------------------------------------------
def make_model(kind: str, size: int) -> Any:
    """A model with weights that do not compress.

    Args:
        kind: "numpy" for a dict of arrays, "torch" for a module.
        size: of all weights in bytes, about.
    """
    width = max(1, round((size / 4 / LAYERS) ** 0.5))
    if kind == "numpy":
        generator = np.random.default_rng(0)
        shape = (width, width)
        return {f"layer_{i}": generator.random(shape, np.float32) for i in range(LAYERS)}
    nn = importlib.import_module("torch").nn
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(LAYERS)))


def arrays_of(model: Any) -> list[Any]:
    """The memory of a model's weights, as arrays."""
    if isinstance(model, Mapping):
        return list(model.values())
    return [tensor.detach().numpy() for tensor in model.state_dict().values()]


# --- what the others are compared with ------------------------------------------------------------
class _Plain:
    """Durable when it returns, unless a subclass knows better."""

    def wait(self) -> None:
        """Do nothing."""

    def clean(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Copy(_Plain):
    """`np.copyto` into memory that is mapped and was written to before.

    Args:
        shared: a file in shared memory, which outlives the process; else the process's own.
    """

    def __init__(self, model: Any, folder: Path, space: Workspace, *, shared: bool) -> None:
        self._sources = arrays_of(model)
        self._targets = []
        for source in self._sources:
            if shared:
                in_memory = os.environ[runtime.RUNTIME_VARIABLE]
                with tempfile.TemporaryFile(dir=in_memory) as file:
                    os.posix_fallocate(file.fileno(), 0, source.nbytes)
                    memory = mmap.mmap(file.fileno(), source.nbytes)
                target = np.frombuffer(memory, source.dtype).reshape(source.shape)
            else:
                target = np.empty_like(source)
            self._targets.append(target)
        self.save()

    def save(self) -> None:
        """Copy."""
        for target, source in zip(self._targets, self._sources, strict=True):
            np.copyto(target, source)


class Raw(_Plain):
    """`write` of the same bytes into a new file, then `fsync`: what a disk takes at least."""

    def __init__(self, model: Any, folder: Path, space: Workspace) -> None:
        self._sources = [memoryview(a).cast("B") for a in arrays_of(model)]
        self._path = folder / "raw"
        self._fd = -1

    def save(self) -> None:
        """Write."""
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        for source in self._sources:
            rest = source
            while rest:
                rest = rest[os.write(self._fd, rest) :]

    def wait(self) -> None:
        """Sync."""
        os.fsync(self._fd)
        os.close(self._fd)

    def clean(self) -> None:
        """Remove the file."""
        self._path.unlink()


# --- ours -----------------------------------------------------------------------------------------
class Ours:
    """`MLELogger.save_model` with a daemon."""

    def __init__(self, model: Any, folder: Path, space: Workspace) -> None:
        self._model = model
        kind = "numpy" if isinstance(model, Mapping) else "torch"
        self.log = MLELogger(
            experiment_dir=str(space.root / folder.name), seed_id=1, model_type=kind
        )
        self.log.update({CLOCK: 0}, {"loss": 1.0})
        self.log.flush(_TIMEOUT_S)

    def save(self) -> None:
        """Save."""
        self.log.save_model(self._model)

    def wait(self) -> None:
        """Flush."""
        if not self.log.flush(_TIMEOUT_S) or self.log.errors():
            raise RuntimeError(f"not stored: {self.log.errors()}")

    def clean(self) -> None:
        """Do nothing: a checkpoint takes the place of the one before."""

    def close(self) -> None:
        """Close the logger."""
        report = self.log.close(_TIMEOUT_S)
        if report.unstored or report.lost:
            raise RuntimeError(f"this is what became of the models: {report}")


# --- others, which write files and leave syncing to the caller ------------------------------------
class _ToFile(_Plain):
    """Writes one new file at each save.

    Args:
        path: of the file.
        write: writes it.
    """

    def __init__(self, path: Path, write: Callable[[], object]) -> None:
        self._path = path
        self._write = write

    def save(self) -> None:
        """Write the file."""
        self._write()

    def wait(self) -> None:
        """Sync the file."""
        fd = os.open(self._path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    def clean(self) -> None:
        """Remove the file."""
        self._path.unlink()


def mle_logging(model: Any, folder: Path, space: Workspace) -> Saver:
    """`save_model` of mle-logging."""
    kind, ending = ("numpy", "pkl") if isinstance(model, Mapping) else ("torch", "pt")
    log = importlib.import_module("mle_logging").MLELogger(
        time_to_track=[CLOCK],
        what_to_track=["loss"],
        experiment_dir=str(folder),
        seed_id=1,
        model_type=kind,
    )
    log.update({CLOCK: 0}, {"loss": 1.0})
    path = folder / "models" / "final" / f"final_seed_1.{ending}"
    return _ToFile(path, lambda: log.save_model(model))


def torch_save(model: Any, folder: Path, space: Workspace) -> Saver:
    """`torch.save` of the state dict."""
    torch, path = importlib.import_module("torch"), folder / "model.pt"
    return _ToFile(path, lambda: torch.save(model.state_dict(), path))


def safetensors(model: Any, folder: Path, space: Workspace) -> Saver:
    """`safetensors`, of numpy or of torch."""
    path = folder / "model.safetensors"
    if isinstance(model, Mapping):
        save_file = importlib.import_module("safetensors.numpy").save_file
        return _ToFile(path, lambda: save_file(model, path))
    save_file = importlib.import_module("safetensors.torch").save_file
    return _ToFile(path, lambda: save_file(model.state_dict(), path))


# --- others that sync by themselves, behind the caller --------------------------------------------
class _Folders:
    """A new folder at each save."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def next(self) -> Path:
        """The next save's."""
        return self._folder / str(next(self._numbers))

    def clean(self) -> None:
        """Remove what the saves have left."""
        for path in self._folder.iterdir():
            shutil.rmtree(path)


class Orbax:
    """`AsyncCheckpointer` of Orbax, with the dict of arrays."""

    def __init__(self, model: Any, folder: Path, space: Workspace) -> None:
        self._api = importlib.import_module("orbax.checkpoint")
        self._checkpointer = self._api.AsyncCheckpointer(self._api.PyTreeCheckpointHandler())
        self._model = model
        self._folders = _Folders(folder)
        self.clean = self._folders.clean

    def save(self) -> None:
        """Save."""
        self._checkpointer.save(self._folders.next(), args=self._api.args.PyTreeSave(self._model))

    def wait(self) -> None:
        """Wait."""
        self._checkpointer.wait_until_finished()

    def close(self) -> None:
        """Close."""
        self._checkpointer.close()


class TorchDCP:
    """`async_save` of torch's distributed checkpoints, with a staging buffer that is kept.

    The stager that pins its memory needs an accelerator, so this is the other one, its options for
    accelerators off.
    """

    def __init__(self, model: Any, folder: Path, space: Workspace) -> None:
        self._dcp = importlib.import_module("torch.distributed.checkpoint")
        staging = importlib.import_module("torch.distributed.checkpoint.staging")
        self._distributed = importlib.import_module("torch.distributed")
        self._distributed.init_process_group(
            "gloo", store=self._distributed.HashStore(), rank=0, world_size=1
        )
        self._stager = staging.DefaultStager(
            staging.StagingOptions(
                use_pinned_memory=False,
                use_shared_memory=False,
                use_async_staging=False,
                use_non_blocking_copy=False,
            )
        )
        self._model = model
        self._future: Any = None
        self._folders = _Folders(folder)
        self.clean = self._folders.clean

    def save(self) -> None:
        """Save."""
        self._future = self._dcp.async_save(
            {"model": self._model.state_dict()},
            checkpoint_id=self._folders.next(),
            async_stager=self._stager,
        )

    def wait(self) -> None:
        """Wait."""
        future = getattr(self._future, "upload_completion", self._future)
        future.result(_TIMEOUT_S)

    def close(self) -> None:
        """End the process group."""
        self._stager.close()
        self._distributed.destroy_process_group()


def _copy_shared(model: Any, folder: Path, space: Workspace) -> Saver:
    return Copy(model, folder, space, shared=True)


def _copy_own(model: Any, folder: Path, space: Workspace) -> Saver:
    return Copy(model, folder, space, shared=False)


COPY: Final = "np.copyto, mapped shared memory"
COPY_OWN: Final = "np.copyto, own memory"
RAW: Final = "raw write + fsync"
OURS: Final = "ours"
# By the kind of model, then by name.
SAVERS: Final[dict[str, dict[str, Callable[[Any, Path, Workspace], Saver]]]] = {
    "numpy": {
        COPY: _copy_shared,
        COPY_OWN: _copy_own,
        RAW: Raw,
        OURS: Ours,
        "mle-logging": mle_logging,
        "safetensors": safetensors,
        "Orbax async": Orbax,
    },
    "torch": {
        COPY: _copy_shared,
        COPY_OWN: _copy_own,
        RAW: Raw,
        OURS: Ours,
        "mle-logging": mle_logging,
        "torch.save": torch_save,
        "safetensors": safetensors,
        "torch DCP async_save": TorchDCP,
    },
}
