"""Hypothesis strategies: ticks of every kind that a user may log, and any values at all."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats()  # NaN, infinities and negative zero included
# Every valid Unicode text; surrogates are none.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
NAMES = st.one_of(
    st.sampled_from(["loss", "train/loss", "a.b", "test acc", "größe", "損失", ".", "..", "%", ""]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
)
_DTYPES = st.sampled_from(["<f8", "<f4", "<f2", "<i8", "<i4", "|u1", "|b1", ">f8", ">i4"])


def plain_values() -> st.SearchStrategy[Any]:
    """What msgpack has a form for, nested."""
    return st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary() | TEXTS,
        lambda inner: st.lists(inner, max_size=9) | st.dictionaries(TEXTS, inner, max_size=3),
    )


@st.composite
def arrays(draw: st.DrawFn, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """An array of a shape, of any item type, with any bit pattern."""
    dtype = np.dtype(draw(_DTYPES))
    size = int(np.prod(shape))
    raw = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
    if dtype.kind == "b":
        raw = bytes(byte & 1 for byte in raw)
    return np.frombuffer(raw, dtype).reshape(shape)


def scalars() -> st.SearchStrategy[Any]:
    """Numbers in the forms in which training scripts have them."""
    return st.one_of(
        INTS,
        FLOATS,
        st.booleans(),
        FLOATS.map(np.float64),
        st.floats(width=32).map(np.float32),
        INTS.map(np.int64),
        st.booleans().map(np.bool_),
        FLOATS.map(np.array),
        INTS.map(np.array),
    )


@st.composite
def key_kinds(draw: st.DrawFn) -> dict[str, st.SearchStrategy[Any]]:
    """Names, each with the kind of value that it keeps over a run."""
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    kinds: dict[str, st.SearchStrategy[Any]] = {}
    for name in names:
        kind = draw(st.sampled_from(["scalar", "scalar", "text", "array"]))
        if kind == "scalar":
            kinds[name] = scalars()
        elif kind == "text":
            kinds[name] = TEXTS
        else:
            shape = draw(st.sampled_from([(1,), (3,), (2, 2), (0,)]))
            kinds[name] = arrays(shape)
    return kinds


@st.composite
def tick_sequences(
    draw: st.DrawFn, max_ticks: int = 12
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Ticks of one run: keys come and go, each keeps its kind."""
    clocks, stats = draw(key_kinds()), draw(key_kinds())
    ticks = []
    for _ in range(draw(st.integers(0, max_ticks))):
        some_clocks = draw(st.lists(st.sampled_from(sorted(clocks)), unique=True))
        some_stats = draw(st.lists(st.sampled_from(sorted(stats)), unique=True))
        ticks.append(
            (
                {name: draw(clocks[name]) for name in some_clocks},
                {name: draw(stats[name]) for name in some_stats},
            )
        )
    return ticks
