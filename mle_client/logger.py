"""`MLELogger`: the drop-in, and nothing else.

Same constructor, same calls, same files as mle-logging's.  `update` is an attribute that holds the
generated function of `producer`; everything that takes time happens in `transport`'s thread and in
the daemon.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import numbers
import os
import secrets
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mle_client import configs, control, discovery, layout, runtime, wire
from mle_client import messages as m
from mle_client.errors import MLEError, NotSupported
from mle_client.producer import Producer
from mle_client.ring import Ring
from mle_client.statslog import StatsLog
from mle_client.transport import Channel, transport_for

_LOG = logging.getLogger("mle_client")

# At exit, for all loggers of the process together: long enough for a daemon that is being started
# on a busy machine, short enough that nobody takes the program for hung.
EXIT_TIMEOUT_S: Final = 10.0
_KEPT_ERRORS: Final = 100
MODEL_TYPES: Final = ("torch", "tensorflow", "jax", "sklearn", "numpy", "no-model-type")


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a logger's ticks.

    Args:
        delivered: taken over by the daemon; in the log file by now, unless `errors()` says why not.
        spilled: kept on this machine, outside of the process; the next daemon of this root stores
            them.
        lost: could not be kept.
    """

    delivered: int
    spilled: int
    lost: int


class MLELogger:
    """Logs time-like values and statistics of one run to an HDF5 file, by way of a daemon.

    The first parameters are mle-logging's, with its names, order and defaults.

    Args:
        experiment_dir: folder of the experiment; with `config_fname`, the folder named after that
            file in it.
        time_to_track, what_to_track: names of clocks and statistics, more may appear at any time.
        time_to_print, what_to_print: a choice of them, for the terminal.
        config_fname: YAML or JSON file, copied into the folder.
        config_dict: the configuration, where there is no file.
        seed_id: number or name of the seed; part of the log's file name.
        overwrite: delete a log of that name.  Without it, such a log is put aside, under .mle.
        model_type: of mle-logging, one of `MODEL_TYPES`.
        daemon: an address, the root folder of a daemon, "auto" or "embedded"; None for what the
            variable MLE_DAEMON says, else the nearest parent folder's daemon, else one of its own.
        sync: have every saving call wait until the file is there; MLE_SYNC=1 says the same.
        num_seeds: how many seeds this configuration has, if known.
        on_error: called from another thread with what goes wrong in the background.
        strict: raise what went wrong in the background at the next update().

    Raises:
        ValueError, TypeError: an argument is refused; says what to give instead.
        OSError: the folder cannot be made, or there is no room to buffer ticks.
    """

    # A slot is found a little sooner than what lies in the instance's dict.
    __slots__ = ("__dict__", "__weakref__", "update")

    def __init__(
        self,
        experiment_dir: str = "/",
        time_to_track: Sequence[str] = (),
        what_to_track: Sequence[str] = (),
        time_to_print: Sequence[str] | None = None,
        what_to_print: Sequence[str] | None = None,
        config_fname: str | None = None,
        config_dict: dict[str, Any] | None = None,
        seed_id: str | int = layout.NO_SEED,
        overwrite: bool = False,
        use_tboard: bool = False,
        use_wandb: bool = False,
        wandb_config: dict[str, Any] | None = None,
        log_every_j_steps: int | None = None,
        print_every_k_updates: int | None = 1,
        model_type: str = "no-model-type",
        ckpt_time_to_track: str | None = None,
        save_every_k_ckpt: int | None = None,
        save_top_k_ckpt: int | None = None,
        top_k_metric_name: str | None = None,
        top_k_minimize_metric: bool | None = None,
        reload: bool = False,
        verbose: bool = False,
        *,
        daemon: str | None = None,
        sync: bool = False,
        num_seeds: int | None = None,
        on_error: Callable[[MLEError], None] | None = None,
        strict: bool = False,
    ) -> None:
        _refuse_what_is_not_there_yet(
            use_tboard=use_tboard,
            use_wandb=use_wandb,
            save_every_k_ckpt=save_every_k_ckpt,
            save_top_k_ckpt=save_top_k_ckpt,
            reload=reload,
        )
        if verbose:
            warnings.warn("verbose=True prints nothing in this release", stacklevel=2)
        if model_type not in MODEL_TYPES:
            raise ValueError(f"model_type={model_type!r}: give one of {', '.join(MODEL_TYPES)}")
        self.seed_id = _checked_seed_id(seed_id)
        self.model_type = model_type
        self.log_every_j_steps = log_every_j_steps
        self.print_every_k_updates = print_every_k_updates
        self.time_to_print, self.what_to_print = time_to_print, what_to_print
        self.config_fname = config_fname
        self.config_dict = _load_config(config_fname, config_dict)
        self.base_str = os.path.splitext(os.path.basename(config_fname))[0] if config_fname else ""
        self.experiment_dir = _experiment_dir(experiment_dir, self.base_str)
        self.log_save_fname = layout.log_path(self.experiment_dir, self.seed_id)
        self.verbose = verbose
        self.stats_log = StatsLog(self, time_to_track, what_to_track)
        self._sync = sync or os.environ.get("MLE_SYNC", "") not in ("", "0")
        self._on_error, self._strict = on_error, strict
        self._errors: list[MLEError] = []
        self._raise_next: MLEError | None = None
        self._report: Report | None = None
        self._closing = threading.Lock()
        self._channel: Channel | None = None
        self._target = discovery.resolve(daemon, self.experiment_dir)
        os.makedirs(self.experiment_dir, exist_ok=True)
        config_name, config_file = _config_file(config_fname, config_dict)
        text, as_json = configs.config_text(self.config_dict)
        self._run = m.Run(
            run_id=m.RunId(secrets.token_bytes(16)),
            directory=os.path.realpath(self.experiment_dir),
            experiment_dir=self.experiment_dir,
            seed_id=self.seed_id,
            eval_id=self.base_str,
            model_type=model_type,
            start_time=time.time(),
            config_name=config_name,
            config_file=config_file,
            config_text=text,
            config_json=as_json,
            num_seeds=num_seeds,
            overwrite=overwrite,
            forked=False,
            pid=os.getpid(),
            host=socket.gethostname(),
        )
        self._transport = transport_for(self._target)
        self.update: Callable[..., None] = self._first_update
        self._open()
        _LOGGERS.add(self)

    # --- logging ------------------------------------------------------------------------------
    def _first_update(
        self,
        clock_tick: dict[str, Any],
        stats_tick: dict[str, Any],
        model: Any = None,
        plot_fig: Any = None,
        extra_obj: Any = None,
        grads: Any = None,
        save: bool = False,
    ) -> None:
        """Make this process a producer of the run, and log.  The first call of a forked child."""
        with self._closing:
            if self._channel is None:
                self._open()
        self.update(clock_tick, stats_tick, model, plot_fig, extra_obj, grads, save)

    def save(self) -> None:
        """Ask for the log file to be brought up to date; with `sync`, wait until it is."""
        if self._channel is None or self._report is not None:
            return
        if self._sync:
            if not self.flush(EXIT_TIMEOUT_S):
                warnings.warn(
                    f"{self.log_save_fname} is not up to date after {EXIT_TIMEOUT_S:g} s; "
                    "the data are kept, see errors()",
                    RuntimeWarning,
                    stacklevel=2,
                )
        else:
            self._transport.save(self._channel)

    def flush(self, timeout: float = EXIT_TIMEOUT_S) -> bool:
        """Wait until every tick so far is in the log file, synced to disk.

        Args:
            timeout: seconds.

        Returns:
            Whether it is.  If not, the ticks are still kept; `errors()` may say what is wrong.
        """
        channel = self._channel
        if self._report is not None:
            return self._report.spilled == 0
        if channel is None:
            return True
        return self._transport.flush(channel, channel.producer.catch_up(), timeout)

    def close(self, timeout: float = EXIT_TIMEOUT_S) -> Report:
        """End the run and wait until its log file is complete.

        Called by itself at exit.  Calling it again returns the same report.

        Args:
            timeout: seconds to wait at the most.

        Returns:
            What became of the ticks.
        """
        with self._closing:
            if self._report is None:
                self._report = self._close(timeout)
                _LOGGERS.discard(self)
            return self._report

    def _close(self, timeout: float) -> Report:
        channel = self._channel
        if channel is None:  # a forked child that never logged
            return Report(0, 0, 0)
        end = channel.producer.close()
        flushed = self._transport.flush(channel, end, timeout)
        self._transport.remove(channel)
        ring = channel.producer.ring
        waiting = self._unacknowledged(channel)
        report = Report(channel.session.ticks, len(waiting), channel.producer.lost)
        if flushed or channel.session.acked >= end:
            ring.delete()
        else:
            ring.let_go()
        return report

    def __enter__(self) -> MLELogger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "an MLELogger cannot be pickled: make one in each process, with its own seed_id, or "
            "let a forked child use the one it inherits"
        )

    # --- looking ------------------------------------------------------------------------------
    def stats(self) -> dict[str, Any]:
        """How far delivery is.

        Returns:
            `sent`, `acked` and `published`: positions in bytes of this process's stream; `ticks`
            acknowledged; `bytes_waiting` for an acknowledgement, `lag_s` the age of the oldest of
            these ticks in seconds, `lost` ticks, and whether a daemon is `connected`.
        """
        channel = self._channel
        if channel is None:
            return {}
        waiting = self._unacknowledged(channel)
        session = channel.session
        return {
            "sent": session.sent,
            "acked": session.acked,
            "published": session.published,
            "ticks": session.ticks,
            "bytes_waiting": channel.producer.catch_up() - session.acked,
            "lag_s": max(0.0, time.time() - waiting[0]) if waiting else 0.0,
            "lost": channel.producer.lost,
            "connected": self._transport.connected,
        }

    def errors(self) -> list[MLEError]:
        """What went wrong in the background, oldest first."""
        return list(self._errors)

    def extend_tracking(self, add_track_vars: Sequence[str]) -> None:
        """Name further statistics.  Logging them without is as good."""
        self.stats_log.extend_tracking(add_track_vars)

    def ready_to_log(self, update_counter: int) -> bool:
        """Whether `update_counter` is one of every `log_every_j_steps`.

        Raises:
            ValueError: the logger was made without `log_every_j_steps`.
        """
        if self.log_every_j_steps is None:
            raise ValueError("ready_to_log() needs MLELogger(..., log_every_j_steps=j)")
        return (update_counter + 1) % self.log_every_j_steps == 0 or update_counter == 0

    def names_seen(self) -> tuple[list[str], list[str]]:
        """The clocks and statistics logged so far, in order of appearance."""
        return ([], []) if self._channel is None else self._channel.producer.names()

    def stored_as(self) -> tuple[str, str]:
        """The log file's path and the name of the seed's group in it.

        They differ from `log_save_fname` and `seed_id` where another live logger has that name.
        """
        seed_id = (self._channel and self._channel.renamed) or self.seed_id
        return layout.log_path(self._run.directory, seed_id), seed_id

    # --- artifacts: a later release -------------------------------------------------------------
    def save_model(self, model: Any) -> None:
        """Store a checkpoint.  Raises: NotSupported: this release does not."""
        raise NotSupported("save_model()")

    def save_init_model(self, model: Any) -> None:
        """Store the initial checkpoint.  Raises: NotSupported: this release does not."""
        raise NotSupported("save_init_model()")

    def save_plot(self, fig: Any, fig_fname: str | None = None) -> None:
        """Store a figure.  Raises: NotSupported: this release does not."""
        raise NotSupported("save_plot()")

    def save_extra(self, obj: Any, obj_fname: str | None = None) -> None:
        """Store an object.  Raises: NotSupported: this release does not."""
        raise NotSupported("save_extra()")

    def _artifacts(self, model: Any, plot_fig: Any, extra_obj: Any, grads: Any) -> None:
        raise NotSupported("update() with a model, figure, object or gradients")

    # --- this process's stream ----------------------------------------------------------------
    def _open(self) -> None:
        """Make this process a producer of the run."""
        producer = m.ProducerId(secrets.token_bytes(16))
        pid = os.getpid()
        run = dataclasses.replace(self._run, pid=pid, forked=pid != self._run.pid)
        ring = Ring(
            os.path.join(runtime.ring_dir(self._target.root), producer.hex()),
            layout.state_path(self._target.root, layout.SPILL_DIR, producer.hex()),
            producer,
            {"pid": run.pid, "directory": run.directory, "seed_id": run.seed_id},
        )

        def ask_to_save() -> None:
            channel.save_wanted = True

        stream = Producer(
            producer,
            ring,
            run,
            on_save=self.save if self._sync else ask_to_save,
            on_artifacts=self._artifacts,
            on_lost=lambda reason: self._failed(MLEError(reason)),
        )
        self._channel = channel = self._transport.add(stream, self._failed)
        stream.install(self._take_over)
        _close_at_exit()

    def _take_over(self, update: Callable[..., None]) -> None:
        if self._raise_next is None:
            self.update = update

    def _failed(self, error: MLEError) -> None:
        """Something went wrong in the background.  Called from any thread."""
        known = self._errors and str(self._errors[-1]) == str(error)
        if known:
            return
        self._errors.append(error)
        del self._errors[:-_KEPT_ERRORS]
        if self._strict and self._channel is not None:
            self._raise_next = error
            self.update = self._raise
        try:
            if self._on_error is not None:
                self._on_error(error)
            else:
                warnings.warn(f"mle-daemon: {error}", RuntimeWarning, stacklevel=2)
        except Exception:  # the sender's thread must outlive whatever a callback does
            _LOG.exception("on_error failed, or warnings are errors; what it was about: %s", error)

    def _raise(self, *args: Any, **kwargs: Any) -> None:
        error, self._raise_next = self._raise_next, None
        if self._channel is not None:
            self.update = self._channel.producer.update
        if error is not None:
            raise error

    def _unacknowledged(self, channel: Channel) -> list[float]:
        """The time stamps of this stream's ticks that the daemon has not acknowledged."""
        decoder = wire.StreamDecoder(channel.producer.schemas)
        try:
            pending = [
                bytes(view) for _, view in channel.producer.ring.pending(channel.session.acked)
            ]
        except LookupError:  # acknowledged meanwhile
            return []
        records = [record for part in pending for record in decoder.decode(part)]
        blocks = [record for record in records if isinstance(record, wire.Block)]
        return [float(seconds) for block in blocks for seconds in block.times]

    def _forked(self) -> None:
        """In a forked child: the stream is the parent's; a first update begins one of our own."""
        self._closing = threading.Lock()
        channel, self._channel = self._channel, None
        if channel is None or self._report is not None:
            return
        channel.producer.disable("this stream belongs to the parent process")
        channel.producer.forward = self._first_update
        channel.producer.ring.forget()
        self._transport = transport_for(self._target)
        self.update = self._first_update


