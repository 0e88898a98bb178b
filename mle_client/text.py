"""Text as it was logged, from the bytes that are stored.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from mle_client.blocks import Array

_FEW: Final = 8  # texts that are decoded in less time than it takes to see that they are plain


def decoded(stored: Array, escaped: bool) -> Array:
    """Strings exactly as they were logged.

    Args:
        stored: bytes, of fixed length or as objects.
        escaped: whether C0 80 stands for NUL (`docs/hdf5-layout.md`).

    Returns:
        An array of numpy's text type, if all is plain, or of `str` objects.
    """
    if stored.size > _FEW and _is_ascii(stored):
        return _ascii(stored)
    return _utf8(stored, escaped)


def text_column(blocks: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """Blocks of `decoded` rows as one array of `str` objects.  Args: shape: of all together."""
    column: Array = np.empty(shape, object)
    start = 0
    for block in blocks:
        column[start : start + len(block)] = block
        start += len(block)
    return column


def time_column(blocks: Sequence[Array]) -> Array:
    """Blocks of `decoded` times as one array of numpy's text type.

    Times of a known form have no trailing NUL, which that type would drop.
    """
    texts = [block.astype(str, copy=False) for block in blocks]
    if len(texts) == 1:
        return texts[0]
    return np.concatenate(texts) if texts else np.array([], str)


def _is_ascii(stored: Array) -> bool:
    return stored.dtype.kind == "S" and bool(stored.view(np.uint8).max(initial=0) < 128)


def _ascii(stored: Array) -> Array:
    """Text of plain bytes, without the padding that every string of the block has."""
    padded = stored.reshape(-1, 1).view(np.uint8)
    width = padded.shape[1]
    if not padded[:, -1].any():  # ours are no wider than they must be
        used = np.flatnonzero(padded.any(axis=0))
        width = int(used[-1]) + 1 if used.size else 1
    # What .astype(str) does, at a fortieth of its cost: numpy's text is a uint32 a character.
    return padded[:, :width].astype(np.uint32).view(f"U{width}").reshape(stored.shape)


def _utf8(stored: Array, escaped: bool) -> Array:
    texts: Array = np.empty(stored.shape, object)
    flat = texts.reshape(-1)
    for i, one in enumerate(stored.ravel().tolist()):  # without the padding
        plain = one.replace(b"\xc0\x80", b"\0") if escaped else one
        flat[i] = plain.decode("utf-8", "backslashreplace")
    return texts
