"""A run in W&B's offline mode: what is written, what is not, and whom a broken mirror harms."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from mle_client import messages as m
from mle_client import tick_layout, tick_writers, ticks, wire
from mle_client.configs import config_text
from mle_client.wandb_settings import checked_wandb_config
from mle_daemon.wandb_mirror import WandbMirror
from tests.daemon_rig import make_run

TIMEOUT = 30.0
START = 1_700_000_000.0
KEY = "0123456789abcdef0123456789abcdef01234567"
OWN = {"time/time", "time/time_elapsed", "time/num_updates"}


# --- ticks ----------------------------------------------------------------------------------------
def make_blocks(*rows: dict[str, Any], first: int = 0) -> list[wire.Block]:
    """Ticks as the daemon has them: each logged half a second after the one before."""
    decoder, blocks, schemas = wire.StreamDecoder(), [], {}
    for at, row in enumerate(rows, first):
        described = ticks.describe({"epoch": at}, row)
        fields = (described.clock, described.stats)
        schema = schemas.setdefault(fields, m.Schema(len(schemas), *fields))
        seconds = START + at / 2
        tick = (
            tick_writers.pack_fixed(schema, seconds, described.values)
            if tick_layout.has_fixed_layout(schema)
            else wire.encode_text_tick(schema, seconds, described.values)
        )
        blocks += decoder.decode(wire.encode_record(schema) + tick)[1:]
    return blocks  # type: ignore[return-value]  # of ticks alone


def simple(first: int, stop: int) -> list[wire.Block]:
    return make_blocks(*({"loss": row / 4} for row in range(first, stop)), first=first)


# --- mirrors --------------------------------------------------------------------------------------
class Mirrors:
    """Makes mirrors of one run.  Args: folder: of the experiment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.problems: list[str] = []
        self.made: list[WandbMirror] = []

    def make(
        self, wandb: dict[str, Any] | None = None, config: Any = None, **settings: Any
    ) -> WandbMirror:
        text, as_json = config_text({} if config is None else config)
        run = make_run(
            directory=str(self.folder),
            start_time=START,
            wandb=checked_wandb_config(wandb, "seed_1", "base"),
            config_text=text,
            config_json=as_json,
        )
        self.made.append(WandbMirror(run, self.problems.append, **settings))
        return self.made[-1]

    def files(self) -> list[Path]:
        """W&B's files of the run, oldest first."""
        return sorted(self.folder.glob("wandb/offline-run-*/*.wandb"))

    def logged(self) -> dict[int, dict[str, Any]]:
        """What all of these hold, by step; no step is there twice."""
        found: dict[int, dict[str, Any]] = {}
        for path in self.files():
            for step, row in history(path):
                assert step not in found
                found[step] = row
        return found


@pytest.fixture
def mirrors(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mirrors]:
    # A user who is logged in, with settings of their own; no child may take any of it over.
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("WANDB_PROJECT", "from-the-environment")
    scratch = tempfile.mkdtemp(prefix="mle-test-", dir="/tmp")  # a short path, for sockets
    monkeypatch.setattr(tempfile, "tempdir", scratch)
    made = Mirrors(root)
    yield made
    for mirror in made.made:
        mirror.finish(TIMEOUT)
    assert os.listdir(scratch) == []
    os.rmdir(scratch)


@pytest.fixture
def wandb() -> Any:
    return pytest.importorskip("wandb")


FAKE = """
import os
class Run:
    def __init__(self, dir, **settings):
        self.dir = os.path.join(dir, "wandb", "run", "files")
    def log(self, row, step):
        {log}
    def finish(self, exit_code):
        pass
def init(dir, **settings):
    {init}
    return Run(dir)
def teardown(exit_code):
    pass
"""


@pytest.fixture
def fake_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a program of ours in place of wandb."""

    def install(module: str = FAKE, log: str = "pass", init: str = "pass") -> None:
        folder = tmp_path / "fake"
        folder.mkdir()
        (folder / "wandb.py").write_text(module.format(log=log, init=init))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return install


# --- reading W&B's file ---------------------------------------------------------------------------
_BLOCK_BYTES = 32768
_HEADER = struct.Struct("<IHB")  # crc, length, part: 1 whole, 2 first, 3 middle, 4 last


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: a log of LevelDB's form, behind 7 bytes of W&B's own."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, body = 7, b""
    while at + _HEADER.size <= len(data):
        left = _BLOCK_BYTES - at % _BLOCK_BYTES
        if left < _HEADER.size:
            at += left
            continue
        _, length, part = _HEADER.unpack_from(data, at)
        body += data[at + _HEADER.size :][:length]
        at += _HEADER.size + length
        if part in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(body)
            body = b""
            yield record


def history(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for record in records(path):
        if record.HasField("history"):
            row: dict[str, Any] = {}
            for item in record.history.item:
                *outer, last = item.nested_key or [item.key]
                place = row
                for name in outer:
                    place = place.setdefault(name, {})
                place[last] = json.loads(item.value_json)
            yield row["_step"], row


def only(path: Path, kind: str) -> Any:
    (found,) = [record for record in records(path) if record.HasField(kind)]
    return getattr(found, kind)


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def has_ended(pid: int) -> bool:
    """Whether a process that is not ours to reap has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def everything_under(folder: Path) -> bytes:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return b"".join(path.read_bytes() for path in files)


