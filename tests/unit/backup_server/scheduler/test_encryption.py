"""Running tasks whose data must not cross in the clear any more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from backup_server.db.tables import Event, Proxy, Repository, Task
from backup_server.scheduler.encryption import SAID_AGAIN_AFTER, EncryptionKeeper
from backup_server.services import moving, results, traffic_rules
from backup_server.services.context import Context
from backup_server.services.lookups import Lookups
from backup_server.services.results import Applied, RetryPolicy
from backup_server.services.task_ends import Ends
from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import (
    DownMessage,
    LeaseAnswer,
    LeaseVerdict,
    ResultReport,
    TaskOutcome,
)
from tests.support.history import Clock, Seeded
from transports.vsphere.model import HostAddress

POLICY = RetryPolicy(attempts=3, wait_s=30)
TASK = "task-run-1"
HTTP = "s3://b/x?endpoint=http://10.0.1.30:9000"


class Down:
    def __init__(self) -> None:
        self.sent: list[tuple[str, DownMessage]] = []

    def send(self, proxy_id: str, messages: Iterable[DownMessage]) -> None:
        self.sent += [(proxy_id, one) for one in messages]


class OneHost:
    def host_addresses(self, moref: str) -> tuple[HostAddress, ...]:
        del moref
        return (HostAddress(address="10.0.1.9"),)


class Rig:
    def __init__(self, ctx: Context, clock: Clock) -> None:
        self.ctx, self.clock = ctx, clock
        self.down = Down()
        self.leads = True
        self.lookups = Lookups(clock, ctx.log)
        ends = Ends(lambda _: OneHost(), self.lookups)  # type: ignore[arg-type, return-value]
        self.keeper = EncryptionKeeper(ctx, self.down, ends, leading=lambda: self.leads)  # type: ignore[arg-type]

    def rule(self, name: str = "lan", **more: Any) -> None:
        ends = {"source": ["10.0.0.0/24"], "target": ["10.0.1.0/24"]}
        traffic_rules.add(self.ctx, {"name": name, **ends, "rate": None, "encrypt": True, **more})

    def round(self) -> list[tuple[str, DownMessage]]:
        """What was told in one round."""
        self.keeper.step()
        sent, self.down.sent = self.down.sent, []
        return sent

    def round_when_known(self) -> list[tuple[str, DownMessage]]:
        """The host's address is being looked up by the round before."""
        assert self.round() == [], "nobody knows yet where it goes"
        host = f"host {self.task().vcenter_id}/host-1"
        assert self.lookups.get(host, frozenset, wait_s=60)
        return self.round()

    def task(self) -> Task:
        with self.ctx.db.read() as s:
            return s.get_one(Task, TASK)

    def change(self, **values: Any) -> None:
        with self.ctx.db() as s:
            s.execute(sa.update(Task).where(Task.id == TASK).values(**values))

    def end(self, outcome: TaskOutcome, reason: str = "cancelled") -> Applied:
        row = self.task()
        report = ResultReport(
            task_id=TaskId(TASK), attempt=Attempt(row.attempt), outcome=outcome, reason=reason
        )
        with self.ctx.db() as s:
            return results.apply_result(s, str(row.proxy_id), report, policy=POLICY, now=self.clock())

    def said(self, name: str) -> list[str]:
        with self.ctx.db.read() as s:
            return list(s.scalars(sa.select(Event.text).where(Event.name == name)))


@pytest.fixture
def rig(ctx: Context, seeded: Seeded, clock: Clock) -> Iterator[Rig]:
    del seeded
    with ctx.db() as s:
        others = sa.and_(Task.state == "running", Task.id != TASK)
        s.execute(sa.update(Task).where(others).values(state="done"))
        proxy = s.query(Proxy).filter_by(name="default").one()
        proxy.connections, proxy.connections_at = {"addresses": ["10.0.0.5/24"]}, clock()
    rig = Rig(ctx, clock)
    rig.change(state="running", host_moref="host-1", mode="nbd", progress={}, facts={})
    yield rig
    rig.lookups.close()