# --- the arguments ------------------------------------------------------------------------------
def _refuse_what_is_not_there_yet(**wanted: Any) -> None:
    """Raise for a parameter of mle-logging's whose effect this release does not have."""
    for name, value in wanted.items():
        if value:
            raise NotSupported(f"{name}={value!r}")


def _checked_seed_id(seed_id: object) -> str:
    if isinstance(seed_id, numbers.Integral):
        return f"seed_{int(seed_id)}"
    if not isinstance(seed_id, str):
        raise TypeError(f"seed_id={seed_id!r}: give a number or a string")
    if not layout.is_seed_id(seed_id):
        raise ValueError(
            f"seed_id={seed_id!r}: it is part of a file name, so it may not be empty, hold a "
            "slash or be longer than 200 bytes"
        )
    return seed_id


def _load_config(fname: str | None, given: dict[str, Any] | None) -> dict[str, Any]:
    if fname is not None:
        return dict(configs.load_config(fname) or {})
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise TypeError(f"config_dict is a {type(given).__name__}: give a dict")
    return given


def _config_file(fname: str | None, given: dict[str, Any] | None) -> tuple[str, bytes]:
    """Name and bytes of the configuration file that goes into the experiment's folder."""
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


def _experiment_dir(base: object, config_name: str) -> str:
    try:
        path = os.fspath(base)  # type: ignore[call-overload]  # raises what is caught below
    except TypeError:
        raise TypeError(f"experiment_dir={base!r}: give the path of a folder") from None
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"experiment_dir={base!r}: give the path of a folder")
    if os.path.realpath(path) == "/":
        raise ValueError('experiment_dir is "/": give the folder that the log shall go into')
    return os.path.join(path, config_name) if config_name else path


