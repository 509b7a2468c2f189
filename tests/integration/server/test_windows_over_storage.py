"""A window that closes in the middle of a disk that is read from a storage snapshot, and the next one."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from backup_server.db.tables import Session, Task
from backup_server.services import results, sessions
from proxy_worker.contracts.extents import unpack_extents
from proxy_worker.contracts.ids import Attempt, TaskId
from proxy_worker.contracts.messages import ResultReport, TaskOutcome
from tests.fakes.server import Rig
from tests.fakes.vsphere import GIB
from tests.support.storage_rig import begin, hand_out, with_array
from transports.base import Extent
from transports.errors import ChangeTrackingUnusableError


@pytest.fixture
def storage(rig: Rig) -> Rig:
    return with_array(rig)


def nothing_left(rig: Rig) -> None:
    assert rig.open_intents() == []
    assert (rig.array.frozen, rig.array.shown) == ({}, {})
    assert rig.vcenter.all_snapshots() == []


def stopped_by_its_window(rig: Rig) -> Task:
    """A session over a storage snapshot that the end of its window cut off in the middle of its disk."""
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(storage_snapshots=True, window={"text": "daily 22:00-06:00", "time_zone": "UTC"})
    rig.clock.now = datetime(2026, 3, 3, 5, 59, tzinfo=UTC)
    session_id, [task] = begin(rig)
    hand_out(rig, task)
    rig.clock.now = datetime(2026, 3, 3, 6, tzinfo=UTC)
    rig.engine.run_once()
    said = ResultReport(
        task_id=TaskId(task.id), attempt=Attempt(1), outcome=TaskOutcome.CANCELLED, reason=""
    )
    policy = results.RetryPolicy(attempts=3, wait_s=1)
    with rig.ctx.db() as s:
        results.apply_result(s, rig.default_proxy().id, said, policy=policy, now=rig.clock.now)
    for _ in range(4):
        rig.engine.run_once()
    shown = sessions.get(rig.ctx, session_id)
    assert (shown["state"], shown["result"]) == ("finished", "warning"), shown
    nothing_left(rig)
    return task


def goes_on(rig: Rig) -> Task:
    """The disk's task in the session that takes up what is left."""
    [waiting] = rig.rows(Session, state="queued")
    rig.clock.now = datetime(2026, 3, 3, 22, tzinfo=UTC)
    for _ in range(4):
        rig.engine.run_once()
    [task] = rig.rows(Task, session_id=waiting.id)
    return task


def test_what_a_window_cut_off_goes_on_over_another_storage_snapshot(storage: Rig) -> None:
    earlier = stopped_by_its_window(storage)
    storage.vcenter.areas = {2000: [Extent(offset=1 << 20, length=4096)]}
    task = goes_on(storage)
    assert task.allowed_modes == ["storage-snapshot"]
    assert task.continues_task_id == task.order["continue_work"] == earlier.id
    # Asked while the VM snapshot existed: it is gone when the proxy reads.
    assert task.order["disk"]["snapshot_moref"] is None
    changed = unpack_extents(task.order["continue_changes"], size_bytes=GIB)
    assert changed == [Extent(offset=1 << 20, length=64 << 10)]
    assert storage.drive(task.session_id)["result"] == "success"
    nothing_left(storage)


def test_without_an_answer_of_change_tracking_it_is_read_from_its_beginning(storage: Rig) -> None:
    stopped_by_its_window(storage)
    storage.vcenter.fail("changed_areas", ChangeTrackingUnusableError("the map is lost"))
    task = goes_on(storage)
    assert task.continues_task_id is None
    assert (task.order.get("continue_work", ""), task.order.get("continue_changes", "")) == ("", "")
    assert storage.drive(task.session_id)["result"] == "success"
