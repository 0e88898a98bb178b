"""`load_model`: our files and mle-logging's, published first, and nothing run that they choose."""

from __future__ import annotations

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mle_client import control
from mle_client.errors import LogDamaged, LogNotFound, MLEError
from mle_client.models import UnsafeModel, load_model
from mle_client.serializers import write_model
from mle_client.snapshot import Arena


def save(model: Any, model_type: str, path: Path) -> Path:
    """Store a model as a run does, without a daemon."""
    arena = Arena(str(path.parent / "memory"), str(path.parent / "spill"))
    with arena.begin() as out:
        write_model(model, model_type, out)
        taken = out.commit(1, "model")
    path.write_bytes(b"".join(taken.chunks(100_000)))
    arena.delete()
    return path


class Harmful:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("model_type", ["jax", "sklearn", "numpy"])
def test_what_was_saved_is_loaded(tmp_path: Path, model_type: str) -> None:
    model = {"w": np.arange(200_000.0), "layers": [(1, "relu"), (2, None)], "s": np.float32(2)}
    found = load_model(save(model, model_type, tmp_path / "final.pkl"), model_type)
    assert np.array_equal(found.pop("w"), model.pop("w"))
    assert found == model


def test_files_of_mle_logging_are_loaded(tmp_path: Path) -> None:
    helpers = pytest.importorskip("mle_logging.utils")
    model = {"w": np.arange(5.0), "b": np.float64(1)}
    for model_type in ("jax", "sklearn", "numpy"):
        path = str(tmp_path / "final.pkl")
        helpers.save_pkl_object(model, path)
        found = load_model(path, model_type)
        assert np.array_equal(found["w"], model["w"])


def test_numpys_own_files_are_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.arange(5))
    np.savez(tmp_path / "two.npz", a=np.arange(3), b=np.ones(2))
    assert load_model(tmp_path / "one.npy", "numpy").tolist() == [0, 1, 2, 3, 4]
    found = load_model(tmp_path / "two.npz", "numpy")
    assert {name: array.tolist() for name, array in found.items()} == {"a": [0, 1, 2], "b": [1, 1]}


def test_nothing_that_a_file_chooses_is_run_unless_it_is_asked_for(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "final.pkl"
    path.write_bytes(pickle.dumps({"w": Harmful(marker)}))
    for model_type in ("jax", "sklearn", "numpy"):
        with pytest.raises(UnsafeModel, match=r"mkdir.*pass weights_only=False") as caught:
            load_model(path, model_type)
        assert caught.value.path == str(path)
    assert not marker.exists()
    load_model(path, "jax", weights_only=False)
    assert marker.exists()


def test_objects_in_numpys_files_are_asked_for_too(tmp_path: Path) -> None:
    array = np.array([{"a": 1}], dtype=object)
    np.save(tmp_path / "one.npy", array, allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=array)
    for name in ("one.npy", "two.npz"):
        with pytest.raises(UnsafeModel, match="weights_only=False"):
            load_model(tmp_path / name, "numpy")
    assert load_model(tmp_path / "one.npy", "numpy", weights_only=False)[0] == {"a": 1}
    assert load_model(tmp_path / "two.npz", "numpy", weights_only=False)["a"][0] == {"a": 1}


def test_daemons_write_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "final.pkl"
    monkeypatch.setattr(
        control, "publish_before_reading", lambda where: Path(where).write_bytes(pickle.dumps(5))
    )
    assert load_model(path, "jax") == 5


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / "final_a.pkl").touch()
    for model_type in ("jax", "numpy", "sklearn"):
        with pytest.raises(FileNotFoundError, match=r"there is final_a\.pkl") as caught:
            load_model(tmp_path / "final.pkl", model_type)
        assert isinstance(caught.value, LogNotFound)
    with pytest.raises(LogNotFound, match="nor a folder"):
        load_model(tmp_path / "no" / "final.pkl", "jax")
    with pytest.raises(LogNotFound, match="no such file"):
        load_model(tmp_path, "jax")


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x05", pickle.dumps([1, 2])[:-1], b"hello", b"\x93NUMPY", b"PK\x03\x04"]
)
@pytest.mark.parametrize("weights_only", [True, False])
def test_a_damaged_file_is_said_to_be_damaged(
    tmp_path: Path, content: bytes, weights_only: bool
) -> None:
    path = tmp_path / "final.pkl"
    path.write_bytes(content)
    for model_type in ("jax", "numpy"):
        with pytest.raises(LogDamaged) as caught:
            load_model(path, model_type, weights_only=weights_only)
        assert caught.value.path == str(path)


