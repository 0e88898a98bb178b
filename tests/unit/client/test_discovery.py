"""Which daemon is in charge of a folder, and how one is started."""

from __future__ import annotations

import dataclasses
import os
import site
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mle_client import discovery
from mle_client.discovery import Target, find_root, resolve, root_of_address
from mle_client.endpoint import Endpoint, write_endpoint
from mle_client.errors import DaemonStartFailed


def daemon_at(folder: Path, address: str = "ipc:///s", **changes: Any) -> Endpoint:
    """Make a folder the root of this process."""
    (folder / ".mle").mkdir(parents=True, exist_ok=True)
    found = Endpoint.of_this_process(
        os.path.realpath(folder), address, version="1", daemon_id="d", options={}
    )
    found = dataclasses.replace(found, **changes)
    write_endpoint(found)
    return found


def killed_at(folder: Path, address: str = "ipc:///s") -> Endpoint:
    return daemon_at(folder, address, started="1")


class TestFindRoot:
    def test_without_a_daemon_an_experiment_is_its_own_root(self, root: Path) -> None:
        assert find_root(str(root / "run")) == str(root / "run")

    def test_the_nearest_live_daemon_above_is_taken(self, root: Path) -> None:
        daemon_at(root)
        daemon_at(root / "a")
        assert find_root(str(root / "a" / "b" / "c")) == str(root / "a")
        assert find_root(str(root / "b")) == str(root)
        assert find_root(str(root)) == str(root)

    def test_a_live_daemon_goes_before_a_nearer_killed_one(self, root: Path) -> None:
        daemon_at(root)
        killed_at(root / "a")
        assert find_root(str(root / "a" / "b")) == str(root)

    def test_a_killed_daemon_has_to_be_started_again(self, root: Path) -> None:
        killed_at(root)
        assert find_root(str(root / "a")) == str(root)

    def test_a_stopped_daemon_does_not(self, root: Path) -> None:
        daemon_at(root, state="stopped")
        assert find_root(str(root / "a")) == str(root / "a")

    def test_links_are_followed_before_looking_up(self, root: Path, tmp_path: Path) -> None:
        daemon_at(root)
        (tmp_path / "link").symlink_to(root / "run")
        assert find_root(str(tmp_path / "link")) == str(root)


