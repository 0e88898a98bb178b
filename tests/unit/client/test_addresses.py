"""Which addresses others than this user can reach."""

from __future__ import annotations

import pytest

from mle_client import addresses


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1"])
def test_hosts_that_only_this_machine_reaches(host: str) -> None:
    assert addresses.is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        *("", "*", "0.0.0.0", "::", "::1", "[::1]", "192.168.0.1", "eth0", "lo", "gpu7"),
        *("127", "127.1", "127.0.0.01", "0x7f.0.0.1", "2130706433", "127.0.0.1.example.org"),
        *("localhost.example.org", "127.0.0.1 ", "１２７.0.0.1"),  # noqa: RUF001
    ],
)
def test_every_other_host_counts_as_reached_by_others(host: str) -> None:
    assert not addresses.is_loopback(host)


def test_the_host_of_an_address() -> None:
    assert addresses.host_of("tcp://gpu7:5555") == "gpu7"
    assert addresses.host_of("tcp://") == ""


@pytest.mark.parametrize("every", ["*", "0.0.0.0"])
def test_a_daemon_at_every_address_is_reached_by_its_machine(every: str) -> None:
    assert addresses.seen_from_client(f"tcp://{every}:5555", "gpu7") == "tcp://gpu7:5555"


@pytest.mark.parametrize("address", ["tcp://10.0.0.1:5555", "ipc:///run/0.0.0.0"])
def test_another_daemon_is_reached_where_it_says(address: str) -> None:
    assert addresses.seen_from_client(address, "gpu7") == address
