"""The command line, without a daemon; `tests/integration/test_cli_processes.py` has one."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mle_client import control
from mle_client.discovery import python_command, python_environment
from mle_client.endpoint import Endpoint
from mle_client.errors import (
    DaemonSilent,
    DaemonStartFailed,
    DaemonUnavailable,
    LogDamaged,
    RootLocked,
)
from mle_client.keys import server_keys
from mle_daemon import cli
from mle_daemon.config import DaemonConfig

DOCUMENT = Path(__file__).parents[3] / "docs" / "cli.md"
VERBS = ("start", "status", "stop", "keys", "merge", "plot", "doctor", "recover")

ARGUMENT = {"keys": "--out"}  # of the verbs that do not begin with a root

RUN = {
    "experiment_dir": "/r/lr_0.1",
    "seed_id": "seed_1",
    "state": "running",
    "ticks": {"received": 1200, "journaled": 1200, "published": 1000, "lost": 3},
    "lag_s": 0.94,
    "bytes_waiting": 24_700,
    "last_error": "",
}
GROUP = {
    "directory": "/r/lr_0.1",
    "expected": None,
    "running": 2,
    "finished": 0,
    "crashed": 1,
    "merged": 0,
    "state": "failed",
    "why": "disk\nfull",
}
REPORT = {
    "pid": 4242,
    "endpoint": "ipc:///s",
    "root": "/r",
    "uptime_s": 738.0,
    "version": "0.1.0",
    "degraded": "",
    "runs": [RUN, {**RUN, "seed_id": "s2", "lag_s": 0.0, "last_error": "disk\nfull"}],
    "groups": [GROUP, {**GROUP, "directory": "/r", "expected": 4, "why": ""}],
    "meta_logs": [{"directory": "/r", "state": "merged", "why": ""}],
}


def endpoint(root: Path) -> Endpoint:
    return Endpoint.of_this_process(
        str(root), "tcp://127.0.0.1:1", version="1", daemon_id="d", options={}
    )


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[DaemonConfig]:
    """What was asked to be started.  The second one is there already."""
    asked: list[DaemonConfig] = []

    def ensure_running(config: DaemonConfig) -> tuple[Endpoint, bool]:
        asked.append(config)
        return endpoint(Path(config.root)), len(asked) > 1

    monkeypatch.setattr(cli.launch, "ensure_running", ensure_running)
    return asked


class TestUsage:
    @pytest.mark.parametrize(
        "line",
        [
            "",
            "begin --root r",
            "start",
            "start --root r --idle-timeout 0",
            "start --root r --idle-timeout nan",
            "start --root r --idle-timeout soon",
            "start --root r --endpoint tcp://[::1]:5555",
            "start --root r --fore",
            "stop --root r --timeout -1",
            "status --root r --foreground",
            "start --root r --merge sometimes",
            "start --root r --merge every=0",
            "start --root r --merge every",
            "start --root r --merge-settle -1",
            "start --root=",
            "status --root=",
            "stop --root=",
            "merge --root=",
            "merge",
            "plot --root r",
            "plot loss",
            "plot --root= loss",
            "plot --root r loss --band sem",
            "plot --root r loss --smooth 0",
            "plot --root r loss --smooth 1.5",
            "plot --root r loss --runs",
            "plot --root r loss -o picture.docx",
        ],
    )
    def test_what_makes_no_sense_exits_with_2_and_a_message(
        self, line: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as exit:
            cli.main(line.split())
        assert exit.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "mle-daemon" in err

    def test_an_empty_root_is_explained(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            cli.main(["start", "--root", ""])
        assert "--root: it is empty: give a folder" in capsys.readouterr().err

    @pytest.mark.parametrize("below", ["", "/exp"])
    def test_a_root_that_cannot_be_made_is_explained(
        self, root: Path, capsys: pytest.CaptureFixture[str], below: str
    ) -> None:
        (root / "file").touch()
        assert cli.main(["start", "--root", f"{root}/file{below}"]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"mle-daemon: --root {root}/file{below} is no folder, and none can")
        assert "give a folder of yours" in error

    def test_a_refused_address_is_explained(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["start", "--root", "r", "--endpoint", "tcp://0.0.0.0:5555"]) == 2
        assert "would let other machines" in capsys.readouterr().err
        assert not os.path.exists("r")

    @pytest.mark.parametrize("words", ["keys", "start --root r --keys k"])
    def test_keys_without_their_place_are_explained(
        self, words: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(words.split()) == 2
        assert re.search(r"--out DIR|give --endpoint", capsys.readouterr().err)
        assert not os.path.exists("r")

    @pytest.mark.parametrize("verb", [None, *VERBS])
    def test_help_has_an_example_of_each_verb(
        self, verb: str | None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as exit:
            cli.main([verb, "--help"] if verb else ["--help"])
        assert exit.value.code == 0
        out = capsys.readouterr().out
        for name in [verb] if verb else VERBS:
            assert f"mle-daemon {name} {ARGUMENT.get(name, '--root exp/')}" in out

    def test_every_example_is_a_command_line_that_is_understood(self) -> None:
        for example in "\n".join(cli._EXAMPLES.values()).splitlines():
            words = re.split(r"\s{2,}|\|", example)[0].split()
            assert cli._parser().parse_args(words[1:]).verb in VERBS

    def test_everything_is_documented(self) -> None:
        text = DOCUMENT.read_text()
        parsers = [cli._parser()]
        (verbs,) = [a for a in parsers[0]._actions if isinstance(a, argparse._SubParsersAction)]
        assert tuple(verbs.choices) == VERBS
        for parser in [*parsers, *verbs.choices.values()]:
            for action in parser._actions:
                if action.help != argparse.SUPPRESS:
                    assert all(f"`{word}" in text for word in action.option_strings[-1:])
        for verb in VERBS:
            assert f"`{verb} {ARGUMENT.get(verb, '--root')} DIR`" in text
        for key in [*REPORT, *RUN, *GROUP]:
            assert f"`{key}`" in text


class TestKeys:
    def test_they_are_made_and_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = str(tmp_path / "keys")
        assert cli.main(["keys", "--out", folder, "--json"]) == 0
        public = server_keys(folder).public.decode()
        assert json.loads(capsys.readouterr().out) == {"folder": folder, "server": public}
        assert cli.main(["keys", "--out", folder]) == 1
        assert "never replaced" in capsys.readouterr().err

    def test_they_go_where_the_environment_says(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("MLE_KEYS", str(tmp_path / "keys"))
        assert cli.main(["keys"]) == 0
        assert capsys.readouterr().out.startswith(f"folder  {tmp_path}/keys\nserver  ")


class TestVersion:
    @pytest.mark.parametrize("words", [["--version", "--json"], ["--json", "--version"]])
    def test_as_json(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(words) == 0
        found = json.loads(capsys.readouterr().out)
        assert sorted(found) == sorted(
            ["mle_daemon", "file_format", "wire_protocol", "h5py", "hdf5", "libzmq"]
        )
        assert found["wire_protocol"] == 1
        assert re.fullmatch(r"\d+\.\d+\.\d+", found["libzmq"])

    def test_as_text(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["--version"]) == 0
        assert re.match(r"mle-daemon +\d+\.\d+", capsys.readouterr().out)


class TestStart:
    def test_it_prints_where_the_daemon_listens(
        self, root: Path, started: list[DaemonConfig], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["start", "--root", str(root)]) == 0
        out, err = capsys.readouterr()
        assert out.splitlines()[1:] == ["endpoint  tcp://127.0.0.1:1", f"root      {root}"]
        assert err == ""

    def test_of_a_daemon_that_is_there_it_prints_the_same_and_says_so(
        self, root: Path, started: list[DaemonConfig], capsys: pytest.CaptureFixture[str]
    ) -> None:
        cli.main(["start", "--root", str(root)])
        first = capsys.readouterr()
        assert cli.main(["start", "--root", str(root)]) == 0
        second = capsys.readouterr()
        assert second.out == first.out
        assert second.err == f"mle-daemon: a daemon already serves {root}\n"

    @pytest.mark.parametrize("line", ["start --json --root", "--json start --root"])
    def test_as_json_it_is_one_line(
        self,
        root: Path,
        started: list[DaemonConfig],
        capsys: pytest.CaptureFixture[str],
        line: str,
    ) -> None:
        cli.main([*line.split(), str(root)])
        (text,) = capsys.readouterr().out.splitlines()
        assert Endpoint.from_json(text) == endpoint(root)

    def test_the_root_is_made_and_links_are_resolved(
        self, root: Path, started: list[DaemonConfig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (root / "link").symlink_to(root)
        monkeypatch.chdir(root)
        assert cli.main(["start", "--root", "link/a/b/"]) == 0
        assert started == [DaemonConfig(str(root / "a" / "b"), merge="off")]
        assert (root / "a" / "b").is_dir()

    def test_keys_reach_a_daemon_at_a_port(
        self, root: Path, started: list[DaemonConfig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLE_KEYS", "/theirs")
        port = ["--endpoint", "tcp://0.0.0.0:5555"]
        assert cli.main(["start", "--root", str(root), *port]) == 0
        assert cli.main(["start", "--root", str(root), *port, "--keys", "~/k"]) == 0
        assert cli.main(["start", "--root", str(root)]) == 0
        assert [each.keys for each in started] == ["/theirs", os.path.expanduser("~/k"), None]

    def test_options_reach_the_daemon(self, root: Path, started: list[DaemonConfig]) -> None:
        line = f"start --root {root} --idle-timeout 2.5 --endpoint tcp://localhost:0"
        assert cli.main(line.split()) == 0
        assert started == [DaemonConfig(str(root), "tcp://127.0.0.1:*", 2.5, merge="off")]

    def test_options_of_merging_reach_the_daemon(
        self, root: Path, started: list[DaemonConfig]
    ) -> None:
        line = f"start --root {root} --merge every=2.5 --merge-settle 7 --keep-seed-logs"
        assert cli.main(line.split()) == 0
        (config,) = started
        assert (config.merge, config.merge_every_s) == ("every", 2.5)
        assert (config.merge_settle_s, config.keep_seed_logs) == (7.0, True)

    def test_the_environment_says_when_to_merge_if_the_command_line_does_not(
        self, root: Path, started: list[DaemonConfig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLE_MERGE", "every=5")
        monkeypatch.setenv("MLE_KEEP_SEED_LOGS", "1")
        assert cli.main(["start", "--root", str(root)]) == 0
        assert cli.main(["start", "--root", str(root), "--merge", "on-finish"]) == 0
        assert [each.merge for each in started] == ["every", "on-finish"]
        assert all(each.keep_seed_logs for each in started)

    def test_without_a_word_seeds_are_merged_when_all_have_ended(
        self, root: Path, started: list[DaemonConfig], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MLE_MERGE")
        assert cli.main(["start", "--root", str(root)]) == 0
        assert started == [DaemonConfig(str(root))]
        assert started[0].merge == "on-finish"

    def test_in_the_foreground_its_exit_status_is_the_daemons(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def run_here(config: DaemonConfig, announce: Any, ready_fd: int | None) -> int:
            assert ready_fd is None
            announce(endpoint(root))
            return 9

        monkeypatch.setattr(cli.launch, "run_here", run_here)
        assert cli.main(["start", "--root", str(root), "--foreground"]) == 9
        assert "tcp://127.0.0.1:1" in capsys.readouterr().out

    def test_the_words_of_a_daemon_that_did_not_start_are_passed_on(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def ensure_running(config: DaemonConfig) -> None:
            failure = DaemonStartFailed(config.root, "mle-daemon: the journal is damaged")
            failure.exit_code = 6
            raise failure

        monkeypatch.setattr(cli.launch, "ensure_running", ensure_running)
        assert cli.main(["start", "--root", str(root)]) == 6
        assert capsys.readouterr() == ("", "mle-daemon: the journal is damaged\n")


class TestStatus:
    def show(self, root: Path, monkeypatch: pytest.MonkeyPatch, report: Any, *words: str) -> int:
        monkeypatch.setattr(control, "status", lambda *_: report)
        return cli.main(["status", "--root", str(root), *words])

    def test_as_json_it_is_the_report(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.show(root, monkeypatch, REPORT, "--json") == 0
        assert json.loads(capsys.readouterr().out) == REPORT

    def test_as_text_it_is_an_aligned_table(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.show(root, monkeypatch, REPORT) == 0
        assert capsys.readouterr().out == (
            "pid       4242\n"
            "endpoint  ipc:///s\n"
            "root      /r\n"
            "uptime    12.3 min\n"
            "version   0.1.0\n"
            "\n"
            "experiment  seed    state    received  journaled  published  lost    lag  waiting"
            "  last error\n"
            "lr_0.1      seed_1  running      1200       1200       1000     3  0.9 s  24.7 kB"
            "  -\n"
            "lr_0.1      s2      running      1200       1200       1000     3  0.0 s  24.7 kB"
            "  disk full\n"
            "\n"
            "group   seeds  running  finished  crashed  merged  merge   why\n"
            "lr_0.1      ?        2         0        1       0  failed  disk full\n"
            ".           4        2         0        1       0  failed  -\n"
            "\n"
            "folder  meta log  why\n"
            ".       merged    -\n"
        )

    def test_trouble_is_shown(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report = {**REPORT, "degraded": "disk full", "runs": [], "groups": [], "meta_logs": []}
        assert self.show(root, monkeypatch, report) == 0
        assert capsys.readouterr().out.endswith("DEGRADED  disk full\n\nno runs\n")

    def test_a_daemon_of_an_earlier_release_has_neither_groups_nor_meta_logs(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        report = {key: value for key, value in REPORT.items() if key not in ("groups", "meta_logs")}
        assert self.show(root, monkeypatch, report) == 0
        assert capsys.readouterr().out.endswith("disk full\n")

    def test_a_reader_that_has_seen_enough_is_no_error_to_speak_of(self, root: Path) -> None:
        code = (
            "import sys; from mle_client import control; from mle_daemon import cli;"
            f"control.status = lambda *_: {REPORT!r};"
            f"sys.exit(cli.main(['status', '--root', {str(root)!r}]))"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=python_environment(),
        ) as process:
            assert process.stdout is not None
            process.stdout.close()
            assert process.stderr is not None
            assert process.stderr.read() == b""


class TestStop:
    def test_all_on_disk(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked = []
        monkeypatch.setattr(control, "stop", lambda *words: asked.append(words) or "")
        assert cli.main(["stop", "--root", str(root), "--timeout", "7"]) == 0
        assert asked == [(str(root), 7.0)]
        out, err = capsys.readouterr()
        assert out == ""
        assert "is on disk" in err

    def test_something_missing(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(control, "stop", lambda *_: "the disk is full")
        assert cli.main(["stop", "--root", str(root)]) == 7
        assert "stopped, but the disk is full" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["status", "stop"])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DaemonUnavailable("/r", "none runs there"), 4),
        (DaemonSilent("/r", "stopped"), 1),
        (RootLocked("/r", "pid 7"), 5),
        (LogDamaged("/r", "torn"), 6),
        (OSError("disk on fire"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_are_a_message_and_an_exit_code(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    error: BaseException,
    code: int,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(control, verb, fail)
    assert cli.main([verb, "--root", str(root)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert str(error) in err


@pytest.mark.parametrize("verb", ["status", "stop"])
def test_a_folder_that_is_not_there(
    root: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert cli.main([verb, "--root", str(root / "none")]) == 3
    assert str(root / "none") in capsys.readouterr().err


def test_starting_where_a_daemon_lives_loads_no_large_library(root: Path) -> None:
    """Every trainer that finds no daemon waits for this, and fifty may do so at once."""
    there = endpoint(root).to_json()
    code = (
        "import sys; from mle_daemon import cli, launch;"
        f"launch.ensure_running = lambda _: (cli.Endpoint.from_json({there!r}), True);"
        f"cli.main(['start', '--root', {str(root)!r}]);"
        "print(sorted({'h5py', 'numpy', 'psutil', 'zmq', 'mle_daemon.daemon'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=python_environment()
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_module_is_the_program() -> None:
    done = subprocess.run(
        python_command("--version", "--json"), capture_output=True, env=python_environment()
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["mle_daemon"]
