"""Orders on their way to a worker and results on their way back, when nothing breaks."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from nacl.signing import SigningKey

from backup_server.credentials import load_or_create_key
from backup_server.db.states import TaskState
from backup_server.db.tables import Event, OutboxRow
from backup_server.scheduler.outbox import celery_sender
from proxy_worker.contracts.codec import from_json, to_json
from proxy_worker.contracts.envelope import SERVER, Sealer
from proxy_worker.contracts.ids import Attempt, ProxyId, TaskId
from proxy_worker.contracts.messages import ResultReport, TaskOutcome, TaskRequest
from proxy_worker.contracts.names import DISK_TASK, STREAM_FIELD, task_queue, up_stream
from tests.integration.queue.rig import ON_SQLITE, Rig, wait_for

pytestmark = pytest.mark.timeout(120)


def index_is_empty(rig: Rig) -> bool:
    client = rig.broker.client()
    counts = [*client.hvals("vmhaul:use")]
    counts += [client.hget(key, "used") or "0" for key in client.scan_iter("vmhaul:px:*")]
    left = [*client.scan_iter("vmhaul:t:*"), *client.scan_iter("vmhaul:li:*")]
    client.close()
    return not left and all(int(count) == 0 for count in counts)


def send_order(rig: Rig, proxy_id: str, request: TaskRequest, key: bytes) -> None:
    app = celery_sender(rig.broker.how.celery_url)
    envelope = Sealer(SERVER, SigningKey(key), time.time).seal(request, to=proxy_id)
    app.send_task(DISK_TASK, args=(envelope,), queue=task_queue(ProxyId(proxy_id)))
    app.close()


def server_key(rig: Rig) -> bytes:
    return load_or_create_key(rig.settings.signing_key_file)


def test_every_disk_once_with_its_own_end(rig: Rig) -> None:
    rig.start_proxy("px1")
    rig.start_proxy("px2")
    titles = ["ok sleep=0.4", "look outcome=warning", "bad outcome=failed", "key need-secrets"]
    ids = rig.add_tasks([*titles, *[f"more {n} sleep=0.2" for n in range(8)]])
    rows = rig.wait_state(ids, TaskState.DONE)
    assert [row.result for row in rows[:4]] == ["success", "warning", "failed", "success"]
    assert {row.result for row in rows[4:]} == {"success"}
    assert {row.attempt for row in rows} == {1}
    assert rows[3].sha256 == "key-1key-1"
    assert sorted(task for task, _, _ in rig.marks()) == sorted(ids)
    assert {row.proxy_name for row in rows} == {"px1", "px2"}
    assert all(row.finished_at and row.leased_until is None for row in rows)
    decision = rows[0].decision
    assert decision is not None
    assert {c["name"] for c in decision["candidates"]} == {"px1", "px2"}
    assert rig.ctx.wake_engine.is_set()
    wait_for(lambda: index_is_empty(rig), "all counters back at zero")
    with rig.db.read() as s:
        assert s.scalar(sa.select(sa.func.count()).select_from(OutboxRow)) == 0


def test_progress_is_seen_while_it_runs(rig: Rig) -> None:
    rig.start_proxy("px1")
    task_id = rig.add_tasks(["slow sleep=3"])[0]
    wait_for(lambda: rig.task(task_id).progress.get("done_bytes", 0) > 0, "progress")
    row = rig.task(task_id)
    assert row.state == TaskState.RUNNING.value
    assert row.progress["total_bytes"] == 1000
    rig.wait_state([task_id], TaskState.DONE)


@ON_SQLITE
def test_slots_and_repository_limit_hold(rig: Rig) -> None:
    _, worker = rig.start_proxy("px1", slots=3)
    ids = rig.add_tasks([f"t{n} sleep=0.4" for n in range(9)])
    most = 0
    while any(row.state != TaskState.DONE.value for row in rig.tasks(ids)):
        most = max(most, sum(row.state == TaskState.RUNNING.value for row in rig.tasks(ids)))
        time.sleep(0.02)
    assert most == 3
    assert worker.terminate() == 0


@ON_SQLITE
def test_a_row_of_the_outbox_that_is_sent_twice_does_nothing_more(rig: Rig) -> None:
    rig.start_proxy("px1")
    task_id = rig.add_tasks(["once sleep=1.5"])[0]
    rig.wait_begun(task_id)
    row = rig.task(task_id)
    with rig.db() as s:
        s.add(
            OutboxRow(
                kind="task",
                proxy_id=row.proxy_id or "",
                task_id=task_id,
                attempt=1,
                body=_order_of(rig, task_id),
                created_at=rig.ctx.clock(),
            )
        )

    def sent() -> bool:
        with rig.db.read() as s:
            return s.scalar(sa.select(sa.func.count()).select_from(OutboxRow)) == 0

    wait_for(sent, "the second sending")
    row = rig.wait_state([task_id], TaskState.DONE)[0]
    assert (row.attempt, row.result) == (1, "success")
    assert len(rig.marks()) == 1


def _order_of(rig: Rig, task_id: str) -> dict[str, object]:
    row = rig.task(task_id)
    from backup_server.services.tasks import Placement, _request
    from transports.base import TransportMode

    with rig.db.read() as s:
        where = Placement(
            proxy_id=row.proxy_id or "",
            proxy_name="",
            boot_id=None,
            mode=TransportMode.NBDSSL,
            decision={},
        )
        soon = rig.ctx.clock().replace(year=rig.ctx.clock().year + 1)
        return to_json(_request(s, row, where, row.attempt, soon, 30.0))


@ON_SQLITE
def test_a_captured_message_cannot_be_played_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.start_proxy("px1")
    assert rig.scheduler is not None
    app = rig.scheduler._app
    send = app.send_task
    captured: list[dict[str, Any]] = []

    def record(name: str, **options: Any) -> None:
        captured.append({"name": name, **options})
        send(name, **options)

    monkeypatch.setattr(app, "send_task", record)
    task_id = rig.add_tasks(["once sleep=0.2"])[0]
    rig.wait_state([task_id], TaskState.DONE)
    assert len(captured) == 1
    send(**captured[0])
    wait_for(lambda: "came a second time" in rig.logs(), "its refusal")
    assert len(rig.marks()) == 1


@ON_SQLITE
def test_an_order_that_came_too_late_is_refused(rig: Rig) -> None:
    proxy_id, _ = rig.start_proxy("px1")
    base = _template(rig, proxy_id)
    send_order(rig, proxy_id, replace(base, expires_at_s=time.time() - 1), server_key(rig))
    wait_for(lambda: "it came too late" in rig.logs(), "the refusal")
    assert base.task_id not in [task for task, _, _ in rig.marks()]


@ON_SQLITE
def test_orders_of_strangers_and_for_others_are_refused(rig: Rig) -> None:
    proxy_id, _ = rig.start_proxy("px1")
    base = _template(rig, proxy_id)
    send_order(rig, proxy_id, base, bytes(32))
    wait_for(lambda: "the signature is wrong" in rig.logs(), "the refusal of a foreign key")
    app = celery_sender(rig.broker.how.celery_url)
    sealer = Sealer(SERVER, SigningKey(server_key(rig)), time.time)
    app.send_task(DISK_TASK, args=(sealer.seal(base, to="px9"),), queue=task_queue(ProxyId(proxy_id)))
    wait_for(lambda: "is for 'px9'" in rig.logs(), "the refusal of another addressee")
    other = replace(base, proxy_id=ProxyId("px9"))
    send_order(rig, proxy_id, other, server_key(rig))
    wait_for(lambda: "it is for another proxy" in rig.logs(), "the refusal of another proxy's order")
    # well signed, but SQL says that nobody holds this attempt: no secrets, no mover
    send_order(rig, proxy_id, base, server_key(rig))
    wait_for(lambda: "the server gave no secrets" in rig.logs(), "the refusal of secrets")
    app.close()
    assert rig.marks() == []


def _template(rig: Rig, proxy_id: str) -> TaskRequest:
    """A well-formed order of a task that nobody handed out."""
    task_id = rig.add_tasks(["nobody's"], allowed_proxies=["somebody else"])[0]
    body = _order_of(rig, task_id)
    body["proxy_id"] = proxy_id
    body["attempt"] = 1
    return from_json(TaskRequest, body)


@ON_SQLITE
def test_a_proxy_cannot_speak_for_another(rig: Rig) -> None:
    proxy_id, _ = rig.start_proxy("px1")
    other_id = rig.add_proxy("px2")
    task_id = rig.add_tasks(["mine sleep=2"], allowed_proxies=[proxy_id])[0]
    rig.wait_begun(task_id)
    lie = ResultReport(
        task_id=TaskId(task_id),
        attempt=Attempt(1),
        outcome=TaskOutcome.SUCCESS,
        reason="",
        map_root="cd" * 32,
    )
    client = rig.broker.client()
    other = Sealer(other_id, rig.identity("px2").signing, time.time)
    forged = Sealer(proxy_id, rig.identity("px2").signing, time.time)
    for stream, text in (
        (up_stream(ProxyId(other_id)), other.seal(lie, to=SERVER)),
        (up_stream(ProxyId(proxy_id)), other.seal(lie, to=SERVER)),
        (up_stream(ProxyId(proxy_id)), forged.seal(lie, to=SERVER)),
        (up_stream(ProxyId(proxy_id)), "junk"),
    ):
        client.xadd(stream, {STREAM_FIELD: text})
    wait_for(lambda: client.xlen(up_stream(ProxyId(other_id))) == 0, "the lies' being read")
    client.close()
    row = rig.wait_state([task_id], TaskState.DONE)[0]
    assert row.map_root == "ab" * 32


@ON_SQLITE
def test_events_tell_where_a_disk_went(rig: Rig) -> None:
    rig.start_proxy("px1")
    session_id = rig.add_session()
    ids = rig.add_tasks(["told crash=1"], session_id)
    rig.wait_state(ids, TaskState.DONE)
    with rig.db.read() as s:
        events = s.scalars(
            # That it waits is said where the proxy was not heard for a moment, on a busy machine.
            sa.select(Event)
            .where(Event.session_id == session_id, Event.name != "task.waits")
            .order_by(Event.id)
        ).all()
    assert [event.name for event in events] == [
        "task.placed",
        "task.retried",
        "task.placed",
        "task.finished",
    ]
    assert "SIGKILL" in events[1].text
    assert "something broke" in events[1].text
