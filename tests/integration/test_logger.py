"""`MLELogger` as user code meets it: arguments, saving, looking back, and its ends."""

from __future__ import annotations

import errno
import functools
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mle_client import MLELogger, load_log
from mle_client.errors import LoggerClosed, LogNotFound, MLEError
from mle_client.ring import Ring
from tests.integration import daemons


@pytest.fixture
def served(root: Path) -> Iterator[Path]:
    """A root with a daemon."""
    with daemons.running(root):
        yield root


def h5_column(path: Path, name: str, seed: str = "no_seed_provided") -> Any:
    with h5py.File(path) as file:
        return file[f"{seed}/{name}"][:]


# --- the constructor ----------------------------------------------------------------------------
def test_the_example_of_the_readme(served: Path) -> None:
    config = served / "config_1.yaml"
    config.write_text("lr: 1e-3\nname: größe\n")
    with MLELogger(
        time_to_track=["num_steps", "num_epochs"],
        what_to_track=["train_loss", "test_loss"],
        experiment_dir=f"{served}/run/",
        config_fname=str(config),
        seed_id=1,
    ) as log:
        log.update(
            {"num_steps": 10, "num_epochs": 1}, {"train_loss": 0.1, "test_loss": 0.2}, save=True
        )
        assert log.flush(timeout=10)
    loaded = load_log(f"{served}/run/config_1/")
    assert loaded.eval_ids == ["seed_1"]
    run = loaded.seed_1
    assert run.meta.config_dict == {"lr": 1e-3, "name": "größe"}
    assert run.meta.eval_id == "config_1"
    assert run.meta.config_fname == f"{served}/run/config_1/config_1.yaml"
    assert (served / "run/config_1/config_1.yaml").read_text() == config.read_text()
    assert run.time.num_steps.tolist() == [10]
    assert run.time.num_updates.tolist() == [1]
    assert time.strftime("%y-%m-%d/") in run.time.time[0]
    assert run.stats.train_loss.tolist() == [0.1]


def test_a_config_dict_is_stored_and_comes_back(served: Path) -> None:
    config = {"lr": 0.1, "layers": [1, 2], "nested": {"inf": float("inf"), "none": None}}
    with MLELogger(str(served / "run"), config_dict=config) as log:
        log.update({}, {"x": 1})
    assert load_log(str(served / "run")).meta.config_dict == config
    assert (served / "run" / "config_dict.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "advice"),
    [
        ({"experiment_dir": "/"}, ValueError, "folder"),
        ({"experiment_dir": 3}, TypeError, "folder"),
        ({"seed_id": "a/b"}, ValueError, "slash"),
        ({"seed_id": ""}, ValueError, "empty"),
        ({"seed_id": 1.5}, TypeError, "number or a string"),
        ({"model_type": "nonsense"}, ValueError, "torch"),
        ({"time_to_track": "num_steps"}, TypeError, "list of strings"),
        ({"time_to_track": None}, TypeError, "list of strings"),
        ({"what_to_track": None}, TypeError, "list of strings"),
        ({"num_seeds": 4.0}, TypeError, "whole number"),
        ({"num_seeds": True}, TypeError, "whole number"),
        ({"num_seeds": 2**70}, ValueError, "whole number"),
        ({"config_dict": [1]}, TypeError, "dict"),
        ({"daemon": "nonsense://x"}, ValueError, "address"),
        ({"daemon": "tcp://127.0.0.1:x"}, ValueError, "address"),
        ({"reload": True}, LogNotFound, "no such folder"),
        ({"save_top_k_ckpt": 3}, ValueError, "top_k_metric_name"),
        ({"save_every_k_ckpt": 0}, ValueError, "at least 1"),
        ({"retention": [3]}, TypeError, "list of rules"),
        ({"on_full": "wait"}, ValueError, "'drop_newest' or 'block'"),
        ({"on_full": "block", "block_timeout": float("inf")}, ValueError, "with an end"),
        ({"use_wandb": True, "wandb_config": {"projekt": "x"}}, ValueError, "projekt"),
    ],
)
def test_bad_arguments_are_refused_with_advice(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], advice: str
) -> None:
    with pytest.raises(error, match=advice):
        MLELogger(**{"experiment_dir": str(tmp_path / "run"), **arguments})


