"""Figures, judged by what was put into them rather than by their pixels."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.collections import PathCollection, PolyCollection  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from mle_client.aggregate import aggregate_seeds  # noqa: E402
from mle_client.attrdict import AttrDict  # noqa: E402
from mle_client.metalog import MetaLog  # noqa: E402
from mle_client.plot import visualize_1D_lcurves  # noqa: E402
from mle_client.runlog import RunLog  # noqa: E402


def run(loss: Any, **stats: Any) -> RunLog:
    ticks = np.arange(1, len(loss) + 1)
    columns = {"loss": np.array(loss), **{key: np.array(value) for key, value in stats.items()}}
    return RunLog({}, columns, {"num_updates": ticks, "num_steps": 10 * ticks})


def configs(number: int, seeds: int = 2, ticks: int = 4) -> dict[str, Any]:
    return {
        f"c{i}": AttrDict(
            (f"seed_{j}", run(np.arange(ticks) + i + 0.1 * j, acc=np.ones(ticks)))
            for j in range(seeds)
        )
        for i in range(number)
    }


def aggregated(number: int, **options: int) -> MetaLog:
    return MetaLog({name: aggregate_seeds(s) for name, s in configs(number, **options).items()})


def draw(log: Any, *words: Any, **options: Any) -> Any:
    """The axes of a figure that holds up to being drawn."""
    fig, ax = visualize_1D_lcurves(log, *words, **options)
    assert ax in fig.axes
    fig.canvas.draw()
    return ax


def names(ax: Any) -> list[str] | None:
    legend = ax.get_legend()
    return None if legend is None else [text.get_text() for text in legend.get_texts()]


def colours(ax: Any) -> list[str]:
    return [to_hex(line.get_color()) for line in ax.lines]


def bands(ax: Any) -> list[Any]:
    return [found for found in ax.collections if isinstance(found, PolyCollection)]


def tick_labels(ax: Any) -> list[str]:
    return [label.get_text() for label in ax.get_xticklabels()]


@pytest.fixture(scope="module", autouse=True)
def fonts() -> None:
    """Have matplotlib open the fonts that it keeps open, which no test has left behind then."""
    draw(run([1.0]))
    plt.close("all")


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


# --- the figure -----------------------------------------------------------------------------------
def test_a_run_is_a_line_with_titles_and_without_a_legend() -> None:
    ax = draw(run([3.0, 2.0, 1.0]), "num_steps")

    (line,) = ax.lines
    assert line.get_xydata().tolist() == [[10, 3], [20, 2], [30, 1]]
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("loss", "num_steps", "loss")
    assert names(ax) is None
    assert not ax.spines["top"].get_visible()
    assert not ax.spines["right"].get_visible()


def test_titles_and_limits_are_those_given() -> None:
    ax = draw(run([1.0]), plot_title="T", xy_labels=["X", "Y"], ax_lims=[-1, 5])

    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("T", "X", "Y")
    assert ax.get_ylim() == (-1, 5)
    assert draw(run([1.0]), plot_title="").get_title() == ""


@pytest.mark.parametrize("labels", [["X"], [], ["X", "Y", "Z"]])
def test_titles_of_the_axes_are_two(labels: list[str]) -> None:
    with pytest.raises(ValueError, match="give two, of the x-axis and of the y-axis"):
        visualize_1D_lcurves(run([1.0]), xy_labels=labels)


def test_a_new_figure_is_pyplots_and_of_the_size_asked_for() -> None:
    fig, _ = visualize_1D_lcurves(run([1.0]), figsize=(4, 3))

    assert plt.fignum_exists(fig.number)
    assert fig.get_size_inches().tolist() == [4, 3]


def test_axes_that_are_given_are_drawn_into_and_no_figure_is_made() -> None:
    fig, axes = plt.subplots(1, 2)

    assert visualize_1D_lcurves(run([1.0]), fig=fig, ax=axes[1]) == (fig, axes[1])
    assert visualize_1D_lcurves(run([1.0]), ax=axes[1]) == (fig, axes[1])
    assert (len(axes[0].lines), len(axes[1].lines)) == (0, 2)
    assert plt.get_fignums() == [fig.number]


def test_a_figure_that_is_given_alone_gets_axes_and_needs_no_pyplot() -> None:
    fig = Figure()

    assert visualize_1D_lcurves(run([1.0]), fig=fig) == (fig, fig.axes[0])
    assert plt.get_fignums() == []


@pytest.mark.parametrize("engine", ["constrained", "tight", "none"])
def test_the_layout_of_a_given_figure_stays_its_owners(engine: str) -> None:
    fig = Figure(layout=engine)
    before = fig.get_layout_engine()
    fig, _ = visualize_1D_lcurves(aggregated(9), fig=fig)

    if engine == "constrained":
        assert fig.get_layout_engine() is before
    fig.canvas.draw()


def test_axes_and_figures_of_any_make_are_taken() -> None:
    fig = Figure()
    free = fig.add_axes((0.1, 0.1, 0.3, 0.3))
    visualize_1D_lcurves(run([1.0]), fig=fig, ax=free)
    part = Figure().subfigures(1, 2)[0]

    assert visualize_1D_lcurves(run([1.0]), ax=part.subplots())[0] is part


# In a process of its own, where nothing was drawn before.  Prints the settings that are others.
STYLE = """
import matplotlib, numpy as np
from matplotlib import pyplot, rcParams
pyplot.switch_backend("agg")
from mle_client.plot import visualize_1D_lcurves
run = {"stats": dict.fromkeys(["loss", "acc"], np.ones(9)), "time": {"num_updates": np.arange(9)}}
before = {name: repr(value) for name, value in rcParams.items()}
fig, _ = visualize_1D_lcurves({f"c{i}": run for i in range(9)}, plot_std_bar=True)
fig.canvas.draw()
visualize_1D_lcurves(run, target_to_plot=["loss", "acc"], every_nth_tick=2)
print([name for name, value in rcParams.items() if before[name] != repr(value)])
"""


def test_the_users_style_and_default_colours_stay_as_they_are() -> None:
    done = subprocess.run([sys.executable, "-c", STYLE], capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)

    with pytest.raises(ImportError, match=r"pip install 'mle-daemon\[plot\]'"):
        visualize_1D_lcurves(run([1.0]))


# --- lines ----------------------------------------------------------------------------------------
def test_a_run_has_one_colour_and_each_statistic_its_dashes() -> None:
    ax = draw(aggregated(2), target_to_plot=["loss", "acc"])

    first, second = colours(ax)[::2]
    assert colours(ax) == [first, first, second, second]
    assert first != second
    assert [line.get_linestyle() for line in ax.lines] == ["-", "--", "-", "--"]
    assert names(ax) == ["loss: c0", "acc: c0", "loss: c1", "acc: c1"]
    assert (ax.get_title(), ax.get_ylabel()) == ("loss, acc", "loss, acc")


def test_of_a_single_run_each_statistic_has_a_colour() -> None:
    ax = draw(run([1.0], acc=[0.5]), target_to_plot=["loss", "acc"])

    assert len(set(colours(ax))) == 2
    assert names(ax) == ["loss", "acc"]


def test_the_seeds_of_a_run_have_its_colour_and_one_entry_in_the_legend() -> None:
    ax = draw(configs(2, seeds=3))

    assert len(ax.lines) == 6
    assert [len(set(colours(ax)[i : i + 3])) for i in (0, 3)] == [1, 1]
    assert names(ax) == ["c0", "c1"]


def test_seeds_alone_have_a_colour_each() -> None:
    for log in (configs(1, seeds=3)["c0"], configs(1, seeds=3)):
        assert len(set(colours(draw(log)))) == 3


def test_any_number_of_runs_have_different_colours() -> None:
    for number in (7, 8, 30):
        assert len(set(colours(draw(aggregated(number))))) == number


@pytest.mark.parametrize("as_array", [False, True])
def test_colours_are_those_given_and_begin_anew_where_they_end(as_array: bool) -> None:
    given: Any = [(1, 0, 0), (0, 1, 0)]
    ax = draw(aggregated(3), rgb_tuples=np.array(given) if as_array else given)

    assert colours(ax) == ["#ff0000", "#00ff00", "#ff0000"]


def test_smoothing_sees_every_value_before_any_is_left_out() -> None:
    loss = np.random.default_rng(0).normal(size=100_000)
    loss[50_000] = 1e4
    ax = draw(run(loss), smooth_window=1000)

    x, y = ax.lines[0].get_xydata().T
    assert len(x) < 10_000
    assert y.max() == pytest.approx(loss[50_000:50_900].sum() / 1000, abs=0.5)
    at = int(x[len(x) // 2])
    assert y[len(x) // 2] == pytest.approx(loss[at - 1000 : at].mean())


def test_of_a_million_values_the_drawn_ones_have_every_peak_and_both_ends() -> None:
    loss = np.zeros(1_000_000)
    loss[123_456], loss[777_777] = 9.0, -9.0
    points = draw(run(loss)).lines[0].get_xydata()

    assert len(points) < 10_000
    assert {(1, 0), (123_457, 9), (777_778, -9), (1_000_000, 0)} <= set(map(tuple, points.tolist()))


def test_nan_is_a_gap_and_a_value_between_gaps_a_dot() -> None:
    ax = draw(run([1.0, np.nan, 2.0, np.nan, 3.0, 4.0, np.inf]))

    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [1, np.nan, 2, np.nan, 3, 4, np.nan])
    (dots,) = (found for found in ax.collections if isinstance(found, PathCollection))
    assert dots.get_offsets().tolist() == [[1, 1], [3, 2]]


def test_a_run_without_a_tick_is_drawn_beside_others() -> None:
    ax = draw({"a": run([]), "b": run([1.0, 2.0])})

    assert [len(line.get_xdata()) for line in ax.lines] == [0, 2]


def test_runs_without_the_statistic_are_passed_over_with_one_warning() -> None:
    log = {"a": run([1.0]), "b": run([1.0], acc=[0.5]), "c": run([1.0])}

    with pytest.warns(UserWarning, match="no statistic 'acc' in 'a', 'c', passed over") as said:
        _, ax = visualize_1D_lcurves(log, target_to_plot="acc")
    assert len(said) == 1
    assert len(ax.lines) == 1


# --- bands ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"plot_std_bar": True}, ("mean", "std")),
        ({"band": "std"}, ("mean", "std")),
        ({"band": "p10-90"}, ("p10", "p90")),
        ({"plot_std_bar": True, "band": "p10-90"}, ("p10", "p90")),
    ],
)
def test_a_band_lies_below_its_line_and_has_its_colour(options: Any, parts: Any) -> None:
    log = aggregated(2, seeds=3)
    ax = draw(log, **options)

    for line, band, name in zip(ax.lines, bands(ax), log, strict=True):
        one, other = (log[name].stats.loss[part] for part in parts)
        low, high = (one - other, one + other) if parts[1] == "std" else (one, other)
        ys = np.concatenate([path.vertices[:, 1] for path in band.get_paths()])
        assert (ys.min(), ys.max()) == (low.min(), high.max())
        assert to_hex(band.get_facecolor()[0]) == to_hex(line.get_color())
        assert band.get_zorder() < line.get_zorder()


def test_no_band_is_drawn_unasked_or_of_single_seeds() -> None:
    assert bands(draw(aggregated(2))) == []
    assert bands(draw(configs(2), plot_std_bar=True)) == []


def test_a_band_of_many_values_is_thinned_with_its_peaks() -> None:
    loss = np.zeros(200_000)
    loss[5_000] = 7.0
    log = MetaLog({"eval": aggregate_seeds({"seed_1": run(loss), "seed_2": run(loss)})})
    (band,) = bands(draw(log, plot_std_bar=True))

    vertices = np.concatenate([path.vertices for path in band.get_paths()])
    assert vertices[:, 1].max() == 7.0
    assert len(vertices) < 30_000


# --- legend ---------------------------------------------------------------------------------------
def test_names_are_those_given_and_a_legend_can_be_left_out() -> None:
    log = aggregated(2)

    assert names(draw(log, curve_labels=["A", "B"], base_label="lr {}")) == ["lr A", "lr B"]
    assert names(draw(log, plot_labels=False)) is None


def test_a_legend_has_the_title_and_the_columns_asked_for() -> None:
    legend = draw(aggregated(3), legend_title="lr", num_legend_cols=3).get_legend()

    assert legend.get_title().get_text() == "lr"
    assert legend._ncols == 3
    assert draw(aggregated(2), num_legend_cols=None).get_legend()._ncols == 1


@pytest.mark.parametrize(("runs", "beside"), [(6, False), (7, True), (40, True)])
def test_a_long_legend_stands_beside_the_curves_and_inside_the_figure(
    runs: int, beside: bool
) -> None:
    ax = draw(aggregated(runs))
    legend, figure = ax.get_legend().get_window_extent(), ax.figure.bbox

    assert (legend.x0 >= ax.bbox.x1) == beside
    assert legend.x1 <= figure.x1
    assert legend.y0 >= figure.y0
    assert ax.bbox.width > 0.4 * figure.width


def test_a_legend_with_too_many_entries_shows_the_first_and_the_last() -> None:
    ax = draw(aggregated(100))
    shown = names(ax)

    assert shown is not None
    assert shown[:2] == ["c0", "c1"]
    assert shown[-2:] == ["c98", "c99"]
    assert shown[len(shown) // 2] == "…"
    assert len(ax.lines) == 100
    assert ax.bbox.width > 0.7 * ax.figure.bbox.width
    assert len(names(draw(aggregated(40))) or ()) == 40


@pytest.mark.parametrize("banded", [False, True])
def test_a_legend_that_would_lie_over_curves_stands_beside_them(banded: bool) -> None:
    sign = np.array([1.0, 1.0] if banded else [1.0, -1.0] * 100)  # a filled page, or a hatched one
    seeds = AttrDict(s1=run(sign), s2=run(-sign))
    one = aggregate_seeds(seeds) if banded else seeds
    ax = draw({"a": one, "b": one}, plot_std_bar=True)

    assert ax.get_legend().get_window_extent().x0 >= ax.bbox.x1


def test_runs_of_one_value_are_dots_in_the_legend_too() -> None:
    ax = draw({"a": run([1.0]), "b": run([2.0])})

    for line in (*ax.lines, *ax.get_legend().get_lines()):
        assert (line.get_marker(), line.get_linestyle()) == ("o", "None")


def test_a_legend_of_given_axes_stays_inside_them() -> None:
    _, axes = plt.subplots(1, 2, figsize=(12, 8))
    ax = draw(aggregated(9), ax=axes[0])

    assert ax.get_legend().get_window_extent().x1 <= ax.bbox.x1


# --- ticks ----------------------------------------------------------------------------------------
def test_ticks_are_at_round_numbers_and_whole_for_a_clock_that_counts() -> None:
    assert tick_labels(draw(run([1.0, 2.0, 3.0])))[1:-1] == ["1", "2", "3"]
    locations = draw(run(np.zeros(777))).get_xticks()
    assert set(np.diff(locations)) == {100.0}


def test_large_numbers_are_short() -> None:
    assert "200k" in tick_labels(draw(run(np.zeros(50_000)), "num_steps"))
    assert "2000" in tick_labels(draw(run(np.zeros(500)), "num_steps"))


def test_the_users_own_ticks_stay() -> None:
    _, ax = plt.subplots()
    ax.xaxis.set_major_formatter("{x:.0f} steps")
    draw(run(np.zeros(50_000)), ax=ax)

    assert "20000 steps" in tick_labels(ax)


def test_every_nth_value_of_the_longest_run_can_be_labelled() -> None:
    ax = draw({"a": run(np.zeros(10)), "b": run(np.zeros(4))}, every_nth_tick=4)

    assert ax.get_xticks().tolist() == [1, 5, 9]
    assert tick_labels(ax) == ["1", "5", "9"]
    assert ax.get_xticks(minor=True).tolist() == [2, 3, 4, 6, 7, 8, 10]


def test_labels_of_fractions_are_not_cut_off() -> None:
    log = RunLog({}, {"loss": np.zeros(3)}, {"epoch": np.array([0.5, 1.0, 1.5])})

    assert tick_labels(draw(log, "epoch", every_nth_tick=1)) == ["0.5", "1", "1.5"]


def test_a_tick_at_every_0th_value_is_refused() -> None:
    with pytest.raises(ValueError, match="every_nth_tick=0"):
        visualize_1D_lcurves(run([1.0]), every_nth_tick=0)


# --- MetaLog.plot ---------------------------------------------------------------------------------
def test_a_meta_log_draws_all_its_runs_over_the_updates() -> None:
    fig, ax = aggregated(3).plot("loss", plot_std_bar=True)

    assert (fig, len(ax.lines), len(bands(ax))) == (ax.figure, 3, 3)
    assert ax.get_xlabel() == "num_updates"
    assert names(ax) == ["c0", "c1", "c2"]


def test_a_meta_log_takes_mle_loggings_parameters_in_their_order() -> None:
    fig, given = plt.subplots()
    log = aggregated(3)
    words = [
        *("loss", "num_steps", 2, "T", ["X", "Y"], "lr {}", ["c0", "c2"], ["A", "C"], 2, True),
        *(None, 2, fig, given, (4, 3), True, "L", [0, 9]),
    ]

    assert log.plot(*words) == (fig, given)
    smooth = log.c0.stats.loss["mean"].copy()
    smooth[1:] = (smooth[1:] + smooth[:-1]) / 2
    np.testing.assert_allclose(given.lines[0].get_xydata(), np.c_[[10, 20, 30, 40], smooth])
    assert (given.get_title(), given.get_xlabel(), given.get_ylabel()) == ("T", "X", "Y")
    assert names(given) == ["lr A", "lr C"]
    assert given.get_legend().get_title().get_text() == "L"
    assert given.get_legend()._ncols == 2
    assert (len(bands(given)), given.get_ylim()) == (2, (0, 9))
    assert tick_labels(given) == ["10", "30"]


def test_the_clock_is_that_of_updates_or_else_the_first_there_is() -> None:
    clocks = {name: np.arange(2) for name in ("epoch", "num_updates")}
    log = RunLog({}, {"loss": np.zeros(2)}, clocks)

    assert MetaLog({"a": log}).plot("loss")[1].get_xlabel() == "num_updates"
    del log.time["num_updates"]
    assert MetaLog({"a": log}).plot("loss")[1].get_xlabel() == "epoch"


def test_a_picture_is_saved_for_print_and_the_figure_returned(tmp_path: Path) -> None:
    fig, ax = aggregated(2).plot("loss", fname=tmp_path / "loss.png", figsize=(4, 3))

    assert plt.imread(tmp_path / "loss.png").shape[:2] == (900, 1200)
    assert fig is ax.figure


def test_a_wrong_name_is_an_error_that_lists_the_right_ones() -> None:
    log = aggregated(2)

    with pytest.raises(KeyError, match="no statistic 'lss' in 'c0', 'c1'; there is 'loss', 'acc'"):
        log.plot("lss")
    with pytest.raises(KeyError, match="no clock 'x' in 'c0', 'c1'; there is 'num_updates', 'num_"):
        log.plot("loss", "x")
    with pytest.raises(KeyError, match="no run 'd'; there is 'c0', 'c1'"):
        log.plot("loss", run_ids=["d"])
    with pytest.raises(KeyError, match="no clock 'num_updates'"):
        MetaLog({"a": RunLog({}, {"loss": np.zeros(2)}, {})}).plot("loss")
    assert plt.get_fignums() == []
