"""Other loggers, and ours, behind one interface: open, update(clock, stats), close.

Each is set up so that it stores locally, asks no network and says nothing, and is otherwise as it
comes.  It runs in the logger's own environment, so it needs nothing but the standard library and,
once a logger is opened, that logger.

It measures nothing.
"""

from __future__ import annotations

import abc
import importlib
import json
import sqlite3
import struct
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Final

STEP, EPOCH, LOSS, TEST_LOSS = "num_steps", "num_epochs", "train_loss", "test_loss"


class Peer(abc.ABC):
    """One logger with one run.

    Attributes:
        imports: the modules that it needs.
        settings: environment variables, set before these are imported.
        log: its `update(clock, stats)` takes a tick.  It is looked up at every tick, as user code
            does: ours puts another function there when it has seen the first.

    Args:
        target: where to log to: a folder that is empty, or an address.
        seed: the number of the run.
    """

    imports: ClassVar[tuple[str, ...]]
    settings: ClassVar[Mapping[str, str]] = {}
    log: Any

    @abc.abstractmethod
    def __init__(self, target: str, seed: int) -> None: ...

    @abc.abstractmethod
    def close(self) -> None:
        """End the run; returns when all that was logged is stored."""

    def count(self) -> int | None:
        """How many ticks are stored; None where whoever has started it counts."""
        return None


class Ours(Peer):
    """`MLELogger` with a daemon."""

    imports = ("mle_client",)

    def __init__(self, target: str, seed: int) -> None:
        mle_client = importlib.import_module("mle_client")
        self.log = mle_client.MLELogger(experiment_dir=target, seed_id=seed)

    def close(self) -> None:
        """Close it."""
        report = self.log.close()
        if report.lost:
            raise RuntimeError(f"this is what became of the ticks: {report}")


class Naive(Peer):
    """The naive sender: batches, msgpack, ZeroMQ."""

    imports = ("benchmarks.naive",)

    def __init__(self, target: str, seed: int) -> None:
        self.log = importlib.import_module("benchmarks.naive").Sender(target)

    def close(self) -> None:
        """Send the rest."""
        self.log.close()


