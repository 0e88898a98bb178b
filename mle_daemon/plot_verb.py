"""`mle-daemon plot`: a statistic of all that was logged under a folder, as a picture.

Its arguments, and what it does.  It reads as a user would, with `load_log`, and needs neither a
daemon nor a display.  What the picture looks like is `mle_client.plot`'s.  What loads numpy is
imported when a picture is drawn, for no other verb should wait for it.
"""

from __future__ import annotations

import argparse
import errno
import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from mle_client import experiments, layout
from mle_client.errors import LogNotFound

if TYPE_CHECKING:
    from mle_client.metalog import MetaLog
    from mle_client.runlog import RunLog

_AGGREGATED: Final = "eval"  # what `load_log` calls the seeds of one folder
_LOGS: Final = "logs"  # where an experiment's logs are
_BANDS: Final = ("std", "p10-90", "none")  # those of `mle_client.curves`, the usual one first
_SIZE_INCHES: Final = (9, 6)  # that of the figures that `MetaLog.plot` makes
_DPI: Final = 300  # for print, as `MetaLog.plot` saves


@dataclass(frozen=True, slots=True)
class Picture:
    """What is to be drawn.

    Args:
        root: the folder to look in, or a log file.
        metric: name of a statistic.
        clock: along the x-axis; None for "num_updates".
        runs: names of configurations; () for all.
        band: what is shown of the seeds beside their mean, one of `mle_client.curves.BANDS`; None
            for nothing.
        smooth: how many values are averaged; 1 for none.
        path: of the file.
    """

    root: str
    metric: str
    clock: str | None
    runs: Sequence[str]
    band: str | None
    smooth: int
    path: str


def add_arguments(verb: argparse.ArgumentParser) -> None:
    """Add what `plot` takes besides --root and --json."""
    verb.add_argument("metric", metavar="METRIC", help="the statistic, such as test_loss")
    verb.add_argument("--x", metavar="CLOCK", help="along the x-axis (default: num_updates)")
    verb.add_argument(
        "--runs",
        nargs="+",
        default=[],
        metavar="NAME",
        help="configurations, named as their folders (default: all)",
    )
    verb.add_argument(
        "--band",
        choices=_BANDS,
        default=_BANDS[0],
        help="of the seeds: mean ± standard deviation, 10th to 90th percentile, or none "
        "(default: %(default)s)",
    )
    verb.add_argument(
        "--smooth",
        type=_window,
        default=1,
        metavar="N",
        help="draw the mean of each value and the N - 1 before it",
    )
    verb.add_argument(
        "-o",
        "--output",
        type=_file_name,
        metavar="FILE",
        help="the picture; its ending says which kind, .png is added where it has none; or a "
        "folder for METRIC.png (default: METRIC.png in this folder)",
    )


def picture_of(options: argparse.Namespace) -> Picture:
    """Make the picture that the command line asks for.

    Raises:
        LogNotFound: there is no folder to look in.
    """
    return Picture(
        _place(options.root),
        options.metric,
        options.x,
        tuple(options.runs),
        None if options.band == "none" else options.band,
        options.smooth,
        _path_of(options.output, options.metric),
    )


def _path_of(output: str | None, metric: str) -> str:
    """Path of the picture.  Args: output: what was asked for, a file or a folder."""
    if output is not None and not os.path.isdir(output):
        return output
    return os.path.join(output or "", metric.replace("/", "_") + ".png")


def _place(root: str) -> str:
    """What to look in: a folder or a log file; for an experiment's logs/, the experiment."""
    if not os.path.exists(root):
        raise LogNotFound(root, "there is no such folder or file")
    place = os.path.realpath(root)
    if os.path.basename(place) != _LOGS:
        return place
    logs = set(glob.glob(f"{glob.escape(place)}/*.hdf5")) - {layout.meta_log_path(place)}
    return os.path.dirname(place) if logs else place


