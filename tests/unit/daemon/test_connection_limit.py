"""A socket listens while there are descriptors for more connections, and again when there are."""

from __future__ import annotations

import contextlib
import os
import resource
import socket as sockets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from mle_daemon import connection_limit
from tests.integration import daemons

FEW = 60  # more than there are, before it listens no more; each connection takes two


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """A limit so low that some connections reach it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = (len(os.listdir("/dev/fd")) + FEW) * 4 // 3
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def bound(runtime_dir: Path) -> Iterator[tuple[Any, connection_limit.ConnectionLimit, str]]:
    path = str(runtime_dir / "test.sock")
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(f"ipc://{path}")
        made = connection_limit.ConnectionLimit(socket, f"ipc://{path}")
        yield socket, made, path
        made.close()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def connect(path: str) -> sockets.socket | None:
    connection = sockets.socket(sockets.AF_UNIX)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        return None
    return connection


@pytest.mark.usefixtures("few_descriptors")
def test_no_more_connections_are_taken_than_leave_some_descriptors(
    bound: tuple[Any, connection_limit.ConnectionLimit, str],
) -> None:
    _, made, path = bound
    with contextlib.ExitStack() as connections:
        # More than are let in, fewer than there are descriptors.
        for _ in range(FEW * 6 // 10):
            connection = connect(path)
            if connection is None:
                break
            connections.enter_context(connection)
            assert made.events.poll(5_000)
            made.look()
            if not made.is_open:
                break
        assert not made.is_open
    daemons.wait_for(lambda: made.look() or made.is_open)
    again = connect(path)
    assert again is not None
    again.close()


def test_it_wakes_whoever_polls_when_somebody_comes(
    bound: tuple[Any, connection_limit.ConnectionLimit, str],
) -> None:
    _, made, path = bound
    assert not made.events.poll(0)
    connection = connect(path)
    assert made.events.poll(5_000)
    made.look()
    assert made.is_open
    assert connection is not None
    connection.close()


def test_the_limit_is_raised_to_what_the_process_may_have() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        connection_limit.raise_limit()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == min(hard, connection_limit.WANTED_DESCRIPTORS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
