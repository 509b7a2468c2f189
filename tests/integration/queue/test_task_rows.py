"""Changes of task rows, on both databases, without broker or workers."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from backup_server.db.states import StaleStateError
from backup_server.db.tables import (
    Event,
    Proxy,
    Session,
    Task,
)
from backup_server.services import leases, pending, tasks, waits
from backup_server.services.results import Applied
from backup_server.services.session_shapes import task_shape
from backup_server.services.tasks import Placement
from pipeline.model import ReadMode
from proxy_worker.contracts.codec import MessageError, from_json
from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import (
    Failover,
    LeaseAnswer,
    LeaseVerdict,
    ProgressReport,
    RunningTask,
    TaskOutcome,
    TaskRequest,
)
from tests.integration.queue.task_rows import NOW, POLICY, STATS, Rows, backup_order, report
from tests.integration.queue.test_cost import counted
from transports.base import TransportMode


def test_a_hand_out_is_one_transaction_and_happens_once(rows: Rows) -> None:
    task_id = rows.add()
    request = rows.start(task_id)
    row = rows.get(task_id)
    assert (row.state, row.attempt, row.proxy_id, row.proxy_boot_id) == (
        "running",
        1,
        "px1",
        "boot1",
    )
    assert row.leased_until == NOW + timedelta(seconds=30)
    assert row.decision == {"why": "test"}
    assert request.expires_at_s == (NOW + timedelta(seconds=60)).timestamp()
    sent = rows.outbox()
    assert [from_json(TaskRequest, item.body) for item in sent] == [request]
    with pytest.raises(StaleStateError):
        rows.start(task_id)
    assert len(rows.outbox()) == 1


def test_a_proxy_is_sent_what_it_knows(rows: Rows) -> None:
    """One that says an earlier release gets that release's orders."""
    with rows.db() as s:
        for row in s.scalars(sa.select(Proxy)):
            row.settings = {"preferred_networks": ["10.0.0.0/8"]}
            row.connections_at = NOW
        s.get_one(Proxy, "px1").version = "0.2.0"
        s.get_one(Proxy, "px2").version = "0.4.0"
    order = {**backup_order(), "sampled_blocks": 16}
    old = rows.start(rows.add(kind="backup-disk", order=order), "px1")
    new = rows.start(rows.add(kind="backup-disk", order=order), "px2")
    assert old.backup is not None
    assert new.backup is not None
    assert (old.preferred_networks, old.backup.sampled_blocks, old.lease_s) == ((), 0, 0)
    assert (new.preferred_networks, new.backup.sampled_blocks) == (("10.0.0.0/8",), 16)
    assert new.lease_s == 30


def test_two_who_saw_the_same_row_do_not_both_get_it(rows: Rows) -> None:
    task_id = rows.add()
    stale = rows.get(task_id)
    rows.start(task_id)
    rows.apply(report(task_id, outcome=TaskOutcome.RETRY))
    where = Placement(
        proxy_id="px2", proxy_name="px2", boot_id=None, mode=TransportMode.NBD, decision={}
    )
    with rows.db() as s, pytest.raises(StaleStateError):
        tasks.start_attempt(s, stale, where, now=NOW, lease_s=30, order_ttl_s=60)
    assert rows.get(task_id).state == "pending"


def test_an_order_that_cannot_be_read_is_given_up(rows: Rows) -> None:
    task_id = rows.add(order={"nonsense": True})
    with pytest.raises(MessageError):
        rows.start(task_id)
    with rows.db() as s:
        pending.give_up(s, s.get_one(Task, task_id), "why", NOW)
    row = rows.get(task_id)
    assert (row.state, row.result, row.reason) == ("done", "failed", "why")
    with rows.db() as s, pytest.raises(StaleStateError):
        pending.give_up(s, row, "again", NOW)


def test_a_result_is_applied_once(rows: Rows) -> None:
    task_id = rows.running()
    good = report(
        task_id,
        read_mode=ReadMode.INCREMENT,
        map_root="cd" * 32,
        mode=TransportMode.NBD,
        stats=STATS,
    )
    assert rows.apply(good) is Applied.ENDED
    row = rows.get(task_id)
    assert (row.result, row.read_mode, row.map_root, row.mode) == (
        "success",
        "increment",
        "cd" * 32,
        "nbd",
    )
    assert row.stats is not None
    assert row.stats["blocks"]["new"] == 1
    assert row.finished_at == NOW
    assert rows.apply(good) is Applied.STALE
    assert rows.apply(report(task_id, outcome=TaskOutcome.FAILED)) is Applied.STALE
    assert rows.get(task_id).result == "success"