# --- what is written ------------------------------------------------------------------------------
@pytest.mark.usefixtures("wandb")
def test_every_value_is_there_at_its_step(mirrors: Mirrors) -> None:
    rows: list[dict[str, Any]] = [
        {"loss": 0.5, "n": 2**63 - 1, "ok": True},
        {"loss": float("nan"), "name": "größe\n損失"},
        {"loss": float("inf"), "vec": np.array([1.5, float("nan")]), "grid": np.eye(2)},
        {"loss": -1e308, "n": -(2**63), "none": np.zeros((0,))},
    ]
    mirror = mirrors.make()
    mirror.rows(0, make_blocks(*rows))
    assert mirror.finish(TIMEOUT)
    logged = mirrors.logged()
    assert sorted(logged) == [0, 1, 2, 3]
    for step, row in enumerate(rows):
        stats = {k: v for k, v in logged[step].items() if k.startswith("stats/")}
        assert stats.keys() == {f"stats/{name}" for name in row}
        for name, value in row.items():
            np.testing.assert_equal(stats[f"stats/{name}"], as_json(value))
        clocks = {k for k in logged[step] if k.startswith("time/")}
        assert clocks == {"time/epoch", *OWN}
        assert logged[step]["time/epoch"] == step
        assert logged[step]["time/num_updates"] == step + 1
        assert logged[step]["time/time_elapsed"] == step / 2
        assert logged[step]["_timestamp"] == START + step / 2
    assert mirrors.problems == []


def as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.usefixtures("wandb")
def test_a_large_array_is_a_histogram_of_its_finite_values(mirrors: Mirrors) -> None:
    values = np.arange(100.0).reshape(10, 10)
    values[0, 0] = np.nan
    mirror = mirrors.make()
    mirror.rows(0, make_blocks({"w": values}, {"w": np.full((10, 10), np.inf), "loss": 1.0}))
    assert mirror.finish(TIMEOUT)
    first, second = mirrors.logged()[0], mirrors.logged()[1]
    assert first["stats/w"]["_type"] == "histogram"
    assert sum(first["stats/w"]["values"]) == 99
    assert "stats/w" not in second
    assert second["stats/loss"] == 1.0


@pytest.mark.usefixtures("wandb")
def test_the_run_is_named_as_the_settings_say(mirrors: Mirrors) -> None:
    config = {"lr": 1e-3, "layers": (64, 64), "big": 2**70, "nan": float("nan"), 3: {"a": None}}
    given = {"key": KEY, "project": "p", "entity": "me", "group": "g", "name": "n"}
    mirror = mirrors.make(given, config)
    mirror.rows(0, simple(0, 1))
    assert mirror.finish(TIMEOUT, crashed=True)
    (path,) = mirrors.files()
    run = only(path, "run")
    assert (run.project, run.entity, run.run_group) == ("p", "me", "g")
    assert (run.display_name, run.job_type, list(run.tags)) == ("n", "base", ["n", "base"])
    assert run.run_id == make_run().run_id.hex()
    stored = {item.key: json.loads(item.value_json) for item in run.config.update}
    stored.pop("_wandb")
    assert stored.pop("nan") in (None, "NaN")
    assert stored == {"lr": 1e-3, "layers": [64, 64], "big": str(2**70), "3": {"a": None}}
    assert only(path, "exit").exit_code == 1


@pytest.mark.usefixtures("wandb")
def test_a_finished_run_ended_well(mirrors: Mirrors) -> None:
    mirrors.make().finish(TIMEOUT)
    (path,) = mirrors.files()
    assert only(path, "exit").exit_code == 0


