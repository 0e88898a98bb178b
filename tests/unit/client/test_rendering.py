"""Figures as bytes: what travels with them, what they look like elsewhere, what cannot travel."""

from __future__ import annotations

import datetime
import io
import locale
import os
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")

from matplotlib import font_manager  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import FuncFormatter  # noqa: E402

from mle_client.renderer import Renderer, RenderingFailed  # noqa: E402
from mle_client.rendering import (  # noqa: E402
    FigureCannotTravel,
    image_format,
    pickle_figure,
    render_locally,
)

TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def warm() -> Iterator[Renderer]:
    """A process that has drawn already: most tests would only wait for its start."""
    renderer = Renderer()
    renderer.render(pickled(Figure()), TIMEOUT_S)
    yield renderer
    renderer.close()


@pytest.fixture(scope="module", autouse=True)
def fonts() -> None:
    """Have matplotlib open the fonts that it keeps open, which no test has left behind then."""
    for family, symbols in [("sans-serif", "dejavusans"), ("serif", "cm")]:
        with matplotlib.rc_context({"font.family": family, "mathtext.fontset": symbols}):
            fig = mathtext()
            fig.text(0, 0, "letters")
            drawn_here(fig)
            render_locally(fig, "pdf")
            plt.close(fig)


@pytest.fixture(autouse=True)
def plain_matplotlib() -> Iterator[None]:
    """Every test begins and ends with matplotlib's own settings and without figures."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["figure.figsize"] = (3, 2)  # quickly drawn
        yield
    plt.close("all")


def pickled(fig: Any, file_format: str = "png") -> bytes:
    out = io.BytesIO()
    pickle_figure(fig, out, file_format)
    return out.getvalue()


def drawn_here(fig: Any) -> bytes:
    out = io.BytesIO()
    fig.savefig(out, dpi=300, format="png")
    return out.getvalue()


def pixels(png: bytes) -> np.ndarray:
    return plt.imread(io.BytesIO(png))


def assert_same_picture(png: bytes, expected: bytes) -> None:
    assert np.array_equal(pixels(png), pixels(expected))


def answer_of(renderer: Renderer, ask: Callable[[], object]) -> str:
    """What a function says in the process that draws."""
    fig = Figure()

    def tell(value: float, position: int) -> str:
        raise LookupError(f"<{ask()}>")

    fig.subplots().xaxis.set_major_formatter(FuncFormatter(tell))
    with pytest.raises(RenderingFailed) as caught:
        renderer.render(pickled(fig), TIMEOUT_S)
    assert "LookupError" in str(caught.value)
    return str(caught.value).partition("<")[2].partition(">")[0]


# --- figures of all kinds -------------------------------------------------------------------------
def lines_with_a_legend() -> Figure:
    fig, ax = plt.subplots()
    for number in range(5):
        ax.plot(np.sin(np.arange(500) / 50 + number), label=f"run {number}", ls="--", marker=".")
    ax.legend(title="runs")
    ax.set(xlabel="step", ylabel="loss", title="ünïcode")
    return fig


def image_with_a_colorbar() -> Figure:
    fig, ax = plt.subplots()
    fig.colorbar(ax.imshow(np.random.default_rng(1).random((50, 50)), cmap="magma"), ax=ax)
    return fig


def scatter() -> Figure:
    fig, ax = plt.subplots(dpi=72, figsize=(3, 5))
    random = np.random.default_rng(1)
    ax.scatter(*random.random((2, 99)), c=random.random(99), s=99 * random.random(99), alpha=0.5)
    return fig


def shared_and_constrained() -> Figure:
    fig, axes = plt.subplots(2, 3, sharex=True, sharey="row", layout="constrained")
    for number, ax in enumerate(axes.flat):
        ax.bar(range(number + 2), np.arange(number + 2.0) ** 2)
        ax.set_title(f"subplot {number}")
    fig.suptitle("all of them")
    return fig


def mathtext() -> Figure:
    fig = plt.figure()
    fig.text(0.1, 0.5, r"$\sum_{i=0}^\infty \frac{\alpha_i}{\sqrt{x}}$ and $\mathcal{L}$", size=30)
    return fig


def three_dimensions() -> Figure:
    fig = plt.figure()
    ax = fig.add_subplot(projection="3d")
    x, y = np.meshgrid(np.linspace(-2, 2, 30), np.linspace(-2, 2, 30))
    ax.plot_surface(x, y, np.exp(-(x**2) - y**2), cmap="viridis")
    ax.view_init(40, 20)
    return fig


def polar_and_logarithmic() -> Figure:
    fig = plt.figure()
    fig.add_subplot(1, 2, 1, projection="polar").plot(np.arange(10), np.arange(10))
    fig.add_subplot(1, 2, 2).loglog([1, 10, 1e5], [1e-3, 1, 1e4])
    return fig


def dates() -> Figure:
    fig, ax = plt.subplots()
    ax.plot([datetime.datetime(2024, 1, day) for day in range(1, 20)], range(19))
    fig.autofmt_xdate()
    return fig


def without_pyplot() -> Figure:
    fig = Figure(figsize=(4, 3), facecolor="0.9")
    ax = fig.subplots()
    ax.hist(np.random.default_rng(1).normal(size=1000), bins=30, hatch="//")
    ax.annotate("here", (0, 10), (1, 20), arrowprops={"arrowstyle": "->"})
    return fig


def subfigures() -> Figure:
    fig = plt.figure()
    left, right = fig.subfigures(1, 2)
    left.subplots().fill_between([1, 2, 3], [1, 2, 1], [0, 1, 0], color="C3")
    right.subplots(2)[0].text(0.5, 0.5, "right")
    return fig


def drawn_before() -> Figure:
    fig = lines_with_a_legend()
    fig.canvas.draw()
    return fig


@pytest.mark.parametrize(
    "make",
    [
        lines_with_a_legend,
        image_with_a_colorbar,
        scatter,
        shared_and_constrained,
        mathtext,
        three_dimensions,
        polar_and_logarithmic,
        dates,
        without_pyplot,
        subfigures,
        drawn_before,
    ],
)
def test_a_picture_is_the_one_that_savefig_makes_here(
    make: Callable[[], Figure], warm: Renderer
) -> None:
    fig = make()
    payload = pickled(fig)
    expected = drawn_here(fig)
    assert_same_picture(warm.render(payload, TIMEOUT_S), expected)
    assert render_locally(fig) == expected


def test_a_figure_may_come_in_pieces(warm: Renderer) -> None:
    payload = memoryview(pickled(image_with_a_colorbar()))
    pieces = (payload[at : at + 1000] for at in range(0, len(payload), 1000))
    assert warm.render(pieces, TIMEOUT_S) == warm.render(payload, TIMEOUT_S)


def test_a_file_may_be_of_another_format(warm: Renderer) -> None:
    fig = without_pyplot()
    assert warm.render(pickled(fig, "svg"), TIMEOUT_S).startswith(b"<?xml")
    assert warm.render(pickled(fig, image_format("a/b.PDF")), TIMEOUT_S).startswith(b"%PDF")
    assert render_locally(fig, "pdf").startswith(b"%PDF")


def test_a_name_without_a_known_format_is_refused_or_png() -> None:
    assert image_format("fig_1") == image_format("fig.png") == "png"
    with pytest.raises(ValueError, match=r"\.txt.*\.png"):
        image_format("fig.txt")


# --- the look at the call -------------------------------------------------------------------------
@pytest.mark.parametrize(
    "style",
    [
        {"savefig.bbox": "tight", "savefig.pad_inches": 1, "savefig.facecolor": "pink"},
        {"savefig.transparent": True},
        # Read when ticks and text are drawn, not when they are made.
        {"font.family": "serif", "mathtext.fontset": "cm", "xtick.labelsize": 20},
        {"axes.unicode_minus": False, "axes.formatter.limits": (-1, 1)},
        "ggplot",
        "xkcd",
    ],
    ids=str,
)
def test_settings_are_those_of_the_call(style: Any, warm: Renderer) -> None:
    plain_before = warm.render(pickled(mathtext()), TIMEOUT_S)
    with plt.xkcd() if style == "xkcd" else plt.style.context(style):
        if style == "xkcd":
            matplotlib.rcParams["font.family"] = ["DejaVu Sans"]  # its own are hardly anywhere
        fig, ax = plt.subplots()
        ax.plot([-1, 2000])
        payload = pickled(fig)
        expected = drawn_here(fig)
    assert_same_picture(warm.render(payload, TIMEOUT_S), expected)
    # Nothing of it stays for the next figure.
    assert warm.render(pickled(mathtext()), TIMEOUT_S) == plain_before


def test_settings_that_a_file_would_give_the_process_do_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "matplotlibrc").write_text("xtick.labelsize: 30\nsavefig.facecolor: red\n")
    monkeypatch.setenv("MATPLOTLIBRC", str(tmp_path))
    fig, ax = plt.subplots()
    ax.plot([1, 2])
    renderer = Renderer()
    try:
        assert_same_picture(renderer.render(pickled(fig), TIMEOUT_S), drawn_here(fig))
    finally:
        renderer.close()


def test_the_epoch_of_dates_is_that_of_the_call(
    monkeypatch: pytest.MonkeyPatch, warm: Renderer
) -> None:
    for epoch in ("0000-12-31", "1970-01-01T00:00:00"):
        monkeypatch.setattr(matplotlib.dates, "_epoch", epoch)
        fig = dates()
        assert_same_picture(warm.render(pickled(fig), TIMEOUT_S), drawn_here(fig))


def test_an_epoch_may_still_be_chosen_after_pickling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matplotlib.dates, "_epoch", None)
    pickled(without_pyplot())
    matplotlib.dates.set_epoch("2000-01-01")


def test_a_font_that_was_added_is_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, warm: Renderer
) -> None:
    from fontTools.ttLib import TTFont

    font = TTFont(font_manager.findfont("DejaVu Serif"))
    for record in font["name"].names:
        if record.nameID in (1, 16):
            record.string = "Letters of mine"
    path = tmp_path / "mine.ttf"
    font.save(path)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    font_manager.fontManager.addfont(path)

    def drawn_with(family: str) -> bytes:
        fig = Figure()
        fig.text(0.1, 0.5, "gaq", family=family, size=80)
        return warm.render(pickled(fig), TIMEOUT_S)

    assert drawn_with("Letters of mine") == drawn_with("DejaVu Serif") != drawn_with("DejaVu Sans")


def test_the_locale_is_that_of_the_call(warm: Renderer) -> None:
    before = locale.setlocale(locale.LC_ALL)

    def numeric() -> str:
        import locale

        return locale.setlocale(locale.LC_TIME)

    try:
        for name in ("POSIX", "C.UTF-8"):
            try:
                locale.setlocale(locale.LC_ALL, name)
            except locale.Error:
                pytest.skip("this machine has no second locale")
            assert answer_of(warm, numeric) == locale.setlocale(locale.LC_TIME)
    finally:
        locale.setlocale(locale.LC_ALL, before)


def test_drawing_on_does_not_change_what_was_taken(warm: Renderer) -> None:
    values = np.zeros((20, 20))
    fig, ax = plt.subplots()
    image = ax.imshow(values, vmin=0, vmax=1)
    (line,) = ax.plot([1, 2, 3])
    payload = pickled(fig)
    expected = drawn_here(fig)
    values[:] = 1
    image.get_array()[:] = 1
    line.set_ydata([9, 9, 9])
    ax.set_title("later")
    fig.clear()
    assert_same_picture(warm.render(payload, TIMEOUT_S), expected)


# --- the caller's figure --------------------------------------------------------------------------
def test_the_callers_figure_stays_as_it_is() -> None:
    fig = shared_and_constrained()
    fig.canvas.draw()
    draws: list[object] = []
    fig.canvas.mpl_connect("draw_event", draws.append)
    canvas, manager, names = fig.canvas, fig.canvas.manager, set(vars(fig))
    picture = drawn_here(fig)
    fig.stale = False
    pickled(fig)
    assert (fig.canvas, fig.canvas.manager, set(vars(fig))) == (canvas, manager, names)
    assert not fig.stale
    assert plt.get_fignums() == [fig.number]
    assert plt.gcf() is fig
    draws.clear()
    fig.canvas.draw()
    assert len(draws) == 1
    assert drawn_here(fig) == picture
    fig.axes[0].plot([5, 3])
    assert drawn_here(fig) != picture


def test_no_backend_is_chosen_for_the_caller() -> None:
    unset = object()
    before = dict.__getitem__(matplotlib.rcParams, "backend")
    try:
        dict.__setitem__(matplotlib.rcParams, "backend", unset)
        pickled(without_pyplot())
        assert dict.__getitem__(matplotlib.rcParams, "backend") is unset
    finally:
        dict.__setitem__(matplotlib.rcParams, "backend", before)


def test_a_figure_of_pyplots_does_not_become_one_there() -> None:
    renderer = Renderer()  # one whose figures have not needed pyplot for a reason of their own
    try:
        renderer.render(pickled(lines_with_a_legend()), TIMEOUT_S)

        def loaded() -> bool:
            import sys

            return "matplotlib.pyplot" in sys.modules

        assert answer_of(renderer, loaded) == "False"
    finally:
        renderer.close()


# --- what else travels ----------------------------------------------------------------------------
def test_functions_travel_as_code(warm: Renderer) -> None:
    unit = "ms"
    fig = Figure()
    fig.subplots().yaxis.set_major_formatter(lambda value, position: f"{value:.3f} {unit}")
    assert_same_picture(warm.render(pickled(fig), TIMEOUT_S), drawn_here(fig))


@pytest.mark.parametrize("script", ["__main__", "__mp_main__"])
def test_classes_of_the_script_travel_as_code(
    script: str, warm: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType(script)
    exec(
        "from matplotlib.ticker import Formatter\n"
        "class Stars(Formatter):\n"
        "    def __call__(self, value, position=None):\n"
        "        return '*' * (position or 0)\n",
        vars(module),
    )
    monkeypatch.setitem(sys.modules, script, module)
    fig = Figure()
    fig.subplots().yaxis.set_major_formatter(vars(module)["Stars"]())
    payload = pickled(fig)
    assert_same_picture(warm.render(payload, TIMEOUT_S), drawn_here(fig))


def test_modules_are_found_where_the_caller_found_them(
    warm: Renderer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine_to_draw.py").write_text("def stars(value, position):\n    return '***'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # "" is what it is for a console
    import mine_to_draw

    fig = Figure()
    fig.subplots().yaxis.set_major_formatter(FuncFormatter(mine_to_draw.stars))
    payload = pickled(fig)
    monkeypatch.delitem(sys.modules, "mine_to_draw")
    assert_same_picture(warm.render(payload, TIMEOUT_S), drawn_here(fig))


def test_a_figure_that_cannot_be_loaded_there_says_what_is_missing(
    warm: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("in_no_file")
    exec("def stars(value, position):\n    return '***'\n", vars(module))
    monkeypatch.setitem(sys.modules, "in_no_file", module)
    fig = Figure()
    fig.subplots().yaxis.set_major_formatter(FuncFormatter(vars(module)["stars"]))
    with pytest.raises(RenderingFailed, match=r"cannot be loaded: .*in_no_file"):
        warm.render(pickled(fig), TIMEOUT_S)


# --- what does not --------------------------------------------------------------------------------
def test_what_cannot_be_pickled_is_drawn_here() -> None:
    fig = without_pyplot()
    expected = drawn_here(fig)
    fig.axes[0].set_gid(threading.Lock())
    with pytest.raises(FigureCannotTravel, match="lock"):
        pickled(fig)
    assert_same_picture(render_locally(fig), expected)


def test_anything_with_savefig_is_drawn_here_as_mle_logging_draws_it() -> None:
    class Grid:
        """As seaborn's: no figure, and no argument more than this."""

        figure = without_pyplot()

        def savefig(self, path: str, dpi: int) -> None:
            assert (os.path.splitext(path)[1], dpi) == (".png", 300)
            self.figure.savefig(path, dpi=dpi)

    with pytest.raises(FigureCannotTravel, match="Grid"):
        pickled(Grid())
    assert_same_picture(render_locally(Grid()), drawn_here(Grid.figure))


