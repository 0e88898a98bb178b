"""The errors that both packages raise, and nothing else.

    MLEError
    ├── ProtocolError            bytes that are not the protocol (the sender is at fault)
    │   └── VersionMismatch      the two sides speak different versions
    ├── KeysUnusable             keys for TCP that are missing, damaged or open to others
    ├── RunRefused               the daemon will not take this run (says why and what to do)
    ├── LoggerClosed             update() after close()
    ├── RenderingFailed          a figure could not be drawn (in `renderer`)
    ├── DaemonUnavailable        no daemon answered in time
    │   ├── DaemonStartFailed    it was started and ended again; carries its last words
    │   └── DaemonSilent         its process is there, but did not answer in time
    ├── RootLocked               another daemon owns this root; carries its pid and host
    ├── MergeFailed              logs cannot be merged; carries the path
    │   ├── MergeRefused         they are no seeds of one configuration
    │   └── TooFewSeeds          not as many have ended as there should be; carries how many
    ├── LogDamaged               a file that is not what it must be; carries the path
    └── LogNotFound              nothing to load at this path (also a FileNotFoundError)

Bad arguments raise the builtin `ValueError` or `TypeError`, with what to do instead.
"""

from __future__ import annotations


class MLEError(Exception):
    """Base of every error of ours."""

    exit_code = 1


class ProtocolError(MLEError):
    """Bytes that no correct peer would have sent."""


class VersionMismatch(ProtocolError):
    """Client and daemon were installed from releases whose protocols differ."""

    def __init__(self, ours: int, theirs: int) -> None:
        super().__init__(ours, theirs)
        self.ours = ours
        self.theirs = theirs

    def __str__(self) -> str:
        return (
            f"this side speaks wire protocol {self.ours}, the other {self.theirs}: "
            "install the same release of mle-daemon for both, then restart the daemon"
        )


class KeysUnusable(MLEError):
    """Keys for a connection through TCP cannot be used.  `path` is the file, folder or address."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"keys: {self.path}: {self.why}"


class RunRefused(MLEError):
    """The daemon will not write this run."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LoggerClosed(MLEError, ValueError):
    """A logger was used after close()."""


class DaemonUnavailable(MLEError):
    """No daemon answered.  `root` is the folder it serves."""

    exit_code = 4

    def __init__(self, root: str, why: str) -> None:
        super().__init__(root, why)
        self.root = root
        self.why = why

    def __str__(self) -> str:
        return f"no daemon answers for {self.root}: {self.why}"


class DaemonStartFailed(DaemonUnavailable):
    """A daemon was started and did not become ready."""

    def __str__(self) -> str:
        return f"no daemon could be started for {self.root}: {self.why}"


class DaemonSilent(DaemonUnavailable):
    """A daemon runs and does not answer: it is stopped, overloaded or on another machine."""

    exit_code = 1

    def __str__(self) -> str:
        return f"the daemon of {self.root} does not answer: {self.why}"


class RootLocked(MLEError):
    """Another daemon owns this root."""

    exit_code = 5

    def __init__(self, root: str, owner: str) -> None:
        super().__init__(root, owner)
        self.root = root
        self.owner = owner

    def __str__(self) -> str:
        return f"{self.root} is already served by {self.owner}; stop that one first"


class MergeFailed(MLEError):
    """Logs could not be merged.  None of them was touched."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


class MergeRefused(MergeFailed):
    """Logs that do not belong together."""

    exit_code = 7


class TooFewSeeds(MergeFailed):
    """Not all seeds of a configuration have ended.  Args: running: names of those that go on."""

    exit_code = 7

    def __init__(self, path: str, ended: int, expected: int, running: tuple[str, ...] = ()) -> None:
        going_on = f", and not {', '.join(running)}" if running else ""
        super().__init__(
            path, f"{ended} of {expected} seeds have ended{going_on}: merge again when all have"
        )
        self.ended = ended
        self.expected = expected
        self.running = running


class LogDamaged(MLEError):
    """A file that is not a log of ours, or no longer."""

    exit_code = 6

    def __init__(self, path: str, why: str) -> None:
        super().__init__(path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


class LogNotFound(MLEError, FileNotFoundError):
    """There is no log at this path."""

    exit_code = 3

    def __init__(self, path: str, why: str) -> None:
        MLEError.__init__(self, path, why)
        self.path = path
        self.why = why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"
