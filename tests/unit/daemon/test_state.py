"""The journal's own record comes back as it was, and nothing else is taken for one."""

from __future__ import annotations

import contextlib

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_client import message_wire, packing, wire
from mle_client import messages as m
from mle_client.errors import ProtocolError
from mle_daemon import state
from tests.daemon_rig import STEP, make_run
from tests.unit.client.test_wire import NOTE, RUN

ONE, OTHER = m.ProducerId(b"1" * 16), m.ProducerId(b"2" * 16)
SAVED = state.Saved(
    (
        state.SavedRun(RUN, "seed_1_dup2", "/exp/logs/log_seed_1_dup2.hdf5", 3, {"kept": {}}),
        state.SavedRun(make_run(num_seeds=4, config_name="größe.yaml"), "s", "/exps/x", 0, {}),
    ),
    (
        state.SavedStream(
            ONE,
            2**40,
            7,
            {0: STEP, 1: NOTE},
            RUN.run_id,
            True,
            True,
            True,
            m.Process(2**31, "größe", "123", "boot"),
        ),
        state.SavedStream(OTHER, 0, 0, {}, None, False, False, False),
    ),
    (("/exps/größe", 4), ("/exps/other", None)),
    ("/exps", "/exps/größe"),
)


def test_it_comes_back_equal() -> None:
    body, rest = packing.split_record(state.encode(SAVED))
    assert rest == b""
    assert state.decode(body) == SAVED


def test_nothing_comes_back_equal() -> None:
    nothing = state.Saved((), ())
    assert state.decode(packing.split_record(state.encode(nothing))[0]) == nothing


def test_one_of_an_earlier_release_has_neither_groups_nor_meta_logs() -> None:
    assert state.decode(["state", {"runs": [], "streams": []}]) == state.Saved((), ())


def test_any_msgpack_decoder_reads_it() -> None:
    name, content = msgpack.unpackb(state.encode(SAVED))
    assert name == state.NAME
    assert set(content) == {"runs", "streams", "groups", "meta_logs"}


def test_it_is_told_from_a_client_s_data() -> None:
    data = b"".join(message_wire.encode(m.Data(ONE, 0, b"x")))
    assert packing.split_record(data)[0][0] != state.NAME


@pytest.mark.parametrize(
    "body",
    [
        [],
        ["state"],
        ["state", 3],
        ["state", {}],
        ["state", {"runs": [], "streams": 1}],
        ["state", []],
        ["state", {"runs": [], "streams": [], "groups": 1}],
        ["state", {"runs": [], "streams": [], "groups": [["/exps"]]}],
        ["state", {"runs": [], "streams": [], "groups": [["/exps", "many"]]}],
        ["state", {"runs": [], "streams": [], "meta_logs": 1}],
        ["state", {"runs": [], "streams": [], "meta_logs": [1]}],
        ["state", {"runs": [[wire.encode_record(RUN), "s", "p", 0]], "streams": []}],
        ["state", {"runs": [[b"", "s", "p", 0, {}]], "streams": []}],
        ["state", {"runs": [[wire.encode_record(m.End()), "s", "p", 0, {}]], "streams": []}],
        ["state", {"runs": [[1, "s", "p", 0, {}]], "streams": []}],
        ["state", {"runs": [], "streams": [[ONE]]}],
        ["state", {"runs": [], "streams": [[ONE, 0, 0, b"\xc1", None, True, True, True, None]]}],
        ["state", {"runs": [], "streams": [[ONE, 0, 0, None, None, True, True, True, None]]}],
        ["state", {"runs": [], "streams": [[ONE, 0, 0, b"", None, True, True, True, [1]]]}],
        ["state", {"runs": [], "streams": [[ONE, 0, 0, b"", None, True, True, True, 7]]}],
    ],
)
def test_what_something_else_wrote_is_one_documented_error(body: list[object]) -> None:
    with pytest.raises(ProtocolError):
        state.decode(body)


@given(
    st.recursive(
        st.none() | st.integers(0, 9) | st.binary(max_size=20) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=9),
    ),
    st.recursive(
        st.none() | st.integers(0, 9) | st.binary(max_size=20) | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=9),
    ),
)
def test_any_content_gives_a_state_or_that_error(runs: object, streams: object) -> None:
    with contextlib.suppress(ProtocolError):
        state.decode(["state", {"runs": runs, "streams": streams}])


# --- which artifacts are settled ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("stored", "lost"),
    [([], []), ([(ONE, 1), (OTHER, 2**40)], []), ([(ONE, 3)], [(ONE, 1), (ONE, 2)])],
)
def test_what_is_settled_comes_back(
    stored: list[state.Artifact], lost: list[state.Artifact]
) -> None:
    record = state.encode_settled(stored, lost)
    body, rest = packing.split_record(record)
    assert (body[0], rest) == (state.SETTLED_NAME, b"")
    assert state.decode_settled(body) == (stored, lost)
    assert msgpack.unpackb(record)[0] == "settled"


@pytest.mark.parametrize(
    "body",
    [
        [],
        ["settled"],
        ["settled", []],
        ["settled", [], [], []],
        ["settled", [[ONE]], []],
        ["settled", [], [[ONE, 1, 2]]],
        ["settled", [[ONE, "x"]], []],
        ["settled", [[ONE, None]], []],
        ["settled", 3, []],
        ["settled", None, None],
    ],
)
def test_what_settles_nothing_is_one_documented_error(body: list[object]) -> None:
    with pytest.raises(ProtocolError):
        state.decode_settled(body)
