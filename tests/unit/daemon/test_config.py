"""The addresses that a daemon may listen at, and when it may merge."""

from __future__ import annotations

import pytest

from mle_daemon.config import (
    DaemonConfig,
    checked_endpoint,
    checked_merge,
    why_unguarded,
)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5555"),
        ("tcp://127.8.9.1:5555", "tcp://127.8.9.1:5555"),
        ("tcp://localhost:5555", "tcp://127.0.0.1:5555"),
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:*"),
        ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*"),
    ],
)
def test_loopback_is_taken(given: str, used: str) -> None:
    assert checked_endpoint(given) == used
    assert checked_endpoint(used) == used
    assert why_unguarded(used, None) == ""


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "*", "192.168.0.1", "eth0", "lo", "gpu7", "127.0.0.1.example.org", "127", "127.1"],
)
def test_what_others_could_reach_wants_keys(address: str) -> None:
    endpoint = checked_endpoint(f"tcp://{address}:5555")
    why = why_unguarded(endpoint, None)
    assert "other machines" in why
    assert "mle-daemon keys --out DIR" in why
    assert why_unguarded(endpoint, "/keys") == ""


def test_a_socket_file_wants_no_keys() -> None:
    assert why_unguarded(None, None) == ""


@pytest.mark.parametrize("host", ["[::]", "[::1]", "::1", "gpu7;127.0.0.1", "a@b", "a/b", "a\n"])
def test_what_is_no_ipv4_address_or_interface_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r"give an IPv4 address.*tcp://127\.0\.0\.1:PORT"):
        checked_endpoint(f"tcp://{host}:5555")


@pytest.mark.parametrize("text", ["", "5555", "ipc:///tmp/s", "tcp://", "tcp://:1", "tcp://5555"])
def test_what_is_no_tcp_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"give tcp://127\.0\.0\.1:PORT"):
        checked_endpoint(text)


@pytest.mark.parametrize("port", ["", "65536", "-1", "x", "²", "1 "])
def test_what_is_no_port_is_refused(port: str) -> None:
    with pytest.raises(ValueError, match="is no port"):
        checked_endpoint(f"tcp://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("text", "merge", "seconds"),
    [("on-finish", "on-finish", 60.0), ("off", "off", 60.0), ("every=2.5", "every", 2.5)],
)
def test_when_to_merge(text: str, merge: str, seconds: float) -> None:
    assert checked_merge(text) == (merge, seconds)


@pytest.mark.parametrize(
    "text", ["", "on", "every", "every=", "every=0", "every=-1", "every=inf", "every=nan", "off=1"]
)
def test_what_does_not_say_when_to_merge_is_refused_with_what_to_give(text: str) -> None:
    with pytest.raises(ValueError, match="give on-finish, every=SECONDS or off"):
        checked_merge(text)


@pytest.mark.parametrize("merge", ["on-finish", "off", "every=2.5"])
def test_a_daemon_that_is_started_again_merges_as_before(merge: str) -> None:
    word, seconds = checked_merge(merge)
    options = DaemonConfig("/r", merge=word, merge_every_s=seconds).as_options()
    assert options["merge"] == merge
    assert checked_merge(options["merge"])[0] == word
