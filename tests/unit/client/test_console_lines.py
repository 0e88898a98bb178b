"""What verbose=True shows: mle-logging's cells, and nothing of the user's is taken for markup."""

from __future__ import annotations

import contextlib
import io
import re
import types
from typing import Any

import numpy as np
import pytest

from mle_client import __version__

pytest.importorskip("rich")

from mle_client import console_lines as lines
from mle_client.layout import TIME_FORMAT

START = 1_700_000_000.0


def make_layout(clocks: list[str], stats: list[str], grows: bool = False) -> lines.Layout:
    return lines.Layout(START, clocks, stats, (grows, grows))


def show(layout: lines.Layout, *shown: lines.Line) -> str:
    """What a file that is no terminal gets to see of the last of some lines."""
    return [layout.lay_out(line, io.StringIO()) for line in shown][-1]


def row(clock: dict[str, Any], stats: dict[str, Any], number: int = 1) -> lines.Row:
    return lines.Row(clock, stats, number, START + 0.125)


def cells(text: str) -> list[str]:
    """The cells of the last line that is not empty."""
    return re.split(r"\s{2,}", [line.strip() for line in text.splitlines() if line.strip()][-1])


def cell(value: Any) -> str:
    """What a value looks like in the table."""
    return " ".join(show(make_layout([], ["x"]), row({}, {}), row({}, {"x": value})).split())


def mle_logging_shows(monkeypatch: pytest.MonkeyPatch, what: str, *arguments: Any) -> str:
    """What mle-logging prints; it calls a function that numpy 2 no longer has."""
    comms = pytest.importorskip("mle_logging.utils.comms")
    monkeypatch.setattr(np, "round_", np.round, raising=False)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        getattr(comms, what)(*arguments)
    return out.getvalue()


