"""What must not become a restore point, and what an increment must not build on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from backup_server.db.tables import RestorePointRow, SessionVm, Task
from backup_server.services import disk_plan, doubts, jobs, sessions
from tests.fakes.server import Rig
from tests.fakes.vsphere import FakeVm
from transports.errors import TransientTransportError
from transports.vsphere.model import PowerState


def begin(rig: Rig) -> str:
    """A run whose disks have been read, and whose snapshot still exists."""
    session_id = str(jobs.run(rig.ctx, "job1")["id"])
    for _ in range(3):
        rig.engine.run_once()
    assert len(rig.vcenter.all_snapshots()) == 1
    assert rig.proxies.work() > 0
    return session_id


def order(rig: Rig, session: dict[str, Any]) -> dict[str, Any]:
    [task] = rig.rows(Task, session_id=session["id"])
    return dict(task.order)


# ---- the snapshot while it is read ----------------------------------------------------------------


def test_snapshot_removed_by_somebody_fails_the_vm(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session_id = begin(rig)
    vm.snapshots.clear()
    session = rig.drive(session_id)
    assert session["result"] == "failed"
    assert "was removed by somebody else" in session["reason"]
    assert rig.repository.points == {}
    assert rig.open_intents() == []


def test_renamed_snapshot_is_still_the_snapshot(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session_id = begin(rig)
    vm.snapshots = [replace(vm.snapshots[0], name="before the update")]
    assert rig.drive(session_id)["result"] == "success"
    # Taken away from us on purpose, so it stays.
    assert [one.name for one in vm.snapshots] == ["before the update"]


def test_files_that_moved_while_they_were_read_fail_the_vm(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session_id = begin(rig)
    [snapshot] = vm.snapshots
    moved = tuple(replace(disk, path="[ds1] db01/other.vmdk") for disk in snapshot.disks)
    vm.snapshots = [replace(snapshot, disks=moved)]
    session = rig.drive(session_id)
    assert session["result"] == "failed"
    assert "were moved or renamed" in session["reason"]
    assert rig.repository.points == {}
    assert rig.vcenter.all_snapshots() == []


def test_vcenter_away_while_finishing_costs_no_backup(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session_id = begin(rig)
    rig.vcenter.fail("snapshots", *[TransientTransportError("away")] * 50)
    session = rig.drive(session_id)
    assert session["result"] == "warning"
    assert len(rig.repository.points) == 1
    assert "could not be seen" in session["reason"]
    rig.vcenter.scripted.clear()
    rig.clock.advance(86_400)
    rig.janitor.run_once()
    assert rig.vcenter.all_snapshots() == []
    assert rig.open_intents() == []


@pytest.mark.parametrize(("mode", "result"), [("direct-san", "warning"), ("nbdssl", "success")])
def test_a_vm_that_was_deleted_while_it_was_read_over_san_is_in_doubt(
    rig: Rig, mode: str, result: str
) -> None:
    vm = rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session_id = begin(rig)
    with rig.ctx.db() as s:
        s.execute(sa.update(Task).values(mode=mode))
    del rig.vcenter.vms[vm.moref]
    session = rig.drive(session_id)
    assert session["result"] == result
    assert ("read over SAN" in (session["reason"] or "")) is (mode == "direct-san")
    assert len(rig.repository.points) == 1


def test_failed_disks_do_not_ask_for_the_snapshot(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    session_id = str(jobs.run(rig.ctx, "job1")["id"])
    for _ in range(3):
        rig.engine.run_once()
    sessions.cancel(rig.ctx, session_id)
    vm.snapshots.clear()
    assert rig.drive(session_id)["result"] == "cancelled"


def test_snapshot_found_again_after_a_crash_never_claims_that_the_vm_was_off(rig: Rig) -> None:
    vm = rig.vcenter.add_vm("db01", disks=1, tools=False)
    rig.job()

    def lose() -> None:
        # What the tree of a real server says later of every snapshot without memory.
        vm.snapshots = [replace(one, power_state=PowerState.OFF) for one in vm.snapshots]
        raise TransientTransportError("the answer was lost")

    rig.vcenter.after["create_snapshot"] = lose
    assert rig.run()["result"] in ("success", "warning")
    assert rig.vcenter.calls.count("create_snapshot") == 1
    [point] = rig.points()
    assert point.consistency == "crash-consistent"


# ---- the base of an increment -----------------------------------------------------------------------


@pytest.fixture
def backed_up(rig: Rig) -> FakeVm:
    vm = rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    assert rig.run()["result"] == "success"
    return vm


def test_base_that_the_repository_lost_is_not_built_on(rig: Rig, backed_up: FakeVm) -> None:
    rig.repository.points.clear()  # an older copy of the repository was put in its place
    session = rig.run()
    assert session["result"] == "success"
    made = order(rig, session)
    assert (made["previous_map_root"], made["previous_change_id"]) == ("", "")
    assert made["full_read_reason"] == doubts.BASE_GONE
    assert rig.points()[-1].kind == "full"
    assert rig.points()[-1].previous_id is None


def test_catalogue_that_differs_from_the_repository_is_not_built_on(
    rig: Rig, backed_up: FakeVm
) -> None:
    [row] = rig.points()
    with rig.ctx.db() as s:
        disks = [{**disk, "map_root": "ab" * 32} for disk in row.disks]
        s.execute(sa.update(RestorePointRow).values(disks=disks))
    assert order(rig, rig.run())["full_read_reason"] == doubts.BASE_DIFFERS


def test_vm_that_was_registered_anew_is_read_in_full(rig: Rig, backed_up: FakeVm) -> None:
    del rig.vcenter.vms[backed_up.moref]
    backed_up.moref = rig.vcenter.moref("vm")
    rig.vcenter.vms[backed_up.moref] = backed_up
    made = order(rig, rig.run())
    assert made["previous_map_root"] == ""
    assert "registered otherwise" in made["full_read_reason"]


def test_repository_that_is_away_fails_the_vm_before_its_snapshot(rig: Rig, backed_up: FakeVm) -> None:
    rig.ctx.agents.close()
    location = next(iter(rig.repositories.at))
    away = rig.repositories.at.pop(location)
    calls = len(rig.vcenter.calls)
    session = rig.run()
    assert session["result"] == "failed"
    assert "create_snapshot" not in rig.vcenter.calls[calls:]
    rig.repositories.at[location] = away


def test_base_deleted_while_the_run_begins(rig: Rig, backed_up: FakeVm) -> None:
    def delete() -> None:
        with rig.ctx.db() as s:
            s.execute(sa.update(RestorePointRow).values(deleting=True))

    rig.vcenter.after["create_snapshot"] = delete
    session = rig.run()
    assert order(rig, session)["full_read_reason"] == disk_plan.NO_PREVIOUS
    [vm] = rig.rows(SessionVm, session_id=session["id"])
    assert vm.details.get("previous_id") is None


def test_reverted_and_the_snapshot_deleted(rig: Rig, backed_up: FakeVm) -> None:
    # The tracking goes on from where the snapshot was: the same number again.
    backed_up.disks[0].writes -= 1
    made = order(rig, rig.run())
    assert made["full_read_reason"] == disk_plan.WENT_BACK
    assert made["previous_change_id"] == ""
