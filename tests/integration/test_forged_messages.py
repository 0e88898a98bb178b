"""Messages that no client of ours sends, over real sockets: nothing outside of the root changes."""

from __future__ import annotations

import itertools
import os
import secrets
import socket as sockets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq

from mle_client import MLELogger, load_log, message_wire, tick_writers, wire
from mle_client import artifact_wire as aw
from mle_client import messages as m
from mle_client.messages import ProducerId
from tests.daemon_rig import STEP, make_run
from tests.integration import daemons


class Forger:
    """Speaks the protocol, and says whatever it likes.  Args: address: of a daemon."""

    def __init__(self, context: zmq.Context[Any], address: str) -> None:
        self._tokens = itertools.count(1)
        self.socket = self._connect(context, address)
        self.say(m.Hello(m.PROTOCOL_VERSION, os.getpid(), sockets.gethostname()))
        welcome = self.hear()
        assert isinstance(welcome, m.Welcome)
        self.artifacts = self._connect(context, welcome.artifacts)

    @staticmethod
    def _connect(context: zmq.Context[Any], address: str) -> Any:
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        return socket

    def say(self, message: m.Request) -> None:
        self.socket.send_multipart(message_wire.encode(message))

    def hear(self) -> m.Message:
        assert self.socket.poll(10_000), "no answer"
        return message_wire.decode(self.socket.recv_multipart())

    def forge(self, run: m.Run, *artifacts: m.Artifact) -> str:
        """Log a tick, and save, to a run.  Returns: why that is refused, or failed."""
        producer = ProducerId(secrets.token_bytes(16))
        records = [wire.encode_record(run), wire.encode_record(STEP)]
        records += [tick_writers.pack_fixed(STEP, 1.0, (1,)), *map(wire.encode_record, artifacts)]
        stream = b"".join(records)
        for artifact in artifacts:
            offer = aw.Offer(producer, artifact.number, 4, aw.FILE)
            for message in (offer, aw.Chunk(producer, artifact.number, 0, b"evil")):
                self.artifacts.send_multipart(aw.encode(message))
        token = next(self._tokens)
        self.say(m.Data(producer, 0, stream))
        self.say(m.Flush(token, producer, len(stream)))
        why, waited_for = "", 1 + len(artifacts)
        while waited_for and not why:
            match self.hear():
                case m.Refused(about, reason) | m.Notice(about, reason) if about == producer:
                    why = reason
                case m.Done(about, error) if about == token:
                    waited_for, why = waited_for - 1, error
                case m.Stored(about, _, error) if about == producer:
                    waited_for, why = waited_for - 1, error
                case m.Expect(about, position) if about == producer:
                    self.say(m.Data(producer, position, stream[position:]))
                    self.say(m.Flush(token, producer, len(stream)))
        return why

    def close(self) -> None:
        self.socket.close()
        self.artifacts.close()


@contextmanager
def forger(address: str) -> Iterator[Forger]:
    with zmq.Context() as context:
        found = Forger(context, address)
        try:
            yield found
        finally:
            found.close()


def everything(*folders: Path) -> dict[str, tuple[int, int, int]]:
    """Everything in some folders: paths, and what would change if it was written to."""
    found = {}
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            status = path.lstat()
            found[str(path)] = status.st_ino, status.st_size, status.st_mtime_ns
    return found


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """What is outside of the root: a folder with a thesis in it."""
    outside = tmp_path / "outside"
    for name in ("logs", "models/final", "figures", "extra", ".mle/staging", "tboards", "wandb"):
        (outside / name).mkdir(parents=True)
        (outside / name / "thesis").write_text("precious")
    for name in ("logs/log_seed_1.hdf5", "logs/log.hdf5", "models/final/final_seed_1.pkl"):
        (outside / name).write_text("precious")
    return outside


def new_run(root: Path, **changes: Any) -> m.Run:
    known = {"directory": f"{root}/forged", "process": m.Process(os.getpid(), "h", "1", "b")}
    return make_run(secrets.token_hex(8), **{**known, **changes})


