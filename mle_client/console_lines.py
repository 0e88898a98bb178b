"""What the terminal shows, laid out with rich: lines in, text out.

It looks as mle-logging's output; cells and labels are the same, and so is the width.  Different on
purpose: the header comes again when there is a new column, small numbers are not rounded to 0.0,
integers stay integers, and what looks like markup in names, paths and texts is shown as it is.

It prints nothing and knows neither queue nor thread; `console` does.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TextIO, TypeAlias

import numpy as np
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mle_client import __version__
from mle_client.device_values import Pending
from mle_client.layout import OWN_CLOCKS, TIME_FORMAT

WIDTH: Final = 80  # characters, as mle-logging's
_DECIMALS: Final = 3  # as mle-logging's
_FIRST_WIDTH, _WIDTH = 14, 12  # of a column, in characters; the terminal's width shrinks them
_BANNER: Final = r"""
        _            _
 _ __  | | ___    __| | __ _  ___  _ __   ___  _ _
| '  \ | |/ -_)  / _` |/ _` |/ -_)| '  \ / _ \| ' \
|_|_|_||_|\___|  \__,_|\__,_|\___||_|_|_|\___/|_||_|
"""
# Kinds of stored files, in the order in which they are shown, and what they are called.
_LABELS: Final = {
    "figure": "Figure",
    "extra": "Extra",
    "init": "Model",
    "model": "Model",
    "every_k": "Every-K",
    "top_k": "Top-K",
}
_ONLY_FIRST: Final = ("init", "model")  # their paths stay the same, so they are shown once
_FACTS: Final = {
    "experiment_dir": (":book:", "Log Dir"),
    "config_fname": (":page_facing_up:", "Config"),
    "time_to_track": (":watch:", "Time"),
    "what_to_track": (":chart_with_downwards_trend:", "Stats"),
    "seed_id": (":seedling:", "Seed ID"),
    "model_type": (":rocket:", "Model"),
    "save_every_k_ckpt": (":clock1130:", "Every k-th ckpt"),
    "save_top_k_ckpt": (":trident:", "Top k ckpt"),
}
_ONLY_GIVEN: Final = ("save_every_k_ckpt", "save_top_k_ckpt")


@dataclass(frozen=True, slots=True)
class Started:
    """A new run.  Args: facts: the logger's arguments, by the names in `_FACTS`."""

    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reloaded:
    """A run is continued.  Args: path: of the experiment's folder; seconds: since the epoch."""

    path: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Stored:
    """Files of the next update.  Args: paths: by kind, one of `_LABELS`."""

    paths: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Row:
    """An update.  Args: number: of it, from 1; seconds: since the epoch."""

    clock: Mapping[str, Any]
    stats: Mapping[str, Any]
    number: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Missing:
    """Lines that were left out.  Args: count: how many."""

    count: int


Line: TypeAlias = Started | Reloaded | Stored | Row | Missing


class Layout:
    """Lays out one run's lines; it remembers which columns the header has shown.

    Args:
        start_time: seconds since the epoch at which time_elapsed is 0.
        clocks, stats: names of columns.
        grows: whether clocks, and whether statistics, get a column when they are first logged.
    """

    def __init__(
        self,
        start_time: float,
        clocks: Sequence[str],
        stats: Sequence[str],
        grows: tuple[bool, bool],
    ) -> None:
        self._start_time = start_time
        self._names = {"clock": dict.fromkeys(clocks), "stats": dict.fromkeys(stats)}
        self._grows = dict(zip(self._names, grows, strict=True))
        self._header: list[list[str]] | None = None  # the columns that it has shown

    def lay_out(self, line: Line, stream: TextIO) -> str:
        """The text of a line for a stream: with colours for a terminal, else without.

        Returns:
            "" where there is nothing to show.
        """
        out = _Copy(stream)
        console = Console(file=out, width=WIDTH, force_jupyter=False)
        match line:
            case Started(facts):
                console.print(_welcome())
                console.print(_panel(facts))
            case Reloaded(path, seconds):
                console.print(_reloaded(path, seconds))
            case Stored(paths):
                if (table := self._storage(paths)).row_count:
                    console.print(table, justify="left")
            case Row():
                console.print(self._table(line), justify="center")
            case Missing(count):
                text = f"… {count} left out: lines came faster than they were printed"
                console.print(Text(text, justify="center"))
        return out.getvalue()

    def _storage(self, paths: Mapping[str, str | None]) -> Table:
        table = _plain_table(show_header=False)
        table.add_column(style="red", width=16, justify="left")
        table.add_column(style="red", width=64, justify="left", overflow="fold")
        for kind, label in _LABELS.items():
            path = paths.get(kind)
            if path is not None and (kind not in _ONLY_FIRST or self._header is None):
                title = Text.from_markup(f":envelope_with_arrow: - {label}")
                table.add_row(title, Text(_printable(path)))
        return table

    def _table(self, row: Row) -> Table:
        own = dict(zip(OWN_CLOCKS, self._own_clocks(row), strict=True))
        values = {"clock": {**row.clock, **own}, "stats": row.stats}
        for group, names in self._names.items():
            if self._grows[group]:
                names.update(dict.fromkeys(values[group]))
        columns = [list(names) for names in self._names.values()]
        table = _plain_table(show_header=columns != self._header)
        self._header = columns
        _add_columns(table, columns[0], ":watch:", "red", ("left", "center"), style="red")
        _add_columns(table, columns[1], ":chart_with_downwards_trend:", "blue", ("center",) * 2)
        table.add_row(
            *(
                Text(_text(values[group][name]) if name in values[group] else "---")
                for group, names in self._names.items()
                for name in names
            )
        )
        return table

    def _own_clocks(self, row: Row) -> tuple[str, float, int]:
        now = datetime.fromtimestamp(row.seconds).strftime(TIME_FORMAT)
        return now, row.seconds - self._start_time, row.number


