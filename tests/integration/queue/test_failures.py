"""Workers, movers, broker and server that die in the middle. Whatever dies: each disk ends once."""

from __future__ import annotations

import os
import signal
import time

import pytest
import sqlalchemy as sa

from backup_server.db.states import TaskState
from backup_server.db.tables import Session
from backup_server.services import tasks
from proxy_worker.config import load_enrolment
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.messages import TaskOutcome
from proxy_worker.contracts.names import up_stream
from proxy_worker.outbox import ResultOutbox
from tests.integration.queue.rig import ON_SQLITE, Rig, is_gone, wait_for

pytestmark = pytest.mark.timeout(180)


@ON_SQLITE
def test_a_killed_mover_costs_one_attempt(rig: Rig) -> None:
    rig.start_proxy("px1")
    task_id = rig.add_tasks(["disk sleep=1"])[0]
    os.kill(rig.wait_begun(task_id), signal.SIGKILL)
    row = rig.wait_state([task_id], TaskState.DONE)[0]
    assert (row.result, row.attempt, row.failures) == ("success", 2, 1)
    assert rig.ctx.wake_janitor.is_set(), "what the attempt left is looked for at once"


@ON_SQLITE
def test_a_mover_that_always_dies_fails_the_task_with_the_reason(rig: Rig) -> None:
    rig.start_proxy("px1")
    task_id = rig.add_tasks(["disk crash-always"])[0]
    row = rig.wait_state([task_id], TaskState.DONE)[0]
    assert (row.result, row.attempt) == ("failed", rig.settings.task_attempts)
    assert "something broke" in row.reason
    assert len(rig.marks()) == rig.settings.task_attempts


def test_a_killed_worker_that_comes_back_goes_on(rig: Rig) -> None:
    proxy_id, worker = rig.start_proxy("px1")
    task_id = rig.add_tasks(["disk sleep=2"])[0]
    rig.wait_begun(task_id)
    boot_id = rig.proxy(proxy_id).boot_id
    worker.kill()
    rig.start_worker("px1")
    rig.wait_online(proxy_id, boot_id)
    row = rig.wait_state([task_id], TaskState.DONE)[0]
    assert (row.result, row.attempt) == ("success", 2)


@ON_SQLITE
def test_a_killed_worker_loses_its_lease_to_another_proxy(rig: Rig) -> None:
    first, worker = rig.start_proxy("px1")
    task_id = rig.add_tasks(["disk sleep=0.5"], allowed_proxies=[first])[0]
    # the one proxy that is there takes it and dies; then there is another one
    rig.wait_begun(task_id)
    second = rig.add_proxy("px2")
    with rig.db() as s:
        s.execute(
            sa.update(tasks.Task)
            .where(tasks.Task.id == task_id)
            .values(allowed_proxies=[first, second])
        )
    worker.kill()
    rig.start_worker("px2")
    row = rig.wait_state([task_id], TaskState.DONE)[0]
    assert (row.result, row.proxy_name, row.attempt) == ("success", "px2", 2)
    assert rig.ctx.wake_janitor.is_set()


def test_a_frozen_workers_late_result_is_fenced_off(rig: Rig) -> None:
    _, worker = rig.start_proxy("px1", slots=1)
    task_id = rig.add_tasks(["disk sleep=1"])[0]
    rig.wait_begun(task_id)
    worker.freeze()
    rig.start_proxy("px2")
    row = rig.wait_state([task_id], TaskState.DONE)[0]
    assert (row.attempt, row.proxy_name, row.sha256) == (2, "px2", "key-2")
    worker.thaw()
    # its mover finished long ago; the worker learns that nobody waits and forgets the result
    outbox = ResultOutbox(rig.directory / "px1" / "outbox.db")
    wait_for(lambda: "task.finished" in (rig.directory / "px1.log").read_text(), "the late end")
    wait_for(lambda: not outbox.waiting(), "the late result's being forgotten")
    outbox.close()
    after = rig.task(task_id)
    assert (after.attempt, after.proxy_name, after.sha256) == (2, "px2", "key-2")