class JSONLines(Peer):
    """A line of JSON a tick, in a file with Python's own buffer."""

    imports = ("json",)

    def __init__(self, target: str, seed: int) -> None:
        self._path = Path(target) / "ticks.jsonl"
        self._file = self._path.open("w")
        write, encode = self._file.write, json.dumps

        def update(clock: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
            write(encode({**clock, **stats}) + "\n")

        self.log = SimpleNamespace(update=update)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def count(self) -> int:
        """Lines."""
        return _lines(self._path)


class MLELogging(Peer):
    """mle-logging, saved once, in the end: with every tick it would take 10 ms and more."""

    imports = ("mle_logging",)

    def __init__(self, target: str, seed: int) -> None:
        self.log = importlib.import_module("mle_logging").MLELogger(
            time_to_track=[STEP, EPOCH],
            what_to_track=[LOSS, TEST_LOSS],
            experiment_dir=target,
            seed_id=seed,
        )
        self._folder, self._run = Path(target), f"seed_{seed}"

    def close(self) -> None:
        """Save."""
        self.log.save()

    def count(self) -> int:
        """Values of a statistic."""
        (path,) = self._folder.glob("logs/*.hdf5")
        with importlib.import_module("h5py").File(path) as file:
            return len(file[f"{self._run}/stats/{LOSS}"])


class LightningCSV(Peer):
    """Lightning's `CSVLogger`, which appends to its file every 100 steps."""

    imports = ("lightning_fabric.loggers",)

    def __init__(self, target: str, seed: int) -> None:
        fabric = importlib.import_module("lightning_fabric.loggers")
        self._logger = fabric.CSVLogger(root_dir=target)
        self._folder = Path(target)
        log_metrics = self._logger.log_metrics

        def update(clock: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
            log_metrics({EPOCH: clock[EPOCH], **stats}, clock[STEP])

        self.log = SimpleNamespace(update=update)

    def close(self) -> None:
        """Finalize."""
        self._logger.finalize("success")

    def count(self) -> int:
        """Lines below the header."""
        (path,) = self._folder.rglob("metrics.csv")
        return _lines(path) - 1


class TensorBoardX(Peer):
    """tensorboardX: a scalar is a call."""

    imports = ("tensorboardX",)

    def __init__(self, target: str, seed: int) -> None:
        self._writer = importlib.import_module("tensorboardX").SummaryWriter(logdir=target)
        self._folder = Path(target)
        add_scalar = self._writer.add_scalar

        def update(clock: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
            step = clock[STEP]
            add_scalar(EPOCH, clock[EPOCH], step)
            for name, value in stats.items():
                add_scalar(name, value, step)

        self.log = SimpleNamespace(update=update)

    def close(self) -> None:
        """Close."""
        self._writer.close()

    def count(self) -> int:
        """Records of a statistic: length, checksum, content, checksum."""
        (path,) = self._folder.glob("events.*")
        content, at, found = path.read_bytes(), 0, 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            found += LOSS.encode() in content[at + 12 : at + 12 + length]
            at += 12 + length + 4
        return found


class WandB(Peer):
    """wandb, offline; without looking at the machine and at the code."""

    imports = ("wandb",)
    settings: ClassVar[Mapping[str, str]] = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_CONFIG_DIR": ".",
        "WANDB_CACHE_DIR": ".",
        "WANDB_DATA_DIR": ".",
    }
    # Its file is a log of LevelDB's format: blocks, and pieces of records in them.
    _FILE_HEADER: Final = 7
    _BLOCK: Final = 32_768
    _PIECE_HEADER: Final = struct.Struct("<IHB")

    def __init__(self, target: str, seed: int) -> None:
        wandb = self._api = importlib.import_module("wandb")
        self._folder = Path(target)
        self._run = wandb.init(
            project="peers",
            dir=target,
            settings=wandb.Settings(
                x_disable_stats=True, x_disable_meta=True, disable_git=True, disable_code=True
            ),
        )
        log = self._run.log

        def update(clock: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
            log({**clock, **stats})

        self.log = SimpleNamespace(update=update)

    def close(self) -> None:
        """Finish the run, and wait for its service: until that has ended the file is not whole."""
        self._run.finish()
        self._api.teardown()

    def count(self) -> int:
        """Records of the history."""
        (path,) = self._folder.rglob("*.wandb")
        content, at, record, found = path.read_bytes(), self._FILE_HEADER, b"", 0
        while at + self._PIECE_HEADER.size <= len(content):
            left = self._BLOCK - at % self._BLOCK
            if left < self._PIECE_HEADER.size:
                at += left
                continue
            _, length, kind = self._PIECE_HEADER.unpack_from(content, at)
            at += self._PIECE_HEADER.size
            piece = content[at : at + length]
            at += length
            record = piece if kind in (1, 2) else record + piece  # whole, first, middle, last
            if kind in (1, 4):
                found += _is_history(record)
        return found


class Trackio(Peer):
    """trackio, without looking at the machine."""

    imports = ("trackio",)
    settings: ClassVar[Mapping[str, str]] = {
        "TRACKIO_DIR": "trackio",
        "HF_HOME": ".",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
    }

    def __init__(self, target: str, seed: int) -> None:
        self._api = importlib.import_module("trackio")
        self._folder = Path(target) / self.settings["TRACKIO_DIR"]
        self._api.init(project="peers", name=f"seed_{seed}", auto_log_gpu=False, auto_log_cpu=False)
        log = self._api.log

        def update(clock: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
            log({**clock, **stats})

        self.log = SimpleNamespace(update=update)

    def close(self) -> None:
        """Finish the run."""
        self._api.finish()

    def count(self) -> int:
        """Rows."""
        (path,) = self._folder.glob("*.db")
        with sqlite3.connect(path) as database:
            return int(database.execute("SELECT COUNT(*) FROM metrics").fetchone()[0])


class MLflow(Peer):
    """MLflow with its store of files: faster than the one in a database by ten and more."""

    imports = ("mlflow",)
    settings: ClassVar[Mapping[str, str]] = {
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }

    def __init__(self, target: str, seed: int) -> None:
        self._api = importlib.import_module("mlflow")
        self._folder = Path(target) / "store"
        self._api.set_tracking_uri(self._folder.as_uri())
        self._api.start_run(run_name=f"seed_{seed}")
        log_metrics = self._api.log_metrics

        def update(clock: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
            log_metrics({EPOCH: clock[EPOCH], **stats}, step=clock[STEP])

        self.log = SimpleNamespace(update=update)

    def close(self) -> None:
        """End the run."""
        self._api.end_run()

    def count(self) -> int:
        """Lines of a statistic."""
        (path,) = self._folder.rglob(f"metrics/{LOSS}")
        return _lines(path)


PEERS: Final[Mapping[str, type[Peer]]] = {
    "ours": Ours,
    "naive": Naive,
    "jsonl": JSONLines,
    "mle-logging": MLELogging,
    "csv": LightningCSV,
    "trackio": Trackio,
    "tensorboardx": TensorBoardX,
    "wandb": WandB,
    "mlflow": MLflow,
}


def _is_history(record: bytes) -> bool:
    """Whether a record of wandb is a tick: after its number, protobuf's field 2."""
    at = 1
    while at < len(record) and record[at] & 0x80:  # the number goes on
        at += 1
    return record[at + 1 : at + 2] == b"\x12"


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
