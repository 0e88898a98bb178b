"""Gives artifacts their names: models, figures and objects, in the folders of experiments.

Bytes are bytes here: none are read but to copy them.  It does not decide what is kept, and removes
only what it is told to, besides unfinished copies of its own.

An artifact is written once.  Each of its names is a hard link, which is made beside the staged file
and then renamed over the target, so a name leads to the old file or the new one, and no unfinished
file is in a user's folder.  The last name takes the staged file itself.  Where the file system
has no links, or is another one, a copy is made beside the target under `layout.temporary_name`.

All names lie in models/, figures/ and extra/ of their experiment, links followed, and never outside
the root or in the daemon's own folder.  The name itself is replaced, never followed.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from mle_client import files, layout
from mle_client.errors import RunRefused
from mle_daemon.events import StoreArtifact

_FOLDERS: Final = (layout.MODELS_DIR, layout.FIGURES_DIR, layout.EXTRA_DIR)
# The file system has no links, or does not want another one of this file.
_NO_LINK: Final = frozenset(
    (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
)
# Files that were replaced and not let go; each holds a descriptor, and its blocks.
_HELD: Final = 4
# Opens nothing, so that neither a pipe nor a file without permissions is in the way.
_O_HOLD: Final = getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK) | os.O_NOFOLLOW | os.O_CLOEXEC
# What is in the way stays there until the user does something about it.
_IN_THE_WAY: Final = {
    errno.ENOTDIR: "a file is where a folder is needed",
    errno.EISDIR: "a folder has that name",
    errno.ENAMETOOLONG: "the path is too long",
    errno.ELOOP: "its links lead in a circle",
}


class Checkpoints:
    """The artifacts under one root.

    `store` may be called by one thread, `evict` and `let_go` by a second, `reconcile` by a third.

    Args:
        root: the folder that the daemon serves.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        self._own = os.path.realpath(layout.state_path(self.root))
        self._token = secrets.token_hex(4)  # tells this process's unfinished files from others'
        self._named: set[tuple[str, ...]] = set()  # have all names, in folders yet to be synced
        self._swept: set[str] = set()  # experiments without unfinished files of earlier processes
        self._settled: set[str] = set()  # experiments whose own name survives a power cut
        self._replaced: deque[int] = deque()  # descriptors of files that have no name any more

    def store(self, job: StoreArtifact) -> None:
        """Give a staged file its names; once this returns, they survive a power cut.

        It may be called again with the same job, whatever became of it before.

        Args:
            job: its staged file must be synced; nothing is left there.

        Raises:
            RunRefused: it may not have one of these names, now or ever; no name was given away.
            OSError: there is no room, or the disk fails.  Each name is the old file or the new.
        """
        with _refusing(job.directory):
            targets = [self._target(job.directory, name) for name in dict.fromkeys(job.names)]
            folders = dict.fromkeys(os.path.dirname(target) for target in targets)
            if (job.staged, *targets) not in self._named:
                if not os.path.lexists(job.staged):
                    raise RunRefused(f"{job.staged} is gone: something else has removed it")
                size = os.stat(job.staged, follow_symlinks=False).st_size
                with files.needing(size, job.directory):
                    for folder in folders:
                        files.make_folders(folder)
                    self._give_names(job.staged, targets)
                self._named.add((job.staged, *targets))
            for folder in folders:
                files.sync_folder(folder)
            if job.directory not in self._settled:
                files.sync_way(job.directory, self.root)
                self._settled.add(job.directory)
        self._named.discard((job.staged, *targets))
        # A rename between two names of one file does nothing: that of the last target, if a store
        # was broken off behind it.
        files.remove(job.staged)

    def let_go(self) -> None:
        """Free the blocks of files that were replaced; that can take longer than a store."""
        self._let_go_but(0)

    def evict(self, directory: str, names: Iterable[str]) -> None:
        """Remove files that are kept no longer; those that are missing are so already.

        Args:
            directory: absolute path of the experiment's folder.
            names: relative to that.

        Raises:
            RunRefused: one lies elsewhere, or is a folder.
            OSError: one cannot be removed, or the disk fails.
        """
        with _refusing(directory):
            targets = [self._target(directory, name) for name in names]
            for target in targets:
                files.remove(target)
            for folder in dict.fromkeys(map(os.path.dirname, targets)):
                with suppress(FileNotFoundError):
                    files.sync_folder(folder)

    def reconcile(
        self, directory: str, seed_id: str, extension: str, live: frozenset[int], saves: int
    ) -> list[str]:
        """Remove what an earlier process was to remove and did not.

        These are retained checkpoints of a seed, and unfinished files of ours, whichever seed they
        were for.  Nothing else is touched; of a folder that leads elsewhere, nothing at all.

        Args:
            directory: absolute path of the experiment's folder.
            extension: of the seed's model files.
            live: numbers of the checkpoints that stay.  Those that are to go only when one has
                arrived that is not on disk yet must be among them.
            saves: number of the latest checkpoint; files with larger ones are somebody else's.

        Returns:
            What was removed, relative to `directory`.

        Raises:
            OSError: a folder cannot be read, or a file not be removed.
        """
        removed = []
        retained = os.path.dirname(layout.retained_path(seed_id, 1, extension))
        for name in self._plain_files(directory, retained):
            number = layout.retained_number(name, seed_id, extension)
            if number is not None and number <= saves and number not in live:
                removed.append(name)
        if directory not in self._swept:
            removed += self._unfinished(directory)
        for name in removed:
            files.remove(os.path.join(directory, name))
        for folder in dict.fromkeys(map(os.path.dirname, removed)):
            files.sync_folder(os.path.join(directory, folder))
        self._swept.add(directory)
        return removed

    # --- names ------------------------------------------------------------------------------------
    def _give_names(self, staged: str, targets: list[str]) -> None:
        for target in targets:
            self._hold(target)
        for target in targets[:-1]:
            if not _link(staged, target):
                self._copy(staged, target)
        if not _rename(staged, targets[-1]):
            self._copy(staged, targets[-1])

    def _hold(self, target: str) -> None:
        """Have a file that is about to be replaced freed by `let_go`, not by the rename.

        The file system frees it when its last name or descriptor goes: 30 ms for 100 MB.
        """
        with suppress(OSError):  # mostly, there is none
            self._replaced.append(os.open(target, _O_HOLD))
        self._let_go_but(_HELD)

    def _let_go_but(self, count: int) -> None:
        while len(self._replaced) > count:
            with suppress(IndexError):  # the other thread was first
                os.close(self._replaced.popleft())

    def _copy(self, staged: str, target: str) -> None:
        name = layout.temporary_name(f"{self._token}-{os.path.basename(staged)}")
        aside = os.path.join(os.path.dirname(target), name)
        files.remove(aside)  # a link of somebody's would not be written through
        try:
            files.copy_durably(staged, aside)
            os.replace(aside, target)
        except BaseException:
            files.remove(aside)
            raise

    # --- places -----------------------------------------------------------------------------------
    def _target(self, directory: str, name: str) -> str:
        """The path of a name, with the links above it followed.

        Raises:
            RunRefused: it is not where artifacts are.
        """
        top, _, rest = name.partition("/")
        if top not in _FOLDERS:
            raise RunRefused(f"{name!r} is not in {', '.join(_FOLDERS)}: nothing is stored there")
        if why := layout.artifact_path_problem(top, rest):
            raise RunRefused(why)
        folder = os.path.realpath(os.path.join(directory, os.path.dirname(name)))
        self._check_place(os.path.join(directory, name), folder, os.path.realpath(directory))
        target = os.path.join(folder, os.path.basename(name))
        if os.path.isdir(target) and not os.path.islink(target):
            raise RunRefused(f"{target} is a folder: move it, or give another name")
        return target

    def _check_place(self, path: str, folder: str, directory: str) -> None:
        """Raise unless a folder is in its experiment and under the root.  Args: links followed."""
        for outer in (directory, self.root):
            if not files.is_inside(folder, outer):
                raise RunRefused(
                    f"{path} leads to {folder}, out of {outer}: "
                    "replace the link by a folder, or give another name"
                )
        if files.is_inside(folder, self._own):
            raise RunRefused(f"{path} leads to {folder}, which is the daemon's own")

    def _plain_files(self, directory: str, folder: str) -> list[str]:
        """The files of one folder, links aside, relative to the experiment's."""
        path = os.path.join(directory, folder)
        try:
            self._check_place(path, os.path.realpath(path), os.path.realpath(directory))
            with os.scandir(path) as entries:
                return [
                    os.path.join(folder, entry.name)
                    for entry in entries
                    if entry.is_file(follow_symlinks=False)
                ]
        except (RunRefused, FileNotFoundError, NotADirectoryError):
            return []

    def _unfinished(self, directory: str) -> Iterator[str]:
        """Unfinished files of earlier processes, relative to the experiment's folder."""
        for top in _FOLDERS:
            if not files.is_inside(os.path.join(directory, top), os.path.realpath(directory)):
                continue
            for path, _, found in os.walk(os.path.join(directory, top)):
                if not any(map(layout.is_temporary, found)):
                    continue
                for name in self._plain_files(directory, os.path.relpath(path, directory)):
                    last = os.path.basename(name)
                    if layout.is_temporary(last) and self._token not in last:
                        yield name


def _link(source: str, target: str) -> bool:
    """Give a file one more name.  Returns: whether its file system can."""
    link = f"{source}.link"
    files.remove(link)  # of a store that was broken off
    try:
        os.link(source, link)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False
    try:
        return _rename(link, target)
    finally:
        files.remove(link)  # there if the target is this very file already


def _rename(source: str, target: str) -> bool:
    """Give a file another name.  Returns: whether they are on one file system."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


@contextmanager
def _refusing(directory: str) -> Iterator[None]:
    """Turn errors that stay until somebody does something into refusals."""
    try:
        yield
    except OSError as error:
        if error.errno not in _IN_THE_WAY:
            raise
        path = error.filename2 or error.filename or directory
        raise RunRefused(f"{path}: {_IN_THE_WAY[error.errno]}; move what is there") from error