def test_a_wrong_type_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give one of"):
        load_model(tmp_path / "no", "onnx")
    with pytest.raises(ValueError, match="pass the model"):
        load_model(tmp_path / "no", "tensorflow")


# --- torch ----------------------------------------------------------------------------------------
def test_a_torch_model_is_set_or_its_state_returned(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model, other = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    path = save(model, "torch", tmp_path / "final.pt")
    state = load_model(path, "torch")
    assert torch.equal(state["weight"], model.weight)
    assert load_model(str(path), "torch", other) is other
    assert torch.equal(other.weight, model.weight)
    torch.save(model.state_dict(), path)  # as mle-logging does
    assert torch.equal(load_model(path, "torch")["bias"], model.bias)


def test_a_torch_file_that_is_more_than_weights_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    marker = tmp_path / "marker"
    path = tmp_path / "final.pt"
    torch.save({"w": torch.ones(2), "x": Harmful(marker)}, path)
    with pytest.raises(UnsafeModel, match="weights_only=False"):
        load_model(path, "torch")
    assert not marker.exists()
    with pytest.raises(LogNotFound):
        load_model(tmp_path / "no.pt", "torch")
    whole = io.BytesIO()
    torch.save({"w": torch.ones(200)}, whole)
    for content in (b"", b"hello", whole.getvalue()[:500]):
        path.write_bytes(content)
        with pytest.raises(LogDamaged):
            load_model(path, "torch")


# --- others ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("ending", [".pt", ".weights.h5", ".h5"])
def test_keras_is_given_a_path_that_it_takes(tmp_path: Path, ending: str) -> None:
    seen = []

    def load_weights(path: str) -> None:
        seen.append((path.endswith((".weights.h5", ".h5")), Path(path).read_bytes()))

    path = tmp_path / f"final{ending}"
    path.write_bytes(b"weights")
    model = SimpleNamespace(load_weights=load_weights)
    assert load_model(path, "tensorflow", model) is model
    assert seen == [(True, b"weights")]
    with pytest.raises(LogNotFound):
        load_model(tmp_path / f"no{ending}", "tensorflow", model)


def test_an_estimator_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression

    inputs = np.random.default_rng(1).normal(size=(30, 2))
    model = LogisticRegression().fit(inputs, inputs[:, 0] > 0)
    found = load_model(save(model, "sklearn", tmp_path / "final.pkl"), "sklearn")
    assert np.array_equal(found.predict(inputs), model.predict(inputs))


@pytest.mark.jax
def test_jax_arrays_are_loaded(tmp_path: Path) -> None:
    import jax

    model = {"w": jax.numpy.arange(3.0), "b": jax.numpy.ones(2, jax.numpy.bfloat16)}
    found = load_model(save(model, "jax", tmp_path / "final.pkl"), "jax")
    assert type(found["w"]) is type(model["w"])
    assert found["b"].dtype == model["b"].dtype


def test_a_model_by_value_needs_a_word(tmp_path: Path) -> None:
    path = save({"act": lambda x: x + 1}, "jax", tmp_path / "final.pkl")
    with pytest.raises(MLEError, match="cloudpickle"):
        load_model(path, "jax")
    assert load_model(path, "jax", weights_only=False)["act"](1) == 2