@pytest.mark.parametrize(
    "stats",
    [
        {"train_loss": 0.123456, "test_loss": 12.0},
        {"train_loss": float("nan"), "test_loss": float("-inf")},
        {"train_loss": np.array([0.1234, 2.0]), "test_loss": 1e16},
        {"test_loss": 0.25},
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_row_is_mle_loggings(
    monkeypatch: pytest.MonkeyPatch, stats: dict[str, Any], first: bool
) -> None:
    clocks, names = ["num_updates", "num_epochs", "num_steps"], ["train_loss", "test_loss"]
    clock = {"num_updates": 1, "num_epochs": 3}
    theirs = mle_logging_shows(monkeypatch, "print_update", clocks, names, clock, stats, first)
    shown = [row({"num_epochs": 3}, stats)] * (1 if first else 2)
    assert show(make_layout(clocks, names), *shown) == theirs


PATHS = ("figures/f_1.png", "extra/e_1.pkl", "models/init.pt", "models/final.pt", "k_2", "top_0")
KINDS = ("figure", "extra", "init", "model", "every_k", "top_k")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("paths", [PATHS, (None, *PATHS[1:]), (*PATHS[:5], None), (None,) * 6])
def test_stored_files_are_mle_loggings(
    monkeypatch: pytest.MonkeyPatch, paths: tuple[str | None, ...], first: bool
) -> None:
    theirs = mle_logging_shows(monkeypatch, "print_storage", *paths, first)
    stored = lines.Stored(dict(zip(KINDS, paths, strict=True)))
    before = [] if first else [row({}, {})]
    assert show(make_layout([], []), *before, stored) == theirs


def test_the_panel_says_what_mle_loggings_says(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks, stats = ["num_epochs", "num_steps"], ["loss"]
    theirs = mle_logging_shows(
        monkeypatch, "print_startup",
        "exp/", "base.yaml", clocks, stats, "torch", 1, False, False, 1, None, 2, 3, None, None,
    )  # fmt: skip
    ours = show(
        make_layout([], []),
        lines.Started(
            {
                "experiment_dir": "exp/",
                "config_fname": "base.yaml",
                "time_to_track": clocks,
                "what_to_track": stats,
                "seed_id": 1,
                "model_type": "torch",
                "save_every_k_ckpt": 2,
                "save_top_k_ckpt": 3,
            }
        ),
    )
    said = [word.strip() for word in re.split("[│\n─╭╮╰╯]", theirs) if word.strip()]
    assert [word for word in said if word in ours] == said
    assert f"mle-daemon v{__version__}" in ours
    assert all(len(line) <= lines.WIDTH for line in ours.splitlines())


def test_a_header_comes_first_and_with_every_new_column() -> None:
    layout = make_layout([], ["loss"], grows=True)
    tick = row({"epoch": 1}, {"loss": 1.0})
    first, second = show(layout, tick), show(layout, tick)
    assert "loss" in first
    assert "loss" not in second
    assert "acc" in show(layout, row({"epoch": 1}, {"acc": 1.0}))
    assert "acc" not in show(layout, tick)
    assert cells(show(layout, tick))[-2:] == ["1.0", "---"]


def test_chosen_columns_are_the_only_ones() -> None:
    layout = lines.Layout(START, ["time"], ["acc"], (False, False))
    text = show(layout, row({"epoch": 1}, {"acc": 0.5, "loss": 0.25}))
    assert "epoch" not in text
    assert cells(text)[1:] == ["0.5"]


def test_every_row_has_the_clocks_that_the_daemon_adds() -> None:
    layout = make_layout(["time", "time_elapsed", "num_updates"], [])
    shown = cells(show(layout, row({"time": "the user's"}, {}, number=7)))
    assert lines.datetime.strptime(shown[0], TIME_FORMAT).timestamp() == pytest.approx(
        START, abs=60
    )
    assert shown[1:] == ["0.125", "7"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (3, "3"),
        (2**40 + 1, "1099511627777"),
        (True, "True"),
        (1e-5, "1e-05"),
        (-0.00049, "-0.00049"),
        (0.0, "0.0"),
        (1e308, "1e+308"),
        (np.float32(0.1), "0.1"),
        (np.float16(0.5), "0.5"),
        (np.array(0.5), "0.5"),
        (np.arange(3), "[0 1 2]"),
        ("float32 (9, 9)", "float32 (9, 9)"),
        ("[red]:bird:", "[red]:bird:"),
        ("a\x1b[2Jb\nc", "a\ufffd[2Jb\ufffdc"),
    ],
)
def test_values_are_shown_so_that_a_reader_is_not_misled(value: Any, shown: str) -> None:
    assert cell(value) == shown


def test_a_tensor_is_shown_as_its_numbers() -> None:
    class Tensor(types.SimpleNamespace):
        """As much of a torch tensor of bfloat16 as is needed: numpy cannot take it."""

        def detach(self) -> Tensor:
            return self

        cpu = detach

        def is_floating_point(self) -> bool:
            return True

        def float(self) -> Tensor:
            return Tensor(numpy=lambda: np.array([0.5, 2.0]))

    assert cell(Tensor()) == "[0.5 2. ]"


def test_what_looks_like_markup_is_no_markup() -> None:
    text = show(make_layout([], ["a[b]"]), row({}, {"a[b]": 1.0}))
    assert "a[b]" in text
    stored = show(make_layout([], []), lines.Stored({"figure": "exp[/red]/:bird:.png"}))
    assert "exp[/red]/:bird:.png" in stored
    started = show(make_layout([], []), lines.Started({"experiment_dir": "exp/[b]lr[/b]"}))
    assert "exp/[b]lr[/b]" in started


def test_a_long_path_is_shown_whole() -> None:
    path = "exp/" + "deep/" * 30 + "fig.png"
    stored = show(make_layout([], []), lines.Stored({"figure": path}))
    assert "".join(stored.split())[len("📩-Figure") :] == path


def test_only_a_terminal_gets_colours() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            patch.delenv(name, raising=False)
        assert "\x1b[" in make_layout(["x"], []).lay_out(row({"x": 1}, {}), Terminal())
        assert "\x1b" not in make_layout(["x"], []).lay_out(row({"x": 1}, {}), io.StringIO())


def test_laying_out_neither_writes_to_the_stream_nor_waits_for_it() -> None:
    class Blocked(io.StringIO):
        def write(self, text: str) -> int:
            raise AssertionError("written to")

        def flush(self) -> None:
            raise AssertionError("flushed")

    assert make_layout([], ["x"]).lay_out(row({}, {"x": 1.0}), Blocked())


def test_boxes_are_plain_where_the_stream_has_no_others() -> None:
    class Ascii(io.StringIO):
        encoding = "ascii"

    assert "─" in show(make_layout([], []), lines.Started({}))
    assert "─" not in make_layout([], []).lay_out(lines.Started({}), Ascii())


def test_what_was_left_out_is_counted() -> None:
    assert "37 left out" in show(make_layout([], []), lines.Missing(37))