def draw(picture: Picture) -> str:
    """Load, draw and save.

    Returns:
        The path of the file.

    Raises:
        LogNotFound: there is no log, or no such metric, clock or run; says what there is.
        LogDamaged: a log cannot be read; names it.
        ValueError: the metric is no number at each update.
        ImportError: there is no matplotlib.
        OSError: the file cannot be written.
    """
    from mle_client.control import publish_before_reading

    figure = _empty_figure()
    folder = os.path.dirname(picture.path)
    if folder and not os.path.isdir(folder):
        advice = "there is no folder for the picture: make it, or give another one with -o"
        raise FileNotFoundError(errno.ENOENT, advice, picture.path)
    publish_before_reading(picture.root)  # a run that was never published has no file to be found
    try:
        _draw(picture, load_runs(picture.root, [picture.metric]), figure)
    except KeyError:
        # Once more with every statistic, so that the error names them.
        try:
            _draw(picture, load_runs(picture.root), figure)
        except KeyError as error:
            raise LogNotFound(picture.root, error.args[0]) from error
    try:
        figure.savefig(picture.path, dpi=_DPI)
    except OSError as error:
        advice = f"{error.strerror}: give another place for the picture with -o"
        raise OSError(error.errno, advice, picture.path) from error
    return picture.path


def _draw(picture: Picture, log: MetaLog, figure: Any) -> None:
    log.plot(
        picture.metric,
        picture.clock,
        picture.smooth,
        run_ids=picture.runs or None,
        fig=figure,
        band=picture.band,
    )


def _empty_figure() -> Any:
    """A figure without pyplot, which may want a display."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'mle-daemon[plot]'") from error
    return Figure(figsize=_SIZE_INCHES)


def _window(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of values, 1 or more")
    return int(text)


def _file_name(text: str) -> str:
    from mle_client.rendering import image_format

    if not text:
        raise argparse.ArgumentTypeError("'' is no name of a file: leave out -o for METRIC.png")
    if os.path.isdir(text):
        return text
    if os.path.exists(text) and not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"{text!r} is a device or a pipe: give a file or a folder")
    try:
        ending = image_format(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text if os.path.splitext(text)[1] else f"{text}.{ending}"


# --- runs below a folder --------------------------------------------------------------------------
def load_runs(root: str, only: Sequence[str] | None = None) -> MetaLog:
    """Load every configuration of a folder, aggregated over its seeds.

    Args:
        root: a log file; or an experiment's folder, or one with experiments below it, or with their
            meta log.
        only: names of the statistics to read; None for all.

    Returns:
        Configurations by name: that in the file, else that of the folder, relative to `root`.

    Raises:
        LogNotFound: there is no log.
        LogDamaged: one cannot be read.
    """
    from mle_client.load import load_configurations, load_log
    from mle_client.metalog import MetaLog

    if os.path.isfile(root):
        return MetaLog(_named(_name_of_file(root), load_log(root, True, only=only)))
    if experiments.log_files(root):
        return load_configurations({_base_name(root): root}, only=only)
    groups = experiments.find_groups(root)
    if groups:  # not from the meta log, which may be behind them
        named = {experiments.as_text(os.path.relpath(folder, root)): folder for folder in groups}
        return load_configurations(named, only=only)
    merged = layout.meta_log_path(root)
    if not os.path.isfile(merged):
        raise LogNotFound(root, "there is no log in it or below it: check the path")
    return MetaLog(_named(_base_name(root), load_log(merged, True, only=only)))


def _named(name: str, log: MetaLog | RunLog) -> Mapping[str, RunLog]:
    """What was loaded from one place, by name.  Args: name: of what has none of its own."""
    from mle_client.metalog import MetaLog

    if not isinstance(log, MetaLog):
        return {name: log}
    runs = dict(log.items())
    return {name: runs[_AGGREGATED]} if list(runs) == [_AGGREGATED] else runs


def _name_of_file(path: str) -> str:
    """The name of the experiment whose log a file is; of one elsewhere, its own."""
    folder = os.path.dirname(path)
    if os.path.basename(folder) == _LOGS:
        return _base_name(os.path.dirname(folder))
    return os.path.splitext(os.path.basename(path))[0]


def _base_name(root: str) -> str:
    return os.path.basename(os.path.realpath(root)) or root