def test_flushed_broker_in_the_middle(rig: Rig) -> None:
    rig.start_proxy("px1", slots=2)
    ids = rig.add_tasks([f"disk {n} sleep=0.7" for n in range(6)])
    rig.wait_begun(ids[0])
    client = rig.broker.client()
    client.flushall()
    client.close()
    rows = rig.wait_state(ids, TaskState.DONE)
    assert {row.result for row in rows} == {"success"}
    # what ran goes on undisturbed; an order that was lost in the queue is handed out once more
    assert rows[0].attempt == 1


@ON_SQLITE
@pytest.mark.parametrize("keep", [True, False], ids=["with its data", "empty"])
def test_restarted_broker_in_the_middle(rig: Rig, keep: bool) -> None:
    rig.start_proxy("px1", slots=2)
    ids = rig.add_tasks([f"disk {n} sleep=1.5" for n in range(4)])
    rig.wait_begun(ids[0])
    rig.broker.kill()
    if not keep:
        rig.broker.forget()
    time.sleep(0.5)
    rig.broker.start()
    rows = rig.wait_state(ids, TaskState.DONE)
    assert {row.result for row in rows} == {"success"}
    assert rows[0].attempt == 1


def test_results_wait_for_a_server_that_is_away(rig: Rig) -> None:
    rig.start_proxy("px1")
    task_id = rig.add_tasks(["disk sleep=0.5"])[0]
    rig.wait_begun(task_id)
    rig.stop_scheduler()
    outbox = ResultOutbox(rig.directory / "px1" / "outbox.db")
    wait_for(outbox.waiting, "the result in the outbox")
    # longer than the lease, and the broker forgets the report as well
    time.sleep(rig.settings.lease_s + 0.5)
    client = rig.broker.client()
    client.flushall()
    client.close()
    rig.start_scheduler()
    row = rig.wait_state([task_id], TaskState.DONE)[0]
    assert (row.result, row.attempt, row.failures) == ("success", 1, 0)
    wait_for(lambda: not outbox.waiting(), "the acknowledgement")
    outbox.close()


@ON_SQLITE
def test_results_outlive_the_worker(rig: Rig) -> None:
    proxy_id, worker = rig.start_proxy("px1")
    task_id = rig.add_tasks(["disk sleep=0.5"])[0]
    rig.wait_begun(task_id)
    rig.stop_scheduler()
    outbox = ResultOutbox(rig.directory / "px1" / "outbox.db")
    wait_for(outbox.waiting, "the result in the outbox")
    worker.kill()
    client = rig.broker.client()
    client.flushall()
    boot_id = rig.proxy(proxy_id).boot_id
    rig.start_worker("px1")
    # its first report is the old result, before the heartbeat that names the new boot
    wait_for(lambda: client.xlen(up_stream(ProxyId(proxy_id))) > 1, "the reports of its new self")
    client.close()
    rig.start_scheduler()
    rig.wait_online(proxy_id, boot_id)
    row = rig.wait_state([task_id], TaskState.DONE)[0]
    assert (row.result, row.attempt) == ("success", 1)
    wait_for(lambda: not outbox.waiting(), "the acknowledgement")
    outbox.close()


@ON_SQLITE
def test_orderly_stop_hands_tasks_back(rig: Rig) -> None:
    _, worker = rig.start_proxy("px1", slots=1)
    task_id = rig.add_tasks(["disk sleep=30"])[0]
    pid = rig.wait_begun(task_id)
    assert worker.terminate() == 0
    wait_for(lambda: is_gone(pid), "the mover's end")
    row = wait_for(
        lambda: (r := rig.task(task_id)).state == TaskState.PENDING.value and r, "pending again"
    )
    assert "the worker was stopped" in row.reason
    assert row.leased_until is None


