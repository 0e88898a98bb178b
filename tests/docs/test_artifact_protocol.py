"""docs/artifact-protocol.md says what the code does: messages, fields, bounds and waits."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mle_client import artifact_wire as aw
from mle_client import parcels
from mle_daemon import arrivals, figure_process

PAGE = (Path(__file__).parents[2] / "docs" / "artifact-protocol.md").read_text()
TYPES: dict[Callable[[object], bool], str] = {
    aw._is_id: "id",
    aw._is_id_or_empty: "id or empty",
    aw._is_count: "count",
    aw._is_number: "number",
    aw._is_size: "size",
    aw._is_form: "form",
    aw._is_reason: "reason",
}


def section(heading: str) -> str:
    """What is between a heading and the next one."""
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all lines of tables in a text."""
    lines = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def test_the_page_is_of_this_version() -> None:
    assert PAGE.startswith(f"# Artifact protocol, version {aw.ARTIFACT_VERSION}\n")


def test_the_page_has_every_message_with_its_number_and_fields() -> None:
    described: dict[int, Any] = {}
    for number, *cells in rows(section("Messages")):
        if number.isdecimal():
            name, fields, _ = cells
            described[int(number)] = (name.strip("`"), re.findall(r"`(\w+)` ([a-z ]+)", fields))

    expected = {}
    for code, kind in aw._TYPES.items():
        names = [field.name for field in dataclasses.fields(kind) if field.name != "payload"]
        types = [TYPES[check] for check in aw._CHECKS[kind]]
        first = [("version", "count")] if kind is aw.Offer else []
        expected[code] = (kind.__name__, [*first, *zip(names, types, strict=True)])
    assert described == expected


def test_the_page_has_every_bound() -> None:
    described = {cells[0].strip("`"): cells[1] for cells in rows(section("Bounds"))[2:]}

    assert described == {
        name: f"{value:,}" for name, value in vars(aw).items() if name.startswith("MAX_")
    }


def test_the_page_has_the_sizes_and_waits_of_the_code() -> None:
    text = " ".join(PAGE.split())

    for said in (
        f"at most {parcels.WINDOW_BYTES // 2**20} MiB of a producer's artifacts sent",
        f"in chunks of {parcels.CHUNK_BYTES // 2**20} MiB",
        f"after {parcels.STALL_AFTER_S:g} s without an answer",
        f"after {parcels.REMIND_AFTER_S:g} s in which an artifact was taken",
        f"after {arrivals.FIRST_RETRY_S:g} s, then every {arrivals.LAST_RETRY_S:g} s, the daemon",
        f"for {arrivals.FORGET_AFTER_S / 60:g} minutes is removed",
        f"takes {arrivals.MAX_ARRIVALS:,} artifacts at once",
        f"which has {figure_process.TIMEOUT_S:g} s",
    ):
        assert said in text
