"""What a save does before it returns: bytes taken, a record written, names known."""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mle_client import histograms, rendering, saving, serializers, weights, wire
from mle_client import messages as m
from mle_client.errors import LoggerClosed
from mle_client.kept import Kept
from mle_client.producer import Producer
from mle_client.renderer import RenderingFailed
from mle_client.retention import EveryK, KeepPeriod, LatestN, Policy, Portfolio, Saved, TopK
from mle_client.ring import SEGMENT_BYTES, Ring
from mle_client.saving import Counts, Saver
from mle_client.snapshot import Arena, Snapshot, read_left
from mle_client.tally import Tally
from tests.unit.client.test_producer import signalled
from tests.unit.client.test_wire import RUN

ID = m.ProducerId(b"p" * 16)
START = 1_000.0
TOP_2 = Policy(top_k=2, top_k_metric="loss", time_name="epoch")


@dataclass
class Parcel:
    """What a shipper was given."""

    snapshot: Snapshot
    droppable: Callable[[], bool]
    on_dropped: Callable[[], None]

    @property
    def content(self) -> bytes:
        return b"".join(bytes(chunk) for chunk in self.snapshot.chunks(2**20))


@dataclass
class FakeShipper:
    """Keeps what it is given.  Args: error: that it raises."""

    parcels: list[Parcel] = field(default_factory=list)
    error: BaseException | None = None
    waits: list[tuple[int, float]] = field(default_factory=list)

    def submit(
        self,
        producer: m.ProducerId,
        snapshot: Snapshot,
        droppable: Callable[[], bool] = lambda: False,
        on_dropped: Callable[[], None] = lambda: None,
    ) -> None:
        assert producer == ID
        if self.error is not None:
            raise self.error
        self.parcels.append(Parcel(snapshot, droppable, on_dropped))

    def unstored(self, producer: m.ProducerId) -> int:
        return len(self.parcels)

    def pending_bytes(self, producer: m.ProducerId) -> int:
        return sum(parcel.snapshot.size for parcel in self.parcels)

    def make_room(self, producer: m.ProducerId, wanted_bytes: int, timeout: float) -> float:
        self.waits.append((wanted_bytes, timeout))
        for parcel in [parcel for parcel in self.parcels if parcel.droppable()]:
            self.parcels.remove(parcel)
            parcel.on_dropped()
            parcel.snapshot.release()
        return 0.5

    def store(self) -> None:
        """Everything is stored."""
        for parcel in self.parcels:
            parcel.snapshot.release()
        self.parcels.clear()


class Desk:
    """A saver with a stream and memory of its own, and a shipper that ships nothing."""

    def __init__(
        self,
        folder: Path,
        policy: Policy | None = None,
        kept: Kept | None = None,
        model_type: str = "numpy",
        rows: int = 0,
        **bounds: int,
    ) -> None:
        self.folder = folder / "exp"
        self.folder.mkdir()
        self.errors: list[str] = []
        self.seed_id = "seed_1"
        self.ring = Ring(str(folder / "ring"), str(folder / "spill"), ID, {}, **bounds)
        self.producer = Producer(
            ID, self.ring, RUN, on_save=lambda: None, on_artifacts=lambda *artifacts: None,
            on_lost=self.errors.append, tally=Tally(),
        )  # fmt: skip
        self.update: Callable[..., None] = lambda *tick: self.producer.update(*tick)
        self.arena = Arena(str(folder / "ring" / "snapshots"), str(folder / "spill" / "snapshots"))
        self.shipper = FakeShipper()
        self.saver = Saver(
            str(self.folder), lambda: self.seed_id, model_type, policy or Policy(),
            kept or Kept(), START, rows, lambda error: self.errors.append(str(error)),
        )  # fmt: skip
        self.saver.bind(self.producer, self.arena, self.shipper)  # type: ignore[arg-type]

    def records(self) -> list[m.Artifact]:
        """What the stream says of artifacts."""
        return [record for record in self.stream() if isinstance(record, m.Artifact)]

    def stream(self) -> list[wire.Record]:
        """The whole stream."""
        self.producer.catch_up()
        parts = b"".join(bytes(view) for _, view in self.ring.pending(0))
        return wire.StreamDecoder().decode(parts)

    def facts(self) -> dict[str, Any]:
        """Those of the last checkpoint."""
        return self.records()[-1].facts

    def left(self) -> list[int]:
        """The artifacts that would outlive the process now."""
        found = read_left(
            os.path.join(self.ring.directory, "snapshots"),
            f"{self.ring._spill_directory}/snapshots",
        )
        return [left.number for left in found]

    def held(self) -> int:
        """Segments that are not free for another save."""
        pool = self.arena._pool
        return len(pool._segments) - len(pool._free)

    def close(self) -> None:
        self.saver.close()
        self.shipper.store()
        self.arena.delete()
        self.ring.delete()


