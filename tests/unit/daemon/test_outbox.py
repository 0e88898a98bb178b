"""The instructions that an event leads to."""

from __future__ import annotations

from mle_client import messages as m
from mle_daemon import events as e
from mle_daemon.outbox import Outbox
from mle_daemon.runs import RunState, Waiter
from tests.daemon_rig import ANNA, BERT, Trainer


def test_instructions_come_out_in_order_and_once() -> None:
    out = Outbox()
    out.append(b"head", b"rest")
    out.log("info", "text")
    assert out.take() == [e.AppendJournal((b"head", b"rest")), e.Log("info", "text")]
    assert out.take() == []


def test_nothing_is_sent_to_nobody() -> None:
    out = Outbox()
    out.send(e.NOBODY, m.Leaving())
    out.answer([Waiter(e.NOBODY, 1), Waiter(ANNA, 2)], "no")
    assert out.take() == [e.Send(ANNA, m.Done(2, "no"))]


def test_a_notice_reaches_each_producer_that_was_heard_from_and_the_log() -> None:
    trainer, silent = Trainer(), Trainer("silent")
    child = trainer.fork()
    run = RunState(trainer.run, "seed", "/path")
    run.join(trainer.id, ANNA)
    run.join(child.id, BERT)
    run.join(silent.id, None)
    out = Outbox()
    out.notice(run, "look")
    assert out.take() == [
        e.Log("warning", "/path: look"),
        e.Send(ANNA, m.Notice(trainer.id, "look")),
        e.Send(BERT, m.Notice(child.id, "look")),
    ]