def test_paths_from_the_wire_lead_nowhere(root: Path, world: Path) -> None:
    """And a neighbour's run, on another connection, has all its ticks and its own files."""
    deep = "/".join(["x" * 250] * 20)
    links = ["link", "logs_link", "models_link"]
    (root / "link").symlink_to(world)
    for name, target in (("logs_link", "logs"), ("models_link", "models")):
        (root / name).mkdir()
        (root / name / target).symlink_to(world / target)
    directories = [
        "", "/", ".", "..", "exp", "../outside", f"{root}", f"{root}/../outside", f"{root}/a/..",
        f"{root}x/exp", f"{world}", f"{root}/link", f"{root}/link/deeper", f"{root}/./link/.",
        f"{root}/logs_link", f"{root}/.mle", f"{root}/.mle/staging", f"{root}/.mle/../.mle/journal",
        f"{root}/nul\0", f"{root}/{'x' * 300}", f"{root}/{deep}", f"{root}//../outside",
        f"{root}\uff0f..\uff0foutside", f"~/{root}", f"{root}/a\n/../../outside", f"file://{root}",
    ]  # fmt: skip
    harmless = [f"{root}", f"{root}/\uff0e\uff0e/outside", f"{root}/\\..\\outside", f"{root}/ä\n"]
    harmless += [f"{root}/\u202egnp.x", f"{root}/./exp2//"]
    refused = [new_run(root, directory=each) for each in directories if each not in harmless]
    names = ("..", "../x", "a/b", "/etc/x", "nul\0", "x" * 201)
    refused += [new_run(root, seed_id=each) for each in ("", ".", "../../logs/x", *names)]
    for_files = (*names, ".mle", "logs", "a.hdf5")
    refused += [new_run(root, config_name=each, config_file=b"evil") for each in for_files]
    taken = [new_run(root, directory=each) for each in harmless]
    taken += [new_run(root, seed_id=each) for each in ("\uff0e\uff0e", "..\\x", "a\nb", "\u202ex")]
    figure = ["../x.png", "/etc/x.png", "figures/../../x", "logs/log_seed_1.hdf5", "figures/nul\0"]
    figure += ["figures/", "figures/.", "figures//", "figures/..", "extra/x.png", "figures/" + deep]
    before = everything(world, *(root / link for link in links))
    with daemons.running(root) as said, forger(said["endpoint"]) as forge:
        with MLELogger(str(root / "neighbour"), ["step"], ["loss"], seed_id="seed_1") as log:
            numbers = itertools.count()
            for run in refused:
                log.update({"step": next(numbers)}, {"loss": 0.0})
                assert forge.forge(run), (run.directory, run.seed_id, run.config_name)
            for name in figure:
                assert forge.forge(new_run(root), m.Artifact(1, "figure", name, {})), name
            model = {"number": 1, "time": None, "metrics": {}, "clocks": {}}
            through_a_link = new_run(root, directory=f"{root}/models_link", model_type="numpy")
            why = forge.forge(through_a_link, m.Artifact(1, "model", "", model))
            assert "replace the link by a folder" in why
            for run in taken:
                log.update({"step": next(numbers)}, {"loss": 0.0})
                assert forge.forge(run) == "", (run.directory, run.seed_id)
            assert log.flush(10)
        report = daemons.status(root)
        assert report["degraded"] == ""
        (root / "models_link" / "logs").rename(root / "its_logs")  # the one thing that it may have
        assert everything(world, *(root / link for link in links)).keys() == before.keys()
    after = everything(world)
    assert after == {path: before[path] for path in after}
    assert load_log(str(root / "neighbour")).seed_1.time.step.tolist() == list(range(next(numbers)))
    assert not any("evil" in path.read_text(errors="replace") for path in root.rglob("*.png"))
    stray = {p.name for p in root.iterdir()} - {"forged", "neighbour", "its_logs", "exp2", *links}
    assert stray - {".mle", "logs", "\uff0e\uff0e", "\\..\\outside", "ä\n", "\u202egnp.x"} == set()


def test_a_folder_that_becomes_a_link_is_not_followed(root: Path, world: Path) -> None:
    """Put there between one publication and the next; what was logged is there once it is gone."""
    errors: list[Exception] = []
    exp, away = root / "exp", root / "away"
    with (
        daemons.running(root),
        MLELogger(str(exp), ["step"], ["loss"], seed_id="seed_1", on_error=errors.append) as log,
    ):
        log.update({"step": 0}, {"loss": 0.0})
        assert log.flush(10)
        exp.rename(away)
        exp.symlink_to(world)
        before = everything(world)
        log.update({"step": 1}, {"loss": 0.0})
        assert not log.flush(5)
        assert everything(world) == before
        assert f"it leads to {world}/logs, out of {root}" in str(errors)
        assert f"out of {root}" in daemons.status(root)["runs"][0]["last_error"]
        exp.unlink()
        away.rename(exp)
        assert log.flush(20)
    assert load_log(str(exp)).seed_1.time.step.tolist() == [0, 1]
