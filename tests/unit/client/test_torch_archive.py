"""torch's file format: what `torch.save` would have written, and plain `torch.load` reads it."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mle_client import torch_archive  # noqa: E402
from mle_client.snapshot import Arena, SnapshotFull, SnapshotWriter  # noqa: E402


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    arena = Arena(str(tmp_path / "memory"), str(tmp_path / "spill"))
    yield arena
    arena.delete()


@pytest.fixture(autouse=True)
def no_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered of other tests."""
    monkeypatch.setattr(torch_archive, "_layouts", {})


@pytest.fixture
def quick_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where `torch.save` would be asked."""

    def refused(*_: object) -> None:
        pytest.fail("it went through torch.save")

    monkeypatch.setattr(torch_archive, "_write_slowly", refused)


def saved(arena: Arena, state: Any) -> bytes:
    with arena.begin() as out:
        torch_archive.write_state_dict(state, out)
        taken = out.commit(1, "model")
    content = b"".join(taken.chunks(64 * 1024))
    taken.release()
    return content


def saved_by_torch(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def loaded(content: bytes, tmp_path: Path, **options: Any) -> Any:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    return torch.load(path, weights_only=True, **options)


def without_checksums(content: bytes) -> bytes:
    """A zip file up to the end of its data, the words for checksums blanked."""
    blank = bytearray(content)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        infos = file.infolist()
        for info in infos:
            at = info.header_offset
            lengths = (int.from_bytes(content[at + x : at + x + 2], "little") for x in (26, 28))
            end = at + 30 + sum(lengths) + info.file_size
            if info.file_size:
                blank[end + 4 : end + 8] = bytes(4)
        last = next(info for info in infos if info.filename == "archive/version")
    return bytes(blank[: last.header_offset])


def shared() -> dict[str, Any]:
    base = torch.arange(20.0)
    return {"whole": base, "part": base[3:9], "twice": base, "back": base[:6].reshape(2, 3).t()}


STATES: dict[str, Callable[[], Any]] = {
    "plain": lambda: {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)},
    "shared": shared,
    "non-contiguous": lambda: {"a": torch.arange(24).reshape(2, 3, 4)[:, 1:, ::2]},
    "transposed": lambda: {"a": torch.arange(6.0).reshape(2, 3).t()},
    "zero-size": lambda: {"a": torch.zeros(0, 3), "b": torch.ones(2), "c": torch.zeros(0)},
    "scalars": lambda: {"a": torch.tensor(1.5), "b": torch.tensor(True)},
    "types": lambda: {
        str(kind): torch.ones(5).to(kind)
        for kind in (
            *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
            *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
            *(torch.complex64, torch.complex128, torch.float8_e4m3fn),
        )
    },
    "parameters": lambda: OrderedDict(a=torch.nn.Parameter(torch.ones(3)), b=torch.zeros(2)),
    "conjugated": lambda: {"a": torch.tensor([1 + 2j, 3j]).conj(), "b": torch.ones(2)},
    "negated": lambda: {"a": torch.tensor([1 + 2j, 3j]).conj().imag},
    "sparse": lambda: {"a": torch.eye(3).to_sparse(), "b": torch.eye(3).to_sparse_csr()},
    "nested": lambda: {"model": shared(), "epoch": 3, "names": ["x", "y"], "lr": 0.1},
    "mixed": lambda: OrderedDict(weight=torch.ones(3), extra={"steps": 5}),
    "empty": dict,
    "large": lambda: {"a": torch.rand(1_500_000), "b": torch.rand(1_000_001)},
}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert left.layout == right.layout
        assert left.requires_grad == right.requires_grad
        dense = (left.to_dense(), right.to_dense()) if left.layout != torch.strided else None
        a, b = dense or (left.resolve_conj().resolve_neg(), right.resolve_conj().resolve_neg())
        small = a.dtype.itemsize == 1 and a.dtype.is_floating_point
        return torch.equal(a.view(torch.uint8), b.view(torch.uint8)) if small else torch.equal(a, b)
    if isinstance(left, dict):
        assert list(left) == list(right)
        return all(same(left[name], right[name]) for name in left)
    return bool(left == right)


@pytest.mark.filterwarnings("ignore:Sparse (CSR|invariant)")
@pytest.mark.parametrize("name", STATES)
@pytest.mark.usefixtures("quick_only")
def test_a_state_is_written_as_torch_writes_it(arena: Arena, tmp_path: Path, name: str) -> None:
    state = STATES[name]()
    expected = saved_by_torch(state)
    for _ in range(2):  # the second time the structure is known
        content = saved(arena, state)
        assert without_checksums(content) == without_checksums(expected)
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            assert file.testzip() is None
        assert same(loaded(content, tmp_path), state)
        if name not in ("sparse", "empty"):
            assert same(loaded(content, tmp_path, mmap=True), state)


@pytest.mark.usefixtures("quick_only")
def test_a_module_comes_back_with_its_versions(arena: Arena, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    for _ in range(2):
        found = loaded(saved(arena, model.state_dict()), tmp_path)
        assert type(found) is OrderedDict
        assert found._metadata == model.state_dict()._metadata
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).load_state_dict(found)
        assert same(dict(found), dict(model.state_dict()))


def test_tied_weights_are_stored_once_and_stay_tied(arena: Arena, tmp_path: Path) -> None:
    weight = torch.rand(500, 500)
    content = saved(arena, {"encoder": weight, "decoder": weight, "bias": weight[0]})
    assert len(content) < 1.1 * weight.nbytes
    found = loaded(content, tmp_path)
    found["encoder"][0, 0] = 5.0
    assert found["decoder"][0, 0] == found["bias"][0] == 5.0


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:The PyTorch API of nested")
def test_what_changes_is_noticed_though_the_structure_was_remembered(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_archive, "_LAYOUTS", 1000)
    base, other, learnt = (torch.arange(12.0) for _ in range(3))
    learnt.requires_grad_()
    numbers = torch.arange(4.0) * (1 + 2j)
    marked = torch.arange(12.0)
    marked.note = "an attribute of the user's"
    versioned = OrderedDict(a=base, b=base)
    versioned._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
    states: list[Any] = [
        {"a": base, "b": base},
        {"a": base, "b": other},  # no longer shared
        {"a": base, "b": other[1:]},
        {"a": base, "b": other[:-1]},
        {"a": base, "b": other[:-1].clone()},
        {"a": base.reshape(3, 4), "b": base},
        {"a": base.reshape(4, 3).t(), "b": base},
        {"a": base.int(), "b": base},
        {"a": base, "c": base},
        {"c": base, "a": base},
        {"a": base, "b": learnt},
        {"a": base, "b": marked},
        {"a": base, "b": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])},
        {"a": learnt, "b": learnt},
        {"a": torch.nn.Parameter(base), "b": learnt},
        OrderedDict(a=base, b=base),
        versioned,
        {"a": base, "b": 5},
        {"a": numbers},
        {"a": numbers.conj()},
        {"a": numbers.imag},
        {"a": numbers.conj().imag},
        {"a": torch.quantize_per_tensor(base, 0.5, 0, torch.quint8)},
        {"a": torch.quantize_per_tensor(base, 0.25, 0, torch.quint8)},
    ]
    for state in [*states, *reversed(states)]:
        content = saved(arena, state)
        assert without_checksums(content) == without_checksums(saved_by_torch(state))


def test_what_is_remembered_is_bounded(arena: Arena) -> None:
    for size in range(30):
        saved(arena, {"a": torch.ones(size)})
    assert len(torch_archive._layouts) == torch_archive._LAYOUTS


def test_new_values_of_a_known_structure_are_the_ones_stored(arena: Arena, tmp_path: Path) -> None:
    state = {"a": torch.zeros(300_000), "b": torch.zeros(3)}
    for step in range(5):
        state["a"].fill_(step)
        state["b"] = torch.full((3,), float(step))  # another tensor of the same kind
        content = saved(arena, state)
        state["a"].fill_(-1.0)
        state["b"].fill_(-1.0)
        found = loaded(content, tmp_path)
        assert (found["a"] == step).all()
        assert (found["b"] == step).all()


class Marked(torch.Tensor):  # type: ignore[misc]
    """A tensor subclass."""


@pytest.mark.parametrize("kind", ["two types", "device"])
def test_the_rest_goes_through_torch_save(
    arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    asked = []
    monkeypatch.setattr(torch, "save", lambda *a, real=torch.save: asked.append(1) or real(*a))
    if kind == "device":
        monkeypatch.setattr(torch_archive, "_DEVICES", frozenset())
        state = shared()
        assert same(loaded(saved(arena, state), tmp_path), state)
    else:
        base = torch.arange(4.0)
        with pytest.raises(RuntimeError, match="different types"):
            saved(arena, {"a": base, "b": base.view(torch.int32)})
    assert asked


def test_subclasses_keep_their_type(arena: Arena, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(saved(arena, {"a": torch.ones(2).as_subclass(Marked)}))
    found = torch.load(path, weights_only=False)["a"]
    assert type(found).__name__ == "Marked"


def test_no_room_in_the_slow_way_is_an_error_and_no_abort(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch_archive, "_DEVICES", frozenset())
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SnapshotFull):
        saved(arena, {"a": torch.ones(3)})


def test_a_parameter_without_values_is_named(arena: Arena) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"'1\.weight' of this model is not initialised"):
        saved(arena, model.state_dict())


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_a_script_module_is_stored_by_its_parameters(arena: Arena, tmp_path: Path) -> None:
    model = torch.jit.trace(torch.nn.Linear(2, 3), torch.ones(1, 2))
    found = loaded(saved(arena, model.state_dict()), tmp_path)
    assert same(dict(found), dict(model.state_dict()))


def test_what_lies_on_a_device_is_copied_into_the_snapshot_itself(
    arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no such device here: the copy is the one from the processor's own memory."""
    monkeypatch.setattr(torch_archive, "_CPU", "none of them")
    written = []
    real = SnapshotWriter.reserve
    monkeypatch.setattr(
        SnapshotWriter, "reserve", lambda self, size: written.append(size) or real(self, size)
    )
    state = {"a": torch.rand(1_500_000), "b": torch.zeros(0), "c": torch.rand(3)[1:]}
    content = saved(arena, state)
    assert written == [6_000_000, 0, 12]
    assert without_checksums(content) == without_checksums(saved_by_torch(state))
    assert same(loaded(content, tmp_path), state)
