"""The server dies at every commit and at every change in vSphere and in the repository.

For each point of a session a run is killed there and the next process takes over. Whatever the point:
one restore point more, committed once in substance, no snapshot, no open intent, no marked VM.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_server.db.states import Result
from backup_server.services import jobs, repositories, restores
from tests.fakes.crash import Crash
from tests.fakes.server import Rig
from transports.errors import TransientTransportError
from transports.vsphere.model import Secret


@pytest.fixture
def rig(tmp_path: Path, migrated_url: str) -> Iterator[Rig]:
    rig = Rig(tmp_path, migrated_url).site()
    yield rig
    rig.close()


def start(rig: Rig) -> str:
    """Order a run; a death in ordering it is the caller's to notice, so that is outside of the plan."""
    return str(jobs.run(rig.ctx, "job1")["id"])


def finish(rig: Rig, session_id: str) -> dict[str, object]:
    session = rig.drive(session_id)
    rig.plan.revive()
    rig.janitor.run_once()
    return session


def points_of(rig: Rig, total: int) -> range:
    """All of them; on PostgreSQL, where only commits differ and each costs more, every fourth."""
    return range(1, total + 1, 1 if rig.settings.database.startswith("sqlite") else 4)


def count_points(rig: Rig, session_id: str) -> int:
    rig.plan.arm(0)
    rig.drive(session_id)
    return len(rig.plan.passed)


def test_backup_killed_at_every_point(rig: Rig) -> None:
    foreign = rig.vcenter.snapshot_by_hand(rig.vcenter.add_vm("db01", disks=1), "by hand")
    rig.job(retention={"keep": 3})
    total = count_points(rig, start(rig))
    # The foreign snapshot keeps tracking off: one more point when it is gone. The number also says
    # that the plan sees what it should: about ten commits and six calls with a before and an after.
    assert total > 25
    struck = []
    seen = set(rig.repository.points)
    for at in points_of(rig, total):
        session_id = start(rig)
        rig.plan.arm(at)
        session = finish(rig, session_id)
        struck.append(rig.plan.passed[-1])
        assert session["result"] in ("success", "warning"), (at, session["reason"])
        new = set(rig.repository.commits) - seen
        seen |= new
        assert len(new) == 1, (at, "a run must commit exactly one point")
        assert {point.id for point in rig.points()} == set(rig.repository.points), at
        assert new <= set(rig.repository.points), at
        assert rig.vcenter.all_snapshots() == [foreign], at
        assert rig.open_intents() == [], at
    assert len(struck) == len(points_of(rig, total))
    # Death between a commit and its retention leaves a point more, until the next run.
    rig.run()
    assert len(rig.points()) == len(rig.repository.points) == 3


def test_cancelled_backup_killed_at_every_point(rig: Rig) -> None:
    from backup_server.services import sessions

    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    at = 0
    for at in points_of(rig, 100):
        session_id = start(rig)
        for _ in range(3):
            rig.engine.run_once()
        assert len(rig.vcenter.all_snapshots()) == 1
        sessions.cancel(rig.ctx, session_id)
        rig.plan.arm(at)
        session = finish(rig, session_id)
        assert session["result"] == "cancelled"
        assert rig.vcenter.all_snapshots() == []
        assert rig.open_intents() == []
        assert rig.points() == []
        if len(rig.plan.passed) < at:
            break
    assert at > 5


def test_failing_vm_killed_at_every_point(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    rig.proxies.outcome = lambda task: (Result.FAILED, "no")
    total = count_points(rig, start(rig))
    for at in points_of(rig, total):
        rig.vcenter.fail("remove_snapshot", *[TransientTransportError("locked")] * 4)
        session_id = start(rig)
        rig.plan.arm(at)
        session = finish(rig, session_id)
        rig.vcenter.scripted.clear()
        assert session["result"] == "failed"
        for _ in range(4):
            rig.clock.advance(86_400)
            rig.janitor.run_once()
        assert rig.vcenter.all_snapshots() == [], at
        assert rig.open_intents() == [], at
        assert rig.points() == [], at


@pytest.mark.parametrize("good", [True, False], ids=["good", "failing"])
def test_restore_of_a_vm_killed_at_every_point(rig: Rig, good: bool) -> None:
    rig.vcenter.add_vm("db01")
    rig.job()
    rig.run()
    before = set(rig.vcenter.vms)
    if not good:
        rig.proxies.outcome = lambda task: (Result.FAILED, "no")

    def order(name: str) -> str:
        request = {"restore_point": "db01@latest", "name": name, "power_on": True}
        return str(restores.restore_vm(rig.ctx, request)["id"])

    total = count_points(rig, order("copy0"))
    assert total > 15
    for at in points_of(rig, total):
        session_id = order(f"copy{at}")
        rig.plan.arm(at)
        session = finish(rig, session_id)
        assert rig.open_intents() == [], at
        made = [vm for vm in rig.vcenter.vms.values() if vm.name == f"copy{at}"]
        if good:
            assert session["result"] == "success", (at, session["reason"])
            [vm] = made
            assert (vm.finished, vm.mark, vm.power_state, len(vm.disks)) == (
                True,
                "",
                "poweredOn",
                2,
            ), at
        else:
            assert session["result"] == "failed"
            assert made == [], at
    assert before <= set(rig.vcenter.vms)


def test_janitor_killed_at_every_point(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    at = 0
    for at in points_of(rig, 100):
        rig.vcenter.fail("remove_snapshot", *[TransientTransportError("locked")] * 3)
        rig.run()
        assert len(rig.open_intents()) == 1
        rig.plan.arm(at)
        try:
            rig.janitor.run_once()
            died = False
        except Crash:
            died = True
            rig.restart()
            rig.janitor.run_once()
        assert rig.vcenter.all_snapshots() == []
        assert rig.open_intents() == []
        if not died:
            break
    assert at > 4


def test_copy_killed_at_every_point(rig: Rig) -> None:
    repositories.add(rig.ctx, name="r2", location="/backup/r2", password=Secret("offsite password"))
    rig.vcenter.add_vm("db01", disks=1)
    rig.job()
    data = {"name": "offsite", "kind": "copy", "source_repository": "r1", "repository": "r2"}
    jobs.create(rig.ctx, {**data, "retries": {"count": 0, "wait_s": 0}})
    offsite = rig.repositories.at["/backup/r2"]

    def copy_two() -> str:
        for _ in range(2):
            rig.run()
        return str(jobs.run(rig.ctx, "offsite")["id"])

    total = count_points(rig, copy_two())
    assert total > 10
    seen = set(offsite.points)
    for at in points_of(rig, total)[::3]:  # each round has two backups before it
        session_id = copy_two()
        rig.plan.arm(at)
        session = finish(rig, session_id)
        assert session["result"] == "success", (at, session["reason"])
        assert len(set(offsite.points) - seen) == 2, at
        seen = set(offsite.points)
        copies = [point for point in rig.points() if point.source_point_id is not None]
        assert {point.id for point in copies} == seen, at
        assert len({point.source_point_id for point in copies}) == len(copies), at