@ON_SQLITE
@pytest.mark.parametrize("runs", [True, False], ids=["in a task", "idle"])
def test_a_worker_ends_when_it_is_told_to_while_the_broker_is_away(rig: Rig, runs: bool) -> None:
    """What its task came to waits in its outbox."""
    _, worker = rig.start_proxy("px1", slots=1)
    pid = rig.wait_begun(rig.add_tasks(["disk sleep=60"])[0]) if runs else 0
    rig.broker.kill()
    time.sleep(1.5)  # so that it is in the middle of connecting again
    assert worker.terminate(60) == 0
    if not runs:
        return
    wait_for(lambda: is_gone(pid), "the mover's end")
    outbox = ResultOutbox(rig.directory / "px1" / "outbox.db")
    assert [report.outcome for report in outbox.waiting()] == [TaskOutcome.RETRY]
    outbox.close()


def test_cancel_of_pending_and_running(rig: Rig) -> None:
    rig.start_proxy("px1", slots=2)
    session_id = rig.add_session()
    ids = rig.add_tasks(["one sleep=60", "two sleep=60 deaf", "three sleep=60"], session_id)
    pids = [rig.wait_begun(ids[0]), rig.wait_begun(ids[1])]
    with rig.db() as s:
        s.execute(sa.update(Session).where(Session.id == session_id).values(cancel_requested=True))
    rows = rig.wait_state(ids, TaskState.DONE)
    assert {row.result for row in rows} == {"cancelled"}
    assert [row.attempt for row in rows] == [1, 1, 0]
    for pid in pids:
        wait_for(lambda pid=pid: is_gone(pid), "the mover's end")


@ON_SQLITE
def test_cancelling_when_the_proxy_is_gone_ends_with_the_lease(rig: Rig) -> None:
    _, worker = rig.start_proxy("px1")
    session_id = rig.add_session()
    task_id = rig.add_tasks(["one sleep=60"], session_id)[0]
    rig.wait_begun(task_id)
    worker.kill()
    with rig.db() as s:
        tasks.cancel_session_tasks(s, session_id, rig.ctx.clock())
    row = rig.wait_state([task_id], TaskState.DONE)[0]
    assert row.result == "cancelled"


@ON_SQLITE
def test_secrets_that_come_later(rig: Rig) -> None:
    rig.start_proxy("px1")
    rig.door.away = True
    task_id = rig.add_tasks(["disk"])[0]
    wait_for(lambda: rig.door.refused > 1, "asking for them again")
    assert rig.marks() == []
    rig.door.away = False
    row = rig.wait_state([task_id], TaskState.DONE)[0]
    assert (row.result, row.attempt) == ("success", 1)


def test_another_server_takes_over(rig: Rig) -> None:
    rig.start_proxy("px1", slots=1)
    first = rig.scheduler
    assert first is not None
    second = rig.start_scheduler()
    ids = rig.add_tasks([f"disk {n} sleep=0.3" for n in range(4)])
    rig.wait_begun(ids[0])
    assert first.leadership.leading
    assert not second.leadership.leading
    first.stop()
    rows = rig.wait_state(ids, TaskState.DONE)
    assert {(row.result, row.attempt) for row in rows} == {("success", 1)}
    assert second.leadership.leading
    assert second.leadership.fence == 2


@ON_SQLITE
def test_no_proxy_says_why_and_gives_up_in_the_end(rig: Rig) -> None:
    from dataclasses import replace

    from tests.integration.queue.rig import TIMING

    rig.stop_scheduler()
    rig.start_scheduler(replace(TIMING, no_proxy_timeout_s=3.0, audit_s=0.3))
    task_id = rig.add_tasks(["disk"])[0]
    waiting = wait_for(lambda: rig.task(task_id).decision, "the explanation")
    assert waiting["proxy"] is None
    assert "no proxy" in waiting["reason"]
    row = rig.wait_state([task_id], TaskState.DONE)[0]
    assert row.result == "failed"
    assert "no proxy could take this disk" in row.reason


@ON_SQLITE
def test_enrolment_file_is_what_the_worker_reads(rig: Rig) -> None:
    proxy_id = rig.add_proxy("px1")
    enrolment = load_enrolment(rig.directory / "px1")
    assert enrolment is not None
    assert enrolment.proxy_id == proxy_id
