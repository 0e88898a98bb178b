"""`MLELogger`: the drop-in, and nothing else.

Same constructor, same calls, same files as mle-logging's.  `update` is an attribute that holds the
generated function of `producer`; everything that takes time happens in `transport`'s thread and in
the daemon.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from mle_client import (
    arguments,
    configs,
    discovery,
    layout,
    lifetime,
    runtime,
    wandb_settings,
    wire,
)
from mle_client import messages as m
from mle_client.artifactlogs import ExtraLog, FigureLog, ModelLog
from mle_client.errors import MLEError
from mle_client.kept import Kept, kept_to_plain
from mle_client.lifetime import EXIT_TIMEOUT_S
from mle_client.producer import Producer
from mle_client.resume import Resumed, resume
from mle_client.retention import Policy, Rule, to_plain
from mle_client.ring import Ring
from mle_client.saving import Saver
from mle_client.snapshot import Arena
from mle_client.statslog import StatsLog
from mle_client.tally import Tally
from mle_client.transport import Channel, transport_for

if TYPE_CHECKING:
    from mle_client.shown import Shown

_LOG = logging.getLogger("mle_client")

_KEPT_ERRORS: Final = 100
_DELIVERY_S: Final = 1.0  # of a stream's rest, by `close` that has waited for a device until then
_CONSOLE_TIMEOUT_S: Final = 1.0  # for what waits to be printed, when a run ends
_READ_TRIES: Final = 10  # at what is recycled meanwhile: two are rare, ten mean that nothing waits
_Read = TypeVar("_Read")


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a logger's ticks.

    Args:
        delivered: taken over by the daemon; in the log file by now, unless `errors()` says why not.
        spilled: kept on this machine, outside of the process; the next daemon of this root stores
            them.
        lost: could not be kept.
        unstored: models, figures and objects that are not under their names yet; they are kept on
            this machine like the spilled ticks.
        refused: models, figures and objects that could not be stored; `errors()` says why.
    """

    delivered: int
    spilled: int
    lost: int
    unstored: int = 0
    refused: int = 0


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
        use_tboard: mirror the run into TensorBoard's event files, under tboards/.
        use_wandb, wandb_config: mirror it into W&B's offline mode, under wandb/.
        model_type: what kind of models are saved, one of `arguments.MODEL_TYPES`.
        ckpt_time_to_track: the clock that tells checkpoints apart.
        save_every_k_ckpt: keep every so many checkpoints, in models/every_k.
        save_top_k_ckpt, top_k_metric_name, top_k_minimize_metric: keep so many checkpoints with the
            best values of a statistic, in models/top_k.
        reload: continue the log that lies there under this seed, its checkpoints and numbers too.
        verbose: show the run in the terminal; `time_to_print` and `what_to_print` choose columns.
        daemon: an address, the root folder of a daemon, "auto" or "embedded"; None for what the
            variable MLE_DAEMON says, else the nearest parent folder's daemon, else one of its own.
        sync: have every saving call wait until the file is there; MLE_SYNC=1 says the same.
        num_seeds: how many seeds this configuration has, if known.
        on_error: called from another thread with what goes wrong in the background.
        strict: raise what went wrong in the background at the next update() or save.
        on_full: what update() does when the daemon cannot keep up, and memory and disk have taken
            what they may: "drop_newest" drops the tick and counts it, "block" first waits for room;
            None for what the variable MLE_ON_FULL says, else "drop_newest".
        block_timeout: seconds that one update() waits at most, with "block".
        retention: further rules of `mle_client.retention`; a checkpoint stays in models/retained
            while one of them wants it.

    Raises:
        ValueError, TypeError: an argument is refused; says what to give instead.
        OSError: the folder cannot be made, or there is no room to buffer ticks.
    """

    __slots__ = ("__dict__", "__weakref__", "_update")

    _entered = False  # is in a `with` block
    _superseded = False  # another logger of this process has taken its name

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
        on_full: str | None = None,
        block_timeout: float = 10.0,
        retention: Sequence[Rule] = (),
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        self.seed_id = arguments.checked_seed_id(seed_id)
        self.model_type = arguments.checked_model_type(model_type)
        seeds = arguments.checked_num_seeds(num_seeds)
        self._wait_s = arguments.checked_wait(on_full, block_timeout)
        self._spill_bytes = arguments.spill_bytes()
        self.log_every_j_steps = log_every_j_steps
        self.print_every_k_updates = print_every_k_updates
        self.time_to_print, self.what_to_print = time_to_print, what_to_print
        self.config_fname = config_fname
        self.config_dict = arguments.loaded_config(config_fname, config_dict)
        self.base_str = os.path.splitext(os.path.basename(config_fname))[0] if config_fname else ""
        self.experiment_dir = arguments.checked_experiment_dir(experiment_dir, self.base_str)
        self.log_save_fname = layout.log_path(self.experiment_dir, self.seed_id)
        self.verbose, self.use_tboard, self.use_wandb = verbose, use_tboard, use_wandb
        policy = arguments.checked_policy(
            save_every_k_ckpt,
            save_top_k_ckpt,
            top_k_metric_name,
            top_k_minimize_metric,
            ckpt_time_to_track,
            retention,
        )
        self._target = discovery.resolve(daemon, self.experiment_dir)
        resumed = self._resume(policy) if reload else Resumed()
        self.stats_log = StatsLog(self, time_to_track, what_to_track)
        self.stats_log.extend_tracking(resumed.stats, resumed.clocks)
        self._sync = sync or os.environ.get("MLE_SYNC", "") not in ("", "0")
        self._on_error, self._strict = on_error, strict
        self._errors: list[MLEError] = []
        self._missed: list[MLEError] = []  # told while the garbage collector was at this logger
        self._raise_next: MLEError | None = None
        self._report: Report | None = None
        self._closing = threading.RLock()  # a signal handler may close what is being closed
        self._end: int | None = None  # the stream's last position, once it has ended
        self._channel: Channel | None = None
        self._producer: Producer | None = None  # the channel does not keep it
        self._settled_by = 0.0  # monotonic time at which one that was dropped is given up
        os.makedirs(self.experiment_dir, exist_ok=True)
        config_name, config_file = arguments.config_file(config_fname, config_dict)
        text, as_json = configs.config_text(self.config_dict)
        if use_wandb:
            arguments.require("wandb", "use_wandb=True", "wandb")
        self._run = m.Run(
            run_id=m.RunId(os.urandom(16)),
            directory=os.path.realpath(self.experiment_dir),
            experiment_dir=self.experiment_dir,
            seed_id=self.seed_id,
            eval_id=self.base_str,
            model_type=model_type,
            start_time=time.time() - resumed.elapsed,
            config_name=config_name,
            config_file=config_file,
            config_text=text,
            config_json=as_json,
            num_seeds=seeds,
            overwrite=overwrite,
            reload=reload,
            policy=to_plain(policy),
            kept=kept_to_plain(resumed.kept) if reload else {},
            tboard=use_tboard,
            wandb=wandb_settings.checked_wandb_config(wandb_config, self.seed_id, self.base_str)
            if use_wandb
            else {},
            forked=False,
            process=_this_process(),
        )
        self._saver = Saver(
            self._run.directory,
            lambda: self.seed_id,  # the daemon names files of a seed that it had to rename
            model_type,
            policy,
            resumed.kept,
            self._run.start_time,
            resumed.rows,
            self._failed,
        )
        self.model_log = ModelLog(
            self._saver, self.experiment_dir, lambda: self.stored_as()[1], model_type
        )
        self.figure_log = FigureLog(self._saver, self.experiment_dir, self._as_stored)
        self.extra_log = ExtraLog(self._saver, self.experiment_dir, self._as_stored)
        self._shown: Shown | None = None
        if verbose:
            names = {"time_to_track": [*time_to_track], "what_to_track": [*what_to_track]}
            self._shown = self._show(names, reload, resumed.rows)
        self._transport = transport_for(self._target)
        self._have_ticks_taken_by(self._first_update)
        self._open()
        if not self._superseded:  # after that, or the last one would take the connection with it
            lifetime.make_way_for(layout.log_path(self._run.directory, self.seed_id))
        self._given, self._superseded = given, False
        lifetime.register(self)

    # --- logging ------------------------------------------------------------------------------
    def update(
        self,
        clock_tick: dict[str, Any],
        stats_tick: dict[str, Any],
        model: Any = None,
        plot_fig: Any = None,
        extra_obj: Any = None,
        grads: Any = None,
        save: bool = False,
    ) -> None:
        """Log a tick.  Returns as soon as it is in shared memory, where a crash does not reach it.

        One with values that a device is still computing, and what comes behind it, gets there when
        they have come.

        Args:
            clock_tick: where training is, {name of a clock: number or text}.
            stats_tick: what was measured there, {name of a statistic: value}; a value is a number,
                a text, an array or nested lists of numbers, or a scalar of torch or jax.
            model, plot_fig, extra_obj: saved too, as by `save_model`, `save_plot`, `save_extra`.
            grads: of the model, for TensorBoard's histograms.
            save: ask for the log file to be brought up to date, as `save` does.

        Raises:
            TypeError, ValueError: a value cannot be stored; says which, and what to give instead.
            LoggerClosed: after `close()`.
            MLEError: with `strict`, what went wrong in the background since the last call.
        """
        self._update(clock_tick, stats_tick, model, plot_fig, extra_obj, grads, save)

    def _have_ticks_taken_by(self, update: Callable[..., None]) -> None:
        """Have a function take the next ticks.

        It is put in front of the method, which would cost another call, unless a subclass has a
        method of its own, or user code has put something there.
        """
        own = self.__dict__
        if type(self).update is _METHOD and own.get("update") is getattr(self, "_update", None):
            own["update"] = update
        self._update: Callable[..., None] = update

    def _overrides(self, name: str) -> bool:
        """Whether a subclass has a method of its own, which `update` is to call, then."""
        return getattr(type(self), name) is not getattr(MLELogger, name)

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
        MLELogger.update(self, clock_tick, stats_tick, model, plot_fig, extra_obj, grads, save)

    # What user code called, for errors; its parameters are spelt out so that these are the same.
    _first_update.__qualname__ = "update"

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
            return self._report.spilled == self._report.unstored == 0
        if channel is None:
            return True
        deadline = time.monotonic() + timeout
        came = channel.producer.settle(timeout)
        left = max(0.0, deadline - time.monotonic())
        return self._transport.flush(channel, channel.producer.catch_up, left) and came

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
                lifetime.forget(self)
            return self._report

    def _close(self, timeout: float) -> Report:
        channel = self._channel
        if channel is None:  # a forked child that never logged
            return Report(0, 0, 0)
        deadline = time.monotonic() + timeout
        if self._end is None:  # else an earlier call was interrupted
            self._saver.finish(timeout / 2)
            # What is left, but for the time that it takes to deliver what has come.
            wait_s = deadline - time.monotonic() - min(_DELIVERY_S, timeout / 4)
            self._end = channel.producer.close(timeout=max(0.0, wait_s))
        end = self._end
        left = max(0.0, deadline - time.monotonic())
        flushed = self._transport.flush(channel, lambda: end, left)
        if flushed and not channel.producer.has_ended:  # the disk was full; now there is room
            self._end = end = channel.producer.end()
            left = max(0.0, deadline - time.monotonic())
            flushed = self._transport.flush(channel, lambda: end, left)
        return self._settle(channel, flushed)

    def _settle(self, channel: Channel, flushed: bool) -> Report:
        """Give up a stream that has ended.  Args: flushed: whether it is in the log file."""
        if self._report is not None:  # a signal handler has done so meanwhile
            return self._report
        unstored = self._saver.close() + self._transport.remove(channel)
        if self._shown is not None:
            self._shown.close(_CONSOLE_TIMEOUT_S)
        ring = channel.producer.ring
        report = Report(
            channel.session.ticks,
            self._read_waiting(channel, lambda blocks: sum(map(len, blocks))),
            channel.producer.lost,
            unstored,
            channel.refused_artifacts,
        )
        if not unstored and (flushed or channel.session.acked >= (self._end or 0)):
            channel.arena.delete()
            ring.delete()
        else:
            channel.arena.forget()
            ring.let_go()
        return report

    def dropped(self) -> None:
        """User code has dropped this logger: have the sender end the run, as `close` would.

        In the middle of whatever the garbage collector has interrupted: it must not wait.
        """
        channel, producer = self._channel, self._producer
        if channel is None or producer is None:  # a forked child that never logged
            lifetime.forget(self)
            return
        self._settled_by = time.monotonic() + EXIT_TIMEOUT_S
        channel.on_error = self._failed
        channel.end_by(producer, functools.partial(self._end_step, channel))

    def _end_step(self, channel: Channel) -> None:
        """A step of the end of a logger that was dropped.  For the sender's rounds."""
        if not self._closing.acquire(blocking=False):  # at exit `close` may be at it
            return
        try:
            while self._missed:
                self._failed(self._missed.pop(0))
            if self._report is None and self._has_arrived(channel):
                self._report = self._settle(channel, flushed=False)
                lifetime.forget(self)
        finally:
            self._closing.release()

    def _has_arrived(self, channel: Channel) -> bool:
        """End the stream.  Returns: whether the daemon has it all, or has had the time."""
        producer = channel.producer
        if self._end is None and self._saver.finish(0.0) and producer.settle(0.0):
            self._end = producer.close()
        elif self._end is not None and not producer.has_ended:  # the disk was full
            self._end = producer.end()
        ended = self._end is not None and producer.has_ended
        arrived = ended and channel.session.acked >= (self._end or 0)
        if arrived and not self._transport.shipper.unstored(channel.id):
            return not self._transport.is_awaited(channel)  # by who reads its log
        if not channel.refused and time.monotonic() < self._settled_by:
            return False
        if self._end is None:
            self._end = producer.close()
        return True

    def make_way(self) -> None:
        """Let another logger of this process take the name: end the run, unless in `with`.

        mle-logging has no close(), so in a program written for it, and in a notebook whose cell is
        run again, a new logger is what says that the old one is done.  If it is not, and logs
        again, that is another run, which is stored under another name.
        """
        if self._entered:
            return
        channel = self._channel
        self.close()
        self._superseded = True
        self._have_ticks_taken_by(self._begin_again)
        if channel is not None:
            channel.producer.forward = self._begin_again

    def _begin_again(self, *args: Any, **kwargs: Any) -> None:
        """Log after all, though another logger has the name."""
        self._come_back()
        MLELogger.update(self, *args, **kwargs)

    def _come_back(self) -> None:
        if self._superseded:
            given = {**self._given, "overwrite": False, "reload": False}
            MLELogger.__init__(self, **given)

    def __enter__(self) -> MLELogger:
        self._entered = True
        return self

    def __exit__(self, *exception: object) -> None:
        self._entered = False
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError(
            "an MLELogger cannot be pickled: make one in each process, with its own seed_id, or "
            "let a forked child use the one it inherits"
        )

    def _show(self, names: dict[str, list[str]], reload: bool, rows_before: int) -> Shown:
        """Begin to show this run in the terminal."""
        from mle_client.console import Console  # loads rich

        failed = _weakly(self._failed, self._missed)  # the console has a thread
        console = Console(
            start_time=self._run.start_time,
            **names,
            time_to_print=self.time_to_print,
            what_to_print=self.what_to_print,
            print_every_k_updates=self.print_every_k_updates,
            on_problem=lambda problem: failed(MLEError(problem)),
        )
        if reload:
            console.reloaded(self.experiment_dir)
        else:
            console.started(
                experiment_dir=self.experiment_dir,
                config_fname=self.config_fname,
                seed_id=self.seed_id,
                model_type=self.model_type,
                save_every_k_ckpt=self.model_log.save_every_k_ckpt,
                save_top_k_ckpt=self.model_log.save_top_k_ckpt,
                **names,
            )
        from mle_client.shown import Shown

        return Shown(console, (self.model_log, self.figure_log, self.extra_log), rows_before)

    def _as_stored(self, kept: Kept) -> Kept:
        return kept.in_seed(self.seed_id, self.stored_as()[1])

    def _resume(self, policy: Policy) -> Resumed:
        """What the run continues; loggers of this process that write it are closed."""
        path = layout.log_path(os.path.realpath(self.experiment_dir), self.seed_id)
        lifetime.close_writers_of(path)
        found = resume(self.experiment_dir, self._target.root, self.seed_id, policy)
        if found is None:
            warnings.warn(
                f"reload=True: nothing was logged to {path} yet, so this run begins anew",
                RuntimeWarning,
                stacklevel=3,
            )
        return found or Resumed()

    # --- looking ------------------------------------------------------------------------------
    def stats(self) -> dict[str, Any]:
        """How far delivery is.

        Returns:
            `sent`, `acked` and `published`: positions in bytes of this process's stream; `ticks`
            acknowledged; `bytes_waiting` for an acknowledgement, `lag_s` the age of the oldest of
            these ticks in seconds, `lost` ticks, `blocked_s` that update() has waited for room
            (`on_full`), and whether a daemon is `connected`.  Models,
            figures and objects that are `unstored` yet, and the fields of `saving.Counts`.
        """
        channel = self._channel
        if channel is None:
            return {}
        oldest = self._read_waiting(channel, lambda blocks: next(blocks, None))
        session = channel.session
        return {
            "sent": session.sent,
            "acked": session.acked,
            "published": session.published,
            "ticks": session.ticks,
            "bytes_waiting": channel.producer.catch_up() - session.acked,
            "lag_s": 0.0 if oldest is None else max(0.0, time.time() - float(oldest.times[0])),
            "lost": channel.producer.lost,
            "blocked_s": channel.producer.blocked_s,
            "connected": self._transport.connected,
            "unstored": self._transport.shipper.unstored(channel.producer.id),
            "dropped": self._transport.shipper.dropped(channel.producer.id),
            **dataclasses.asdict(self._saver.counts),
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

    # --- models, figures, objects ---------------------------------------------------------------
    def save_model(self, model: Any) -> None:
        """Save a checkpoint as it is now, to models/; marked and judged by the latest tick.

        Raises:
            TypeError, ValueError: it cannot be saved; says what to give instead.
            OSError: there is no room to take its bytes.
        """
        self._raise_if_failed()
        self._saver.save_model(model)
        self._saved()

    def save_init_model(self, model: Any) -> None:
        """Save the initial checkpoint, to models/init.  Raises: as of `save_model`."""
        self._raise_if_failed()
        self._saver.save_init_model(model)
        self._saved()

    def save_plot(self, fig: Any, fig_fname: str | None = None) -> None:
        """Save a figure as it is now, to figures/, at 300 dpi.

        Args:
            fig_fname: file name, with its suffix; None for fig_<n>_<seed>.png.

        Raises:
            TypeError, ValueError: it is no figure, or the name leads out of figures/.
            OSError: as of `save_model`.
        """
        self._raise_if_failed()
        self._saver.save_plot(fig, fig_fname)
        self._saved()

    def save_extra(self, obj: Any, obj_fname: str | None = None) -> None:
        """Save an object as it is now, to extra/, for `pickle.load`.

        Args:
            obj_fname: file name; None for extra_<n>_<seed>.pkl.

        Raises:
            TypeError, ValueError: it cannot be pickled, or the name leads out of extra/.
            OSError: as of `save_model`.
        """
        self._raise_if_failed()
        self._saver.save_extra(obj, obj_fname)
        self._saved()

    def _artifacts(
        self,
        clock_tick: Mapping[str, Any],
        stats_tick: Mapping[str, Any],
        model: Any,
        plot_fig: Any,
        extra_obj: Any,
        grads: Any,
    ) -> None:
        """Save what came with a tick; the tick itself is written already."""
        if model is not None:
            if self._overrides("save_model"):
                self.save_model(model)
            else:
                self._saver.save_model(model, clock_tick, stats_tick)
        if plot_fig is not None:
            if self._overrides("save_plot"):
                self.save_plot(plot_fig)
            else:
                self._saver.save_plot(plot_fig, facts=self._saver.step_of(clock_tick))
        if extra_obj is not None:
            if self._overrides("save_extra"):
                self.save_extra(extra_obj)
            else:
                self._saver.save_extra(extra_obj)
        if self._run.tboard and (model is not None or grads is not None):
            self._saver.save_histograms(clock_tick, model, grads)
        self._saved()

    def _raise_if_failed(self) -> None:
        """With `strict`, raise what went wrong in the background."""
        self._come_back()
        if self._raise_next is not None:
            self._raise()

    def _saved(self) -> None:
        """With `sync`, wait until what was saved is on disk."""
        if self._sync:
            self.save()

    # --- this process's stream ----------------------------------------------------------------
    def _open(self) -> None:
        """Make this process a producer of the run."""
        producer = m.ProducerId(os.urandom(16))
        process = _this_process()
        root = self._target.root
        spill = layout.state_path(root, layout.SPILL_DIR, producer.hex())
        forked = process.pid != self._run.process.pid
        run = dataclasses.replace(self._run, process=process, forked=forked)
        ring = Ring(
            os.path.join(runtime.ring_dir(root), producer.hex()),
            spill,
            producer,
            {**process._asdict(), "directory": run.directory, "seed_id": run.seed_id},
            fall_back=lambda: os.path.join(runtime.ring_dir(root, under_root=True), producer.hex()),
            spill_bytes=self._spill_bytes,
        )

        def ask_to_save() -> None:
            channel.save_wanted = True

        stream = Producer(
            producer,
            ring,
            run,
            on_save=self.save if self._sync or self._overrides("save") else ask_to_save,
            on_artifacts=self._artifacts,
            on_lost=lambda reason: self._failed(MLEError(reason)),
            tally=Tally() if self._saver.needs_ticks or run.tboard or run.wandb else None,
            wait_s=self._wait_s,
        )
        arena = Arena(
            os.path.join(ring.directory, layout.SNAPSHOTS_DIR),
            os.path.join(spill, layout.SNAPSHOTS_DIR),
        )
        self._producer = stream
        self._channel = channel = self._transport.add(
            stream, arena, _weakly(self._failed, self._missed)
        )
        if not run.forked:
            self._saver.bind(stream, arena, self._transport.shipper)
        stream.install(self._take_over)

    def _take_over(self, update: Callable[..., None]) -> None:
        if self._raise_next is None:
            self._have_ticks_taken_by(update if self._shown is None else self._shown.wrap(update))

    def _failed(self, error: MLEError) -> None:
        """Something went wrong in the background.  Called from any thread."""
        known = self._errors and str(self._errors[-1]) == str(error)
        if known:
            return
        self._errors.append(error)
        del self._errors[:-_KEPT_ERRORS]
        if self._strict and self._channel is not None:
            self._raise_next = error
            self._have_ticks_taken_by(self._raise)
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
            self._take_over(self._channel.producer.update)
        if error is not None:
            raise error
        self.update(*args, **kwargs)  # user code has kept this function, which has raised it

    def _read_waiting(
        self, channel: Channel, read: Callable[[Iterator[wire.Block]], _Read]
    ) -> _Read:
        """Read this stream's ticks that the daemon has not acknowledged, oldest first.

        A piece at a time: there may be a gigabyte of them.  What is recycled in the middle of that
        has been acknowledged, and reading begins anew.
        """
        for _ in range(_READ_TRIES):
            with contextlib.suppress(LookupError):
                return read(self._waiting(channel))
        return read(iter(()))

    def _waiting(self, channel: Channel) -> Iterator[wire.Block]:
        decoder = wire.StreamDecoder(channel.producer.schemas)
        for part in channel.producer.ring.copies(channel.session.acked):
            for record in decoder.decode(part):
                if isinstance(record, wire.Block):
                    yield record

    def forked(self) -> None:
        """In a forked child: the stream is the parent's; a first update begins one of our own."""
        self._closing = threading.RLock()  # a signal handler may close what is being closed
        self._saver.forked()
        if self._shown is not None:
            self._shown.forget()
        channel, self._channel = self._channel, None
        if channel is None or self._report is not None:
            return
        if self._producer is not None:
            self._producer.disable("this stream belongs to the parent process")
            self._producer.forward = self._first_update
        channel.ring.forget()
        self._transport = transport_for(self._target)
        self._have_ticks_taken_by(self._first_update)


_METHOD: Final = MLELogger.update


def _weakly(
    method: Callable[[MLEError], None], missed: list[MLEError]
) -> Callable[[MLEError], None]:
    """What calls a method as long as its object is there, and does not keep it.

    Args:
        missed: gets what comes when it is not there: the garbage collector clears references before
            it calls what `dropped` is called by, and then the object is back.
    """
    reference = weakref.WeakMethod(method)

    def call(error: MLEError) -> None:
        found = reference()
        if found is not None:
            found(error)
        else:
            missed.append(error)

    return call


def _this_process() -> m.Process:
    pid = os.getpid()
    return m.Process(pid, runtime.host(), runtime.process_started(pid) or "", runtime.boot_id())