def test_a_refused_constructor_leaves_no_trace(tmp_path: Path, runtime_dir: Path) -> None:
    with pytest.raises(TypeError):
        MLELogger(str(tmp_path / "run"), time_to_track="oops")
    assert not (tmp_path / "run").exists()
    assert not list(runtime_dir.rglob("*.seg"))


def test_an_experiment_outside_of_the_daemons_root_is_refused(served: Path, tmp_path: Path) -> None:
    endpoint = daemons.start(served)["endpoint"]
    with pytest.raises(ValueError, match="outside"):
        MLELogger(str(tmp_path / "elsewhere"), daemon=endpoint)


def test_the_constructor_does_not_wait_for_a_daemon(tmp_path: Path) -> None:
    started = time.monotonic()
    log = MLELogger(str(tmp_path / "run"))
    log.update({}, {"x": 1})
    assert time.monotonic() - started < 0.5  # a daemon needs longer to start
    assert log.close().delivered == 1
    daemons.wait_until_gone(tmp_path / "run")


def test_numpy_integers_are_seeds(served: Path) -> None:
    with MLELogger(str(served / "run"), seed_id=np.int64(7)) as log:
        log.update({}, {"x": 1})
    assert (served / "run/logs/log_seed_7.hdf5").exists()


def test_a_number_of_seeds_may_be_numpys(served: Path) -> None:
    with MLELogger(str(served / "run"), num_seeds=np.int64(4)) as log:
        log.update({}, {"x": 1})
        assert log.flush()
    assert log.errors() == []


def test_a_call_with_too_little_names_update(served: Path) -> None:
    with MLELogger(str(served / "run")) as log:
        for _ in range(3):
            with pytest.raises(TypeError, match=r"^update\(\) missing 1 required .*'stats_tick'"):
                log.update({"a": 1})
            log.update({"a": 1}, {"x": 1})
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                log.update({"a": 1})
            except TypeError as error:
                os.write(write, str(error).encode())
            os._exit(0)
        os.waitpid(pid, 0)
        os.close(write)
        with open(read, "rb") as said:
            assert said.read().startswith(b"update() missing")


def test_where_shared_memory_is_full_ticks_are_buffered_under_the_root(
    served: Path, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").startswith(str(runtime_dir)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", write)
        log = MLELogger(str(served / "run"))
    assert list((served / ".mle" / "rings").rglob("owner"))
    log.update({}, {"x": 1})
    assert log.close().delivered == 1
    assert h5_column(served / "run/logs/log_no_seed_provided.hdf5", "stats/x").tolist() == [1]


def test_dotted_config_names_keep_directories_apart(served: Path) -> None:
    for name in ("lr_0.01", "lr_0.1"):
        (served / f"{name}.json").write_text('{"lr": 1} // with a comment')
        with MLELogger(str(served / "run"), config_fname=str(served / f"{name}.json")) as log:
            log.update({}, {"x": 1})
    assert {"lr_0.01", "lr_0.1"} <= {path.name for path in (served / "run").iterdir()}


def test_a_log_of_the_same_name_is_put_aside_and_the_user_told(served: Path) -> None:
    for value in (1, 2):
        said: list[MLEError] = []
        with MLELogger(str(served / "run"), on_error=said.append) as log:
            log.update({}, {"x": value})
    assert len(said) == 1
    assert ".mle/replaced" in str(said[0])
    (old,) = (served / ".mle/replaced").iterdir()
    assert h5_column(old, "stats/x").tolist() == [1]
    assert load_log(str(served / "run")).stats.x.tolist() == [2]


def test_overwrite_deletes_the_old_log(served: Path) -> None:
    for value in (1, 2):
        with MLELogger(str(served / "run"), overwrite=True) as log:
            log.update({}, {"x": value})
    assert not (served / ".mle/replaced").exists()
    assert load_log(str(served / "run")).stats.x.tolist() == [2]


