"""Values on their way from a device: real ones, where there is a library or a device for it."""

from __future__ import annotations

import time
from types import SimpleNamespace
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


# --- torch, in host memory all the same -----------------------------------------------------------
class _HostTorch:
    """torch, whose device is the host: for what is ours, in the absence of a device."""

    cuda = SimpleNamespace(
        is_current_stream_capturing=lambda: False,
        current_stream=lambda device: SimpleNamespace(synchronize=lambda: None),
    )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *shape: Any, pin_memory: bool, **settings: Any) -> Any:
        assert pin_memory
        return torch.empty(*shape, **settings)


HOST = _HostTorch()


def _fetched(value: Any) -> device_values.Pending:
    pending = device_values._fetch_tensor(HOST, value)
    assert pending is not None
    assert pending.is_ready()
    return pending


def test_each_value_has_a_place_of_its_own_until_it_was_got() -> None:
    pending = [_fetched(torch.tensor(float(i))) for i in range(3_000)]
    assert [each.get() for each in pending] == list(range(3_000))
    first, second = (_fetched(torch.tensor(value)) for value in (1.0, 2.0))
    assert [first.get(), first.get(), first.is_ready()] == [1.0, 1.0, True]
    third = _fetched(torch.tensor(3.0))
    assert [each.get() for each in (first, second, third)] == [1.0, 2.0, 3.0]


def test_places_made_in_inference_mode_are_used_outside_of_it() -> None:
    with torch.inference_mode():
        inside = _fetched(torch.tensor(1, dtype=torch.int16))
    outside = _fetched(torch.tensor(2, dtype=torch.int16))
    assert [inside.get(), outside.get()] == [1, 2]


def test_places_lie_in_host_memory_whatever_torch_makes_tensors_on() -> None:
    value = torch.tensor(1.5, dtype=torch.float16)
    torch.set_default_device("meta")
    try:
        pending = _fetched(value)
    finally:
        torch.set_default_device(None)
    assert pending.get() == 1.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_types_that_numpy_does_not_know_come_as_floats(dtype: Any) -> None:
    value = torch.tensor([0.5, 1.5]).to(dtype)
    assert _fetched(value).get().tolist() == [0.5, 1.5]
    assert _fetched(value[1]).get() == 1.5


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
