"""The instructions that an event leads to, in order, until `core` hands them over.

Pure.  Knows how an instruction looks, not when one is due.  Nothing is sent to `NOBODY`, the client
of what comes from a ring or from the journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mle_client import messages as m
from mle_daemon import events as e
from mle_daemon.ingest import Stream
from mle_daemon.runs import RunState, Waiter


class Outbox:
    """Instructions that were not handed over yet."""

    def __init__(self) -> None:
        self._instructions: list[e.Instruction] = []

    def take(self) -> list[e.Instruction]:
        """Hand over all that is here."""
        taken, self._instructions = self._instructions, []
        return taken

    def add(self, instruction: e.Instruction) -> None:
        """Have something done."""
        self._instructions.append(instruction)

    def extend(self, instructions: Iterable[e.Instruction]) -> None:
        """Have several things done."""
        self._instructions.extend(instructions)

    def append(self, *parts: bytes) -> None:
        """Have a record appended to the journal.  Args: parts: of its bytes."""
        self.add(e.AppendJournal(parts))

    def log(self, level: str, text: str) -> None:
        """Have a line written to the daemon's log.  Args: as of `events.Log`."""
        self.add(e.Log(level, text))

    def send(self, client: e.Client, message: m.Reply) -> None:
        """Have a message sent, unless there is nobody to take it."""
        if client != e.NOBODY:
            self.add(e.Send(client, message))

    def acknowledge(self, client: e.Client, stream: Stream, published: int) -> None:
        """Say how far a stream is safe.  Args: published: the position up to which its file is."""
        self.send(client, m.Ack(stream.producer, stream.position, stream.ticks, published))

    def answer(self, waiters: Iterable[Waiter], error: str = "") -> None:
        """Tell those who wait that it is done, or why it is not."""
        for waiter in waiters:
            self.send(waiter.client, m.Done(waiter.token, error))

    def tell(self, run: RunState, message: Callable[[m.ProducerId], m.Reply]) -> None:
        """Send to each producer of a run the message made for it."""
        for producer, member in run.members.items():
            if member.client is not None:
                self.send(member.client, message(producer))

    def notice(self, run: RunState, text: str) -> None:
        """Tell a run's clients and the log that something is not as they asked."""
        self.log("warning", f"{run.path}: {text}")
        self.tell(run, lambda producer: m.Notice(producer, text))
