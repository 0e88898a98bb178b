"""Values on their way from a device: real ones, where there is a library or a device for it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from mle_client import device_values, ticks
from mle_client import messages as m

torch = pytest.importorskip("torch")


def _cuda() -> Any:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.mark.parametrize("value", [1.5, "text", None, np.float32(2), np.ones(3), [1.0], {}])
def test_what_is_here_need_not_be_fetched(value: Any) -> None:
    assert device_values.fetch(value) is None


def test_a_tensor_in_host_memory_need_not_be_fetched() -> None:
    assert device_values.fetch(torch.tensor(0.5)) is None
    assert device_values.fetch(torch.nn.Parameter(torch.ones(2))) is None


# --- jax ------------------------------------------------------------------------------------------
@pytest.fixture
def slow() -> Any:
    """A jax computation that takes its time: loss = slow()."""
    import jax

    @jax.jit
    def compute(matrix: Any) -> Any:
        for _ in range(8):
            matrix = matrix @ matrix / 500
        return matrix.sum() * 0 + 0.25

    matrix = jax.numpy.ones((500, 500))
    device_values.fetch(compute(matrix))  # compiles both
    compute(matrix).block_until_ready()
    return lambda: compute(matrix)


@pytest.mark.jax
def test_who_fetches_from_jax_does_not_wait_for_it(slow: Any) -> None:
    loss = slow()
    pending = device_values.fetch(loss)
    assert pending is not None
    assert not loss.is_ready()
    assert not pending.is_ready()
    value = pending.get()
    assert (value, value.dtype, value.shape) == (0.25, np.float32, ())
    assert pending.is_ready()


@pytest.mark.jax
def test_an_array_that_jax_was_given_for_good_is_there_all_the_same(slow: Any) -> None:
    import jax

    loss = slow()
    pending = device_values.fetch(loss)
    assert pending is not None
    jax.jit(lambda x: x + 1, donate_argnums=0)(loss)
    assert loss.is_deleted()
    assert pending.get() == 0.25


@pytest.mark.jax
def test_an_array_of_jax_that_is_computed_need_not_be_fetched(slow: Any) -> None:
    assert device_values.fetch(slow().block_until_ready()) is None


@pytest.mark.jax
def test_keys_and_tracers_of_jax_are_no_numbers() -> None:
    import jax

    assert device_values.fetch(jax.random.key(0)) is None
    found = []

    @jax.jit
    def compute(x: Any) -> Any:
        found.append(device_values.fetch(x))
        with pytest.raises(TypeError, match="'x' cannot be made an array"):
            ticks.describe({}, {"x": x}, device_values.fetch)
        return x

    compute(1.0)
    assert found == [None]


@pytest.mark.jax
def test_values_of_all_kinds_come_from_jax(slow: Any) -> None:
    import jax

    @jax.jit
    def forms(loss: Any) -> Any:
        half, vector = loss.astype(jax.numpy.bfloat16), loss + jax.numpy.ones(2)
        return loss.astype(jax.numpy.int32), half, vector

    for _ in range(2):  # the first time all is compiled
        step, half, vector = forms(slow())
        described = ticks.describe(
            {"step": step}, {"half": half, "vector": vector}, device_values.fetch
        )
    assert len(described.pending) == 3
    assert described.clock == (m.Field("step", m.INT),)
    assert described.stats == (m.Field("half", m.FLOAT), m.Field("vector", m.Kind("<f4", (2,))))
    assert ticks.arrived(described).values == (0, 0.25, np.full(2, 1.25, "<f4").tobytes())


# --- torch on a CUDA device -----------------------------------------------------------------------
def _slow_loss(device: Any) -> Any:
    matrix = torch.ones((8_192, 8_192), device=device) / 8_192
    for _ in range(20):
        matrix = matrix @ matrix
    return matrix.sum() * 0 + 0.25


def test_who_fetches_from_cuda_does_not_wait_for_it() -> None:
    device = _cuda()
    device_values.fetch(_slow_loss(device)).get()  # type: ignore[union-attr]
    torch.cuda.synchronize()
    loss = _slow_loss(device).requires_grad_()
    with _no_synchronization():
        pending = device_values.fetch(loss)
    assert pending is not None
    assert not pending.is_ready()
    with torch.no_grad():
        loss.fill_(7.0)  # queued behind the transfer
    deadline = time.monotonic() + 60
    while not pending.is_ready():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    with _no_synchronization():
        assert pending.get() == 0.25


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "int64", "bool"])
def test_numbers_of_all_types_come_from_cuda(dtype: str) -> None:
    device = _cuda()
    value = torch.tensor([0, 1, 2], device=device).to(getattr(torch, dtype))
    described = ticks.describe({"last": value[2]}, {"all": value}, device_values.fetch)
    assert len(described.pending) == 2
    arrived = ticks.arrived(described)
    assert arrived.values[0] == value[2].item()
    kind = arrived.stats[0].kind
    assert np.frombuffer(arrived.values[1], kind.code).tolist() == value.tolist()


def test_places_for_cuda_are_used_again() -> None:
    device = _cuda()
    for i in range(3_000):
        pending = device_values.fetch(torch.tensor(float(i), device=device))
        assert pending is not None
        assert pending.get() == i


class _no_synchronization:
    """Have torch raise where a call would wait for the device."""

    def __enter__(self) -> None:
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *error: object) -> None:
        torch.cuda.set_sync_debug_mode("default")
