"""The server dies at every commit and at every call of vSphere and of the storage system.

Whatever the point: one restore point more, no VM snapshot, no storage snapshot, no clone, no open intent; and what
others keep on the storage is as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_server.db.states import TaskState
from backup_server.db.tables import Intent, Task
from backup_server.services import jobs
from tests.fakes.crash import Crash
from tests.fakes.server import Rig
from tests.support.storage_rig import begin, give_back, hand_out, present, with_array, withdraw

FOREIGN = "vmhaul-0000000000-11111111222243338444555555555555"


@pytest.fixture
def rig(tmp_path: Path, migrated_url: str) -> Iterator[Rig]:
    rig = with_array(Rig(tmp_path, migrated_url).site())
    rig.array.frozen[FOREIGN] = {"vol1": None}
    rig.vcenter.add_vm("db01", disks=1)
    rig.job(storage_snapshots=True, retention={"keep": 3})
    yield rig
    rig.close()


def points_of(rig: Rig, total: int) -> range:
    """All of them; on PostgreSQL, where only commits differ and each costs more, every fifth."""
    return range(1, total + 1, 1 if rig.settings.database.startswith("sqlite") else 5)


def nothing_left(rig: Rig, at: int) -> None:
    assert rig.vcenter.all_snapshots() == [], at
    assert (set(rig.array.frozen), rig.array.shown) == ({FOREIGN}, {}), at
    assert rig.open_intents() == [], at


def test_killed_at_every_point(rig: Rig) -> None:
    rig.plan.arm(0)
    rig.run()
    total = len(rig.plan.passed)
    # Ten commits and more than ten calls with a before and an after.
    assert total > 35
    assert "after create_snapshot" in rig.plan.passed
    assert "after delete_snapshot" in rig.plan.passed
    for at in points_of(rig, total):
        before = len(rig.repository.commits)
        session_id = str(jobs.run(rig.ctx, "job1")["id"])
        rig.plan.arm(at)
        session = rig.drive(session_id)
        rig.plan.revive()
        rig.janitor.run_once()
        assert session["result"] in ("success", "warning"), (at, session["reason"])
        assert len(set(rig.repository.commits[before:])) == 1, at
        nothing_left(rig, at)


def test_killed_while_a_disk_is_shown_and_taken_away(rig: Rig) -> None:
    session_id, [task] = begin(rig)
    at = 0
    for at in range(1, 60):
        hand_out(rig, task, attempt=at)
        rig.plan.arm(at)
        struck = False
        try:
            present(rig, task, attempt=at)
            withdraw(rig, task, attempt=at)
        except Crash:
            struck = True
            rig.restart()
        rig.plan.revive()
        give_back(rig, task)
        rig.janitor.run_once()
        assert rig.array.shown == {}, at
        kinds = [one.kind for one in rig.rows(Intent, state="open")]
        assert kinds == ["storage-snapshot"], at
        if not struck:
            break
    assert at > 6
    [row] = rig.rows(Task, id=task.id)
    assert row.state == TaskState.PENDING.value
    assert rig.drive(session_id)["result"] == "success"
    nothing_left(rig, 0)
