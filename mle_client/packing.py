"""msgpack within bounds: what others send is unpacked only as far as it is what it should be.

Pure.  It knows no message and no record, only what their values may be.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import msgpack

from mle_client import messages as m
from mle_client.errors import ProtocolError

# Of arrays that are alike.  There cannot be more items in it than a record may have.
_FEED_BYTES: Final = min(65_536, m.MAX_ITEMS)
_FIRST_FEED_BYTES: Final = 1024  # of a record; most are shorter


def pack(body: list[Any]) -> bytes:
    """An array as msgpack."""
    packed: bytes = msgpack.packb(body, use_bin_type=True)
    return packed


class _Items:
    """Counts the values in lists and maps while they are unpacked, and stops at a bound."""

    __slots__ = ("_left",)

    def __init__(self, most: int) -> None:
        self._left = most

    def counted(self, container: Any) -> Any:
        """A list or map that was unpacked.  Raises: ProtocolError: it is one too many."""
        self._left -= 1 + len(container)
        if self._left < 0:
            raise ProtocolError(f"a record or message of more than {m.MAX_ITEMS} values")
        return container


def _no_extension(code: int, data: bytes) -> Any:
    raise ProtocolError("an extension type, which this protocol has not")


def unpack_prefix(
    data: memoryview, at: int, *, most_items: int | None = m.MAX_ITEMS
) -> tuple[list[Any], int]:
    """The msgpack array at `at` and where it ends.

    The unpacker copies what it is fed, so it gets a little at first and more only if that was not
    enough: the cost follows the record's length, whatever lies behind it.

    Args:
        most_items: values in all lists and maps; None for as many as there are.
    """
    length = _FIRST_FEED_BYTES
    limits: dict[str, Any] = {}
    while True:
        fed = data[at : at + length]
        if most_items is not None and len(fed) > most_items:  # else there cannot be so many
            count = _Items(most_items).counted
            limits = {
                "max_array_len": most_items, "max_map_len": most_items,
                "list_hook": count, "object_hook": count,
            }  # fmt: skip
        unpacker = msgpack.Unpacker(
            raw=False,
            strict_map_key=False,
            max_buffer_size=max(len(fed), 1),
            max_ext_len=0,
            ext_hook=_no_extension,
            **limits,
        )
        try:
            unpacker.feed(fed)
            body = unpacker.unpack()
            break
        except msgpack.OutOfData as error:
            if at + length >= len(data):
                raise ProtocolError("a record is cut short") from error
            length *= 8
        except (msgpack.UnpackException, ValueError, TypeError, RecursionError) as error:
            if at + length < len(data) and isinstance(error, ValueError):
                length *= 8  # a length that exceeds what was fed is refused as "too long"
                continue
            raise ProtocolError(f"bytes that are not msgpack: {error}") from error
    if not isinstance(body, list):
        raise ProtocolError("a msgpack value where an array should be")
    return body, at + unpacker.tell()


def unpack_alike(data: memoryview, at: int, first: bytes) -> tuple[list[list[Any]], int]:
    """The msgpack arrays from `at` on that begin with the same bytes, and where they end.

    The first is unpacked by itself, for it may be the only one; of the others as many from one copy
    as it has whole.

    Args:
        first: what they begin with: the mark of an array, and more.

    Raises:
        ProtocolError: one is cut short, or no msgpack.
    """
    rows: list[list[Any]] = []
    size, length = len(first), 0
    while bytes(data[at : at + size]) == first:
        fed = bytes(data[at : at + length])
        found, end = _unpack_whole(fed, first) if fed else ([], 0)
        if not found:  # longer than what was fed, or no msgpack at all
            row, end = unpack_prefix(data, at)
            found, end = [row], end - at
        rows += found
        at += end
        length = min(max(8 * length, _FIRST_FEED_BYTES), _FEED_BYTES)
    return rows, at


def _unpack_whole(fed: bytes, first: bytes) -> tuple[list[list[Any]], int]:
    """The whole arrays that some bytes begin with, as long as they begin alike, and their end."""
    unpacker = msgpack.Unpacker(
        raw=False,
        strict_map_key=False,
        max_buffer_size=len(fed),
        max_ext_len=0,
        ext_hook=_no_extension,
    )
    unpacker.feed(fed)
    rows: list[list[Any]] = []
    end = 0
    with contextlib.suppress(msgpack.UnpackException, ValueError, TypeError, RecursionError):
        while fed.startswith(first, end):
            rows.append(unpacker.unpack())
            end = unpacker.tell()
    return rows, end


def split_record(record: bytes | memoryview) -> tuple[list[Any], bytes]:
    """The first array of a journal record, and what follows it.

    Raises:
        ProtocolError: it does not begin with a whole msgpack array.
    """
    # A daemon's state has as many items as it has runs; nobody else writes there.
    body, end = unpack_prefix(memoryview(record), 0, most_items=None)
    return body, bytes(record[end:])


# --- values ---------------------------------------------------------------------------------------
def is_id(value: object) -> bool:
    """Whether a value is the id of a run or a producer."""
    return type(value) is bytes and len(value) == 16


def is_id_or_empty(value: object) -> bool:
    """Whether a value is an id, or says that there is none."""
    return value == b"" or is_id(value)


def is_count(value: object) -> bool:
    """Whether a value is a number of things, or a position."""
    return type(value) is int and 0 <= value < 2**63


def is_int64(value: object) -> bool:
    """Whether a value is an integer of 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_text(value: object) -> bool:
    """Whether a value is text."""
    return type(value) is str


def is_name(value: object) -> bool:
    """Whether a value is text that may be a name."""
    return type(value) is str and len(value.encode()) <= m.MAX_NAME_BYTES


def is_report(value: object) -> bool:
    """Whether a value is a report of a daemon's status."""
    return type(value) is dict