# --- the end of the process ---------------------------------------------------------------------
# Strong references: a logger that user code dropped still has ticks to deliver.
_LOGGERS: set[MLELogger] = set()
_registered_in: int = 0  # the process in which `close_all` is registered


def _flush_before_reading(path: str, timeout: float) -> None:
    """Bring what this process logged under a path into the files."""
    folder = path.rstrip("/") + "/"
    for logger in list(_LOGGERS):
        stored = logger.stored_as()[0]
        if stored == path or f"{stored}/".startswith(folder):
            logger.flush(timeout)


control.BEFORE_READING.append(_flush_before_reading)


def close_all(timeout: float = EXIT_TIMEOUT_S) -> None:
    """Close every logger of this process.  Args: timeout: seconds, for all together."""
    deadline = time.monotonic() + timeout
    for logger in list(_LOGGERS):
        logger.close(max(0.0, deadline - time.monotonic()))


def _close_at_exit() -> None:
    """Have `close_all` run when this process ends, also where `multiprocessing` ends it."""
    global _registered_in
    if _registered_in == os.getpid():
        return
    if _registered_in == 0:
        atexit.register(close_all)
    _registered_in = os.getpid()
    if "multiprocessing" in sys.modules:  # its children leave by os._exit, without atexit
        from multiprocessing.util import Finalize

        Finalize(None, close_all, exitpriority=100)


def _after_fork_in_child() -> None:
    for logger in list(_LOGGERS):
        logger._forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