def test_a_second_live_logger_of_a_seed_is_stored_under_another_name(served: Path) -> None:
    said: list[MLEError] = []
    with MLELogger(str(served / "run"), seed_id=1) as first:
        first.update({}, {"x": 1})
        assert first.flush()
        with MLELogger(str(served / "run"), seed_id=1, on_error=said.append) as second:
            second.update({}, {"x": 2})
            assert second.flush()
            assert second.stats_log.stats_tracked == {"x": [2]}
        assert first.stats_log.stats_tracked == {"x": [1]}
    loaded = load_log(str(served / "run"))
    assert {name: loaded[name].stats.x.tolist() for name in loaded.eval_ids} == {
        "seed_1": [1],
        "seed_1_dup2": [2],
    }
    assert "another live logger" in str(said[0])


def test_a_new_logger_of_a_name_ends_the_one_that_nobody_closed(served: Path) -> None:
    """mle-logging has no close(); a notebook's cell that is run again makes a second logger."""
    said: list[MLEError] = []
    first = MLELogger(str(served / "run"), seed_id=1)
    first.update({}, {"x": 1})
    second = MLELogger(str(served / "run"), seed_id=1, on_error=said.append)
    second.update({}, {"x": 2})
    assert second.flush()
    assert second.stored_as()[1] == "seed_1"
    second.close()
    assert first.close().delivered == 1
    assert load_log(str(served / "run")).seed_1.stats.x.tolist() == [2]
    (old,) = (served / ".mle/replaced").iterdir()
    assert h5_column(old, "stats/x", "seed_1").tolist() == [1]
    assert len(said) == 1
    assert ".mle/replaced" in str(said[0])


@pytest.mark.parametrize("kept", [False, True], ids=["log.update", "a function that was kept"])
def test_one_that_made_way_and_logs_again_is_stored_under_another_name(
    served: Path, kept: bool
) -> None:
    said: list[MLEError] = []
    first = MLELogger(str(served / "run"), seed_id=1, model_type="numpy", on_error=said.append)
    first.update({}, {"x": 1})
    update = first.update
    second = MLELogger(str(served / "run"), seed_id=1, on_error=said.append)
    second.update({}, {"x": 2})
    (update if kept else first.update)({}, {"x": 3})
    first.save_model(np.ones(2))
    first.update({}, {"x": 4})
    assert first.flush()
    assert first.stats_log.stats_tracked == {"x": [3, 4]}
    second.update({}, {"x": 5})
    for log in (first, second):
        log.close()
    loaded = load_log(str(served / "run"))
    assert {name: loaded[name].stats.x.tolist() for name in loaded.eval_ids} == {
        "seed_1": [2, 5],
        "seed_1_dup2": [3, 4],
    }
    assert any("another live logger" in str(error) for error in said)


def test_a_save_of_one_that_made_way_begins_another_run_too(served: Path) -> None:
    first = MLELogger(str(served / "run"), model_type="numpy", on_error=lambda error: None)
    with MLELogger(str(served / "run"), on_error=lambda error: None) as second:
        second.update({}, {"x": 2})
        first.save_model(np.ones(2))
        first.close()
    assert (served / "run/models/final").is_dir()


# --- saving and looking back --------------------------------------------------------------------
def test_saving_brings_the_file_soon_without_waiting(served: Path) -> None:
    with MLELogger(str(served / "run")) as log:
        log.update({}, {"x": 1}, save=True)
        path = served / "run/logs/log_no_seed_provided.hdf5"
        daemons.wait_for(path.exists, timeout=5)
        daemons.wait_for(lambda: h5_column(path, "stats/x").tolist() == [1], timeout=5)