# --- restarts -------------------------------------------------------------------------------------
@pytest.mark.usefixtures("wandb")
def test_a_restarted_daemon_resumes_the_run_and_repeats_no_row(mirrors: Mirrors) -> None:
    for first, stop in [(0, 10), (4, 14), (6, 12), (14, 15)]:
        mirror = mirrors.make()
        mirror.rows(first, simple(first, stop))
        assert mirror.finish(TIMEOUT)
    logged = mirrors.logged()  # asserts that none is there twice
    assert sorted(logged) == list(range(15))
    assert all(row["stats/loss"] == step / 4 for step, row in logged.items())
    assert len(mirrors.files()) == 3  # the third had nothing new to say
    runs = [only(path, "run") for path in mirrors.files()]
    assert {run.run_id for run in runs} == {make_run().run_id.hex()}
    assert all(getattr(run, "resume", True) for run in runs)  # older ones do not say


DAEMON = """
import os, signal, sys, time
from tests.daemon_rig import make_run
from tests.unit.daemon.test_wandb_mirror import Mirrors, simple
from pathlib import Path
mirrors = Mirrors(Path(sys.argv[1]))
mirror = mirrors.make()
mirror.rows(0, simple(0, 2000))
while not list(mirrors.folder.glob("wandb/offline-run-*")):
    time.sleep(0.01)
print(mirror.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.usefixtures("wandb")
def test_what_a_killed_daemon_handed_over_is_kept_and_not_repeated(mirrors: Mirrors) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DAEMON, str(mirrors.folder)],
        env={**os.environ, "TMPDIR": tempfile.gettempdir()},
        stdout=subprocess.PIPE,
        timeout=TIMEOUT,
    )
    orphan = int(done.stdout)
    # The first child may still be writing; the second waits for it.
    mirror = mirrors.make()
    mirror.rows(0, simple(0, 2500))
    assert mirror.finish(TIMEOUT)
    wait_for(lambda: has_ended(orphan))
    assert sorted(mirrors.logged()) == list(range(2500))
    assert os.listdir(tempfile.gettempdir()) == []


def test_a_child_waits_for_the_one_before_it(
    mirrors: Mirrors, fake_wandb: Callable[..., None], tmp_path: Path
) -> None:
    written = tmp_path / "steps"
    written.touch()
    fake_wandb(
        log="import time; time.sleep(0.02)\n"
        f"        with open({str(written)!r}, 'a') as file: print(step, file=file)"
    )
    killed = subprocess.Popen([sys.executable, "-c", DAEMON_OF_A_SLOW_ONE, str(mirrors.folder)])
    killed.wait(TIMEOUT)
    mirror = mirrors.make()
    mirror.rows(0, simple(0, 110))
    assert mirror.finish(TIMEOUT)
    assert [int(step) for step in written.read_text().split()] == list(range(110))


DAEMON_OF_A_SLOW_ONE = """
import os, signal, sys, time
from tests.unit.daemon.test_wandb_mirror import Mirrors, simple
from pathlib import Path
mirror = Mirrors(Path(sys.argv[1])).make()
mirror.rows(0, simple(0, 100))
while mirror._waiting or not mirror.pid:
    time.sleep(0.01)
