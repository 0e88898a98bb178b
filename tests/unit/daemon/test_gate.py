"""Only clients whose key is known get past the gate: real sockets, real handshakes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq
from zmq.utils import z85

from mle_client import artifact_wire as aw
from mle_client import control, keys
from mle_client import messages as m
from mle_client.errors import DaemonUnavailable
from mle_client.keys import ClientKeys, ServerKeys
from mle_daemon import keys_verb
from mle_daemon.artifact_server import ArtifactServer
from mle_daemon.gate import Gate
from mle_daemon.server import Server


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    keys_verb.make(str(tmp_path / "ours"))
    return tmp_path / "ours"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    keys_verb.make(str(tmp_path / "theirs"))
    return tmp_path / "theirs"


@contextmanager
def answering(server_keys: ServerKeys | None) -> Iterator[str]:
    """A server that answers every question, with the number of messages that came."""
    with Server("tcp://127.0.0.1:*", server_keys) as server:
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                for client, message in server.wait(0.02)[0]:
                    if isinstance(message, m.Hello):
                        server.send(client, m.Welcome(m.PROTOCOL_VERSION, "d", "/r", 1, ""))
                    elif isinstance(message, m.AskStatus):
                        server.send(client, m.Status(message.token, {"pid": 1}))

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield server.endpoint
        finally:
            over.set()
            thread.join()


def ask(address: str, with_keys: ClientKeys | None) -> m.Done | m.Status:
    return control.ask(address, m.AskStatus(1), 20.0, keys=with_keys)


def test_a_client_whose_key_is_known_is_let_in(ours: Path) -> None:
    with answering(keys.server_keys(str(ours))) as address:
        assert ask(address, keys.client_keys(str(ours))) == m.Status(1, {"pid": 1})


def test_a_client_whose_key_is_not_known_is_told_what_to_do(ours: Path, theirs: Path) -> None:
    (theirs / "server.key").write_bytes((ours / "server.key").read_bytes())
    with answering(keys.server_keys(str(ours))) as address:
        with pytest.raises(DaemonUnavailable, match=r"does not let the key in .*theirs/client"):
            ask(address, keys.client_keys(str(theirs)))
        assert ask(address, keys.client_keys(str(ours)))


def test_a_daemon_that_lacks_the_secret_is_not_believed(ours: Path, theirs: Path) -> None:
    (ours / "server.key").write_bytes((theirs / "server.key").read_bytes())
    server = keys.server_keys(str(theirs))
    server = ServerKeys(*keys._load_pair(str(ours), "server"), server.clients)
    with (
        answering(server) as address,
        pytest.raises(DaemonUnavailable, match=r"does not have the key in .*ours/server\.key"),
    ):
        ask(address, keys.client_keys(str(ours)))


def test_a_client_without_keys_is_told_to_get_some(ours: Path) -> None:
    with (
        answering(keys.server_keys(str(ours))) as address,
        pytest.raises(DaemonUnavailable, match="it wants keys: set MLE_KEYS"),
    ):
        ask(address, None)


def test_a_daemon_without_keys_is_not_believed_by_a_client_that_has_some(ours: Path) -> None:
    with answering(None) as address, pytest.raises(DaemonUnavailable, match="or uses none"):
        ask(address, keys.client_keys(str(ours)))


def test_artifacts_are_guarded_likewise(ours: Path, theirs: Path, tmp_path: Path) -> None:
    (theirs / "server.key").write_bytes((ours / "server.key").read_bytes())
    server = ArtifactServer(
        "tcp://127.0.0.1:*", str(tmp_path / "s"), lambda event: None, keys.server_keys(str(ours))
    )
    with zmq.Context() as context:
        answered = {}
        for name in ("ours", "theirs", "none"):
            with context.socket(zmq.DEALER) as socket:
                socket.setsockopt(zmq.LINGER, 0)
                if name != "none":
                    keys.client_keys(str(tmp_path / name)).put_on(socket)
                socket.connect(server.endpoint)
                socket.send(b"no message")
                # One that is let in is answered at once; the wait for the others is short for that.
                answered[name] = bool(socket.poll(10_000 if name == "ours" else 300))
                if answered[name]:
                    assert isinstance(aw.decode(socket.recv_multipart()), aw.Declined)
    server.stop()
    assert answered == {"ours": True, "theirs": False, "none": False}
    assert server.garbage == 1


def test_nobody_is_let_in_when_nobody_answers_for_them(ours: Path) -> None:
    """Without somebody to ask, ZeroMQ would let in whoever knows the daemon's public key."""
    with zmq.Context() as context, zmq.Context() as other, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        gate = Gate(other, router, keys.server_keys(str(ours)))  # which the router does not ask
        router.bind("tcp://127.0.0.1:*")
        with context.socket(zmq.DEALER) as dealer:
            dealer.setsockopt(zmq.LINGER, 0)
            keys.client_keys(str(ours)).put_on(dealer)
            dealer.connect(router.get_string(zmq.LAST_ENDPOINT))
            dealer.send(b"hello")
            assert not router.poll(300)
        gate.close()


def test_only_whole_questions_of_our_domain_are_answered_with_yes(ours: Path) -> None:
    server, client = keys.server_keys(str(ours)), keys.client_keys(str(ours))
    right = [b"mle-daemon", b"10.0.0.1", b"", b"CURVE", z85.decode(client.public)]
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        gate = Gate(context, router, server)
        try:
            assert gate._may_enter(right)
            wrong = [[b"other", *right[1:]], [*right[:3], b"PLAIN", right[4]], right[:4], []]
            wrong += [[*right[:4], z85.decode(server.public)], [*right[:3], b"NULL"]]
            assert not any(map(gate._may_enter, wrong))
            assert gate.refused == len(wrong)
        finally:
            gate.close()
