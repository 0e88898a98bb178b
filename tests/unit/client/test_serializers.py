"""Models and objects as bytes: read by the library's own way of loading, and as of the call."""

from __future__ import annotations

import collections
import functools
import hashlib
import io
import math
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mle_client import serializers
from mle_client.serializers import check_model, model_extension, write_model, write_object
from mle_client.snapshot import Arena, SnapshotFull, SnapshotWriter


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Arena]:
    arena = Arena(str(tmp_path / "memory"), str(tmp_path / "spill"))
    yield arena
    arena.delete()


def saved(arena: Arena, write: Callable[[SnapshotWriter], None]) -> bytes:
    with arena.begin() as out:
        write(out)
        taken = out.commit(1, "model")
    content = b"".join(taken.chunks(64 * 1024))
    taken.release()
    return content


def saved_object(arena: Arena, obj: Any) -> bytes:
    return saved(arena, lambda out: write_object(obj, out))


def saved_model(arena: Arena, model: Any, model_type: str) -> bytes:
    return saved(arena, lambda out: write_model(model, model_type, out))


# --- arrays ---------------------------------------------------------------------------------------
class Subclass(np.ndarray[Any, Any]):
    """An array subclass of a module that can be imported."""


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def record_array(size: int) -> np.ndarray[Any, Any]:
    array = np.zeros(size, dtype=[("a", "<i4"), ("b", ">f8", (2,)), ("c", "S3")])
    array["a"] = np.arange(size)
    return array


# Each with some number of elements; the largest are far beyond what pickle keeps in a frame.
ARRAYS: dict[str, Callable[[int], np.ndarray[Any, Any]]] = {
    "writable": lambda n: np.arange(n, dtype=np.float64),
    "read-only": lambda n: read_only(np.arange(n, dtype=np.float32)),
    "fortran": lambda n: np.asfortranarray(np.arange(4.0 * n).reshape(4, n)),
    "transposed": lambda n: np.arange(3.0 * n).reshape(3, n).T,
    "strided": lambda n: np.arange(2 * n, dtype=np.int64)[::2],
    "reversed": lambda n: np.arange(n)[::-1],
    "permuted": lambda n: np.arange(6 * n).reshape(2, n, 3).transpose(2, 0, 1),
    "0-d": lambda n: np.array(float(n)),
    "empty": lambda n: np.zeros((0, 3)),
    "objects": lambda n: np.array([{"n": n}, [1, 2], None], dtype=object),
    "structured": record_array,
    "big-endian": lambda n: np.arange(n, dtype=">i4"),
    "booleans": lambda n: np.arange(n) % 3 == 0,
    "complex": lambda n: np.arange(n) * 1j,
    "half": lambda n: np.arange(n, dtype=np.float16),
    "text": lambda n: np.arange(n).astype("U8"),
    "bytes": lambda n: np.arange(n).astype("S8"),
    "times": lambda n: np.arange(n).astype("M8[s]"),
    "masked": lambda n: np.ma.masked_equal(np.arange(n), 3),
    "subclass": lambda n: np.arange(n).view(Subclass),
}


def digest(array: np.ndarray[Any, Any]) -> str:
    found = hashlib.sha256(f"{array.dtype} {array.shape} {type(array)}".encode())
    found.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_kind_come_back_by_plain_pickle(arena: Arena, kind: str, size: int) -> None:
    array = ARRAYS[kind](size)
    found = pickle.loads(saved_model(arena, {"w": array}, "numpy"))["w"]
    assert digest(found) == digest(array)
    assert found.flags.f_contiguous or kind not in ("fortran", "transposed")
    assert found.flags.writeable or kind == "read-only"


def test_large_arrays_reach_the_snapshot_without_a_copy(arena: Arena) -> None:
    array = np.arange(200_000.0)
    addresses = []

    class Watching(SnapshotWriter):
        def write(self, data: Any) -> int:
            view = np.frombuffer(data, dtype=np.uint8)
            addresses.append(view.__array_interface__["data"][0])
            return super().write(data)

    with Watching(arena._pool) as out:
        for each in (array, read_only(array), array.reshape(400, 500).T):
            write_object(each, out)
    assert addresses.count(array.__array_interface__["data"][0]) == 3