@pytest.fixture
def desk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Desk]:
    """Parametrised with the arguments of `Desk`."""
    desk = Desk(tmp_path, **getattr(request, "param", {}))
    yield desk
    desk.close()


def with_policy(policy: Policy, **arguments: Any) -> Any:
    """Have a test's desk keep checkpoints by a policy."""
    return pytest.mark.parametrize("desk", [{"policy": policy, **arguments}], indirect=True)


# --- bytes, record, names -------------------------------------------------------------------------
def test_a_model_is_as_it_was_at_the_call(desk: Desk) -> None:
    model = {"w": np.arange(1000.0), "b": [1, 2]}
    desk.saver.save_model(model)
    model["w"][:] = -1
    model["b"].append(3)
    (parcel,) = desk.shipper.parcels
    stored = pickle.loads(parcel.content)
    assert stored["w"].tolist() == list(range(1000))
    assert stored["b"] == [1, 2]
    assert (parcel.snapshot.number, parcel.snapshot.kind, parcel.snapshot.form) == (
        1, "model", "file",
    )  # fmt: skip


def test_artifacts_are_numbered_together_and_checkpoints_by_themselves(desk: Desk) -> None:
    desk.saver.save_init_model([0])
    desk.saver.save_model([1])
    desk.saver.save_extra("x")
    desk.saver.save_model([2])
    found = [(record.number, record.kind, record.name) for record in desk.records()]
    assert found == [
        (1, "init", ""), (2, "model", ""), (3, "extra", "extra/extra_1_seed_1.pkl"),
        (4, "model", ""),
    ]  # fmt: skip
    assert [record.facts.get("number") for record in desk.records()] == [None, 1, None, 2]
    assert [parcel.snapshot.number for parcel in desk.shipper.parcels] == [1, 2, 3, 4]
    assert desk.saver.kept == Kept(
        Portfolio(saves=2, init_saved=True), extras=("extra/extra_1_seed_1.pkl",)
    )
    assert desk.saver.counts.saved == 4


def test_the_record_lies_behind_the_ticks_before_the_call(desk: Desk) -> None:
    desk.update({"epoch": 1}, {"loss": 0.5})
    desk.saver.save_extra("x")
    desk.update({"epoch": 2}, {"loss": 0.5})
    names = [type(record).__name__ for record in desk.stream()]
    assert names == ["Run", "Schema", "FixedBlock", "Artifact", "FixedBlock"]


def test_what_was_returned_from_outlives_the_process(desk: Desk) -> None:
    desk.saver.save_model([1])
    desk.saver.save_extra("x")
    assert desk.left() == [1, 2]
    desk.shipper.store()
    assert desk.left() == []


@pytest.mark.parametrize(
    "desk",
    [{"kept": Kept(Portfolio(saves=7), extras=("extra/extra_3_seed_1.pkl",))}],
    indirect=True,
)
def test_a_continued_run_s_numbers_go_on(desk: Desk) -> None:
    desk.saver.save_model([1])
    desk.saver.save_extra("x")
    assert desk.records()[0].facts["number"] == 8
    assert desk.records()[1].name == "extra/extra_4_seed_1.pkl"