@pytest.mark.parametrize("use", [pickled, render_locally])
def test_what_is_no_figure_is_refused_with_what_to_give(use: Callable[[Any], bytes]) -> None:
    fig, ax = plt.subplots()
    with pytest.raises(TypeError, match=r"Axes; give its \.figure"):
        use(ax)
    with pytest.raises(TypeError, match="tuple; give the figure in it"):
        use((fig, ax))
    for value in (None, "figure.png", np.zeros((3, 3))):
        with pytest.raises(TypeError, match="a plot is a matplotlib figure, not"):
            use(value)


def test_nothing_is_written_of_what_is_no_figure() -> None:
    out = io.BytesIO()
    with pytest.raises(TypeError):
        pickle_figure(object(), out)
    assert out.getvalue() == b""


def test_a_full_disk_is_no_reason_to_draw_here() -> None:
    class Full:
        def write(self, data: object) -> None:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        pickle_figure(without_pyplot(), Full())


def test_an_array_is_written_from_where_it_lies() -> None:
    values = np.random.default_rng(1).random(100_000)
    fig = Figure()
    fig.subplots().plot([0])[0].set_ydata(values)
    uncopied: list[int] = []

    class Sink:
        def write(self, data: Any) -> None:
            if type(data) is pickle.PickleBuffer:
                uncopied.append(memoryview(data).nbytes)

    pickle_figure(fig, Sink())
    assert values.nbytes in uncopied