@pytest.mark.parametrize("by", ["argument", "variable"])
def test_in_sync_mode_the_file_is_there_when_saving_returns(
    served: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "variable":
        monkeypatch.setenv("MLE_SYNC", "1")
    path = served / "run/logs/log_no_seed_provided.hdf5"
    with MLELogger(str(served / "run"), sync=by == "argument") as log:
        for i in range(5):
            log.update({}, {"x": i}, save=True)
            assert h5_column(path, "stats/x").tolist() == list(range(i + 1))
        log.update({}, {"x": 5})
        log.save()
        assert h5_column(path, "stats/x").tolist() == list(range(6))


def test_what_was_logged_can_be_looked_at_any_time(served: Path) -> None:
    with MLELogger(str(served / "run"), ["step"], ["loss", "never"]) as log:
        assert log.stats_log.stats_tracked == {"loss": [], "never": []}
        log.update({"step": 1}, {"loss": 0.5})
        log.update({"step": 2}, {"loss": 0.25, "extra": "text"})
        assert log.stats_log.stats_tracked == {
            "loss": [0.5, 0.25], "never": [], "extra": ["text"]
        }  # fmt: skip
        assert log.stats_log.clock_tracked["step"] == [1, 2]
        assert log.stats_log.time_to_track == ["time", "time_elapsed", "num_updates", "step"]
        assert log.stats_log.stats_update_counter == 2
        log.extend_tracking(["later"])
        assert log.stats_log.stats_tracked["later"] == []


def test_loading_in_the_same_process_sees_every_tick_so_far(served: Path) -> None:
    with MLELogger(str(served / "run")) as log:
        for i in range(5):
            log.update({}, {"x": i})
            assert load_log(str(served / "run")).stats.x.tolist() == list(range(i + 1))


def test_stats_tell_how_far_delivery_is(served: Path) -> None:
    with MLELogger(str(served / "run")) as log:
        for i in range(10):
            log.update({}, {"x": i})
        assert log.flush()
        stats = log.stats()
        assert stats["ticks"] == 10
        assert stats["sent"] == stats["acked"] == stats["published"] > 0
        assert (stats["bytes_waiting"], stats["lag_s"], stats["lost"]) == (0, 0.0, 0)


def test_stats_show_what_waits_while_the_daemon_is_stopped(served: Path) -> None:
    with MLELogger(str(served / "run")) as log:
        log.update({}, {"x": 0})
        assert log.flush()
        pid = daemons.status(served)["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            for i in range(1, 11):
                log.update({}, {"x": i})
            time.sleep(0.2)
            stats = log.stats()
            assert stats["ticks"] == 1
            assert stats["bytes_waiting"] > 0
            assert stats["lag_s"] >= 0.2
            assert not log.flush(timeout=0.2)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert log.flush()


def test_ready_to_log_is_as_in_mle_logging(tmp_path: Path) -> None:
    with MLELogger(str(tmp_path / "run"), log_every_j_steps=3) as log:
        assert [log.ready_to_log(i) for i in range(6)] == [True, False, True, False, False, True]
    with MLELogger(str(tmp_path / "run2")) as log, pytest.raises(ValueError, match="log_every"):
        log.ready_to_log(0)
    daemons.wait_until_gone(tmp_path / "run")
    daemons.wait_until_gone(tmp_path / "run2")


def test_the_callers_lists_and_dicts_are_left_alone(served: Path) -> None:
    clocks, stats = ["step"], ["loss"]
    with MLELogger(str(served / "run"), clocks, stats) as log:
        log.extend_tracking(["more"])
        tick = {"step": 1}, {"loss": 0.5, "new": 1}
        log.update(*tick)
        assert tick == ({"step": 1}, {"loss": 0.5, "new": 1})
    assert (clocks, stats) == (["step"], ["loss"])


# --- the ends -----------------------------------------------------------------------------------
def test_closing_twice_returns_the_same_report_and_updates_are_refused(served: Path) -> None:
    log = MLELogger(str(served / "run"))
    log.update({}, {"x": 1})
    assert log.close() == log.close()
    with pytest.raises(LoggerClosed):
        log.update({}, {"x": 2})
    assert log.flush()
    log.save()
    assert load_log(str(served / "run")).state == "finished"


def test_a_run_without_ticks_leaves_no_log(served: Path) -> None:
    with MLELogger(str(served / "run")) as log:
        assert log.flush()
    assert list((served / "run/logs").iterdir()) == []


def test_without_a_daemon_everything_is_kept_and_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No daemon can be started; the next one stores what was kept."""
    folder = tmp_path / "run"
    said: list[MLEError] = []
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/bin/false")
        log = MLELogger(str(folder), on_error=said.append)
        for i in range(100):
            log.update({}, {"x": i})
        report = log.close(timeout=1.0)
    assert (report.delivered, report.spilled, report.lost) == (0, 100, 0)
    assert any("could be started" in str(error) or "answers" in str(error) for error in said)
    daemons.start(folder)
    daemons.wait_for(lambda: daemons.status(folder)["runs"])
    daemons.stop(folder)
    assert load_log(str(folder)).stats.x.tolist() == list(range(100))


def test_strict_raises_what_went_wrong_at_the_next_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    log = MLELogger(str(tmp_path / "run"), strict=True, on_error=lambda error: None)
    daemons.wait_for(log.errors)
    with pytest.raises(MLEError):
        log.update({}, {"x": 1})
    log.update({}, {"x": 2})  # said once
    assert log.close(timeout=0.5).spilled == 1


def test_by_default_background_errors_are_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log = MLELogger(str(tmp_path / "run"))
        daemons.wait_for(log.errors)
        log.close(timeout=0.2)
    assert any("mle-daemon" in str(warning.message) for warning in caught)


def script(body: str, folder: Path) -> subprocess.Popen[str]:
    """A trainer: logs 1,000 ticks, says so, then does what `body` says."""
    text = f"""
import os, sys, time, threading
from mle_client import MLELogger
log = MLELogger({str(folder)!r})
for i in range(1000):
    log.update({{"step": i}}, {{"x": float(i)}})
print("logged", flush=True)
{body}
"""
    return subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=daemons.environment(),
    )  # fmt: skip


def state_of(root: Path) -> str:
    runs = daemons.status(root)["runs"]
    return runs[0]["state"] if runs else ""


@pytest.mark.parametrize(
    ("ending", "code", "state"),
    [
        ("pass", 0, "finished"),
        ("sys.exit(3)", 3, "finished"),
        ("raise RuntimeError('training failed')", 1, "finished"),
        ("os._exit(4)", 4, "crashed"),
        ("os.kill(os.getpid(), 9)", -9, "crashed"),
        ("os.kill(os.getpid(), 15); time.sleep(9)", -15, "crashed"),
    ],
)
def test_however_a_trainer_ends_every_tick_is_stored(
    served: Path, ending: str, code: int, state: str
) -> None:
    process = script(ending, served / "run")
    process.communicate(timeout=30)
    assert process.returncode == code
    daemons.wait_for(lambda: state_of(served) == state)
    run = load_log(str(served / "run"))
    assert run.stats.x.tolist() == [float(i) for i in range(1000)]
    assert run.state == state


def test_trainer_and_daemon_both_killed(root: Path, runtime_dir: Path) -> None:
    daemons.start(root)
    process = script("time.sleep(60)", root / "run")
    assert process.stdout is not None
    assert process.stdout.readline() == "logged\n"
    daemons.kill_the_next(root, set())
    process.kill()
    process.communicate()
    with daemons.running(root):
        daemons.wait_for(lambda: state_of(root) == "crashed")
        assert load_log(str(root / "run")).stats.x.tolist() == [float(i) for i in range(1000)]
    assert not list(runtime_dir.rglob("*.seg"))


def test_a_stopped_daemon_is_not_started_again_before_the_end(root: Path) -> None:
    daemons.start(root)
    log = MLELogger(str(root / "run"))
    log.update({}, {"x": 0})
    assert log.flush()
    daemons.stop(root)
    log.update({}, {"x": 1})
    time.sleep(1.0)
    assert daemons.mle_daemon("status", "--root", str(root)).returncode == 4
    assert log.close().delivered == 2  # starts one, for the data's sake
    daemons.wait_until_gone(root)
    assert load_log(str(root / "run")).stats.x.tolist() == [0, 1]


# --- processes and threads ----------------------------------------------------------------------
def log_in_child(log: MLELogger, first: int) -> None:
    for i in range(100):
        log.update({}, {"x": first + i})


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_gets_a_stream_of_its_own(served: Path) -> None:
    with MLELogger(str(served / "run")) as log:
        log_in_child(log, 0)
        context = multiprocessing.get_context("fork")
        children = [context.Process(target=log_in_child, args=(log, 100 * n)) for n in range(1, 4)]
        for child in children:
            child.start()
        log_in_child(log, 400)
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0, 0, 0]
    stored = load_log(str(served / "run")).stats.x.tolist()
    assert sorted(stored) == list(range(500))
    for n in range(5):  # each process's ticks in order
        mine = [x for x in stored if x // 100 == n]
        assert mine == sorted(mine)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forks_while_a_thread_is_logging_never_hang(served: Path) -> None:
    gc.collect()
    gc.freeze()  # else each child copies, when it collects, what all tests before have left
    with MLELogger(str(served / "run")) as log:
        stopped = threading.Event()

        def keep_logging() -> None:
            while not stopped.is_set():
                log.update({}, {"who": "parent", "x": 0})

        thread = threading.Thread(target=keep_logging)
        thread.start()
        try:
            for n in range(20):
                pid = os.fork()
                if pid == 0:
                    log.update({}, {"who": "child", "x": n})
                    gc.collect()
                    os._exit(0)
                assert os.waitpid(pid, 0)[1] == 0
        finally:
            stopped.set()
            thread.join()
        daemons.wait_for(lambda: log.flush(), timeout=10)
    gc.unfreeze()
    daemons.wait_for(lambda: load_log(str(served / "run")).stats.who.tolist().count("child") == 20)


def test_several_loggers_of_one_process_share_a_thread(served: Path) -> None:
    logs = [MLELogger(str(served / "run"), seed_id=n) for n in range(10)]
    for i in range(100):
        for n, log in enumerate(logs):
            log.update({}, {"x": i * n})
    senders = [t for t in threading.enumerate() if t.name == "mle-sender"]
    assert len(senders) == 1
    for log in logs:
        log.close()
    loaded = load_log(str(served / "run"))
    for n in range(10):
        assert loaded[f"seed_{n}"].stats.x.tolist() == [i * n for i in range(100)]


def test_a_logger_cannot_be_pickled_and_says_what_to_do(served: Path) -> None:
    with MLELogger(str(served / "run")) as log, pytest.raises(TypeError, match="in each process"):
        pickle.dumps(log)


def test_importing_the_logger_loads_nothing_heavy() -> None:
    heavy = "{'h5py', 'psutil', 'matplotlib', 'torch', 'rich', 'yaml'}"
    text = f"import sys, mle_client; mle_client.MLELogger; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True,
        env=daemons.environment(),
    )  # fmt: skip
    assert done.stdout == "set()\n"


def test_a_log_that_somebody_removes_is_begun_anew(served: Path) -> None:
    said: list[MLEError] = []
    path = served / "run/logs/log_no_seed_provided.hdf5"
    with MLELogger(str(served / "run"), on_error=said.append) as log:
        log.update({}, {"x": 1})
        assert log.flush()
        path.unlink()
        log.update({}, {"x": 2})
        daemons.wait_for(log.flush)
        assert h5_column(path, "stats/x").tolist() == [2]
    assert said
    assert load_log(str(served / "run")).state == "finished"


# --- ends without room ----------------------------------------------------------------------------
def test_a_run_that_ends_on_a_full_disk_is_ended_once_there_is_room(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mle_client.logger.Ring", functools.partial(Ring, memory_bytes=2**19))
    monkeypatch.setenv("MLE_SPILL_BYTES", "0")
    with daemons.running(root) as daemon:
        log = MLELogger(str(root / "run"), on_error=lambda error: None)
        log.update({"step": 0}, {"loss": 0.5})
        assert log.flush()
        os.kill(daemon["pid"], signal.SIGSTOP)
        ticks, producer = 1, log._channel.producer  # type: ignore[union-attr]
        while not producer.lost:
            log.update({"step": ticks}, {"loss": 0.5})
            ticks += 1
        with monkeypatch.context() as patch, ThreadPoolExecutor(1) as threads:
            patch.setattr("mle_client.ring._create_segment", no_room)  # not even for its end
            closing = threads.submit(log.close, 30)
            daemons.wait_for(lambda: producer._closed)
            assert not producer.has_ended
            os.kill(daemon["pid"], signal.SIGCONT)
            report = closing.result()
        assert (report.delivered, report.spilled, report.lost) == (ticks - 1, 0, 1)
        daemons.wait_for(lambda: state_of(root) == "finished")
    run = load_log(str(root / "run"))
    assert (run.state, run.lost, run.ticks) == ("finished", 1, ticks - 1)


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- subclasses and wrappers ----------------------------------------------------------------------
class Counting(MLELogger):
    """Overrides what programs override in mle-logging's logger."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.calls: list[str] = []
        super().__init__(*args, **kwargs)

    def update(
        self, clock_tick: dict[str, Any], stats_tick: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        super().update(clock_tick, {**stats_tick, "extra": 1.0}, *args, **kwargs)

    def save(self) -> None:
        self.calls.append("save")
        super().save()

    def save_model(self, model: Any) -> None:
        self.calls.append("save_model")
        super().save_model(model)

    def save_plot(self, fig: Any, fig_fname: str | None = None) -> None:
        self.calls.append("save_plot")
        super().save_plot(fig, fig_fname)

    def save_extra(self, obj: Any, obj_fname: str | None = None) -> None:
        self.calls.append("save_extra")
        super().save_extra(obj, obj_fname)


def test_the_methods_of_a_subclass_are_called(served: Path) -> None:
    from matplotlib.figure import Figure

    log = Counting(str(served / "run"), model_type="numpy")
    for i in range(3):  # by then the tick's own writer would take it
        log.update({"step": i}, {"loss": 0.5})
    log.update({"step": 3}, {"loss": 0.5}, {"w": np.zeros(3)}, Figure(), [1, 2], save=True)
    report = log.close()
    assert (report.delivered, report.unstored, report.lost) == (4, 0, 0)
    assert sorted(log.calls) == ["save", "save_extra", "save_model", "save_plot"]
    run = load_log(str(served / "run"))
    assert run.stats.extra.tolist() == [1.0] * 4
    assert len(os.listdir(served / "run/figures")) == len(os.listdir(served / "run/extra")) == 1
    assert run.meta.model_ckpt.endswith(".pkl")


def test_the_method_can_be_called_on_the_class(served: Path) -> None:
    with MLELogger(str(served / "run")) as log:
        for i in range(3):
            MLELogger.update(log, {"step": i}, {"loss": 0.5})
            log.update({"step": i}, {"loss": 0.5})
    assert load_log(str(served / "run")).time.step.tolist() == [0, 0, 1, 1, 2, 2]
    assert MLELogger.update.__doc__


def test_what_user_code_puts_in_place_of_update_stays_there(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MLELogger(str(served / "run")) as log:
        original, seen = log.update, []

        def wrapper(clock_tick: dict[str, Any], stats_tick: dict[str, Any]) -> None:
            seen.append(stats_tick)
            original(clock_tick, stats_tick)

        log.update = wrapper  # type: ignore[method-assign]
        for i in range(4):  # ticks of another shape have another writer
            log.update({"step": i}, {f"loss_{i}": 0.5})
        del log.update
        log.update({"step": 4}, {"loss_0": 0.5})
    assert len(seen) == 4
    assert load_log(str(served / "run")).time.step.tolist() == [0, 1, 2, 3, 4]

    patched: list[Any] = []
    monkeypatch.setattr(MLELogger, "update", lambda self, *tick: patched.append(tick))
    with MLELogger(str(served / "other")) as log:
        log.update({"step": 0}, {"loss": 0.5})
    assert len(patched) == 1


def test_a_subclass_with_other_parameters_may_log_again_after_its_name_was_taken(
    served: Path,
) -> None:
    class Fixed(MLELogger):
        def __init__(self) -> None:
            super().__init__(str(served / "run"), seed_id=1)

    first = Fixed()
    first.update({"step": 0}, {"loss": 0.5})
    second = Fixed()
    second.update({"step": 0}, {"loss": 0.25})
    first.update({"step": 1}, {"loss": 0.125})
    assert first.close().delivered == 1
    second.close()
    logs = load_log(str(served / "run"))
    assert {each.stats.loss.tolist()[0] for each in logs.meta_log.values()} == {0.25, 0.125}