class _Copy(io.StringIO):
    """Looks like a stream to rich, which would flush the stream itself, and wait for it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a property of StringIO's, too
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        return self._stream.isatty()


@functools.cache
def load_all_of_rich() -> None:
    """Lay out one line of each kind, so that all is imported that rich imports when it is needed.

    Otherwise a thread would import it, and a process that forks just then has a child in which it
    stays half imported.
    """
    layout = Layout(0.0, ["a"], ["b"], (True, True))
    row = Row({"a": 0.5}, {"b": np.zeros(1)}, 1, 0.0)
    for line in (Started({}), Reloaded("", 0.0), Stored({"figure": "é…"}), row, Missing(1)):
        layout.lay_out(line, io.StringIO())


def _plain_table(show_header: bool) -> Table:
    return Table(show_header=show_header, row_styles=["none"], border_style="white", box=box.SIMPLE)


def _add_columns(
    table: Table,
    names: Iterable[str],
    emoji: str,
    colour: str,
    justify: Sequence[str],
    **style: str,
) -> None:
    for i, name in enumerate(names):
        title = Text(_printable(name), style=colour)
        table.add_column(
            title if i else Text.from_markup(f"{emoji} ") + title,
            width=_WIDTH if i else _FIRST_WIDTH,
            justify=justify[i > 0],
            **style,
        )


# --- the start ------------------------------------------------------------------------------------
def _welcome() -> Panel:
    right = (
        datetime.now().strftime("%d/%m/%y %H:%M:%S"),
        f"mle-daemon v{__version__} :lock_with_ink_pen:",
        "How far is it? :mag:",
        "mle-daemon status",
    )
    grid = Table.grid(expand=True)
    grid.add_column(justify="left", no_wrap=True)
    grid.add_column(justify="right")
    for left, text in zip(_BANNER.splitlines()[1:], right, strict=True):
        grid.add_row(Text(left), Text.from_markup(text))
    return Panel(grid, style="white on blue", expand=True)


def _panel(facts: Mapping[str, Any]) -> Panel:
    """The logger's arguments, two a row."""
    wanted = [name for name in _FACTS if name not in _ONLY_GIVEN or facts.get(name) is not None]
    cells = [Panel(_fact(name, facts.get(name)), expand=True) for name in wanted]
    grid = Table.grid(expand=True)
    grid.add_column(justify="left", ratio=1)
    grid.add_column(justify="left", ratio=1)
    for at in range(0, len(cells), 2):
        grid.add_row(*cells[at : at + 2])
    return Panel(grid, expand=True)


def _fact(name: str, value: Any) -> Text:
    emoji, title = _FACTS[name]
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return Text.assemble(
        Text.from_markup(f"{emoji} [b]{title}[/b]: "), Text(_printable(text)), overflow="fold"
    )


def _reloaded(path: str, seconds: float) -> Text:
    clock = datetime.fromtimestamp(seconds).strftime("[%H:%M:%S]")
    return Text(f"{clock} Reloaded log from {_printable(path)}", overflow="fold")


# --- values ---------------------------------------------------------------------------------------
def _text(value: Any) -> str:
    """A value as a cell shows it."""
    if isinstance(value, str):
        return _printable(value)
    if isinstance(value, Pending):
        value = value.get()
    if hasattr(value, "detach"):  # torch
        value = value.cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    array = np.asarray(value)
    if array.ndim:
        return _array_text(array)
    plain = array.item()
    return _number_text(plain) if isinstance(plain, float) else str(plain)


def _array_text(array: np.ndarray[Any, Any]) -> str:
    with np.errstate(all="ignore"):
        return str(np.round(array, _DECIMALS) if array.dtype.kind == "f" else array)


def _number_text(number: float) -> str:
    rounded = round(number, _DECIMALS) if np.isfinite(number) else number
    return f"{number:.{_DECIMALS}g}" if rounded == 0 and number != 0 else str(rounded)


def _printable(text: str) -> str:
    """The text without what would move a terminal's cursor or change its colours."""
    return "".join(mark if mark.isprintable() else "\N{REPLACEMENT CHARACTER}" for mark in text)
