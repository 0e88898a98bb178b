"""The report that `mle-daemon status` shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgpack
import pytest

from mle_client import message_wire
from mle_client import messages as m
from mle_daemon import events as e
from mle_daemon import status
from mle_daemon.events import Report
from tests.daemon_rig import ANNA, ROOT, Rig, Trainer, make_run


def reported(
    runs: list[Report], groups: Sequence[Report] = (), meta_logs: Sequence[Report] = ()
) -> dict[str, Any]:
    return status.report(
        pid=1, endpoint="ipc:///x", root="/exps", uptime_s=1.23456, version="0.1",
        troubles=["disk full"], runs=runs, groups=groups, meta_logs=meta_logs,
    )  # fmt: skip


def test_its_parts() -> None:
    assert reported([]) == {
        "pid": 1, "endpoint": "ipc:///x", "root": "/exps", "uptime_s": 1.235, "version": "0.1",
        "degraded": "disk full", "runs": [], "groups": [], "meta_logs": [],
    }  # fmt: skip


def test_troubles_are_told_once_each_and_only_a_few_of_many() -> None:
    def degraded(*troubles: str) -> str:
        report = status.report(
            pid=1, endpoint="", root="", uptime_s=0.0, version="", troubles=troubles,
            runs=[], groups=[], meta_logs=[],
        )  # fmt: skip
        return str(report["degraded"])

    assert degraded() == ""
    assert degraded("full", "full", "stalls") == "full; stalls"
    assert degraded(*"abcdef") == "a; b; c; d; and 2 more"


def test_runs_are_ordered_by_folder_and_seed() -> None:
    runs = [
        {"experiment_dir": folder, "seed_id": seed}
        for folder, seed in [("/b", "1"), ("/a", "2"), ("/a", "1")]
    ]
    assert [(run["experiment_dir"], run["seed_id"]) for run in reported(runs)["runs"]] == [
        ("/a", "1"), ("/a", "2"), ("/b", "1")
    ]  # fmt: skip


@pytest.mark.parametrize("part", ["groups", "meta_logs"])
def test_groups_and_meta_logs_are_ordered_by_folder(part: str) -> None:
    lines = [{"directory": folder} for folder in ("/b", "/a")]
    assert reported([], **{part: lines})[part] == [{"directory": "/a"}, {"directory": "/b"}]


def test_it_fits_the_wire_and_json_with_real_runs() -> None:
    rig = Rig(merge="on-finish")
    for name in ("going on", "finished"):
        rig.take(ANNA, Trainer(name, make_run(name, name)).log(1).data())
    trainer = Trainer("finished", make_run("finished", "finished")).log(1).end()
    rig.take(ANNA, trainer.data())
    rig.settle()
    rig.deliver(e.GroupMerged(f"{ROOT}/exp", 1))
    report = reported(
        rig.core.reports(rig.now), rig.core.group_reports(), rig.core.meta_log_reports()
    )
    assert [(run["seed_id"], run["state"]) for run in report["runs"]] == [
        ("finished", "finished"), ("going on", "running")
    ]  # fmt: skip
    assert msgpack.unpackb(msgpack.packb(report)) == report
    assert json.loads(json.dumps(report)) == report
    assert message_wire.decode(message_wire.encode(m.Status(1, report))) == m.Status(1, report)
