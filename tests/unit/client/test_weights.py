"""Which arrays get a histogram: their names, that they are those of the call, and at which step."""

from __future__ import annotations

import math
from collections import OrderedDict
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from mle_client import ticks, weights
from mle_client.histograms import from_plain, histogram
from mle_client.weights import copied_bytes, histograms_of, step_of, weight_views


def arrays_of(model: Any, model_type: str = "numpy", grads: Any = None) -> dict[str, Any]:
    return dict(weight_views(model, model_type, grads))


# --- trees of arrays ------------------------------------------------------------------------------
@pytest.mark.parametrize("model_type", ["numpy", "jax"])
def test_tags_are_the_path_to_each_array(model_type: str) -> None:
    one, two, three = np.ones(2), np.zeros((2, 2)), np.arange(3)
    model = OrderedDict(dense={"w": one, "b": two}, scale=three, deep={"a": {"b": {"c": one}}})
    found = arrays_of(model, model_type)
    assert list(found) == [
        "weights/dense/w",
        "weights/dense/b",
        "weights/scale",
        "weights/deep/a/b/c",
    ]
    np.testing.assert_array_equal(found["weights/dense/b"], two)


def test_lists_and_tuples_are_numbered() -> None:
    assert list(arrays_of([np.ones(1), {"w": (np.ones(1), np.ones(1))}])) == [
        "weights/0",
        "weights/1/w/0",
        "weights/1/w/1",
    ]


def test_a_bare_array_is_called_weights() -> None:
    found = arrays_of(np.ones(3), grads=np.zeros(3))
    assert list(found) == ["weights/weights", "gradients/gradients"]


def test_gradients_have_tags_of_their_own() -> None:
    found = arrays_of({"l": {"w": np.ones(2)}}, "jax", grads={"l": {"w": np.full(2, 3.0)}})
    assert list(found) == ["weights/l/w", "gradients/l/w"]
    assert found["gradients/l/w"].tolist() == [3.0, 3.0]


def test_what_is_no_array_of_numbers_is_passed_over() -> None:
    model = {
        "s": "text",
        "n": None,
        "f": 0.5,
        "o": np.array([None]),
        "c": np.ones(1) * 1j,
        3: np.ones(1),
    }
    assert list(arrays_of(model)) == ["weights/3"]


@pytest.mark.parametrize("model_type", ["sklearn", "tensorflow", "no-model-type"])
def test_other_models_have_no_histograms(model_type: str) -> None:
    assert weight_views({"w": np.ones(2)}, model_type) == []


@pytest.mark.parametrize("model_type", ["torch", "jax", "numpy"])
def test_without_a_model_there_is_nothing(model_type: str) -> None:
    assert weight_views(None, model_type) == []


@pytest.mark.parametrize("model_type", ["numpy", "jax"])
def test_numpy_arrays_are_those_of_the_call(model_type: str) -> None:
    model = {"w": np.ones(4), "view": np.arange(8)[::2]}
    found = arrays_of(model, model_type)
    model["w"][:] = 9
    model["view"][:] = 9
    assert found["weights/w"].tolist() == [1.0] * 4
    assert found["weights/view"].tolist() == [0, 2, 4, 6]


def test_the_bytes_that_were_copied_are_counted() -> None:
    views = weight_views({"w": np.ones(1000), "b": np.ones(10, np.float32)}, "numpy")
    assert copied_bytes(views) == 8040


# --- jax ------------------------------------------------------------------------------------------
@pytest.mark.jax
def test_jax_arrays_are_kept_and_not_copied() -> None:
    import jax.numpy as jnp

    model = {"l": {"w": jnp.arange(4.0), "b": jnp.ones(2, jnp.bfloat16)}}
    views = weight_views(model, "jax")
    assert views[0][1] is model["l"]["w"]
    assert copied_bytes(views) == 0
    found, problems = histograms_of(views)
    assert problems == []
    assert from_plain(found["weights/l/w"]) == histogram([0.0, 1.0, 2.0, 3.0])
    assert from_plain(found["weights/l/b"]).num == 2


@pytest.mark.jax
def test_a_jax_array_that_was_given_away_is_a_problem_and_harms_no_other() -> None:
    import jax.numpy as jnp

    model = {"gone": jnp.arange(4.0), "there": jnp.ones(2)}
    views = weight_views(model, "jax")
    model["gone"].delete()  # as a jitted function does with what is donated to it
    found, (problem,) = histograms_of(views)
    assert list(found) == ["weights/there"]
    assert problem.startswith("no histogram of weights/gone: ")


