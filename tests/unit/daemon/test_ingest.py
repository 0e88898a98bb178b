"""What of a stream is new, however it was cut and however often it came."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mle_client import messages as m
from mle_client import tick_writers, wire
from mle_client.errors import ProtocolError
from mle_daemon.ingest import Piece, Stream, StreamGap
from tests.daemon_rig import STEP, Trainer


def take(stream: Stream, position: int, payload: bytes) -> Piece:
    """Read and stage a piece in which something is new."""
    piece = stream.read(position, payload)
    assert piece is not None
    stream.stage(piece)
    return piece


def steps(pieces: list[Piece]) -> list[int]:
    return [int(step) for piece in pieces for block in piece.blocks for step in block.column(0)]


def test_a_piece_knows_what_is_in_it() -> None:
    trainer = Trainer().log(1, 2).lose(3).lose(4).end()
    piece = Stream(trainer.id).read(0, trainer.stream)
    assert piece is not None
    assert (piece.position, piece.end, piece.payload) == (0, trainer.head, trainer.stream)
    assert (piece.ticks, piece.lost, piece.ends) == (2, 7, True)
    assert [type(record) for record in piece.records] == [
        m.Run, m.Schema, wire.FixedBlock, m.Gap, m.Gap, m.End
    ]  # fmt: skip
    assert piece.schemas == {0: STEP}


NOTE = m.Schema(0, (m.Field("step", m.INT),), (m.Field("loss", m.FLOAT), m.Field("note", m.TEXT)))
OTHER = m.Schema(1, (m.Field("step", m.INT),), ())


@pytest.mark.parametrize("kind", ["numbers", "text", "keys in turn"])
def test_a_piece_knows_about_what_it_takes_in_memory(kind: str) -> None:
    count = 5_000
    ticks = {
        "numbers": lambda i: tick_writers.pack_fixed(OTHER, float(i), (i,)),
        "text": lambda i: wire.encode_text_tick(NOTE, float(i), (i, i / 7, f"epoch {i}")),
        "keys in turn": lambda i: tick_writers.pack_fixed((STEP, OTHER)[i % 2], float(i), (i,)),
    }[kind]
    schemas = (NOTE if kind == "text" else STEP, OTHER)
    payload = b"".join([*map(wire.encode_record, schemas), *map(ticks, range(count))])
    stream = Stream(Trainer().id)
    tracemalloc.start()
    try:
        piece = stream.read(0, payload)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert piece is not None
    assert piece.ticks == count
    taken += len(payload)  # the piece keeps it, too
    assert 0.6 * taken < piece.held_bytes < 1.7 * taken


def test_only_what_is_committed_counts() -> None:
    trainer = Trainer().log(1)
    stream = Stream(trainer.id)
    piece = take(stream, 0, trainer.stream)
    assert (stream.position, stream.ticks, stream.schemas) == (0, 0, {})
    stream.commit(piece)
    assert (stream.position, stream.ticks, stream.schemas) == (trainer.head, 1, {0: STEP})


def test_what_was_read_and_not_staged_leaves_no_trace() -> None:
    trainer = Trainer()
    stream = Stream(trainer.id)
    begun = trainer.head
    stream.commit(take(stream, 0, trainer.stream))
    other = wire.encode_record(m.Schema(0, (), (m.Field("other", m.INT),)))
    assert stream.read(begun, other) is not None
    trainer.log(1)
    piece = take(stream, begun, trainer.stream[begun:])  # with another schema of that number
    assert piece.schemas == {0: STEP}


def test_a_gap_is_seen_behind_what_is_staged_too() -> None:
    trainer = Trainer().log(1)
    stream = Stream(trainer.id)
    with pytest.raises(StreamGap):
        stream.read(1, trainer.stream[1:])
    take(stream, 0, trainer.stream)
    head = trainer.head
    with pytest.raises(StreamGap):
        stream.read(head + 1, b"x")
    trainer.log(2)
    assert stream.read(head, trainer.stream[head:]) is not None


@pytest.mark.parametrize("committed", [False, True])
def test_what_came_before_is_not_new(committed: bool) -> None:
    trainer = Trainer().log(1)
    stream = Stream(trainer.id)
    piece = take(stream, 0, trainer.stream)
    if committed:
        stream.commit(piece)
    assert stream.read(0, trainer.stream) is None
    assert stream.read(0, b"") is None
    seen = trainer.head
    trainer.log(2)
    again = stream.read(0, trainer.stream)
    assert again is not None
    assert (again.position, again.payload, steps([again])) == (seen, trainer.stream[seen:], [2])


def test_a_piece_that_is_no_whole_records_takes_nothing() -> None:
    trainer = Trainer().log(1)
    stream = Stream(trainer.id)
    with pytest.raises(ProtocolError):
        stream.read(0, trainer.stream[:-1])
    piece = take(stream, 0, trainer.stream)
    assert steps([piece]) == [1]


def test_rolling_back_forgets_pieces_and_schemas() -> None:
    trainer = Trainer()
    stream = Stream(trainer.id)
    begun = trainer.head
    stream.commit(take(stream, 0, trainer.stream))
    trainer.log(1)
    take(stream, begun, trainer.stream[begun:])
    stream.roll_back()
    with pytest.raises(ProtocolError):  # its schema was rolled back with it
        stream.read(begun, tick_writers.pack_fixed(STEP, 1.0, (1,)))
    piece = take(stream, begun, trainer.stream[begun:])
    assert steps([piece]) == [1]


def test_schemas_of_earlier_pieces_and_of_an_earlier_process_are_known() -> None:
    trainer = Trainer().log(1)
    seen = trainer.head
    stream = Stream(trainer.id, position=seen, schemas={0: STEP})
    trainer.log(2)
    piece = take(stream, seen, trainer.stream[seen:])
    assert steps([piece]) == [2]


def test_pieces_without_a_new_schema_share_one_mapping() -> None:
    """Thousands may wait for publication."""
    trainer = Trainer()
    stream = Stream(trainer.id)
    pieces = []
    for step in range(3):
        seen = 0 if step == 0 else trainer.head
        trainer.log(step)
        pieces.append(take(stream, seen, trainer.stream[seen:]))
    assert pieces[1].schemas is pieces[2].schemas


def test_the_part_of_a_piece_behind_a_position() -> None:
    trainer = Trainer().log(1, 2).lose(3).log(4)
    piece = Stream(trainer.id).read(0, trainer.stream)
    assert piece is not None
    first_tick = trainer.tick_edges[0]
    rest = piece.behind(first_tick)
    assert (rest.position, rest.end) == (first_tick, trainer.head)
    assert rest.payload == trainer.stream[first_tick:]
    assert (steps([rest]), rest.lost) == ([2, 4], 3)


def test_skipping_goes_on_behind_what_is_lost() -> None:
    trainer = Trainer().log(1, 2, 3)
    stream = Stream(trainer.id)
    first, second = trainer.tick_edges[:2]
    stream.commit(take(stream, 0, trainer.stream[:first]))
    stream.skip(second)
    piece = take(stream, second, trainer.stream[second:])
    assert steps([piece]) == [3]


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.booleans()), max_size=30),
    st.lists(st.integers(0, 12), max_size=3),
)
def test_however_it_is_cut_and_repeated_every_tick_is_new_once(
    cuts: list[tuple[int, int, bool]], failures: list[int]
) -> None:
    trainer = Trainer().log(*range(10))
    edges = trainer.edges
    stream = Stream(trainer.id)
    taken: list[Piece] = []
    staged: list[Piece] = []
    attempts = [*cuts, (0, len(edges) - 1, True)]
    for number, (start, end, journaled) in enumerate(attempts):
        position, stop = edges[start % len(edges)], edges[end % len(edges)]
        try:
            piece = stream.read(position, trainer.stream[position:stop])
        except StreamGap:
            continue
        if piece is not None:
            stream.stage(piece)
            staged.append(piece)
        if number in failures and number < len(cuts):
            stream.roll_back()
            staged = []
        elif journaled:
            for good in staged:
                stream.commit(good)
            taken += staged
            staged = []
    assert b"".join(piece.payload for piece in taken) == trainer.stream
    assert steps(taken) == list(range(10))
    assert (stream.position, stream.ticks) == (trainer.head, 10)


def test_a_piece_knows_what_was_saved_in_it() -> None:
    trainer = Trainer().log(1)
    model, figure = trainer.save("model"), trainer.save("figure", "figures/f.png", step=1)
    trainer.drop(model)
    histograms = m.Histograms(1.5, 3, {"w": {"num": 1}})
    stream = trainer.stream + wire.encode_record(histograms)
    piece = Stream(trainer.id).read(0, stream)
    assert piece is not None
    found = [(record.number, record.kind) for record in piece.artifacts]
    assert found == [(model, "model"), (figure, "figure"), (model, m.DROPPED)]
    assert piece.histograms == (histograms,)
    assert (piece.ticks, piece.lost, piece.ends) == (1, 0, False)
    behind = piece.behind(trainer.edges[-3])  # the figure, what was dropped, the histograms
    assert [record.kind for record in behind.artifacts] == ["figure", m.DROPPED]
    assert behind.histograms == (histograms,)