# --- what a checkpoint is marked with -------------------------------------------------------------
@with_policy(TOP_2)
def test_a_model_of_a_tick_is_judged_by_that_tick(desk: Desk) -> None:
    desk.update({"epoch": 1}, {"loss": 0.5})
    desk.saver.save_model([1], {"epoch": np.int64(3)}, {"loss": np.float32(0.25), "other": "x"})
    saved = Saved(1, 3, {"loss": 0.25}, {})
    assert desk.saver.kept.portfolio.top_k == (saved,)
    assert desk.facts() == {"number": 1, "time": 3, "metrics": {"loss": 0.25}, "clocks": {}}


@with_policy(TOP_2)
def test_a_model_without_a_tick_is_judged_by_the_latest(desk: Desk) -> None:
    desk.update({"epoch": 1}, {"loss": 0.5})
    desk.update({"epoch": 2}, {"loss": 0.25})
    desk.saver.save_model([1])
    assert desk.saver.kept.portfolio.top_k == (Saved(1, 2, {"loss": 0.25}, {}),)


@with_policy(TOP_2)
def test_a_metric_that_the_latest_tick_lacks_makes_no_candidate(desk: Desk) -> None:
    desk.update({"epoch": 1}, {"loss": 0.5})
    desk.update({"epoch": 2}, {"acc": 0.25})
    desk.saver.save_model([1])
    desk.saver.save_model([1], {}, {})
    assert desk.saver.kept.portfolio == Portfolio(saves=2)
    assert desk.facts()["time"] is None


@with_policy(TOP_2)
def test_before_any_tick_there_is_nothing_to_judge_a_model_by(desk: Desk) -> None:
    with pytest.raises(ValueError, match=r"before any update\(\): 'loss' decides"):
        desk.saver.save_model([1])
    assert desk.records() == []
    desk.saver.save_model([1], {"epoch": 1}, {"loss": 0.5})  # with update() it is no matter
    assert len(desk.records()) == 1


@with_policy(TOP_2)
@pytest.mark.parametrize("value", ["low", np.zeros(2), None, [0.5]])
def test_what_decides_is_one_number(desk: Desk, value: Any) -> None:
    with pytest.raises(ValueError, match="'loss' decides about checkpoints"):
        desk.saver.save_model([1], {"epoch": 1}, {"loss": value})
    with pytest.raises(ValueError, match="'epoch' decides about checkpoints"):
        desk.saver.save_model([1], {"epoch": value}, {"loss": 0.5})
    assert desk.records() == []
    assert desk.left() == []


@with_policy(Policy(every_k=1, time_name="num_updates"), rows=40)
def test_updates_are_counted_from_the_beginning_of_a_continued_run(desk: Desk) -> None:
    desk.update({"epoch": 1}, {"loss": 0.5})
    desk.update({"epoch": 1, "num_updates": 7}, {"loss": 0.5})  # the user's is not asked
    desk.saver.save_model([1])
    desk.saver.save_model([1], {"num_updates": 7}, {})
    assert [saved.time for saved in desk.saver.kept.portfolio.every_k] == [42, 42]


@with_policy(Policy(every_k=1, time_name="time_elapsed"))
def test_elapsed_time_is_that_of_the_latest_tick(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: START + 12.5)
    desk.update({"epoch": 1}, {"note": "text"})
    desk.saver.save_model([1])
    assert desk.facts()["time"] == 12.5


@with_policy(Policy(rules=(TopK("acc", 1, "max"), KeepPeriod("epoch", 5), LatestN(1), EveryK(9))))
def test_rules_get_what_they_decide_by_and_no_more(desk: Desk) -> None:
    desk.saver.save_model([1], {"epoch": 4, "step": 9}, {"acc": 1, "loss": 0.5})
    assert desk.facts() == {
        "number": 1, "time": None, "metrics": {"acc": 1.0}, "clocks": {"epoch": 4},
    }  # fmt: skip
    assert [saved.number for saved in desk.saver.kept.portfolio.retained] == [1]