# --- torch ----------------------------------------------------------------------------------------
def torch_model(torch: Any) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU(), torch.nn.Linear(2, 1))


def test_torch_parameters_and_their_gradients() -> None:
    torch = pytest.importorskip("torch")
    model = torch_model(torch)
    model(torch.ones(5, 3)).sum().backward()
    model[2].weight.grad = None

    found = arrays_of(model, "torch")

    names = [name for name, _ in model.named_parameters()]
    expected = [f"{group}/{name}" for name in names for group in ("weights", "gradients")]
    assert list(found) == [tag for tag in expected if tag != "gradients/2.weight"]
    np.testing.assert_array_equal(found["weights/0.weight"], model[0].weight.detach().numpy())
    np.testing.assert_array_equal(found["gradients/0.bias"], model[0].bias.grad.numpy())


def test_torch_tensors_are_those_of_the_call() -> None:
    torch = pytest.importorskip("torch")
    model = torch_model(torch)
    before = model[0].weight.detach().clone().numpy()
    views = weight_views(model, "torch")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)
    np.testing.assert_array_equal(dict(views)["weights/0.weight"], before)
    assert copied_bytes(views) == 4 * (3 * 2 + 2 + 2 + 1)


def test_torch_types_that_numpy_lacks_become_float32() -> None:
    torch = pytest.importorskip("torch")
    model = torch_model(torch).to(torch.bfloat16)
    found, problems = histograms_of(weight_views(model, "torch"))
    assert problems == []
    expected = model[0].weight.detach().float().numpy()
    assert from_plain(found["weights/0.weight"]) == histogram(expected)


def test_sparse_gradients_count_their_zeros() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Embedding(10, 2, sparse=True)
    model(torch.tensor([3])).sum().backward()
    gradient = arrays_of(model, "torch")["gradients/weight"]
    assert gradient.shape == (10, 2)
    assert gradient.sum() == 2.0


def test_torch_parameters_without_values_are_passed_over() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.ModuleDict(
        {"lazy": torch.nn.LazyLinear(2), "meta": torch.nn.Linear(2, 2, device="meta")}
    )
    model.register_parameter("phase", torch.nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    assert arrays_of(model, "torch") == {}


def test_a_torch_model_without_parameters_by_name_is_refused() -> None:
    with pytest.raises(TypeError, match="pass the module"):
        weight_views({"w": np.ones(2)}, "torch")


# --- histograms in the background -----------------------------------------------------------------
def test_each_array_gets_its_histogram() -> None:
    views = weight_views({"a": np.arange(5), "b": np.ones(3)}, "numpy")
    found, problems = histograms_of(views)
    assert {tag: from_plain(plain) for tag, plain in found.items()} == {
        "weights/a": histogram(np.arange(5)),
        "weights/b": histogram(np.ones(3)),
    }
    assert problems == []


def test_weights_load_no_framework() -> None:
    assert not {"torch", "jax"} & set(vars(weights))


# --- steps ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("clock", "step"),
    [
        ({"num_epochs": 3, "num_steps": 70}, 3),
        ({"time": 1, "num_updates": 2, "time_elapsed": 3, "num_epochs": 4}, 4),
        ({"name": "x", "flag": True, "vector": np.ones(2), "num_epochs": 4}, 4),
        ({"num_epochs": 2.9}, 2),
        ({"num_epochs": -2.9}, -2),
        ({"num_epochs": np.float32(5)}, 5),
        ({"num_epochs": np.array(6)}, 6),
        ({"num_epochs": Fraction(7, 2)}, 3),
        ({"num_epochs": 2**63 - 1}, 2**63 - 1),
        ({"num_epochs": math.nan}, 17),
        ({"num_epochs": math.inf}, 17),
        ({"num_epochs": 2.0**63}, 17),
        ({"num_epochs": -(2.0**63)}, -(2**63)),
        ({"name": "x"}, 17),
        ({}, 17),
    ],
)
def test_a_step_is_the_users_first_clock_that_is_a_number(clock: dict[str, Any], step: int) -> None:
    assert ticks.describe(clock, {})
    assert step_of(clock, 17) == step