def test_a_torn_snapshot_is_never_stored(arena: Arena) -> None:
    """Whatever changes right after the call: the stored array is the one of the call."""
    chance = random.Random(3)
    rounds = 0
    while rounds < 1000:
        model = {kind: make(chance.choice([5, 50, 20_000])) for kind, make in ARRAYS.items()}
        model["twin"] = model["writable"]  # the same object twice
        expected = {kind: digest(array) for kind, array in model.items()}
        with arena.begin() as out:
            write_model(model, "numpy", out)
            taken = out.commit(1, "model")
        for array in model.values():
            base = array if array.base is None else array.base
            base.flags.writeable = True
            if base.dtype.hasobject:
                base[0]["n"] = -1
                base[1].append(3)
            elif base.dtype.names is None:
                base[...] = np.zeros(1, dtype=base.dtype)[0]
            else:
                base["a"] = -1
            rounds += 1
        found = pickle.loads(b"".join(taken.chunks(100_000)))
        assert {kind: digest(array) for kind, array in found.items()} == expected
        assert found["twin"] is found["writable"]
        taken.release()


# --- objects --------------------------------------------------------------------------------------
Point = collections.namedtuple("Point", "x y")


class Stateful:
    """A class of a module that can be imported."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stateful) and self.value == other.value

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "obj",
    [
        {"a": [1, 2.5, "x", None, b"y" * 100_000], "b": (1, {2, 3}, frozenset({4}))},
        Point(1, 2),
        Stateful({"x": 1}),
        math.sin,
        np.float32(3.5),
        range(5),
        type(None),
        Stateful,
        functools.partial(math.pow, 2),
        SimpleNamespace(a=1),
    ],
)
def test_what_plain_pickle_can_express_needs_nothing_else_to_be_read(
    arena: Arena, obj: Any
) -> None:
    content = saved_object(arena, obj)
    assert b"cloudpickle" not in content
    found = pickle.loads(content)
    assert found == obj or repr(found) == repr(obj)


def test_lambdas_and_local_classes_go_by_value(arena: Arena) -> None:
    factor = 3

    class Local:
        def times(self, value: int) -> int:
            return factor * value

    # Much is written before plain pickle meets what it cannot express.
    obj = {"w": np.arange(200_000), "f": lambda value: factor * value, "g": Local()}
    content = saved_object(arena, obj)
    found = pickle.loads(content)
    assert found["f"](2) == found["g"].times(2) == 6
    assert found["w"].tolist() == list(range(200_000))
    assert len(content) < 1.1 * obj["w"].nbytes


SCRIPT = """
import collections, enum, functools, pickle, sys, typing
sys.path.insert(0, sys.argv[1])
from mle_client.serializers import write_object
from mle_client.snapshot import Arena

class Plain:
    def __init__(self): self.x = 5
    def double(self): return 2 * self.x
class Named(typing.NamedTuple):
    x: int = 5
class Colour(enum.Enum):
    RED = 5
def five(): return 5
objects = dict(instance=Plain(), type=Plain, named=Named(), enum=Colour.RED, function=five,
               bound=Plain().double, partial=functools.partial(five), deep=[{"a": (Plain(),)}],
               plain={"x": 5})
arena = Arena(sys.argv[2], sys.argv[2] + "-spill")
for name, obj in objects.items():
    with arena.begin() as out:
        write_object(obj, out)
        taken = out.commit(1, "extra")
    with open(f"{sys.argv[3]}/{name}.pkl", "wb") as file:
        for chunk in taken.chunks(1000):
            file.write(chunk)
    taken.release()