@pytest.mark.parametrize(("attempt", "proxy"), [(2, "px1"), (1, "px2"), (0, "px1")])
def test_another_attempt_or_proxy_changes_nothing(rows: Rows, attempt: int, proxy: str) -> None:
    task_id = rows.running()
    assert rows.apply(report(task_id, attempt), proxy) is Applied.STALE
    assert rows.get(task_id).state == "running"
    assert rows.apply(report("unknown", 1), "px1") is Applied.STALE


def test_retries_wait_longer_each_time_and_end(rows: Rows) -> None:
    task_id = rows.add()
    waits = []
    for attempt in (1, 2, 3):
        rows.start(task_id)
        applied = rows.apply(
            report(task_id, attempt, outcome=TaskOutcome.RETRY, reason="connection lost")
        )
        row = rows.get(task_id)
        if applied is Applied.WAITS:
            assert row.not_before is not None
            waits.append((row.not_before - NOW).total_seconds())
    assert waits == [10, 15]
    row = rows.get(task_id)
    assert (row.state, row.result, row.failures) == ("done", "failed", 3)
    assert row.reason == "given up after 3 attempts, the last on px1: connection lost"


def test_cancelled_only_when_it_was_asked_for(rows: Rows) -> None:
    task_id = rows.running()
    assert rows.apply(report(task_id, outcome=TaskOutcome.CANCELLED)) is Applied.WAITS
    rows.start(task_id)
    with rows.db() as s:
        assert tasks.cancel_session_tasks(s, rows.session_id, NOW) == 1
    assert rows.apply(report(task_id, 2, outcome=TaskOutcome.CANCELLED)) is Applied.ENDED
    assert rows.get(task_id).result == "cancelled"


def test_cancelling_ends_pending_and_marks_running(rows: Rows) -> None:
    waiting, running, done = rows.add(), rows.running(), rows.running()
    rows.apply(report(done))
    before = len(rows.outbox())
    with rows.db() as s:
        assert tasks.cancel_session_tasks(s, rows.session_id, NOW) == 1
    assert (rows.get(waiting).state, rows.get(waiting).result) == ("done", "cancelled")
    assert (rows.get(running).state, rows.get(running).cancel_requested) == ("running", True)
    assert (rows.get(done).result, rows.get(done).cancel_requested) == ("success", False)
    message = rows.outbox()[before]
    assert message.kind == "down"
    assert from_json(LeaseAnswer, message.body).verdict is LeaseVerdict.CANCEL
    assert rows.apply(report(running, outcome=TaskOutcome.RETRY)) is Applied.ENDED
    assert rows.get(running).result == "cancelled"


def test_a_proxy_is_told_once_of_a_cancel_however_often_it_is_asked_for(rows: Rows) -> None:
    first = rows.running()
    before = len(rows.outbox())
    told = []
    for _ in range(3):
        with rows.db() as s:
            told.append(tasks.cancel_session_tasks(s, rows.session_id, NOW))
    late = rows.running()
    with rows.db() as s:
        told.append(tasks.cancel_session_tasks(s, rows.session_id, NOW))
    assert told == [1, 0, 0, 1]
    assert [row.task_id for row in rows.outbox()[before:] if row.kind == "down"] == [first, late]


def test_many_are_cancelled_with_as_many_statements_as_few(rows: Rows) -> None:
    def cancel(running: int, waiting: int) -> int:
        for _ in range(running):
            rows.running()
        ids = [rows.add() for _ in range(waiting)]
        with counted(rows) as found, rows.db() as s:
            assert tasks.cancel_session_tasks(s, rows.session_id, NOW) == running
        assert {rows.get(one).result for one in ids} == {"cancelled"}
        return found.trips

    assert cancel(1, 2) == cancel(8, 40)
    with rows.db.read() as s:
        said = s.scalars(sa.select(Event.text).where(Event.name == "task.cancelled")).all()
    assert said == ["disk: cancelled"] * 42


def test_many_are_given_up_with_as_many_statements_as_few(rows: Rows) -> None:
    def give_up(count: int) -> int:
        reasons = {rows.add(): f"no way {n}" for n in range(count)}
        moved_on = rows.running()
        with counted(rows) as found, rows.db() as s:
            assert pending.give_up_all(s, {**reasons, moved_on: "no way"}, NOW) == count
        assert {rows.get(one).reason for one in reasons} == set(reasons.values())
        assert rows.get(moved_on).state == "running"
        return found.trips

    assert give_up(2) == give_up(40)


