"""What a daemon says about itself, and when it is believed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_client import endpoint as ep
from mle_client import runtime
from mle_client.endpoint import Endpoint


def mine(root: Path | str, **changes: object) -> Endpoint:
    """What this process would say as the daemon of a root."""
    found = Endpoint.of_this_process(
        str(root), "ipc:///s", version="1", daemon_id="d", options={"idle_timeout": 5.0}
    )
    return dataclasses.replace(found, **changes)


@pytest.fixture
def state(root: Path) -> Path:
    path = root / ".mle"
    path.mkdir()
    return path


@pytest.fixture
def written(root: Path, state: Path) -> Endpoint:
    """A live daemon's file."""
    found = mine(root)
    ep.write_endpoint(found)
    return found


def test_what_was_written_is_read(root: Path, written: Endpoint) -> None:
    assert ep.read_endpoint(str(root)) == written
    assert ep.live_daemon(str(root)) == written


def test_the_file_is_replaced_whole(root: Path, state: Path, written: Endpoint) -> None:
    before = os.open(state / "daemon.json", os.O_RDONLY)
    ep.write_endpoint(mine(root, endpoint="ipc:///other"))
    assert Endpoint.from_json(os.read(before, 4096)) == written
    os.close(before)
    assert sorted(os.listdir(state)) == ["daemon.json"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[" * 20_000, '{"pid": 1}', b"\xff\xfe", "null"],
    ids=["empty", "cut", "list", "deep", "few", "binary", "null"],
)
def test_a_garbled_file_is_no_daemon(root: Path, state: Path, text: str | bytes) -> None:
    (state / "daemon.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert ep.read_endpoint(str(root)) is None


@given(st.sampled_from([f.name for f in dataclasses.fields(Endpoint) if f.name != "beat"]))
def test_a_value_of_a_wrong_type_is_refused(name: str) -> None:
    values = json.loads(mine("/r").to_json())
    values[name] = True
    with pytest.raises(ValueError, match="wrong type"):
        Endpoint.from_json(json.dumps(values))


def test_no_process_has_the_pid_0() -> None:
    with pytest.raises(ValueError, match="pid"):
        Endpoint.from_json(mine("/r", pid=0).to_json())


def test_a_later_release_may_say_more() -> None:
    values = json.loads(mine("/r").to_json())
    assert Endpoint.from_json(json.dumps({**values, "more": 1})) == mine("/r")


def test_a_pipe_in_its_place_does_not_hang(root: Path, state: Path) -> None:
    os.mkfifo(state / "daemon.json")
    assert ep.read_endpoint(str(root)) is None


def test_another_users_file_is_not_believed(
    root: Path, written: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In /tmp anyone can make a /tmp/.mle that leads to a socket of theirs."""
    us = os.geteuid() + 1
    monkeypatch.setattr(ep.os, "geteuid", lambda: us)
    assert ep.read_endpoint(str(root)) is None


def test_a_copied_root_has_no_daemon(root: Path, written: Endpoint) -> None:
    copy = root.with_name("copy")
    shutil.copytree(root, copy)
    assert ep.read_endpoint(str(copy)) is None


def test_a_link_to_a_root_is_that_root(root: Path, written: Endpoint) -> None:
    link = root.with_name("link")
    link.symlink_to(root)
    assert ep.read_endpoint(str(link)) == written


def test_a_daemon_at_every_address_is_reached_by_its_machine(written: Endpoint) -> None:
    everywhere = dataclasses.replace(written, endpoint="tcp://0.0.0.0:5555")
    assert ep.reachable_address(everywhere) == "tcp://127.0.0.1:5555"
    remote = dataclasses.replace(everywhere, host="gpu7")
    assert ep.reachable_address(remote) == "tcp://gpu7:5555"
    assert ep.reachable_address(written) == written.endpoint


def test_a_killed_daemon_is_not_alive(root: Path, state: Path) -> None:
    ep.write_endpoint(mine(root, started="1"))
    assert ep.live_daemon(str(root)) is None


def test_a_stopped_daemon_is_not_alive_though_its_process_is(root: Path, written: Endpoint) -> None:
    ep.write_endpoint(written.stopped())
    found = ep.read_endpoint(str(root))
    assert found is not None
    assert not ep.is_alive(found)
    assert ep.is_running(found)


class TestOnAnotherMachine:
    @pytest.fixture
    def remote(self, root: Path, state: Path) -> Endpoint:
        """A daemon there, which calls the root by another path."""
        found = mine("/mnt/other/root", host="elsewhere", pid=2**22 + 1)
        (state / "daemon.json").write_text(found.to_json())
        return found

    def test_it_is_alive_while_it_touches_its_file(self, root: Path, remote: Endpoint) -> None:
        path = root / ".mle" / "daemon.json"
        long_ago = time.time() - ep.STALE_AFTER_S - 1
        os.utime(path, (long_ago, long_ago))
        assert ep.live_daemon(str(root)) is None
        ep.touch_endpoint(str(root))
        assert ep.live_daemon(str(root)) is not None

    def test_its_root_gets_our_path(self, root: Path, remote: Endpoint) -> None:
        found = ep.read_endpoint(str(root))
        assert found == dataclasses.replace(remote, root=str(root))
        assert not ep.is_here(found)


class TestTheCopyInTheSocketFolder:
    def test_it_lists_the_daemon_until_that_leaves(self, root: Path, written: Endpoint) -> None:
        assert list(ep.local_daemons()) == [written]
        ep.write_endpoint(written.stopped())
        assert list(ep.local_daemons()) == []

    def test_removing_leaves_nothing(self, root: Path, state: Path, written: Endpoint) -> None:
        ep.remove_endpoint(str(root))
        ep.remove_endpoint(str(root))
        assert list(state.iterdir()) == list(Path(runtime.socket_dir()).iterdir()) == []

    def test_what_killed_daemons_of_deleted_roots_left_is_cleaned_up(
        self, root: Path, tmp_path: Path, written: Endpoint
    ) -> None:
        gone, lost = tmp_path / "gone", tmp_path / "lost"
        for path, started in ((gone, "1"), (lost, written.started)):
            (path / ".mle").mkdir(parents=True)
            ep.write_endpoint(mine(path, started=started))
            Path(runtime.socket_path(str(path))).touch()
            shutil.rmtree(path)
        ep.write_endpoint(written)
        assert {found.root for found in ep.local_daemons()} == {str(root), str(lost)}
        assert not os.path.exists(runtime.socket_path(str(gone)))
        assert os.path.exists(runtime.socket_path(str(lost)))
