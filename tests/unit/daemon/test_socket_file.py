"""A socket's file goes with it, unless it has become another's."""

from __future__ import annotations

from pathlib import Path

from mle_daemon.artifact_server import ArtifactServer
from mle_daemon.server import Server
from mle_daemon.socket_file import SocketFile


def test_the_file_of_a_socket_goes_with_it(tmp_path: Path) -> None:
    (tmp_path / "socket").touch()
    file = SocketFile(f"ipc://{tmp_path}/socket")
    file.remove()
    assert list(tmp_path.iterdir()) == []
    file.remove()  # a second time it does nothing


def test_a_file_that_another_one_has_put_there_stays(tmp_path: Path) -> None:
    (tmp_path / "socket").touch()
    file = SocketFile(f"ipc://{tmp_path}/socket")
    (tmp_path / "other").touch()
    (tmp_path / "other").replace(tmp_path / "socket")
    file.remove()
    assert (tmp_path / "socket").exists()
    file.bound()
    file.remove()
    assert not (tmp_path / "socket").exists()


def test_a_port_has_no_file() -> None:
    SocketFile("tcp://127.0.0.1:5555").remove()


def test_a_server_that_leaves_does_not_take_the_next_one_s_file(runtime_dir: Path) -> None:
    path = runtime_dir / "a.sock"
    first = Server(f"ipc://{path}")
    with Server(f"ipc://{path}"):
        first.close()
        assert path.exists()
    assert not path.exists()


def test_nor_does_one_for_artifacts(runtime_dir: Path) -> None:
    path = runtime_dir / "a.art.sock"
    first, second = (
        ArtifactServer(f"ipc://{path}", str(runtime_dir / "staging"), lambda event: None)
        for _ in range(2)
    )
    first.stop()
    assert path.exists()
    second.stop()
    assert not path.exists()
