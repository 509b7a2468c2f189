"""Proxies as placement sees them, plans that name proxy and mode, and why a task is where it is."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from backup_server.db.states import TaskState
from backup_server.db.tables import OutboxRow, Proxy, Repository, Task, Vcenter
from backup_server.errors import InvalidError, NotFoundError
from backup_server.main import create_app
from backup_server.services import (
    disk_facts,
    jobs,
    proxies,
    proxy_discovery,
    proxy_facts,
    proxy_vms,
    sessions,
    traffic_rules,
    vcenters,
)
from proxy_worker.contracts.codec import to_json
from proxy_worker.contracts.ids import ProxyId
from proxy_worker.contracts.messages import Connection, ConnectionsReport, MissingMode
from tests.fakes.server import Rig
from tests.fakes.vsphere import PASSWORD, THUMBPRINT
from tests.support.asgi import asgi_client
from transports.base import DatastoreRef, TransportMode
from transports.rules import ProxyVm
from transports.vsphere.model import Secret

SNAPSHOT, SAN, NFS, HOTADD, NBDSSL, NBD = TransportMode
PROXY_UUID = "420a1b2c-3d4e-5f60-7182-93a4b5c6d7e8"
SWAPPED = str(UUID(bytes=UUID(PROXY_UUID).bytes_le))


def vcenter_id(rig: Rig) -> str:
    [row] = rig.rows(Vcenter)
    return str(row.id)


def works(
    rig: Rig,
    name: str = "default",
    *modes: TransportMode,
    vm_uuid: str = "",
    found: tuple[Connection, ...] = (),
    missing: tuple[MissingMode, ...] = (),
) -> str:
    """The proxy enrolled, is online, and told what it found."""
    proxy_id = str(proxies.get(rig.ctx, name)["id"])
    report = ConnectionsReport(
        proxy_id=ProxyId(proxy_id),
        vm_uuid=vm_uuid,
        addresses=("192.0.2.7/24",),
        connections=found,
        missing=missing,
    )
    with rig.ctx.db() as s:
        row = s.get_one(Proxy, proxy_id)
        row.signing_key = "ab" * 32
        row.last_seen_at = rig.clock.now
        row.facts = {**row.facts, "modes": [mode.value for mode in modes or (NBDSSL, NBD)]}
        row.connections, row.connections_at = to_json(report), rig.clock.now
        s.flush()
        proxy_vms.follow_uuid(s, proxy_id, vm_uuid)
    return proxy_id


def link(rig: Rig, mode: TransportMode, store: str = "ds1", **changes: Any) -> Connection:
    values = {"readable": True, "writable": True, "hops": 1, **changes}
    return Connection(datastore=f"{vcenter_id(rig)}/{store}", mode=mode, **values)


def own_vms(rig: Rig, name: str = "default") -> tuple[ProxyVm, ...]:
    [row] = rig.rows(Proxy, name=name)
    return proxy_vms.of_facts(row.facts)


def placements(rig: Rig, job: str = "job1") -> list[dict[str, Any]]:
    return [disk["placement"] for vm in jobs.plan(rig.ctx, job)["vms"] for disk in vm["disks"]]


# ---- which VM a proxy is --------------------------------------------------------------------------


@pytest.mark.parametrize("shown", [PROXY_UUID, SWAPPED, PROXY_UUID.upper()])
def test_the_own_vm_is_found_in_either_byte_order(rig: Rig, shown: str) -> None:
    vm = rig.vcenter.add_vm("px", 1, bios_uuid=PROXY_UUID)
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    works(rig, vm_uuid=shown)
    [own] = own_vms(rig)
    assert (own.moref, own.host_moref, own.datacenter) == (vm.moref, "host-1", "DC0")
    assert own.scsi0
    assert own.free_slots == 59
    assert "ds1" in own.datastores
    assert own.home_kinds == ("VMFS",)


def test_it_is_followed_with_every_inventory(rig: Rig) -> None:
    works(rig, vm_uuid=PROXY_UUID)
    assert own_vms(rig) == ()
    vm = rig.vcenter.add_vm("px", 1, bios_uuid=PROXY_UUID)
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    assert [one.moref for one in own_vms(rig)] == [vm.moref]
    rig.vcenter.add_vm("clone", 1, bios_uuid=PROXY_UUID)
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    assert {one.name for one in own_vms(rig)} == {"px", "clone"}
    del rig.vcenter.vms[vm.moref]
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    assert [one.name for one in own_vms(rig)] == ["clone"]


def test_home_on_vmfs_3_bounds_what_can_be_added(rig: Rig) -> None:
    rig.vcenter.storage["ds1"] = DatastoreRef(name="ds1", kind="VMFS", vmfs_version="3.60")
    rig.vcenter.add_vm("px", 1, bios_uuid=PROXY_UUID)
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    works(rig, vm_uuid=PROXY_UUID)
    assert own_vms(rig)[0].home_largest_file_bytes == 256 << 30


def test_facts_for_placement(rig: Rig) -> None:
    rig.vcenter.add_vm("px", 1, bios_uuid=PROXY_UUID)
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    missing = (MissingMode(mode=SAN, reason="no dissect"),)
    works(rig, "default", NBDSSL, HOTADD, vm_uuid=PROXY_UUID, found=(link(rig, NFS),), missing=missing)
    proxies.edit(rig.ctx, "default", {"hotadd_nfs3_any_host": True, "max_nfs_hops": 3})
    with rig.ctx.db.read() as s:
        machines = proxy_facts.Machines()
        [one] = proxy_facts.proxy_facts(s, rig.clock.now, 20, {}, machines)
        again = proxy_facts.proxy_facts(s, rig.clock.now, 20, {}, machines)
    assert again == [one]
    assert one.missing == {SAN: "no dissect"}
    assert one.machine is not None
    assert one.machine.connected(f"{vcenter_id(rig)}/ds1", NFS) is not None
    assert (one.machine.hotadd_nfs3_any_host, one.machine.max_nfs_hops) == (True, 3)
    fleet = proxy_facts.fleet_of([one])
    assert fleet.proxy_vms == {(vcenter_id(rig), one.machine.vms[0].moref)}
    assert fleet.networks == {"192.0.2.0/24"}


# ---- what an administrator sets -------------------------------------------------------------------


def rescans(rig: Rig) -> list[str]:
    return [row.proxy_id for row in rig.rows(OutboxRow, kind="rescan")]


def test_settings_of_a_proxy(rig: Rig) -> None:
    shown = proxies.edit(
        rig.ctx,
        "default",
        {
            "failover_to_network": False,
            "connected_datastores": ["ds2", "ds1", "ds1"],
            "preferred_networks": ["192.0.2.0/24", "2001:db8::/32"],
            "hotadd_nfs3_any_host": True,
            "max_nfs_hops": 2,
        },
    )
    assert shown["connected_datastores"] == ["ds1", "ds2"]
    assert shown["preferred_networks"] == ["192.0.2.0/24", "2001:db8::/32"]
    assert (shown["failover_to_network"], shown["max_nfs_hops"]) == (False, 2)
    back = proxies.edit(rig.ctx, "default", {"connected_datastores": None, "max_nfs_hops": None})
    assert (back["connected_datastores"], back["max_nfs_hops"]) == (None, None)
    assert back["hotadd_nfs3_any_host"]
    for wrong in (
        {"preferred_networks": ["here"]},
        {"preferred_networks": ["192.0.2.1/24"]},
        {"connected_datastores": "ds1"},
        {"connected_datastores": [""]},
        {"max_nfs_hops": -1},
        {"max_nfs_hops": True},
        {"failover_to_network": "no"},
    ):
        with pytest.raises(InvalidError):
            proxies.edit(rig.ctx, "default", wrong)


def test_changes_of_modes_make_it_look_around(rig: Rig) -> None:
    before = len(rescans(rig))
    proxies.edit(rig.ctx, "default", {"slots": 3})
    assert len(rescans(rig)) == before
    proxies.edit(rig.ctx, "default", {"modes": ["hotadd", "nbdssl"]})
    proxies.edit(rig.ctx, "default", {"connected_datastores": ["ds1"]})
    assert len(rescans(rig)) == before + 2
    proxy_id = proxy_discovery.rescan(rig.ctx, "default")
    assert rescans(rig)[before:] == [proxy_id] * 3
    with pytest.raises(NotFoundError):
        proxy_discovery.rescan(rig.ctx, "nobody")


def test_a_new_vcenter_makes_all_look_around(rig: Rig) -> None:
    proxies.add(rig.ctx, name="never-started", slots=1)
    works(rig)
    vcenters.remove(rig.ctx, "vc1")
    vcenters.add(
        rig.ctx,
        name="again",
        host="vc1.test",
        username="backup",
        password=Secret(PASSWORD),
        thumbprint_sha256=THUMBPRINT,
    )
    assert rescans(rig) == [proxies.get(rig.ctx, "default")["id"]]


def test_what_a_proxy_found_is_shown(rig: Rig) -> None:
    rig.vcenter.add_vm("px", 1, bios_uuid=PROXY_UUID)
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    gone = link(rig, SAN, "ds2", readable=False, writable=False, hops=-1, reason="no LUN")
    works(rig, vm_uuid=SWAPPED, found=(link(rig, NFS), gone))
    shown = proxies.get(rig.ctx, "default")
    assert shown["looked_at"]
    found = shown["discovery"]
    assert [vm["name"] for vm in found["vms"]] == ["px"]
    assert found["vms"][0]["vcenter"] == "vc1"
    assert [(one["vcenter"], one["datastore"], one["hops"]) for one in found["datastores"]] == [
        ("vc1", "ds1", 1),
        ("vc1", "ds2", None),
    ]
    assert found["datastores"][1]["reason"] == "no LUN"


# ---- plans ----------------------------------------------------------------------------------------


def test_a_plan_names_proxy_and_mode_and_why_no_better_one(rig: Rig) -> None:
    rig.vcenter.add_vm("px", 1, bios_uuid=PROXY_UUID)
    rig.vcenter.add_vm("db01", 2)
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    works(rig, "default", HOTADD, NBDSSL, vm_uuid=PROXY_UUID)
    rig.job(selection={"include": [{"type": "vm", "name": "db01"}]})
    [first, second] = placements(rig)
    assert (first["proxy"], first["mode"], first["fallbacks"]) == ("default", "hotadd", ["nbdssl"])
    assert second["mode"] == "hotadd"
    better = {one["mode"]: one["reason"] for one in first["better"]}
    assert list(better) == ["storage-snapshot", "direct-san", "direct-nfs"]
    assert better["direct-san"] == "no proxy offers it"
    assert "not NFS" in better["direct-nfs"]


def test_a_plan_says_what_traffic_rules_do_not_look_at(rig: Rig) -> None:
    rig.vcenter.storage["ds1"] = DatastoreRef(name="ds1", kind="VMFS", vmfs_version="6.82")
    rig.vcenter.add_vm("db01", 1)
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    works(rig, "default", SAN, NBDSSL, found=(link(rig, SAN),))
    rig.job(selection={"include": [{"type": "vm", "name": "db01"}]})

    def unseen() -> list[str]:
        [placed] = placements(rig)
        assert placed["mode"] == "direct-san"
        return [text for text in placed["remarks"] if "traffic rules do not look" in text]

    assert unseen() == [], "there is no rule"
    ends = {"source": ["any"], "target": ["10.8.0.0/24"]}
    traffic_rules.add(rig.ctx, {"name": "storage", **ends, "rate": "80Mbit"})
    [text] = unseen()
    assert "no iSCSI target" in text
    works(rig, "default", SAN, NBDSSL, found=(link(rig, SAN, portals=("10.8.0.40",)),))
    assert unseen() == []
    traffic_rules.edit(rig.ctx, "storage", {"encrypt": True})
    [placed] = placements(rig)
    assert placed["mode"] == "nbdssl"
    [why] = [one["reason"] for one in placed["better"] if one["mode"] == "direct-san"]
    said = "traffic rule storage asks for encryption, and iSCSI sends the disk in the clear"
    assert why == f"default: {said}"


def test_a_plan_for_the_proxy_s_own_vm_goes_through_its_host(rig: Rig) -> None:
    rig.vcenter.add_vm("px", 1, bios_uuid=PROXY_UUID)
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    works(rig, "default", HOTADD, NBDSSL, vm_uuid=PROXY_UUID)
    rig.job()
    [placed] = placements(rig)
    assert placed["mode"] == "nbdssl"
    assert "px is this proxy" in placed["better"][-1]["reason"]


def test_a_plan_spreads_over_proxies_that_are_alike(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", 4)
    proxies.add(rig.ctx, name="second", slots=2, local=True)
    works(rig)
    works(rig, "second")
    rig.job()
    assert sorted(one["proxy"] for one in placements(rig)) == ["default"] * 2 + ["second"] * 2


def test_a_plan_without_a_proxy_says_why(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", 1)
    rig.job(modes=["hotadd"])
    [placed] = placements(rig)
    assert (placed["proxy"], placed["mode"]) == (None, None)
    assert "default: the proxy has not enrolled yet" in placed["reason"]
    better = {one["mode"]: one["reason"] for one in placed["better"]}
    assert better["nbdssl"] == "the job does not allow it"


def test_a_plan_of_a_job_that_lets_no_network_mode_take_over(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", 1)
    proxies.add(rig.ctx, name="san", slots=2, local=True)
    works(rig)
    works(rig, "san", SAN, NBDSSL, found=(link(rig, SAN),))
    created = rig.job(failover_to_network=False)
    assert not created["failover_to_network"]
    [placed] = placements(rig)
    assert (placed["proxy"], placed["mode"], placed["fallbacks"]) == ("san", "direct-san", [])
    jobs.edit(rig.ctx, "job1", {"failover_to_network": True})
    [placed] = placements(rig)
    assert placed["fallbacks"] == ["nbdssl"]


# ---- tasks ----------------------------------------------------------------------------------------


def begun(rig: Rig) -> Task:
    """A pending task of a backup."""
    session = jobs.run(rig.ctx, "job1")
    for _ in range(20):
        rig.engine.run_once()
        rows = rig.rows(Task, session_id=session["id"])
        if rows:
            return rows[0]
        rig.clock.advance(1)
    raise AssertionError("no task was made")


def test_a_task_keeps_what_it_is_judged_by(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", 1)
    rig.job(failover_to_network=False)
    row = begun(rig)
    facts = disk_facts.of_task(row)
    assert facts is not None
    assert (facts.datastore, facts.datastore_kind, facts.controller) == ("ds1", "VMFS", "SCSI")
    assert (facts.host_moref, facts.host_version) == ("host-1", "8.0.3")
    assert (row.host_moref, facts.write) == ("host-1", False)
    assert not disk_facts.failover_allowed(row.facts)
    assert proxy_facts.task_host(row) == f"{vcenter_id(rig)}/host-1"


def test_why_a_task_waits_is_told_as_it_is_now(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", 1)
    rig.job()
    row = begun(rig)
    why = sessions.why(rig.ctx, row.id[:8])
    assert why["decision"] is None
    assert "has not enrolled" in why["now"]["reason"]
    assert why["disk"]["datastore"] == "ds1"
    modes = {one["mode"] for one in why["now"]["modes"]}
    assert {"direct-nfs", "nbd", "storage-snapshot"} <= modes
    works(rig)
    now = sessions.why(rig.ctx, row.id)["now"]
    assert now["mode"] == "nbdssl"


def test_a_plan_and_a_task_tell_of_a_proxy_that_opens_no_directories(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", 1)
    proxies.add(rig.ctx, name="win", slots=2, local=True)
    windows = works(rig, "win")
    said = "win: the proxy opens no directories: it runs Windows"
    with rig.ctx.db() as s:
        row = s.get_one(Proxy, windows)
        row.facts = {**row.facts, proxy_facts.NO_DIRECTORIES: "it runs Windows"}
    rig.job()
    [placed] = placements(rig)
    assert placed["proxy"] is None
    assert said in placed["reason"]
    task = begun(rig)
    assert said in sessions.why(rig.ctx, task.id)["now"]["reason"]
    works(rig)
    [placed] = placements(rig)
    assert placed["proxy"] == "default"
    assert sessions.why(rig.ctx, task.id)["now"]["proxy"] == placed_id(rig, "default")
    proxies.edit(rig.ctx, "default", {"enabled": False})
    with rig.ctx.db() as s:
        s.execute(sa.update(Repository).values(location="s3://bucket/place"))
    [placed] = placements(rig)
    assert placed["proxy"] == "win"
    assert sessions.why(rig.ctx, task.id)["now"]["proxy"] == windows
    # A copy that reads a directory, and a restore that makes a file, need one.
    fleet = proxy_facts.Fleet(directories=frozenset())
    assert not proxy_facts.task_wish(task, fleet).directory
    task.order = {**task.order, "source": {"location": "/srv/other"}}
    assert proxy_facts.task_wish(task, fleet).directory
    task.order, task.kind = {}, "restore-disk-to-file"
    assert proxy_facts.task_wish(task, fleet).directory
    assert not proxy_facts.task_wish(task, proxy_facts.Fleet()).directory


def placed_id(rig: Rig, name: str) -> str:
    return str(proxies.get(rig.ctx, name)["id"])


def test_why_tells_the_stored_decision_and_what_failed(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", 1)
    rig.job()
    row = begun(rig)
    stored = {"proxy": "p", "mode": "nbdssl", "reason": "x", "candidates": [], "others": {}}
    left = [{"proxy": "p", "name": "px", "mode": "hotadd", "reason": "no slot", "attempt": 1}]
    with rig.ctx.db() as s:
        task = s.get_one(Task, row.id)
        task.decision, task.facts, task.state = (
            stored,
            {**task.facts, "left": left},
            TaskState.DONE.value,
        )
    why = sessions.why(rig.ctx, row.id)
    assert why["now"] is None
    assert why["left"] == left
    assert {"direct-nfs", "nbd"} <= {one["mode"] for one in why["decision"]["modes"]}


def test_the_budget_of_a_host_is_told(rig: Rig) -> None:
    rig.vcenter.add_vm("db01", 1)
    rig.job()
    row = begun(rig)
    proxy_id = works(rig)
    with rig.ctx.db() as s:
        for number in range(rig.settings.host_nfc_tasks):
            columns = {name: getattr(row, name) for name in Task.__table__.columns.keys()}  # noqa: SIM118
            columns |= {"id": f"other-{number}", "disk_key": 3000 + number, "mode": "nbdssl"}
            s.add(Task(**{**columns, "state": TaskState.RUNNING.value, "proxy_id": proxy_id}))
        s.get_one(Proxy, proxy_id).slots = 64
    now = sessions.why(rig.ctx, row.id)["now"]
    assert "NFC service of host host-1 has all 6 tasks" in now["reason"]


def test_the_console_shows_the_plan(rig: Rig) -> None:
    rig.vcenter.add_vm("px", 1, bios_uuid=PROXY_UUID)
    rig.vcenter.add_vm("db01", 1)
    vcenters.inventory(rig.ctx, "vc1", refresh=True)
    works(rig, "default", HOTADD, NBDSSL, vm_uuid=PROXY_UUID, found=(link(rig, NFS),))
    rig.job()
    token = "the-token"
    with asgi_client(create_app(rig.ctx, Secret(token)), "http://127.0.0.1") as client:
        assert client.post("/login", data={"token": token}).status_code == 303
        page = client.get("/jobs/job1/plan").text
        assert ">hotadd<" in page
        assert ">nbdssl<" in page
        assert "px is this proxy" in page
        assert "/plan" in client.get("/jobs/job1").text
        found = client.get("/proxies/default").text
        assert "px (vm-" in found
        assert "direct-nfs" in found
