"""A disk as it would be had the power gone, or every process, at some moment of a recorded session.

`record_files.c` writes down each change of a file or folder below a root.  From the changes before
a moment this makes what may be there then:

* "processes": everything, as after SIGKILL of all;
* "power, at worst": of a file what was synced last, and only the names that a later sync of their
  folder covers.  POSIX promises no more;
* "power, by chance": names up to some moment between, since file systems keep their order, and of
  the bytes that were not synced any part.

A record, little-endian: u32 kind, u32 bytes of a first path, u32 of a second one, u64 inode, u64
offset or new size, u64 bytes of data; then the paths and the data.  A kind is a letter: (c)reated,
(w)ritten, (t)runcated or made longer, (s)ynced, (r)enamed, (l)inked, (u)nlinked; (m)ade, of a
folder.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

_HEAD: Final = struct.Struct("<IIIQQQ")

PROCESSES, WORST, CHANCE = "processes", "power, at worst", "power, by chance"


@dataclass(frozen=True, slots=True)
class Change:
    """One record.  Args: end: its end in the trace, in bytes."""

    kind: str
    path: str
    other: str
    inode: int
    offset: int
    data: bytes
    end: int


def read_trace(trace: bytes) -> Iterator[Change]:
    """The records of a trace, in order."""
    at = 0
    while at < len(trace):
        kind, *lengths, inode, offset, size = _HEAD.unpack_from(trace, at)
        at += _HEAD.size
        parts = []
        for length in (*lengths, size):
            parts.append(trace[at : at + length])
            at += length
        path, other, data = parts
        yield Change(chr(kind), path.decode(), other.decode(), inode, offset, data, at)


@dataclass(eq=False)
class _File:
    """What a file holds.  Args: synced: at the last sync; pending: changes since."""

    content: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    pending: list[Change] = field(default_factory=list)


class _Folder:
    """A folder, which is known by itself whatever it is called."""


_Node: TypeAlias = _File | _Folder


@dataclass(eq=False)
class _Naming:
    """A change of names.

    Args:
        removed: a folder, and the name that it has no more.
        added: a folder, the name, and what has it.
        is_synced: a folder of it was synced since.
    """

    removed: tuple[_Folder, str] | None = None
    added: tuple[_Folder, str, _Node] | None = None
    is_synced: bool = False

    def concerns(self, folder: _Folder) -> bool:
        """Whether it changes a folder."""
        return any(entry and entry[0] is folder for entry in (self.removed, self.added))


_Names: TypeAlias = dict[_Folder, dict[str, _Node]]


class Disk:
    """What lies below a root, in memory and on the medium.

    Args:
        root: an empty folder when the recording began.
        inode: that it had.
    """

    def __init__(self, root: str, inode: int) -> None:
        self._root = root
        self._top = _Folder()
        self._names: _Names = {self._top: {}}
        self._namings: list[_Naming] = []
        self._by_inode: dict[int, _Node] = {inode: self._top}

    def apply(self, change: Change) -> None:
        """Take in the next change."""
        match change.kind:
            case "c":
                self._name(change.path, self._new(change.inode, _File()))
            case "m":
                self._name(change.path, self._new(change.inode, _Folder()))
            case "w" | "t":
                file = self._by_inode.get(change.inode)
                if isinstance(file, _File):  # else it came from elsewhere, and has no name here
                    _write(file.content, change)
                    file.pending.append(change)
            case "s":
                self._sync(self._by_inode.get(change.inode))
            case "r":
                self._rename(change.path, change.other)
            case "l":
                node = self._find(change.path)
                assert node is not None, f"{change.path} was never made"
                self._name(change.other, node)
            case "u":
                folder, name = self._place(change.path)
                self._change_names(_Naming(removed=(folder, name)))

    def write_out(self, how: str, rng: random.Random) -> None:
        """Make the root what it may be after a crash now.  Args: how: one of the above."""
        if how == PROCESSES:
            names, content = self._names, _everything
        elif how == WORST:
            names, content = self._replay(0), _synced
        else:
            names = self._replay(rng.randint(0, len(self._namings)))
            content = lambda file: _torn(file, rng)  # noqa: E731
        _write_out(Path(self._root), self._top, names, content)

    # --- names --------------------------------------------------------------------------------
    def _new(self, inode: int, node: _Node) -> _Node:
        self._by_inode[inode] = node
        if isinstance(node, _Folder):
            self._names[node] = {}
        return node

    def _place(self, path: str) -> tuple[_Folder, str]:
        """A path's folder, and its name there."""
        *folders, name = os.path.relpath(path, self._root).split("/")
        here = self._top
        for each in folders:
            found = self._names[here][each]
            assert isinstance(found, _Folder), path
            here = found
        return here, name

    def _find(self, path: str) -> _Node | None:
        if os.path.relpath(path, self._root).startswith(".."):
            return None
        folder, name = self._place(path)
        return self._names[folder].get(name)

    def _name(self, path: str, node: _Node) -> None:
        self._change_names(_Naming(added=(*self._place(path), node)))

    def _rename(self, path: str, other: str) -> None:
        node = self._find(path)
        assert node is not None, f"{path} came from outside and is not known"
        removed = self._place(path)
        self._change_names(_Naming(removed=removed, added=(*self._place(other), node)))

    def _change_names(self, naming: _Naming) -> None:
        self._namings.append(naming)
        _apply(naming, self._names)

    def _sync(self, node: _Node | None) -> None:
        if isinstance(node, _File):
            node.synced, node.pending = bytes(node.content), []
        elif node is not None:
            for naming in self._namings:
                naming.is_synced |= naming.concerns(node)

    def _replay(self, until: int) -> _Names:
        """The names that are synced, and all before a moment."""
        names: _Names = {folder: {} for folder in self._names}
        for number, naming in enumerate(self._namings):
            if naming.is_synced or number < until:
                _apply(naming, names)
        return names


def _apply(naming: _Naming, names: _Names) -> None:
    if naming.removed is not None:
        folder, name = naming.removed
        names[folder].pop(name, None)
    if naming.added is not None:
        folder, name, node = naming.added
        names[folder][name] = node


def _write(content: bytearray, change: Change) -> None:
    if change.kind == "t":
        del content[change.offset :]
        content.extend(bytes(change.offset - len(content)))
        return
    end = change.offset + len(change.data)
    content.extend(bytes(max(0, end - len(content))))
    content[change.offset : end] = change.data


def _everything(file: _File) -> bytes:
    return bytes(file.content)


def _synced(file: _File) -> bytes:
    return file.synced


def _torn(file: _File, rng: random.Random) -> bytes:
    content = bytearray(file.synced)
    for change in _some(file.pending, rng):
        _write(content, change)
    return bytes(content)


def _some(changes: Iterable[Change], rng: random.Random) -> Iterator[Change]:
    likely = rng.random()
    return (change for change in changes if rng.random() < likely)


def _write_out(
    path: Path, folder: _Folder, names: _Names, content: Callable[[_File], bytes]
) -> None:
    written: dict[_File, Path] = {}
    waiting = [(path, folder)]
    while waiting:
        here, folder = waiting.pop()
        here.mkdir(exist_ok=True)
        for name, node in names[folder].items():
            target = here / name
            if isinstance(node, _Folder):
                waiting.append((target, node))
            elif node in written:
                os.link(written[node], target)
            else:
                target.write_bytes(content(node))
                written[node] = target
