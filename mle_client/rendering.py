"""Figures on the caller's thread: pickled at the call, to be drawn in another process.

`pickle_figure` is all that a caller pays for.  `renderer_process` says what the bytes look like and
draws them; `renderer` runs it.  What cannot go there is drawn here, by `render_locally`.  Nothing
here changes a figure or touches pyplot.

Importing this loads no matplotlib: whoever has a figure has loaded it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import locale
import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, Final, Protocol, TypeAlias

from mle_client.renderer_process import DPI, Surroundings

Buffer: TypeAlias = bytes | bytearray | memoryview

# What matplotlib writes, by the end of the file's name, without those that few releases know.
_RASTERS: Final = ("jpeg", "jpg", "png", "raw", "rgba", "tif", "tiff", "webp")
_VECTORS: Final = ("eps", "pdf", "pgf", "ps", "svg", "svgz")
_PICKLE_PROTOCOL: Final = 5  # large arrays are written from where they lie
_MP_MAIN: Final = "__mp_main__"  # the name of __main__ in a process that multiprocessing spawned


class FigureCannotTravel(Exception):
    """A figure cannot be drawn in another process; `render_locally` draws it in this one."""


class _Output(Protocol):
    def write(self, data: Buffer, /) -> object: ...


def image_format(name: str) -> str:
    """Say which format a picture's file name asks for, as matplotlib understands it.

    Raises:
        ValueError: matplotlib does not write that.
    """
    ending = os.path.splitext(name)[1][1:].lower()
    if ending and ending not in (*_RASTERS, *_VECTORS):
        raise ValueError(
            f"{name!r}: no picture can be written as .{ending}; end the name in .png, .pdf or .svg"
        )
    return ending or "png"


def pickle_figure(fig: Any, out: _Output, file_format: str = "png") -> None:
    """Write a figure as it is now, and all that its look depends on, for another process to draw.

    Args:
        fig: a matplotlib figure.  It is left as it is.
        out: takes the bytes, in order.
        file_format: of the picture, from `image_format`.

    Raises:
        TypeError: it is no figure; says what to give instead.
        FigureCannotTravel: it has to be drawn here.
        OSError: `out` takes no more.
    """
    if not _is_matplotlib_figure(fig):
        _check_can_save(fig)
        raise FigureCannotTravel(f"{_type_name(fig)} is no figure of matplotlib's own")
    try:
        out.write(_surroundings(file_format).to_bytes())
        with _classes_of_main_by_value():
            _pickler_class()(out, type(fig)).dump(fig)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever an object's __reduce__ may raise
        raise FigureCannotTravel(
            f"the figure cannot be pickled: {type(error).__name__}: {error}"
        ) from error


def render_locally(fig: Any, file_format: str = "png") -> bytes:
    """Draw a figure in this process.

    Args:
        fig: a matplotlib figure, or anything with its `savefig(path, dpi=…)`.

    Returns:
        The file's bytes.

    Raises:
        TypeError: it is no figure; says what to give instead.
        Exception: whatever drawing it raises.
    """
    if _is_matplotlib_figure(fig):
        picture = io.BytesIO()
        fig.savefig(picture, format=file_format, dpi=DPI)
        return picture.getvalue()
    _check_can_save(fig)
    with tempfile.TemporaryDirectory(prefix="mle-figure-") as folder:
        path = os.path.join(folder, f"figure.{file_format}")
        fig.savefig(path, dpi=DPI)  # with nothing that mle-logging does not pass, too
        with open(path, "rb") as file:
            return file.read()


def _is_matplotlib_figure(fig: Any) -> bool:
    module = sys.modules.get("matplotlib.figure")
    return module is not None and isinstance(fig, module.Figure)


def _check_can_save(fig: Any) -> None:
    if callable(getattr(fig, "savefig", None)):
        return
    hint = ""
    if hasattr(getattr(fig, "figure", None), "savefig"):
        hint = "; give its .figure"
    elif isinstance(fig, tuple | list) and any(hasattr(part, "savefig") for part in fig):
        hint = "; give the figure in it alone"
    raise TypeError(f"a plot is a matplotlib figure, not {_type_name(fig)}{hint}")


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _surroundings(file_format: str) -> Surroundings:
    """What the figure's look depends on besides the figure, as it is now."""
    import matplotlib

    # Not by rcParams.items(): asking for the backend would choose one.
    defaults = dict(dict.items(matplotlib.rcParamsDefault))
    changed = {
        name: value
        for name, value in dict.items(matplotlib.rcParams)
        if name != "backend" and (name not in defaults or defaults[name] != value)
    }
    dates = sys.modules.get("matplotlib.dates")
    return Surroundings(
        file_format=file_format,
        python=sys.executable,
        import_path=[os.path.abspath(path) for path in sys.path if isinstance(path, str)],
        fonts=_fonts(),
        locale=locale.setlocale(locale.LC_ALL),
        # Not get_epoch(): it would forbid the caller to choose one from now on.
        date_epoch=getattr(dates, "_epoch", None),
        rc=pickle.dumps(changed, _PICKLE_PROTOCOL),
    )


def _fonts() -> list[str]:
    """Font files that matplotlib does not bring along: the system's, and those the caller added."""
    import matplotlib

    module = sys.modules.get("matplotlib.font_manager")
    manager = getattr(module, "fontManager", None)
    own = matplotlib.get_data_path()
    fonts = getattr(manager, "ttflist", ())
    return list(dict.fromkeys(font.fname for font in fonts if not font.fname.startswith(own)))


@functools.cache
def _pickler_class() -> Callable[[_Output, type], Any]:
    """The class of picklers for figures.

    cloudpickle's, so that functions and classes of the caller's script travel as code, for another
    process could not import them.
    """
    import cloudpickle

    # A plain dict: the ChainMap that cloudpickle has here costs a third of the whole time.
    reducers = dict(cloudpickle.Pickler.dispatch_table)

    class FigurePickler(cloudpickle.Pickler):  # type: ignore[misc]
        def __init__(self, out: _Output, figure_type: type) -> None:
            self.dispatch_table = {**reducers, figure_type: _reduce_figure}
            super().__init__(out, protocol=_PICKLE_PROTOCOL)

    return FigurePickler


def _reduce_figure(fig: Any) -> Any:
    """Pickle a figure without its place among pyplot's, which loading it would want to take."""
    reduced = fig.__reduce_ex__(_PICKLE_PROTOCOL)
    if not isinstance(reduced, tuple) or len(reduced) < 3 or not isinstance(reduced[2], dict):
        return reduced
    state = {name: value for name, value in reduced[2].items() if name != "_restore_to_pylab"}
    return (*reduced[:2], state, *reduced[3:])


@contextlib.contextmanager
def _classes_of_main_by_value() -> Iterator[None]:
    """Have cloudpickle treat the caller's script as __main__ in a spawned process, too."""
    import cloudpickle

    module = sys.modules.get(_MP_MAIN)
    if module is None or _MP_MAIN in cloudpickle.list_registry_pickle_by_value():
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)


if __name__ == "__main__":
    from mle_client.renderer_process import main

    sys.exit(main())
