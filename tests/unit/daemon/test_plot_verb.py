"""`mle-daemon plot`, without a daemon; `tests/integration/test_cli_processes.py` has one."""

from __future__ import annotations

import errno
import io
import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from mle_client import layout
from mle_client.errors import LogNotFound
from mle_client.metalog import MetaLog
from mle_client.plot import visualize_1D_lcurves
from mle_daemon import cli
from mle_daemon.plot_verb import load_runs

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module", autouse=True)
def fonts() -> None:
    """Have matplotlib open the fonts that it keeps open, which no test has left behind then."""
    from matplotlib.figure import Figure

    log = {"stats": {"loss": np.zeros(1)}, "time": {"num_updates": np.ones(1)}}
    fig, _ = visualize_1D_lcurves({"a": log, "b": log}, fig=Figure())
    fig.savefig(io.BytesIO(), format="pdf")


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that a daemon was asked to publish; no daemon is reached."""
    paths: list[str] = []

    def asking(path: str, timeout: float = 10.0) -> None:
        paths.append(str(path))

    monkeypatch.setattr("mle_client.control.publish_before_reading", asking)
    return paths


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, Any], Any]]:
    """Of each figure: the names of its runs, the arguments that were given, and the axes."""
    figures: list[Any] = []
    plot = MetaLog.plot

    def spy(log: MetaLog, *words: Any, **options: Any) -> Any:
        _, ax = plot(log, *words, **options)
        names = ("target_to_plot", "iter_to_plot", "smooth_window")
        figures.append((log.eval_ids, {**dict(zip(names, words, strict=True)), **options}, ax))
        return ax.figure, ax

    monkeypatch.setattr(MetaLog, "plot", spy)
    return figures


def write(path: Path, *runs: str, ticks: int = 3, **stats: Any) -> None:
    """Write a log.  Args: runs: names of its groups; stats: columns, "loss" if there are none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for i, run in enumerate(runs):
            file.require_group(f"{run}/meta")
            file[f"{run}/time/num_updates"] = np.arange(1, ticks + 1)
            file[f"{run}/time/num_steps"] = 10 * np.arange(1, ticks + 1)
            for key, column in (stats or {"loss": np.arange(ticks) + i}).items():
                file[f"{run}/stats/{layout.escape(key)}"] = column


def sweep(root: Path) -> None:
    for config in ("lr_0.1", "lr_0.5"):
        for seed in ("seed_1", "seed_2"):
            write(root / config / "logs" / f"log_{seed}.hdf5", seed)


def plot(root: Path, *words: str) -> int:
    return cli.main(["plot", "--root", str(root), *words])


# --- which runs -----------------------------------------------------------------------------------
def test_every_folder_below_with_logs_is_a_configuration(root: Path) -> None:
    sweep(root)
    write(root / "deep/er/logs/log.hdf5", "seed_1")
    for no_experiment in (
        *(".mle/replaced/x", ".hidden", "lr_0.1/models/x", "lr_0.1/extra/x", "lr_0.1/figures/a"),
        *("lr_0.1/logs/old", "lr_0.1/tboards/a", "lr_0.1/wandb/b"),
    ):
        write(root / no_experiment / "logs/log.hdf5", "seed_1")
    (root / "empty/logs").mkdir(parents=True)
    (root / "notes/logs").mkdir(parents=True)
    (root / "notes/logs/.part.hdf5").touch()
    (root / "notes/logs/out.txt").touch()

    log = load_runs(str(root))

    assert log.eval_ids == ["deep/er", "lr_0.1", "lr_0.5"]
    assert log["lr_0.1"].meta.seeds == [1, 2]


def test_an_experiment_within_another_is_one_of_its_own(root: Path) -> None:
    write(root / "a/logs/log.hdf5", "seed_1")
    write(root / "a/b/logs/log.hdf5", "seed_1")

    assert load_runs(str(root)).eval_ids == ["a", "a/b"]


def test_a_folder_with_logs_is_the_only_configuration(root: Path) -> None:
    write(root / "logs/log_seed_1.hdf5", "seed_1")
    write(root / "meta_log.hdf5", "c/seed_1")
    sweep(root)

    assert load_runs(str(root)).eval_ids == ["root"]