class TestResolve:
    def test_nothing_said_and_no_daemon(self, root: Path) -> None:
        assert resolve(None, str(root / "run")) == Target(str(root / "run"), None, own=True)

    def test_nothing_said_and_a_daemon_above(self, root: Path) -> None:
        daemon_at(root)
        assert resolve(None, str(root / "run")) == Target(str(root), "ipc:///s", own=False)

    def test_nothing_said_and_a_killed_daemon_above(self, root: Path) -> None:
        killed_at(root)
        assert resolve(None, str(root / "run")) == Target(str(root), None, own=False)

    def test_embedded_looks_for_no_other(self, root: Path) -> None:
        daemon_at(root)
        where = str(root / "run")
        assert resolve("embedded", where) == Target(where, None, own=True)

    @pytest.mark.parametrize("empty", [True, False])
    def test_the_variable_counts_unless_it_is_empty(
        self, root: Path, monkeypatch: pytest.MonkeyPatch, empty: bool
    ) -> None:
        daemon_at(root)
        monkeypatch.setenv("MLE_DAEMON", "" if empty else "embedded")
        assert resolve(None, str(root / "run")).own is not empty

    def test_the_argument_goes_before_the_variable(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        daemon_at(root)
        monkeypatch.setenv("MLE_DAEMON", "embedded")
        assert resolve("auto", str(root / "run")).root == str(root)

    def test_a_root_folder_need_not_have_a_daemon_yet(self, root: Path) -> None:
        target = resolve(str(root / "new"), str(root / "new" / "run"))
        assert target == Target(str(root / "new"), None, own=True)

    @pytest.mark.parametrize("address", ["ipc:///s", "tcp://127.0.0.1:5555"])
    def test_an_address_leads_to_its_root(self, root: Path, address: str) -> None:
        daemon_at(root, address)
        assert resolve(address, str(root / "run")) == Target(str(root), address, own=False)

    def test_an_address_of_no_daemon_known_here_is_taken_at_its_word(self, root: Path) -> None:
        where = str(root / "run")
        assert resolve("tcp://127.0.0.1:1", where) == Target(where, "tcp://127.0.0.1:1", own=False)

    def test_an_address_of_another_root_is_refused(self, root: Path, tmp_path: Path) -> None:
        daemon_at(root)
        with pytest.raises(ValueError, match=rf"serves {root}, and .*/else/run is outside"):
            resolve("ipc:///s", str(tmp_path / "else" / "run"))

    @pytest.mark.parametrize(
        "nonsense",
        [
            *("", "automatic", "http://127.0.0.1:1", "tcp://", "tcp://nowhere", "ipc://"),
            *("tcp://127.0.0.1:x", "tcp://127.0.0.1:", "tcp://127.0.0.1:0", "tcp://:5555"),
            *("tcp://127.0.0.1:65536", "tcp://127.0.0.1:²", "tcp://127.0.0.1:" + "1" * 5000),
        ],
        ids=lambda address: address[:30],
    )
    def test_nonsense_is_refused_with_what_to_give(self, root: Path, nonsense: str) -> None:
        with pytest.raises(ValueError, match=r"'auto'.*'embedded'"):
            resolve(nonsense, str(root / "run"))

    def test_a_file_is_no_root(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (root / "file").touch()
        monkeypatch.setenv("MLE_DAEMON", str(root / "file"))
        with pytest.raises(ValueError, match=r"MLE_DAEMON=.*neither"):
            resolve(None, str(root / "file" / "run"))


class TestRootOfAddress:
    def test_it_is_unknown_where_nobody_listens(self) -> None:
        assert root_of_address("ipc:///s") is None

    def test_a_live_daemon_goes_before_a_killed_one_that_had_the_port(self, root: Path) -> None:
        """Whatever the order in which the folder lists them."""
        for name in "abcdef":
            killed_at(root / name)
        daemon_at(root / "live")
        assert root_of_address("ipc:///s") == str(root / "live")

    def test_a_daemon_at_every_address_is_known_by_that_which_clients_use(self, root: Path) -> None:
        daemon_at(root, "tcp://0.0.0.0:5555")
        assert root_of_address("tcp://127.0.0.1:5555") == str(root)
        assert root_of_address("tcp://0.0.0.0:5555") == str(root)
        assert root_of_address("tcp://127.0.0.1:5556") is None

    def test_a_killed_daemon_is_remembered_by_its_address(self, root: Path) -> None:
        killed_at(root)
        assert root_of_address("ipc:///s") == str(root)


@pytest.mark.parametrize(
    ("path", "root", "inside"),
    [
        ("/a/b", "/a", True),
        ("/a", "/a", True),
        ("/ab", "/a", False),
        ("/a", "/a/b", False),
        ("/a", "/", True),
    ],
)
def test_is_inside(path: str, root: str, inside: bool) -> None:
    assert discovery.is_inside(path, root) is inside


class TestPythonEnvironment:
    def test_a_source_folder_is_passed_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PYTHONPATH", "relative" + os.pathsep + os.pathsep)
        source = str(Path(discovery.__file__).parents[1])
        paths = discovery.python_environment()["PYTHONPATH"].split(os.pathsep)
        assert paths == [os.path.abspath("relative"), source]

    def test_site_packages_do_not_come_before_the_standard_library(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = str(Path(discovery.__file__).parents[1])
        monkeypatch.setattr(site, "getsitepackages", lambda: [source])
        monkeypatch.delenv("PYTHONPATH", raising=False)
        assert "PYTHONPATH" not in discovery.python_environment()


class TestStartDaemon:
    """With a program in its place; `tests/integration` has the real one."""

    @pytest.fixture
    def program(self, monkeypatch: pytest.MonkeyPatch):
        def use(code: str) -> None:
            monkeypatch.setattr(
                discovery, "python_command", lambda *words: [sys.executable, "-c", code, *words]
            )

        return use

    def test_it_returns_what_the_program_prints(self, root: Path, program: Any) -> None:
        found = daemon_at(root)
        program(f"print({found.to_json()!r})")
        assert discovery.start_daemon(str(root), idle_timeout=None) == found

    def test_it_passes_its_options_on(self, root: Path, program: Any) -> None:
        program("import sys; sys.exit(' '.join(sys.argv[1:]))")
        with pytest.raises(DaemonStartFailed) as failure:
            discovery.start_daemon(
                str(root), idle_timeout=5, endpoint="tcp://127.0.0.1:0", keys="/keys"
            )
        assert failure.value.why == (
            f"start --root {root} --json --idle-timeout 5 --endpoint tcp://127.0.0.1:0 --keys /keys"
        )

    def test_one_that_was_killed_is_started_as_it_was(self, root: Path, program: Any) -> None:
        merging = {"merge": "every=9", "merge_settle": 3.0, "keep_seed_logs": True}
        options = {"idle_timeout": 5, "endpoint": "tcp://10.0.0.1:*", "keys": "/keys", **merging}
        daemon_at(root, options=options)
        program("import sys; sys.exit(' '.join(sys.argv[1:]))")
        with pytest.raises(DaemonStartFailed) as failure:
            discovery.start_again(str(root))
        assert failure.value.why == (
            f"start --root {root} --json --idle-timeout 5 --endpoint tcp://10.0.0.1:* --keys /keys "
            "--merge every=9 --merge-settle 3.0 --keep-seed-logs"
        )

    def test_one_of_an_earlier_release_merges_as_the_environment_says(
        self, root: Path, program: Any
    ) -> None:
        daemon_at(root, options={"idle_timeout": None, "endpoint": None})
        program("import sys; sys.exit(' '.join(sys.argv[1:]))")
        with pytest.raises(DaemonStartFailed) as failure:
            discovery.start_again(str(root))
        assert failure.value.why == f"start --root {root} --json"

    def test_the_last_words_of_a_failure_are_told(self, root: Path, program: Any) -> None:
        program("import sys; print('x\\n' * 100 + 'disk on fire', file=sys.stderr)")
        with pytest.raises(DaemonStartFailed, match="disk on fire") as failure:
            discovery.start_daemon(str(root), idle_timeout=None)
        assert failure.value.root == str(root)
        assert len(failure.value.why) < 100

    def test_a_program_that_hangs_is_given_up(self, root: Path, program: Any) -> None:
        program("import time; time.sleep(60)")
        with pytest.raises(DaemonStartFailed, match=r"not ready after 0\.2 s"):
            discovery.start_daemon(str(root), idle_timeout=None, timeout=0.2)

    def test_an_interpreter_that_is_not_there(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "executable", "")
        with pytest.raises(DaemonStartFailed, match="does not run"):
            discovery.start_daemon(str(root), idle_timeout=None)

    def test_a_trainer_that_reaps_all_children_does_not_disturb_it(
        self, root: Path, program: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Then the exit status is lost, and only what was printed counts."""
        found = daemon_at(root)
        program(f"print({found.to_json()!r})")
        real = subprocess.run

        def run(*args: Any, **options: Any) -> Any:
            done = real(*args, **options)
            done.returncode = -1
            return done

        monkeypatch.setattr(subprocess, "run", run)
        assert discovery.start_daemon(str(root), idle_timeout=None) == found


def test_finding_loads_neither_zmq_nor_psutil_nor_numpy() -> None:
    code = (
        "import sys, mle_client.discovery; print(sorted({'zmq','psutil','numpy'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=discovery.python_environment(),
    )
    assert done.stdout == "[]\n"