def test_sessions_to_cancel_are_those_with_work_left(rows: Rows) -> None:
    rows.add()
    with rows.db() as s:
        assert tasks.sessions_to_cancel(s) == []
        s.get_one(Session, rows.session_id).cancel_requested = True
    with rows.db() as s:
        assert tasks.sessions_to_cancel(s) == [rows.session_id]
        tasks.cancel_session_tasks(s, rows.session_id, NOW)
    with rows.db() as s:
        assert tasks.sessions_to_cancel(s) == []


def test_leases_are_renewed_for_who_holds_them(rows: Rows) -> None:
    mine, others, ended, cancelled = rows.running(), rows.add(), rows.running(), rows.running()
    rows.start(others, proxy="px2")
    rows.apply(report(ended))
    with rows.db() as s:
        s.execute(sa.update(Task).where(Task.id == cancelled).values(cancel_requested=True))
    later = NOW + timedelta(seconds=20)
    named = [
        RunningTask(task_id=TaskId(task_id), attempt=Attempt(attempt))
        for task_id, attempt in (
            (mine, 1),
            (others, 1),
            (ended, 1),
            (cancelled, 1),
            (mine, 2),
            ("x", 1),
        )
    ]
    with rows.db() as s:
        answers = leases.renew_leases(s, "px1", "boot1", named, now=later, lease_s=30)
    assert [answer.verdict.value for answer in answers] == [
        "held",
        "lost",
        "lost",
        "cancel",
        "lost",
        "lost",
    ]
    assert rows.get(mine).leased_until == later + timedelta(seconds=30)
    assert rows.get(others).leased_until == NOW + timedelta(seconds=30)
    with rows.db() as s:
        other_boot = leases.renew_leases(s, "px1", "boot2", named[:1], now=later, lease_s=30)
    assert other_boot[0].verdict is LeaseVerdict.LOST


def test_silence_takes_tasks_back(rows: Rows) -> None:
    silent, fresh = rows.running(), rows.running()
    with rows.db() as s:
        s.execute(
            sa.update(Task).where(Task.id == fresh).values(leased_until=NOW + timedelta(seconds=100))
        )
    at = NOW + timedelta(seconds=31)
    with rows.db() as s:
        ended = tasks.expire_leases(s, now=at, policy=POLICY)
    assert [(item.task_id, item.attempt, item.terminal) for item in ended] == [(silent, 1, False)]
    assert rows.get(silent).state == "pending"
    assert rows.get(fresh).state == "running"
    # what the silent one says later counts no more
    assert rows.apply(report(silent)) is Applied.STALE


def test_a_clock_that_was_ahead_keeps_no_task_waiting(rows: Rows) -> None:
    hour = timedelta(hours=1)
    lease, pause = timedelta(seconds=30), timedelta(seconds=10)
    far_lease, near_lease = rows.running(), rows.running()
    far_pause = rows.add(not_before=NOW + hour, failures=1)
    near_pause = rows.add(not_before=NOW + pause, failures=1)
    with rows.db() as s:
        s.get_one(Task, far_lease).leased_until = NOW + hour

    assert waits.shorten_waits(rows.db, now=NOW, lease_s=30, policy=POLICY) == 2
    assert waits.shorten_waits(rows.db, now=NOW, lease_s=30, policy=POLICY) == 0
    assert {rows.get(task).leased_until for task in (far_lease, near_lease)} == {NOW + lease}
    assert {rows.get(task).not_before for task in (far_pause, near_pause)} == {NOW + pause}


def test_what_a_revoked_proxy_may_still_write_to_waits_for_the_end_of_its_lease(rows: Rows) -> None:
    writing, reading = rows.running(kind="restore-disk-to-vm"), rows.running()
    elsewhere = rows.add(kind="restore-disk-to-vm")
    rows.start(elsewhere, proxy="px2")
    at = NOW + timedelta(seconds=5)
    with rows.db() as s:
        ended = tasks.end_leases_of(s, "px1", reason="revoked", now=at, policy=POLICY)
    assert {item.task_id for item in ended} == {writing, reading}
    pause = timedelta(seconds=POLICY.wait_s)
    assert rows.get(reading).not_before == at + pause
    # Its fence, of the lease that it was given last, is the only thing that stops it.
    assert rows.get(writing).not_before == NOW + timedelta(seconds=30) > at + pause
    assert rows.get(elsewhere).state == "running"