def test_folders_go_before_the_meta_log_which_may_be_behind_them(root: Path) -> None:
    write(root / "meta_log.hdf5", "lr_0.1/seed_1")
    sweep(root)

    assert load_runs(str(root)).eval_ids == ["lr_0.1", "lr_0.5"]


def test_a_meta_log_alone_will_do(root: Path) -> None:
    write(root / "meta_log.hdf5", "c_10/seed_1", "c_2/seed_1", "c_2/seed_2")

    log = load_runs(str(root))

    assert log.eval_ids == ["c_2", "c_10"]
    assert log.c_2.stats.loss["mean"].tolist() == [1.5, 2.5, 3.5]


def test_a_run_without_a_seed_is_a_configuration_too(root: Path) -> None:
    write(root / "a/logs/log_no_seed_provided.hdf5", layout.NO_SEED)

    assert load_runs(str(root)).a.stats.loss["mean"].tolist() == [0, 1, 2]


def test_a_folder_without_a_log_is_an_error(root: Path) -> None:
    with pytest.raises(LogNotFound, match="no log in it or below it"):
        load_runs(str(root))


def test_the_daemon_of_the_folder_is_asked_to_publish_before_logs_are_looked_for(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def publish(path: str, timeout: float = 10.0) -> None:
        write(root / "a/logs/log.hdf5", "seed_1")

    monkeypatch.setattr(sys.modules["mle_client.control"], "publish_before_reading", publish)

    assert plot(root, "loss") == 0


def test_a_log_file_or_the_folder_that_it_is_in_will_do(root: Path, drawn: Any) -> None:
    sweep(root)
    write(root / "meta_log.hdf5", "c_2/seed_1", "c_10/seed_1")

    for place in ("lr_0.1/logs", "lr_0.1/logs/log_seed_1.hdf5", "meta_log.hdf5"):
        assert plot(root / place, "loss") == 0
    assert [names for names, *_ in drawn] == [["lr_0.1"], ["lr_0.1"], ["c_2", "c_10"]]


def test_experiments_may_be_below_a_folder_that_is_named_logs(root: Path, drawn: Any) -> None:
    sweep(root / "logs")
    write(root / "logs/meta_log.hdf5", "lr_0.1/seed_1")

    assert plot(root / "logs", "loss") == 0
    assert [names for names, *_ in drawn] == [["lr_0.1", "lr_0.5"]]


# --- the picture ----------------------------------------------------------------------------------
def test_a_picture_of_the_mean_and_its_band_is_made_in_the_current_folder(
    root: Path, here: Path, drawn: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(root)

    assert plot(root, "loss") == 0
    assert capsys.readouterr() == ("loss.png\n", "")
    assert (here / "loss.png").read_bytes()[:8] == PNG
    ((names, options, ax),) = drawn
    assert names == ["lr_0.1", "lr_0.5"]
    assert (options["target_to_plot"], options["band"]) == ("loss", "std")
    assert [len(line.get_xdata()) for line in ax.lines] == [3, 3]
    assert len(ax.collections) == 2


def test_a_name_with_slashes_is_the_name_of_a_file(root: Path, here: Path) -> None:
    write(root / "a/logs/log.hdf5", "seed_1", **{"test/loss": np.zeros(3)})

    assert plot(root, "test/loss") == 0
    assert (here / "test_loss.png").is_file()


@pytest.mark.parametrize(
    ("words", "name", "begins"),
    [
        (["-o", "x.svg"], "x.svg", b"<?xml"),
        (["--output", "x"], "x.png", PNG),
        (["-o", "sub/x.pdf"], "sub/x.pdf", b"%PDF"),
        (["-o", "sub"], "sub/loss.png", PNG),
        (["-o", "sub/"], "sub/loss.png", PNG),
        (["-o", "-"], "-.png", PNG),
    ],
)
def test_a_picture_has_the_name_and_form_asked_for(
    root: Path, here: Path, words: list[str], name: str, begins: bytes
) -> None:
    sweep(root)
    (here / "sub").mkdir()

    assert plot(root, "loss", *words) == 0
    assert (here / name).read_bytes().startswith(begins)


@pytest.mark.parametrize("line", ["plot --json --root", "--json plot --root"])
def test_as_json_it_is_one_line(root: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    sweep(root)

    assert cli.main([*line.split(), str(root), "loss"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": "loss.png"}


def test_options_reach_the_figure(root: Path, drawn: Any) -> None:
    sweep(root)
    words = "--x num_steps --runs lr_0.5 --band p10-90 --smooth 2"

    assert plot(root, "loss", *words.split()) == 0
    ((_, options, ax),) = drawn
    assert (options["run_ids"], options["band"]) == (("lr_0.5",), "p10-90")
    assert ax.lines[0].get_xydata().tolist() == [[10, 0], [20, 0.5], [30, 1.5]]


def test_no_band_is_drawn_if_none_is_wanted(root: Path, drawn: Any) -> None:
    sweep(root)

    assert plot(root, "loss", "--band", "none") == 0
    assert len(drawn[0][2].collections) == 0


def test_no_window_is_made(root: Path) -> None:
    from matplotlib import pyplot as plt

    sweep(root)

    assert plot(root, "loss") == 0
    assert plt.get_fignums() == []


def test_configurations_without_the_statistic_are_told_on_stderr(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(root)
    write(root / "b/logs/log.hdf5", "seed_1", acc=np.zeros(3))

    assert plot(root, "loss") == 0
    assert capsys.readouterr().err == ("mle-daemon: no statistic 'loss' in 'b', passed over\n")


# --- what goes wrong ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lss", "no statistic 'lss' in 'lr_0.1', 'lr_0.5'; there is 'loss'"),
        ("loss --x epoch", "no clock 'epoch' in 'lr_0.1', 'lr_0.5'; there is 'num_steps', 'num_up"),
        ("loss --runs lr_0.1 x", "no run 'x'; there is 'lr_0.1', 'lr_0.5'"),
    ],
)
def test_a_wrong_name_exits_with_3_and_the_right_ones(
    root: Path, here: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    sweep(root)

    assert plot(root, *words.split()) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"mle-daemon: {root}: {message}")
    assert list(here.iterdir()) == []


def test_folders_without_logs_and_no_folders_exit_with_3(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plot(root, "loss") == plot(root / "none", "loss") == 3
    assert str(root / "none") in capsys.readouterr().err


def test_a_damaged_log_exits_with_6_and_its_name(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(root)
    (root / "lr_0.1/logs/log_seed_1.hdf5").write_bytes(b"torn")

    assert plot(root, "loss") == 6
    assert "log_seed_1.hdf5" in capsys.readouterr().err


def test_text_exits_with_1(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(root / "logs/log.hdf5", "seed_1", note=[b"a", b"b", b"c"])

    assert plot(root, "note") == 1
    assert "'note' of root is text" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_exits_with_1(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(root)

    assert plot(root, "loss", "-o", "none/x.png") == 1
    err = capsys.readouterr().err
    assert "no folder for the picture: make it" in err
    assert "none/x.png" in err


def test_a_disk_that_takes_no_picture_is_told_with_the_place_and_what_to_do(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "x.png")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", refuse)
    sweep(root)

    assert plot(root, "loss", "-o", "x.png") == 1
    err = capsys.readouterr().err
    assert "Permission denied: give another place for the picture with -o: 'x.png'" in err


@pytest.mark.parametrize("name", ["", "/dev/null"])
def test_what_is_no_name_of_a_file_is_bad_usage(
    root: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        plot(root, "loss", "-o", name)
    assert f"argument -o/--output: {name!r} is" in capsys.readouterr().err


def test_a_statistic_without_a_number_is_drawn_and_told_on_stderr(
    root: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(root / "logs/log.hdf5", "seed_1", loss=np.full(3, np.nan))

    assert plot(root, "loss") == 0
    assert "'loss' has no finite value in any run" in capsys.readouterr().err
    assert (here / "loss.png").is_file()


def test_without_matplotlib_it_exits_with_1_and_the_command_that_installs_it(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(root)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    assert plot(root, "loss") == 1
    assert "pip install 'mle-daemon[plot]'" in capsys.readouterr().err