# --- file names -----------------------------------------------------------------------------------
def test_the_next_number_is_one_above_the_highest_of_this_seed(desk: Desk) -> None:
    names = ("extra_7_seed_1.pkl", "extra_9_seed_10.pkl", "extra_2_seed_1.pkl", "table.pkl")
    for name in names:
        desk.saver.save_extra("x", name)
    desk.saver.save_extra("x")
    assert desk.records()[-1].name == "extra/extra_8_seed_1.pkl"
    desk.seed_id = "seed_1_dup2"  # another live logger has the name
    desk.saver.save_extra("x")
    assert desk.records()[-1].name == "extra/extra_1_seed_1_dup2.pkl"


def test_a_name_may_have_folders_and_come_twice(desk: Desk) -> None:
    for name in ("a/b.pkl", "a//./b.pkl", "a/b.pkl"):
        desk.saver.save_extra("x", name)
    assert [record.name for record in desk.records()] == ["extra/a/b.pkl"] * 3
    assert desk.saver.kept.extras == ("extra/a/b.pkl",)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("../models/final/final_seed_1.pkl", ValueError, "upwards"),
        ("a/../../b", ValueError, "upwards"),
        ("/etc/passwd", ValueError, "absolute"),
        ("", ValueError, "names no file"),
        ("a/", ValueError, "names no file"),
        ("a\0b", ValueError, "NUL"),
        ("\ud800", ValueError, "Unicode"),
        ("x" * 300, ValueError, "too long"),
        (3, TypeError, "a file name is a string"),
        (b"a", TypeError, "a file name is a string"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused_at_the_call(
    desk: Desk, name: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        desk.saver.save_extra("x", name)
    with pytest.raises(error, match=words):
        desk.saver.save_plot(object(), name)
    assert desk.records() == []


def test_a_link_out_of_the_experiment_is_refused_and_one_inside_is_not(desk: Desk) -> None:
    outside = desk.folder.parent / "outside"
    inside = desk.folder / "elsewhere"
    for folder in (outside, inside, desk.folder / "extra"):
        folder.mkdir()
    (desk.folder / "extra" / "out").symlink_to(outside)
    (desk.folder / "extra" / "in").symlink_to(inside)
    (desk.folder / "extra" / "sibling").symlink_to(f"{desk.folder}-2")
    for name in ("out/a.pkl", "sibling/a.pkl"):
        with pytest.raises(ValueError, match="leads through a link"):
            desk.saver.save_extra("x", name)
    desk.saver.save_extra("x", "in/a.pkl")
    assert [record.name for record in desk.records()] == ["extra/in/a.pkl"]


# --- what cannot be saved -------------------------------------------------------------------------
def test_what_cannot_be_pickled_leaves_nothing(desk: Desk) -> None:
    for _ in range(3):
        with pytest.raises(TypeError):
            desk.saver.save_extra(threading.Lock())
        with pytest.raises(TypeError):
            desk.saver.save_model({"lock": threading.Lock()})
    assert desk.records() == []
    assert desk.left() == []
    assert desk.held() == 0
    desk.saver.save_extra("x")
    assert desk.records()[0].number == 1


@pytest.mark.parametrize("desk", [{"model_type": "no-model-type"}], indirect=True)
def test_without_a_type_no_model_is_saved(desk: Desk) -> None:
    for save in (desk.saver.save_model, desk.saver.save_init_model):
        with pytest.raises(ValueError, match="model_type"):
            save([1])
    desk.saver.save_extra("x")
    assert desk.left() == [1]


@with_policy(TOP_2)
def test_after_close_nothing_is_saved(desk: Desk) -> None:
    assert desk.saver.close() == 0
    for save in (
        lambda: desk.saver.save_model([1]),
        lambda: desk.saver.save_init_model([1]),
        lambda: desk.saver.save_extra("x"),
        lambda: desk.saver.save_plot(object()),
    ):
        with pytest.raises(LoggerClosed, match=r"after close\(\)"):
            save()
    desk.saver.save_histograms({}, [1], None)  # comes with an update, which says so itself


def test_a_forked_child_is_told_to_make_a_logger(desk: Desk) -> None:
    desk.saver.save_extra("x")
    desk.saver.forked()
    with pytest.raises(LoggerClosed, match=r"forked child.*own seed_id"):
        desk.saver.save_extra("x")
    assert desk.left() == [1]  # the parent's


@pytest.mark.parametrize("desk", [{"memory_bytes": SEGMENT_BYTES, "spill_bytes": 0}], indirect=True)
def test_without_room_for_its_record_nothing_was_saved(desk: Desk) -> None:
    saved = 0
    with contextlib.suppress(OSError):
        while True:
            desk.saver.save_extra("x", "y" * 250)
            saved += 1
    with pytest.raises(OSError, match="no room to note that extra/yyy"):
        desk.saver.save_extra("x", "y" * 250)
    assert len(desk.records()) == saved
    assert desk.left() == list(range(1, saved + 1))
    assert desk.saver.counts.saved == saved
    desk.saver.save_model([1])  # a shorter record
    assert desk.records()[-1].facts["number"] == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("too large")])