def test_a_task_in_the_clear_stops_in_order_and_goes_on_another_way(rig: Rig) -> None:
    assert rig.round() == []
    rig.rule()
    [(proxy_id, answer)] = rig.round_when_known()
    row = rig.task()
    assert proxy_id == row.proxy_id
    assert answer == LeaseAnswer(
        task_id=TaskId(TASK), attempt=Attempt(row.attempt), verdict=LeaseVerdict.CANCEL
    )
    why = "traffic rule lan asks for encryption, and nbd sends the disk in the clear"
    [text] = rig.said("task.moved")
    assert why in text
    failures = row.failures

    assert rig.end(TaskOutcome.CANCELLED) is Applied.WAITS
    again = rig.task()
    assert (again.state, again.failures, again.reason) == ("pending", failures, why)
    assert again.not_before is not None
    assert again.not_before <= rig.clock() + moving.AGAIN_AFTER
    assert moving.MOVED not in (again.facts or {})
    assert rig.round() == []


def test_it_is_said_again_until_the_attempt_ends(rig: Rig) -> None:
    rig.rule()
    assert len(rig.round_when_known()) == 1
    assert rig.round() == []
    rig.clock.now += SAID_AGAIN_AFTER
    assert len(rig.round()) == 1
    assert len(rig.said("task.moved")) == 1
    # A server that was started anew, or another one, says it at once.
    anew = Rig(rig.ctx, rig.clock)
    assert len(anew.round_when_known()) == 1
    anew.lookups.close()
    assert len(rig.said("task.moved")) == 1


@pytest.mark.parametrize("mode", ["nbdssl", "hotadd"])
def test_what_is_encrypted_or_crosses_no_network_goes_on(rig: Rig, mode: str) -> None:
    rig.change(mode=mode)
    rig.rule()
    rig.round()
    rig.rule("second")
    assert rig.round() == []
    assert moving.MOVED not in (rig.task().facts or {})


def test_the_mode_in_use_counts_and_what_the_repository_is_reached_by(rig: Rig) -> None:
    rig.change(mode="hotadd", progress={"mode": "nbd"})
    rig.rule()
    assert len(rig.round_when_known()) == 1
    assert rig.end(TaskOutcome.CANCELLED) is Applied.WAITS
    assert rig.round() == []
    with rig.ctx.db() as s:
        s.query(Repository).one().location = HTTP
    rig.change(state="running", mode="nbdssl", progress={}, not_before=None)
    [_] = rig.round()
    assert "reached by http, in the clear" in rig.said("task.moved")[-1]


def test_who_does_not_lead_moves_nothing(rig: Rig) -> None:
    rig.rule(target=["any"])
    rig.leads = False
    assert rig.round() == []
    assert rig.said("task.moved") == []


def test_another_end_of_the_attempt_counts_as_it_is(rig: Rig) -> None:
    rig.rule()
    rig.round_when_known()
    failures = rig.task().failures
    assert rig.end(TaskOutcome.RETRY, "the data mover ended by signal SIGKILL") is Applied.WAITS
    assert rig.task().failures == failures + 1


def test_a_cancelled_session_ends_its_moved_task(rig: Rig) -> None:
    rig.rule()
    rig.round_when_known()
    rig.change(cancel_requested=True)
    rig.clock.now += timedelta(minutes=1)
    assert rig.round() == [], "its proxy is told by who cancelled it"
    assert rig.end(TaskOutcome.CANCELLED) is Applied.ENDED


def test_a_mark_of_an_earlier_attempt_says_nothing(rig: Rig) -> None:
    rig.change(facts={moving.MOVED: {"attempt": 0, "reason": "a rule of before"}}, attempt=4)
    failures = rig.task().failures
    assert rig.end(TaskOutcome.CANCELLED) is Applied.WAITS
    assert rig.task().failures == failures + 1