def test_a_new_boot_ends_what_the_old_one_ran(rows: Rows) -> None:
    old, other = rows.running(), rows.add()
    rows.start(other, proxy="px2")
    with rows.db() as s:
        ended = tasks.end_leases_of_other_boots(s, "px1", "boot2", now=NOW, policy=POLICY)
    assert [item.task_id for item in ended] == [old]
    assert "started anew" in rows.get(old).reason
    assert rows.get(other).state == "running"


def test_progress_is_for_the_attempt_that_runs(rows: Rows) -> None:
    task_id = rows.running()

    def progress(attempt: int, done: int) -> ProgressReport:
        return ProgressReport(
            task_id=TaskId(task_id),
            attempt=Attempt(attempt),
            phase="reading",
            total_bytes=10,
            done_bytes=done,
            read_bytes=done,
            stored_bytes=0,
            bytes_per_s=1.0,
            bottleneck="source",
        )

    with rows.db() as s:
        leases.record_progress(
            s, [("px1", progress(1, 5)), ("px1", progress(2, 9)), ("px2", progress(1, 8))]
        )
        leases.record_progress(s, [])
    assert rows.get(task_id).progress["done_bytes"] == 5
    assert "task_id" not in rows.get(task_id).progress


def test_why_a_task_waits_is_kept_with_it(rows: Rows) -> None:
    waiting, running = rows.add(), rows.running()
    with rows.db() as s:
        pending.explain(s, [([waiting, running], {"reason": "nobody is there"})])
    assert rows.get(waiting).decision == {"reason": "nobody is there"}
    assert rows.get(running).decision == {"why": "test"}


def test_who_may_have_secrets(rows: Rows) -> None:
    task_id = rows.running()

    def may(proxy: str, attempt: int) -> bool:
        with rows.db.read() as s:
            return leases.holds_attempt(s, proxy, task_id, attempt)

    assert not may("px1", 1)
    with rows.db() as s:
        s.get_one(Proxy, "px1").signing_key = "ab" * 32
    assert may("px1", 1)
    assert not may("px1", 2)
    assert not may("px2", 1)
    with rows.db() as s:
        tasks.cancel_session_tasks(s, rows.session_id, NOW)
    assert not may("px1", 1)


def test_modes_that_were_left_are_kept_with_the_task(rows: Rows) -> None:
    task_id = rows.add(facts={"known": 1}, kind="backup-disk", order=backup_order())
    left = [
        Failover(mode=mode, reason=f"no {mode}") for mode in (TransportMode.HOTADD, TransportMode.NBD)
    ]
    rows.start(task_id)
    rows.apply(report(task_id, 1, outcome=TaskOutcome.RETRY, reason="x", failovers=tuple(left)))
    # A network mode may be tried again: everything falls back to it.
    first = {"proxy": "px1", "name": "px1", "mode": "hotadd", "reason": "no hotadd", "attempt": 1}
    assert rows.get(task_id).facts == {"known": 1, "left": [first]}
    rows.start(task_id, "px2")
    ended = report(
        task_id,
        2,
        mode=TransportMode.NBDSSL,
        failovers=(left[0],),
        sampled_blocks=4,
        tracking_mismatch="m",
    )
    assert rows.apply(ended, "px2") is Applied.ENDED
    row = rows.get(task_id)
    second = {**first, "proxy": "px2", "name": "px2", "attempt": 2}
    assert row.facts == {
        "known": 1,
        "left": [first, second],
        "sampled_blocks": 4,
        "tracking_mismatch": "m",
    }
    shape = task_shape(row)
    assert shape["mode"] == "nbdssl"
    assert [one["proxy"] for one in shape["failovers"]] == ["px1", "px2"]
    with rows.db.read() as s:
        said = list(s.scalars(sa.select(Event.text).where(Event.name == "task.mode-left")))
    assert len(said) == 3
    assert "hotadd on px1 was left: no hotadd" in said[0]


def test_the_mode_in_use_is_told_while_the_task_runs(rows: Rows) -> None:
    task_id = rows.running(kind="backup-disk", order=backup_order())
    progress = ProgressReport(
        task_id=TaskId(task_id),
        attempt=Attempt(1),
        phase="reading",
        total_bytes=10,
        done_bytes=1,
        read_bytes=1,
        stored_bytes=1,
        bytes_per_s=1.0,
        bottleneck="",
        mode=TransportMode.NBD,
    )
    assert task_shape(rows.get(task_id))["mode"] == "nbdssl"
    with rows.db() as s:
        leases.record_progress(s, [("px1", progress)])
    assert task_shape(rows.get(task_id))["mode"] == "nbd"