time.sleep(0.2)  # for the last row to get into the pipe
os.kill(os.getpid(), signal.SIGKILL)
"""


# --- secrets, network, output ---------------------------------------------------------------------
@pytest.mark.usefixtures("wandb")
def test_the_key_is_nowhere_and_nothing_is_sent(
    mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    (home / ".netrc").write_text(f"machine api.wandb.ai\n login user\n password {KEY}\n")
    (home / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    before = dict(os.environ)
    mirror = mirrors.make({"key": KEY})
    mirror.rows(0, simple(0, 10))
    wait_for(mirrors.files)
    assert mirror.pid is not None
    child = psutil.Process(mirror.pid)
    family = [child, *child.children(recursive=True)]
    assert len(family) == 2  # wandb's service
    for process in family:
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert KEY.encode() not in environment
        assert b"WANDB_MODE=offline" in environment.split(b"\0")
        # Older releases of wandb speak with their service over the loopback device.
        peers = [each.raddr.ip for each in process.net_connections(kind="inet") if each.raddr]
        assert set(peers) <= {"127.0.0.1"}
    assert mirror.finish(TIMEOUT)
    assert KEY.encode() not in everything_under(mirrors.folder)
    assert dict(os.environ) == before
    assert sorted(path.name for path in home.iterdir()) == [".netrc"]
    assert not (tmp_path / "elsewhere").exists()
    assert only(mirrors.files()[0], "run").project == "prototyping"


@pytest.mark.usefixtures("wandb")
def test_nothing_is_printed(mirrors: Mirrors, capfd: pytest.CaptureFixture[str]) -> None:
    mirror = mirrors.make()
    mirror.rows(0, simple(0, 10))
    assert mirror.finish(TIMEOUT)
    assert capfd.readouterr() == ("", "")


def test_what_wandb_says_and_reads_is_not_taken_for_ours(
    mirrors: Mirrors, fake_wandb: Callable[..., None]
) -> None:
    fake_wandb(init="""os.write(1, b'{"problem": "not ours"}'); assert os.read(0, 1) == b''""")
    mirror = mirrors.make()
    mirror.rows(0, simple(0, 10))
    assert mirror.finish(TIMEOUT)
    assert mirrors.problems == []


@pytest.mark.usefixtures("wandb")
def test_no_link_is_left_that_leads_nowhere(mirrors: Mirrors) -> None:
    mirror = mirrors.make()
    mirror.rows(0, simple(0, 10))
    assert mirror.finish(TIMEOUT)
    links = [path for path in mirrors.folder.rglob("*") if path.is_symlink()]
    assert [path for path in links if not path.exists()] == []


# --- a mirror that does not work ------------------------------------------------------------------
@pytest.mark.usefixtures("wandb")
def test_a_killed_child_is_told_of_once_and_reaped(mirrors: Mirrors) -> None:
    mirror = mirrors.make()
    mirror.rows(0, simple(0, 5))
    wait_for(mirrors.files)
    assert mirror.pid is not None
    family = [psutil.Process(mirror.pid), *psutil.Process(mirror.pid).children(recursive=True)]
    os.kill(mirror.pid, signal.SIGKILL)
    wait_for(lambda: mirrors.problems)
    wait_for(lambda: not psutil.pid_exists(family[0].pid))  # a zombie would exist
    mirror.rows(5, simple(5, 8))
    assert 3 <= mirror.left_out <= 8  # the child had no time to say how far it was
    began = time.monotonic()
    assert not mirror.finish(TIMEOUT)
    assert time.monotonic() - began < TIMEOUT / 2
    assert len(mirrors.problems) == 1
    assert "ended (status -9)" in mirrors.problems[0]
    wait_for(lambda: all(has_ended(process.pid) for process in family))


def test_a_child_that_is_too_slow_costs_rows_and_no_time(
    mirrors: Mirrors, fake_wandb: Callable[..., None]
) -> None:
    fake_wandb(log="import time; time.sleep(1000)")
    mirror = mirrors.make(capacity_bytes=20_000)
    blocks = simple(0, 1000)
    slowest = 0.0
    for first, block in enumerate(blocks * 10):
        began = time.thread_time()
        mirror.rows(first, [block])
        slowest = max(slowest, time.thread_time() - began)
    assert slowest < 0.1  # 0.0001 s on the machine this was written on
    assert 9_000 < mirror.left_out < 10_000
    assert len(mirrors.problems) == 1
    assert "slower than the run" in mirrors.problems[0]
    pid = mirror.pid
    began = time.monotonic()
    assert not mirror.finish(0.5)
    assert time.monotonic() - began < TIMEOUT / 2
    assert mirror.left_out == 10_000
    assert len(mirrors.problems) == 2
    assert "not done in time" in mirrors.problems[1]
    assert pid is None or not psutil.pid_exists(pid)


def test_a_row_larger_than_the_queue_is_taken_when_nothing_else_waits(
    mirrors: Mirrors, fake_wandb: Callable[..., None]
) -> None:
    fake_wandb()
    mirror = mirrors.make(capacity_bytes=100)
    mirror.rows(0, make_blocks({"x": np.zeros(30)}))
    assert mirror.finish(TIMEOUT)


def test_missing_wandb_is_told_of_once_with_what_to_do(
    mirrors: Mirrors, fake_wandb: Callable[..., None]
) -> None:
    fake_wandb("raise ModuleNotFoundError('no wandb', name='wandb')")
    mirror = mirrors.make()
    wait_for(lambda: mirrors.problems)
    mirror.rows(0, simple(0, 3))
    assert not mirror.finish(TIMEOUT)
    assert len(mirrors.problems) == 1
    assert "pip install mle-daemon[wandb]" in mirrors.problems[0]
    assert mirror.left_out == 3


def test_settings_that_wandb_refuses_are_told_of_once(
    mirrors: Mirrors, fake_wandb: Callable[..., None]
) -> None:
    fake_wandb(init="raise ValueError('bad project')")
    mirror = mirrors.make()
    mirror.rows(0, simple(0, 3))
    wait_for(lambda: mirrors.problems)
    assert not mirror.finish(TIMEOUT)
    assert mirrors.problems == ["W&B: ValueError: bad project"]


def test_a_folder_that_wandb_cannot_use_is_told_of(mirrors: Mirrors) -> None:
    pytest.importorskip("wandb")
    (mirrors.folder / "wandb").write_text("a file")
    mirror = mirrors.make()
    mirror.rows(0, simple(0, 3))
    assert not mirror.finish(TIMEOUT)
    assert len(mirrors.problems) == 1
    assert "FileExistsError" in mirrors.problems[0]


def test_a_link_out_of_the_runs_folder_is_refused(
    mirrors: Mirrors, fake_wandb: Callable[..., None], tmp_path: Path
) -> None:
    fake_wandb()
    (tmp_path / "outside").mkdir()
    (mirrors.folder / "wandb").symlink_to(tmp_path / "outside")
    mirror = mirrors.make()
    mirror.rows(0, simple(0, 3))
    assert not mirror.finish(TIMEOUT)
    (problem,) = mirrors.problems
    assert f"it leads to {tmp_path}/outside, out of {mirrors.folder}" in problem
    assert os.listdir(tmp_path / "outside") == []


def test_a_run_that_went_elsewhere_is_told_of(
    mirrors: Mirrors, fake_wandb: Callable[..., None]
) -> None:
    """Where wandb may not write, it takes the folder for temporary files instead."""
    fake_wandb(init="dir = '/tmp'")
    mirror = mirrors.make()
    assert not mirror.finish(TIMEOUT)
    assert mirrors.problems == [f"W&B: PermissionError: {mirrors.folder} cannot be written to"]


def test_a_row_that_wandb_refuses_costs_that_row(
    mirrors: Mirrors, fake_wandb: Callable[..., None]
) -> None:
    fake_wandb(log="assert step % 3, 'odd one'")
    mirror = mirrors.make()
    mirror.rows(0, simple(0, 9))
    assert not mirror.finish(TIMEOUT)
    assert mirrors.problems == ["W&B: row 0 was left out: AssertionError: odd one"]
    assert mirror.left_out == 3


def test_a_failing_callback_harms_nobody(root: Path, fake_wandb: Callable[..., None]) -> None:
    fake_wandb(init="raise ValueError('bad project')")

    def fail(text: str) -> None:
        raise RuntimeError(text)

    mirror = WandbMirror(make_run(directory=str(root)), fail)
    assert not mirror.finish(TIMEOUT)


def test_finishing_twice_is_as_good_as_once(
    mirrors: Mirrors, fake_wandb: Callable[..., None]
) -> None:
    fake_wandb()
    mirror = mirrors.make()
    mirror.rows(0, simple(0, 3))
    assert mirror.finish(TIMEOUT)
    assert mirror.finish(TIMEOUT)
    mirror.rows(3, simple(3, 4))
    assert mirror.left_out == 1


# --- figures --------------------------------------------------------------------------------------
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a49444154789c6360"
    "000000020001e221bc330000000049454e44ae426082"
)


@pytest.mark.usefixtures("wandb")
def test_a_figure_is_copied_and_logged(mirrors: Mirrors) -> None:
    pytest.importorskip("PIL")
    path = mirrors.folder / "fig_1.png"
    path.write_bytes(PNG)
    mirror = mirrors.make()
    mirror.rows(0, simple(0, 3))
    mirror.image(1, str(path))
    mirror.rows(3, simple(3, 4))
    assert mirror.finish(TIMEOUT)
    assert mirrors.problems == []
    row = mirrors.logged()[2]  # steps never go back; the caption says where it belongs
    assert row["img"]["caption"] == "step 1"
    assert row["stats/loss"] == 0.5
    copy = mirrors.files()[0].parent / "files" / row["img"]["path"]
    assert copy.read_bytes() == PNG
    assert path.read_bytes() == PNG


def test_a_figure_that_cannot_be_mirrored_costs_no_row(
    mirrors: Mirrors, fake_wandb: Callable[..., None]
) -> None:
    fake_wandb(FAKE + "\ndef Image(*args, **named): raise ImportError('no PIL')\n")
    mirror = mirrors.make()
    mirror.rows(0, simple(0, 3))
    for row in range(3):
        mirror.image(row, "/exp/figures/fig_1.png")
    mirror.rows(3, simple(3, 4))
    assert mirror.finish(TIMEOUT)
    assert mirrors.problems == ["W&B: the figure fig_1.png was left out: ImportError: no PIL"]