arena.delete()
"""


def test_what_a_script_defines_is_read_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    folder = tmp_path / "out"
    folder.mkdir()
    root = Path(serializers.__file__).parents[1]
    arguments = [str(root), str(tmp_path / "memory"), str(folder)]
    subprocess.run([sys.executable, str(tmp_path / "train.py"), *arguments], check=True)
    found = {path.stem: pickle.loads(path.read_bytes()) for path in folder.iterdir()}
    assert found["instance"].double() == found["bound"]() == 10
    assert found["type"]().x == found["named"].x == found["enum"].value == 5
    assert found["function"]() == found["partial"]() == found["deep"][0]["a"][0].x == 5
    assert b"cloudpickle" not in (folder / "plain.pkl").read_bytes()


@pytest.mark.parametrize(
    ("obj", "where"),
    [
        (threading.Lock(), "it"),
        ({"w": [1, 2], "locks": [1, threading.Lock()]}, r"\['locks'\]\[1\]"),
        (Stateful(Stateful(x for x in ())), r"\.value\.value"),
    ],
)
def test_what_nobody_can_pickle_is_named(
    arena: Arena, tmp_path: Path, obj: Any, where: str
) -> None:
    with arena.begin() as out, pytest.raises(TypeError, match=f"{where}.*leave that out"):
        write_object(obj, out)
    assert not list(tmp_path.glob("memory/*.snap"))


def test_an_object_nested_too_deep_is_an_error(arena: Arena) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with arena.begin() as out, pytest.raises(TypeError, match="cannot be saved"):
        write_object(deep, out)


def test_no_room_is_said_as_such(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for write in (
        lambda out: write_object(np.zeros(1_000_000), out),
        lambda out: write_object(lambda: 1, out),
    ):
        with arena.begin() as out, pytest.raises(SnapshotFull):
            write(out)


# --- models ---------------------------------------------------------------------------------------
def test_extensions_are_mle_loggings() -> None:
    assert [
        model_extension(each) for each in ("torch", "tensorflow", "jax", "sklearn", "numpy")
    ] == [
        ".pt",
        ".pt",
        ".pkl",
        ".pkl",
        ".pkl",
    ]
    with pytest.raises(ValueError, match="'onnx' is none that can be saved: give one of 'torch'"):
        model_extension("onnx")


@pytest.mark.parametrize(
    ("model", "model_type", "error", "message"),
    [
        ([1, 2], "torch", TypeError, r"a list has no state_dict\(\)"),
        ({"w": np.zeros(3)}, "torch", TypeError, "no tensor in this dict.*'numpy'"),
        ({}, "torch", TypeError, "no tensor in this dict"),
        (None, "torch", TypeError, "a NoneType has no"),
        (None, "jax", TypeError, "it is None"),
        (None, "sklearn", TypeError, "it is None"),
        (np.zeros(3), "tensorflow", TypeError, r"has no save_weights\(\)"),
        ({"w": 1}, "onnx", ValueError, "none that can be saved"),
    ],
)
def test_a_model_of_the_wrong_type_is_refused(
    model: Any, model_type: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_model(model, model_type)


def test_a_missing_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(serializers.importlib.util, "find_spec", lambda name: None)
    model = SimpleNamespace(state_dict=dict)
    with pytest.raises(ModuleNotFoundError, match=r"pip install mle-daemon\[torch\]"):
        check_model(model, "torch")


def test_importing_it_loads_no_library_of_models() -> None:
    program = (
        "import sys, mle_client.serializers, mle_client.torch_archive, mle_client.models;"
        "print({'torch', 'jax', 'sklearn', 'keras', 'cloudpickle'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout.strip() == "set()"


def test_a_torch_model_is_read_by_torch(arena: Arena, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "model.pt"
    path.write_bytes(saved_model(arena, model, "torch"))
    found = torch.load(path, weights_only=True)
    assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())
    everything = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    path.write_bytes(saved_model(arena, everything, "torch"))
    found = torch.load(path, weights_only=True)
    optimizer.load_state_dict(found["optimizer"])
    for model_type in ("jax", "numpy"):
        with pytest.raises(TypeError, match="is a torch module"):
            check_model(model, model_type)
    with pytest.raises(TypeError, match="torch cannot save the state"):
        saved_model(arena, {"w": torch.ones(2), "f": lambda: 1}, "torch")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage")
def test_a_torch_model_that_changes_after_the_call_is_stored_as_it_was(arena: Arena) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    tensors = {
        "plain": torch.rand(40_000),
        "small": torch.rand(3),
        "transposed": torch.rand(30, 20).t(),
        "strided": torch.rand(100)[::3],
        "whole": torch.arange(1000),
        "half": torch.rand(50).to(torch.bfloat16),
        "complex": torch.rand(50, dtype=torch.complex64),
        "flags": torch.rand(50) > 0.5,
        "scalar": torch.tensor(2.0),
        "quantised": torch.quantize_per_tensor(torch.rand(20), 0.1, 0, torch.quint8),
    }
    tensors["tied"] = tensors["whole"][10:]
    rounds = 0
    while rounds < 1000:
        expected = {name: tensor.clone() for name, tensor in tensors.items()}
        with arena.begin() as out:
            write_model(dict(tensors), "torch", out)
            taken = out.commit(1, "model")
        for tensor in tensors.values():
            if tensor.is_quantized:
                tensor.copy_(torch.rand(20))
            elif tensor.is_floating_point() or tensor.is_complex():
                tensor.mul_(-1).add_(1)
            else:
                tensor.bitwise_not_()
            rounds += 1
        found = torch.load(io.BytesIO(b"".join(taken.chunks(50_000))), weights_only=True)
        assert all(torch.equal(found[name], expected[name]) for name in tensors)
        taken.release()


def test_an_estimator_is_read_by_plain_pickle(arena: Arena) -> None:
    pytest.importorskip("sklearn")
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inputs = np.random.default_rng(1).normal(size=(80, 4))
    model = make_pipeline(StandardScaler(), RandomForestClassifier(5, random_state=1))
    model.fit(inputs, inputs[:, 0] > 0)
    content = saved_model(arena, model, "sklearn")
    before = model.predict_proba(inputs)
    model.fit(inputs, inputs[:, 1] > 0)
    assert b"cloudpickle" not in content
    assert np.array_equal(pickle.loads(content).predict_proba(inputs), before)


@pytest.mark.jax
def test_jax_arrays_are_read_by_plain_pickle_and_not_copied_twice(arena: Arena) -> None:
    import jax

    jnp = jax.numpy
    model = {
        "f32": jnp.arange(50_000.0),
        "bf16": jnp.arange(60_000, dtype=jnp.bfloat16).reshape(200, 300),
        "scalar": jnp.bfloat16(3),
        "weak": jnp.asarray(2.0),
        "empty": jnp.zeros((0, 3)),
        "fp8": jnp.ones(5, jnp.float8_e4m3fn),
        "numpy": np.asarray(jnp.arange(5, dtype=jnp.bfloat16)),
    }
    lengths = []

    class Watching(SnapshotWriter):
        def write(self, data: Any) -> int:
            lengths.append(0 if type(data) is bytes else memoryview(data).nbytes)
            return super().write(data)

    with Watching(arena._pool) as out:
        write_model(model, "jax", out)
        taken = out.commit(1, "model")
    assert {200_000, 120_000} <= set(lengths)  # straight from the arrays
    content = b"".join(taken.chunks(100_000))
    found = pickle.loads(content)
    assert b"mle_client" not in content
    for name, array in model.items():
        assert type(found[name]) is type(array)
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert np.array_equal(np.asarray(found[name]), np.asarray(array))
    assert found["weak"].weak_type == model["weak"].weak_type


@pytest.mark.jax
def test_a_tracer_is_refused(arena: Arena) -> None:
    import jax

    problems = []

    def step(value: Any) -> Any:
        try:
            saved_model(arena, {"w": value}, "jax")
        except TypeError as error:
            problems.append(str(error))
        return value

    jax.jit(step)(1.0)
    assert "['w']" in problems[0]


class Weights:
    """What keras's models look like from here."""

    def __init__(self, content: bytes, broken: Path | None = None) -> None:
        self.content = content
        self.broken = broken
        self.paths: list[Path] = []

    def save_weights(self, path: str) -> None:
        """Write to a path of keras's only ending."""
        self.paths.append(Path(path))
        assert path.endswith(".weights.h5")
        if self.broken is not None and Path(path).is_relative_to(self.broken):
            raise OSError(28, "No space left on device")
        Path(path).write_bytes(self.content)


def test_keras_writes_a_file_that_is_taken_and_removed(arena: Arena, tmp_path: Path) -> None:
    model = Weights(random.Random(1).randbytes(6_000_000))
    assert saved_model(arena, model, "tensorflow") == model.content
    assert model.paths[0].is_relative_to(tmp_path / "memory")
    assert not model.paths[0].parent.exists()


def test_an_error_of_keras_itself_is_its_own(arena: Arena, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        saved_model(arena, Weights(b"weights", broken=tmp_path), "tensorflow")


def test_without_room_in_memory_keras_writes_to_disk(arena: Arena, tmp_path: Path) -> None:
    model = Weights(b"weights", broken=tmp_path / "memory")
    assert saved_model(arena, model, "tensorflow") == b"weights"
    assert model.paths[1].is_relative_to(tmp_path / "spill")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of keras with torch beneath
def test_a_keras_model_is_read_by_keras(arena: Arena, tmp_path: Path) -> None:
    keras = pytest.importorskip("keras", exc_type=ImportError)

    def build() -> Any:
        return keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])

    model, other = build(), build()
    path = tmp_path / "model.weights.h5"
    path.write_bytes(saved_model(arena, model, "tensorflow"))
    other.load_weights(path)
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        assert np.array_equal(a, b)