def test_a_save_that_is_cut_off_is_taken_back(desk: Desk, error: BaseException) -> None:
    desk.saver.save_model([1])
    kept = desk.saver.kept
    desk.shipper.error = error
    with pytest.raises(type(error)):
        desk.saver.save_model([2])
    assert [(r.number, r.kind) for r in desk.records()] == [
        (1, "model"), (2, "model"), (2, m.DROPPED),
    ]  # fmt: skip
    assert desk.saver.kept == kept
    assert desk.left() == [1]
    desk.shipper.error = None
    desk.saver.save_model([3])
    assert desk.facts()["number"] == 2


# --- room -----------------------------------------------------------------------------------------
@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "FREE_BYTES", 1_000)


def test_a_save_waits_where_too_many_are_on_their_way_and_fails_if_that_does_not_help(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(m, "MAX_UNSTORED", 3)
    for number in range(3):
        desk.saver.save_extra(number)
    with pytest.raises(OSError, match="3 artifacts of this logger wait"):
        desk.saver.save_extra(3)
    assert desk.shipper.waits == [(1, saving.MAKE_ROOM_TIMEOUT_S)]
    assert len(desk.records()) == 3
    desk.shipper.store()
    desk.saver.save_extra(3)
    assert len(desk.records()) == 4


@pytest.mark.usefixtures("little_room")
@with_policy(Policy(every_k=2))
def test_where_room_is_wanted_checkpoints_that_nobody_would_miss_are_dropped(desk: Desk) -> None:
    for number in range(1, 6):
        desk.saver.save_model(np.full(1_000, number))
    size = desk.shipper.parcels[0].snapshot.size
    # 4 was the newest when room was wanted for 5, and is kept as every second anyway.
    assert [parcel.snapshot.number for parcel in desk.shipper.parcels] == [2, 4, 5]
    dropped = [record.number for record in desk.records() if record.kind == m.DROPPED]
    assert dropped == [1, 3]
    assert {wanted for wanted, _ in desk.shipper.waits} == {size}
    assert {timeout for _, timeout in desk.shipper.waits} == {saving.MAKE_ROOM_TIMEOUT_S}
    assert desk.saver.counts.waited_s == 0.5 * len(desk.shipper.waits)
    assert desk.saver.kept.portfolio.saves == 5


@pytest.mark.usefixtures("little_room")
def test_the_newest_checkpoint_figures_and_objects_are_never_dropped(desk: Desk) -> None:
    for _ in range(3):
        desk.saver.save_init_model(np.zeros(1_000))
        desk.saver.save_extra(np.zeros(1_000))
    desk.saver.save_model([1])
    desk.saver.save_extra(np.zeros(1_000))
    assert [parcel.droppable() for parcel in desk.shipper.parcels] == [False] * 8
    desk.saver.save_model([2])
    desk.saver.save_extra("x")  # by now, checkpoint 1 has no place left
    kinds = [parcel.snapshot.kind for parcel in desk.shipper.parcels]
    assert kinds == ["init", "extra"] * 3 + ["extra", "model", "extra"]


def test_with_room_enough_nothing_waits(desk: Desk) -> None:
    for number in range(20):
        desk.saver.save_model(np.full(1_000, number))
    assert desk.shipper.waits == []
    assert desk.saver.counts == Counts(saved=20)


@pytest.mark.usefixtures("little_room")
def test_while_artifacts_are_small_twice_the_largest_may_wait(desk: Desk) -> None:
    desk.saver.save_extra(np.zeros(10_000))
    desk.saver.save_extra("small")
    assert desk.shipper.waits == []
    desk.saver.save_extra(np.zeros(10_000))
    desk.saver.save_extra("small")
    assert len(desk.shipper.waits) == 1


@pytest.mark.parametrize("desk", [{"memory_bytes": SEGMENT_BYTES, "spill_bytes": 0}], indirect=True)
def test_a_drop_that_could_not_be_told_is_told_with_the_next_save(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2, 3):
        desk.saver.save_model([number])
    with monkeypatch.context() as patch:
        patch.setattr(desk.producer, "record", _refuse)
        desk.shipper.make_room(ID, 1, 1.0)
    assert [record.kind for record in desk.records()] == ["model"] * 3
    desk.saver.save_model([4])
    assert [(r.number, r.kind) for r in desk.records()[3:]] == [
        (1, m.DROPPED), (2, m.DROPPED), (4, "model"),
    ]  # fmt: skip


def _refuse(record: object) -> None:
    raise saving.RingFull("no room")


# --- figures --------------------------------------------------------------------------------------
class FakeRenderer:
    """Draws what `pickle_figure` below has written."""

    error: Exception | None = None
    gate: threading.Event | None = None

    def render(self, chunks: Iterator[bytes], timeout: float) -> bytes:
        if self.gate is not None:
            self.gate.wait(10)
        if self.error is not None:
            raise self.error
        return b"picture of " + b"".join(map(bytes, chunks))

    def close(self) -> None:
        if self.gate is not None:
            self.gate.set()

    def forget(self) -> None:
        pass


@pytest.fixture
def renderer(monkeypatch: pytest.MonkeyPatch) -> type[FakeRenderer]:
    """Figures are bytes here; those that begin with "!" cannot travel."""

    def pickle_figure(fig: bytes, out: Any, image_format: str) -> None:
        out.write(b"half of it")
        if fig.startswith(b"!"):
            raise rendering.FigureCannotTravel("a closure")
        out.write(b"|" + fig)

    class Drawing(FakeRenderer):
        pass

    monkeypatch.setattr(rendering, "pickle_figure", pickle_figure)
    monkeypatch.setattr(rendering, "render_locally", lambda fig, image_format: b"drawn here")
    monkeypatch.setattr("mle_client.renderer.Renderer", Drawing)
    return Drawing


def test_a_figure_becomes_a_picture_in_the_background(
    desk: Desk, renderer: type[FakeRenderer]
) -> None:
    renderer.gate = threading.Event()
    large = b"fig" * 2**20
    desk.saver.save_plot(large, facts={"step": 3, "seconds": 1.0, "row": 2})
    assert desk.records() == [
        m.Artifact(1, "figure", "figures/fig_1_seed_1.png", {"step": 3, "seconds": 1.0, "row": 2})
    ]
    assert desk.saver.kept.figures == ("figures/fig_1_seed_1.png",)
    assert desk.shipper.parcels == []
    assert desk.left() == [1]  # undrawn, should the process end now
    renderer.gate.set()
    desk.saver.finish(10)
    (parcel,) = desk.shipper.parcels
    assert parcel.content == b"picture of half of it|" + large
    assert (parcel.snapshot.number, parcel.snapshot.form) == (1, "file")
    assert desk.left() == [1]
    desk.shipper.store()
    assert desk.left() == []
    assert desk.held() == 0


def test_a_figure_that_cannot_travel_is_drawn_here_and_counted(
    desk: Desk, renderer: type[FakeRenderer]
) -> None:
    desk.saver.save_plot(b"!fig", "a/plot.pdf")
    (parcel,) = desk.shipper.parcels
    assert parcel.content == b"drawn here"
    assert desk.records()[0].name == "figures/a/plot.pdf"
    assert desk.saver.counts == Counts(saved=1, rendered_here=1)


def test_a_figure_that_cannot_be_drawn_is_told_and_not_kept(
    desk: Desk, renderer: type[FakeRenderer]
) -> None:
    renderer.error = RenderingFailed("no such font")
    desk.saver.save_plot(b"fig")
    desk.saver.finish(10)
    assert desk.errors == ["figures/fig_1_seed_1.png could not be drawn: no such font"]
    assert [record.kind for record in desk.records()] == ["figure", m.DROPPED]
    assert desk.saver.kept.figures == ()
    assert desk.left() == []


def test_figures_that_are_cut_off_by_close_stay_for_the_daemon(
    desk: Desk, renderer: type[FakeRenderer]
) -> None:
    renderer.gate = threading.Event()
    for _ in range(3):
        desk.saver.save_plot(b"fig")
    renderer.error = RenderingFailed("ended")
    assert desk.saver.close() >= 2
    assert desk.left() == [1, 2, 3]
    assert desk.errors == []
    assert desk.saver.kept.figures[0] == "figures/fig_1_seed_1.png"


def test_a_name_asks_for_a_format_before_anything_is_taken(desk: Desk) -> None:
    with pytest.raises(ValueError, match=r"no picture can be written as \.xyz"):
        desk.saver.save_plot(object(), "a.xyz")
    assert desk.records() == []


@pytest.mark.parametrize("desk", [{"rows": 10}], indirect=True)
def test_a_figure_belongs_to_the_step_of_its_tick(desk: Desk) -> None:
    desk.update({"epoch": 7}, {"loss": 0.5})
    facts = desk.saver.step_of({"epoch": 7})
    assert (facts["step"], facts["row"]) == (7, 10)
    assert desk.saver.step_of({})["step"] == 11  # no clock of the user's: the update's number
    assert facts["seconds"] == desk.producer.latest().seconds


# --- histograms -----------------------------------------------------------------------------------
def told(desk: Desk) -> list[m.Histograms]:
    """The histograms in the stream."""
    desk.saver.finish(10)
    return [record for record in desk.stream() if isinstance(record, m.Histograms)]


def test_histograms_are_of_the_values_at_the_call(desk: Desk) -> None:
    desk.update({"epoch": 7}, {"loss": 0.5})
    weights = np.ones(10)
    desk.saver.save_histograms({"epoch": 7}, {"w": weights}, {"w": np.full(10, 2.0)})
    weights[:] = 5
    (record,) = told(desk)
    assert (record.step, record.seconds) == (7, desk.producer.latest().seconds)
    found = {name: histograms.from_plain(tag) for name, tag in record.tags.items()}
    assert [(name, h.max) for name, h in found.items()] == [("weights/w", 1), ("gradients/w", 2)]


def test_histograms_of_a_model_of_many_parts_go_into_records_that_are_taken(desk: Desk) -> None:
    model = {f"layer_{i}/{'x' * 100}": np.arange(100.0) * i for i in range(3_000)}
    desk.saver.save_histograms({"epoch": 7}, model, None)
    records = told(desk)  # decoded as a daemon does
    assert sum(len(record.tags) for record in records) == 3_000
    assert len(records) > 1
    assert desk.errors == []


def test_histograms_that_cannot_be_counted_in_time_are_left_out_and_counted(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "FREE_BYTES", 2_500)
    gate = threading.Event()
    count = weights.histograms_of

    def wait_and_count(views: Any) -> Any:
        gate.wait(10)
        return count(views)

    monkeypatch.setattr(weights, "histograms_of", wait_and_count)
    for _ in range(4):
        desk.saver.save_histograms({"epoch": 7}, np.zeros(125), None)  # 1000 bytes
    assert desk.saver.counts.not_counted == 2
    gate.set()
    assert len(told(desk)) == 2
    desk.saver.save_histograms({"epoch": 7}, np.zeros(1_000), None)  # one is always taken
    assert len(told(desk)) == 3


def test_what_goes_wrong_with_a_histogram_is_told(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd:
        dtype = np.dtype(np.float64)

        def __array__(self, *arguments: Any, **options: Any) -> Any:
            raise RuntimeError("its buffer is gone")

    monkeypatch.setattr(weights, "weight_views", lambda *given: [("weights/w", Odd())])
    desk.saver.save_histograms({}, object(), None)
    assert told(desk) == []
    assert desk.errors == ["no histogram of weights/w: its buffer is gone"]
    monkeypatch.setattr(weights, "histograms_of", lambda views: 1 / 0)
    desk.saver.save_histograms({}, object(), None)
    desk.saver.finish(10)
    assert desk.errors[1:] == ["a histogram for TensorBoard failed: division by zero"]


# --- several at once ------------------------------------------------------------------------------
def in_order(desk: Desk) -> None:
    """Check that stream, shipper and names agree."""
    records = desk.records()
    assert [record.number for record in records] == list(range(1, len(records) + 1))
    models = [record.facts["number"] for record in records if record.kind == "model"]
    assert models == list(range(1, len(models) + 1))
    assert desk.saver.kept.portfolio.saves == len(models)
    extras = [record.name for record in records if record.kind == "extra"]
    assert desk.saver.kept.extras == tuple(extras)
    assert len(set(extras)) == len(extras)
    shipped = {parcel.snapshot.number: parcel for parcel in desk.shipper.parcels}
    assert sorted(shipped) == [record.number for record in records]
    for record in records:
        name, count = pickle.loads(shipped[record.number].content)
        assert name == record.kind
        assert count is not None
    assert [saved.number for saved in desk.saver.kept.portfolio.retained] == models


@with_policy(Policy(rules=(EveryK(1),)))
def test_threads_may_save_at_once(desk: Desk) -> None:
    def save(number: int) -> None:
        for i in range(30):
            desk.saver.save_model(("model", (number, i)))
            desk.saver.save_extra(("extra", (number, i)))

    threads = [threading.Thread(target=save, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    in_order(desk)
    assert len(desk.records()) == 240


@with_policy(Policy(rules=(EveryK(1),)))
def test_a_signal_handler_may_save_at_any_instant(desk: Desk) -> None:
    """As scripts do that are told that their time on a cluster is up."""
    inside, saved, came = False, 0, 0

    def handler(number: int, frame: object) -> None:
        nonlocal inside, saved, came
        came += 1
        if inside or came % 7:  # else it saves all the time
            return
        inside = True
        desk.saver.save_model(("model", -1))
        desk.saver.save_extra(("extra", -1))
        saved += 2
        inside = False

    with signalled(handler):
        i = 0
        while saved < 200 or i < 50:
            desk.update({"epoch": i}, {"loss": 0.5})
            desk.saver.save_model(("model", i))
            desk.saver.save_extra(("extra", i))
            i += 1
    in_order(desk)
    assert len(desk.records()) == 2 * i + saved
    assert desk.errors == []


def test_what_goes_wrong_after_an_interrupted_save_is_told(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = desk.producer.record

    def interrupted(artifact: m.Artifact) -> None:
        monkeypatch.setattr(desk.producer, "record", lambda artifact: _refuse(artifact))
        desk.saver.save_extra("in the handler")
        record(artifact)

    monkeypatch.setattr(desk.producer, "record", interrupted)
    desk.saver.save_extra("outside")
    assert [r.name for r in desk.records()] == ["extra/extra_1_seed_1.pkl"]
    (error,) = desk.errors
    assert error.startswith("what a signal handler saved is lost: no room")


def test_closing_while_another_thread_saves_refuses_it(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = serializers.write_object

    def close_and_write(obj: Any, out: Any) -> None:
        write(obj, out)
        desk.saver.close()

    monkeypatch.setattr(serializers, "write_object", close_and_write)
    with pytest.raises(LoggerClosed):
        desk.saver.save_extra("x")
    assert desk.left() == []
    assert desk.records() == []
    assert desk.held() == 0
