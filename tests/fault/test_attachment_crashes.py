"""HotAdd while the server dies at every commit and every change, and proxies die with their disks attached.

Whatever the point: nothing of ours stays attached, no snapshot, no open intent; the disks of the VM, the proxy's
own and one that a person attached to it are as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from backup_server.db.states import Result
from backup_server.services import jobs, restores
from tests.fakes.hotadd import HotaddProxies, add_proxy, foreign
from tests.fakes.server import Rig
from tests.fakes.vsphere import FakeVm


@pytest.fixture
def rig(tmp_path: Path, sqlite_template: Path) -> Iterator[Rig]:
    database = tmp_path / "jobs.db"
    database.write_bytes(sqlite_template.read_bytes())
    rig = Rig(tmp_path, f"sqlite:///{database}").site()
    yield rig
    rig.close()


@pytest.fixture
def proxy(rig: Rig) -> FakeVm:
    return add_proxy(rig)


def finish(rig: Rig, session_id: str) -> dict[str, object]:
    session = rig.drive(session_id)
    rig.plan.revive()
    for _ in range(3):
        rig.janitor.run_once()
        rig.clock.advance(86_400 // 4)
    return session


def points(rig: Rig, session_id: str, every: int) -> range:
    """From where a disk is first asked for: what comes before has tests of its own."""
    rig.plan.arm(0)
    rig.drive(session_id)
    first = rig.plan.passed.index("before vms_by_bios_uuid") + 1
    return range(first, len(rig.plan.passed) + 1, every)


def nothing_left(rig: Rig, proxy: FakeVm, own: list[str]) -> bool:
    return (
        foreign(proxy) == {}
        and (0, 9) in proxy.attached
        and rig.vcenter.all_snapshots() == []
        and rig.open_intents() == []
        and [disk.path for vm in rig.vcenter.vms.values() for disk in vm.disks][: len(own)] == own
    )


@pytest.mark.parametrize(
    ("dies", "withdraws"), [(0, True), (0, False), (1, True)], ids=["in order", "left", "proxy dies"]
)
def test_backup_killed_at_every_point(rig: Rig, proxy: FakeVm, dies: int, withdraws: bool) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    own = [disk.path for vm in rig.vcenter.vms.values() for disk in vm.disks]
    rig.job(selection={"include": [{"type": "vm", "name": "db01"}]})
    rig.proxies = proxies = HotaddProxies(rig, dies=dies, withdraws=withdraws)
    every = 1 if withdraws and not dies else 4
    where = points(rig, str(jobs.run(rig.ctx, "job1")["id"]), every)
    calls = rig.vcenter.calls
    assert {"attach_disks", "detach_disks"} <= set(calls)
    assert nothing_left(rig, proxy, own)
    for at in where:
        session_id = str(jobs.run(rig.ctx, "job1")["id"])
        rig.plan.arm(at)
        session = finish(rig, session_id)
        assert session["result"] in ("success", "warning"), (at, session["reason"])
        assert nothing_left(rig, proxy, own), at
    assert proxies.presented
    assert proxies.refused == []


@pytest.mark.parametrize("good", [True, False], ids=["good", "failing"])
def test_restore_killed_at_every_point(rig: Rig, proxy: FakeVm, good: bool) -> None:
    rig.vcenter.add_vm("db01", disks=1)
    own = [disk.path for vm in rig.vcenter.vms.values() for disk in vm.disks]
    rig.job(selection={"include": [{"type": "vm", "name": "db01"}]})
    rig.run()
    rig.proxies = proxies = HotaddProxies(rig, dies=1, withdraws=False)
    if not good:
        proxies.outcome = lambda task: (Result.FAILED, "no")

    def order(name: str) -> str:
        request = {"restore_point": "db01@latest", "name": name, "power_on": True}
        return str(restores.restore_vm(rig.ctx, request)["id"])

    for at in points(rig, order("copy0"), 3):
        session_id = order(f"copy{at}")
        rig.plan.arm(at)
        session = finish(rig, session_id)
        assert nothing_left(rig, proxy, own), at
        made = [vm for vm in rig.vcenter.vms.values() if vm.name == f"copy{at}"]
        if good:
            assert session["result"] == "success", (at, session["reason"])
            [vm] = made
            assert (vm.mark, vm.power_state, vm.finished) == ("", "poweredOn", True)
        else:
            assert session["result"] == "failed"
            assert made == []
    assert proxies.refused == []
