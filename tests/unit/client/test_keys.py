"""Keys are believed only where no other user can read or change them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mle_client import keys
from mle_client.errors import KeysUnusable
from mle_daemon import keys_verb

TCP = "tcp://127.0.0.1:5555"
FAR = "tcp://gpu7:5555"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys_verb.make(str(tmp_path / "keys"))
    return tmp_path / "keys"


def test_both_sides_of_a_folder_fit_each_other(folder: Path) -> None:
    client, server = keys.client_keys(str(folder)), keys.server_keys(str(folder))
    assert client.server == server.public
    assert server.clients == {client.public}
    assert client.secret != server.secret


def test_secrets_are_not_shown(folder: Path) -> None:
    client, server = keys.client_keys(str(folder)), keys.server_keys(str(folder))
    assert client.secret.decode() not in repr(client)
    assert server.secret.decode() not in repr(server)


def test_a_client_needs_no_secret_of_the_daemon(folder: Path) -> None:
    (folder / "server.key_secret").unlink()
    keys.client_keys(str(folder))
    with pytest.raises(KeysUnusable, match=r"server\.key_secret: No such file"):
        keys.server_keys(str(folder))


def test_further_clients_are_let_in_by_their_public_keys(folder: Path, tmp_path: Path) -> None:
    keys_verb.make(str(tmp_path / "other"))
    (folder / "gpu7.key").write_bytes((tmp_path / "other" / "client.key").read_bytes())
    (folder / "client.key").unlink()
    other = keys.client_keys(str(tmp_path / "other"))
    assert keys.server_keys(str(folder)).clients == {other.public}


def test_a_daemon_that_would_let_nobody_in_is_told(folder: Path) -> None:
    (folder / "client.key").unlink()
    with pytest.raises(KeysUnusable, match="no client's key"):
        keys.server_keys(str(folder))


@pytest.mark.parametrize("load", [keys.client_keys, keys.server_keys])
class TestWhatOthersCanGetAt:
    @pytest.mark.parametrize("mode", [0o701, 0o710, 0o720, 0o755, 0o777])
    def test_a_folder_that_is_open_is_refused(self, folder: Path, load, mode: int) -> None:
        folder.chmod(mode)
        with pytest.raises(KeysUnusable, match=f"{folder}: other users can .*chmod 700"):
            load(str(folder))

    @pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o660])
    def test_a_secret_that_is_open_is_refused(self, folder: Path, load, mode: int) -> None:
        for path in folder.glob("*.key_secret"):
            path.chmod(mode)
        with pytest.raises(KeysUnusable, match=r"\.key_secret: other users can .*chmod 600"):
            load(str(folder))

    def test_what_belongs_to_another_user_is_refused(
        self, folder: Path, load, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        us = os.geteuid()
        monkeypatch.setattr(keys.os, "geteuid", lambda: us + 1)
        with pytest.raises(KeysUnusable, match=f"belongs to user {us}"):
            load(str(folder))

    def test_a_folder_that_is_not_there_says_how_to_make_it(self, tmp_path: Path, load) -> None:
        with pytest.raises(KeysUnusable, match="mle-daemon keys --out"):
            load(str(tmp_path / "none"))

    def test_a_file_is_no_folder(self, folder: Path, load) -> None:
        with pytest.raises(KeysUnusable, match="no folder"):
            load(str(folder / "server.key"))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "public-key",
            'public-key = "x"',
            'public-key = "' + "ÿ" * 40 + '"',
            "public-key = " + "#" * 40,
            "\0" * 100,
        ],
    )
    def test_what_is_no_certificate_is_refused(self, folder: Path, load, text: str) -> None:
        for path in folder.iterdir():
            path.write_text(text)
        with pytest.raises(KeysUnusable, match=r"server\.key.*certificate"):
            load(str(folder))

    def test_a_secret_of_another_key_is_refused(self, folder: Path, load, tmp_path: Path) -> None:
        keys_verb.make(str(tmp_path / "other"))
        for name in ("server.key_secret", "client.key_secret"):
            other = keys_verb.make(str(tmp_path / name)).secret.decode()
            ours = (folder / name).read_text().splitlines(keepends=True)
            ours[-1] = f'    secret-key = "{other}"\n'
            (folder / name).write_text("".join(ours))
        with pytest.raises(KeysUnusable, match="no pair of keys"):
            load(str(folder))


class TestWhichAreUsed:
    def test_a_socket_file_wants_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLE_KEYS", "/none")
        assert keys.keys_for("ipc:///s", known=False, advertised=None) is None

    def test_those_of_the_environment_before_those_that_the_daemon_names(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = keys.keys_for(TCP, known=True, advertised=str(folder))
        assert found == keys.client_keys(str(folder))
        monkeypatch.setenv("MLE_KEYS", "/none")
        with pytest.raises(KeysUnusable, match="/none"):
            keys.keys_for(TCP, known=True, advertised=str(folder))

    def test_none_for_a_daemon_of_this_machine_that_wants_none(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert keys.keys_for(TCP, known=False, advertised=None) is None
        monkeypatch.setenv("MLE_KEYS", "/none")
        assert keys.keys_for(TCP, known=True, advertised=None) is None
        with pytest.raises(KeysUnusable):
            keys.keys_for(TCP, known=False, advertised=None)

    @pytest.mark.parametrize("known", [False, True])
    def test_nothing_goes_through_a_network_without_keys(self, known: bool) -> None:
        with pytest.raises(KeysUnusable, match="set MLE_KEYS"):
            keys.keys_for(FAR, known=known, advertised=None)
