from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from backup_server.db.states import Result
from backup_server.db.tables import Event, Proxy, RestorePointRow, Task
from backup_server.errors import ConflictError, InvalidError, NotFoundError
from backup_server.services import proxies, restore_points, restores, sessions
from tests.fakes.server import Rig
from transports.errors import PermanentTransportError, TransientTransportError


@pytest.fixture
def backed_up(rig: Rig) -> Rig:
    rig.vcenter.add_vm("db01")
    rig.job()
    rig.run()
    return rig


def _told(rig: Rig, session_id: str) -> str:
    """The texts of a session's events."""
    return "\n".join(item["text"] for item in sessions.events(rig.ctx, session_id))


def test_a_restore_says_at_once_that_its_proxy_is_away(backed_up: Rig) -> None:
    rig = backed_up
    request = {"restore_point": "db01@latest", "disk": 1, "path": "/restore/x.raw", "proxy": "default"}

    def seen(seconds_ago: float | None) -> None:
        with rig.ctx.db() as s:
            row = s.scalars(sa.select(Proxy)).one()
            at = None if seconds_ago is None else rig.clock.now - timedelta(seconds=seconds_ago)
            row.last_seen_at = at

    seen(None)
    with pytest.raises(InvalidError, match="never answered"):
        restores.restore_disk(rig.ctx, request)
    seen(1)
    restores.restore_disk(rig.ctx, request)
    assert rig.rows(Event, name="restore.proxy-away") == []
    seen(3600)
    session = restores.restore_disk(rig.ctx, request)
    [event] = rig.rows(Event, name="restore.proxy-away")
    assert (event.session_id, event.level) == (session["id"], "warning")
    assert "default is offline: the restore waits for it" in event.text


def test_disabled_proxy_is_given_no_restore(backed_up: Rig) -> None:
    rig = backed_up
    proxies.edit(rig.ctx, "default", {"enabled": False})
    request = {"restore_point": "db01@latest", "disk": "1", "path": "/tmp/x.raw", "proxy": "default"}
    with pytest.raises(InvalidError, match="default is disabled"):
        restores.restore_disk(rig.ctx, request)


def test_disk_to_file(backed_up: Rig) -> None:
    rig = backed_up
    session = restores.restore_disk(
        rig.ctx, {"restore_point": "db01@latest", "disk": "2", "path": "/tmp/x.raw"}
    )
    shown = rig.drive(session["id"])
    assert (shown["result"], shown["kind"]) == ("success", "restore")
    [task] = rig.rows(Task, session_id=session["id"])
    assert task.kind == "restore-disk-to-file"
    assert task.allowed_proxies == [rig.default_proxy().id]
    assert task.order["target_path"] == "/tmp/x.raw"
    assert task.order["map_root"] == rig.points()[0].disks[1]["map_root"]
    assert task.priority == 0


def test_vm_as_a_new_one(backed_up: Rig) -> None:
    rig = backed_up
    session = restores.restore_vm(
        rig.ctx,
        {
            "restore_point": "db01@latest",
            "name": "copy",
            "power_on": True,
            "datastore": "ds2",
            "thin": False,
        },
    )
    shown = rig.drive(session["id"])
    assert shown["result"] == "success"
    [vm] = [vm for vm in rig.vcenter.vms.values() if vm.name == "copy"]
    assert (vm.finished, vm.mark, vm.power_state) == (True, "", "poweredOn")
    assert [(disk.datastore, disk.thin) for disk in vm.disks] == [("ds2", False)] * 2
    tasks = rig.rows(Task, session_id=session["id"])
    assert {task.kind for task in tasks} == {"restore-disk-to-vm"}
    targets = {task.order["target_disk"]["disk_key"] for task in tasks}
    assert targets == {3000, 3001}
    assert shown["vms"][0]["target_moref"] == vm.moref
    assert rig.open_intents() == []


def test_subset_of_disks(backed_up: Rig) -> None:
    rig = backed_up
    request = {"restore_point": "db01@latest", "name": "copy", "disks": ["Hard disk 2"]}
    shown = rig.drive(restores.restore_vm(rig.ctx, request)["id"])
    assert shown["counts"]["tasks"] == 1
    [vm] = [vm for vm in rig.vcenter.vms.values() if vm.name == "copy"]
    assert len(vm.disks) == 1


def test_a_restore_may_name_its_modes_and_proxies(backed_up: Rig) -> None:
    rig = backed_up
    name = rig.default_proxy().name
    with rig.ctx.db() as s:
        s.scalars(sa.select(Proxy)).one().last_seen_at = rig.clock.now
    request = {"restore_point": "db01@latest", "name": "copy", "modes": ["nbd"], "proxies": [name]}
    shown = rig.drive(restores.restore_vm(rig.ctx, request)["id"])
    tasks = rig.rows(Task, session_id=shown["id"])
    assert {tuple(task.allowed_modes) for task in tasks} == {("nbd",)}
    assert {tuple(task.allowed_proxies) for task in tasks} == {(rig.default_proxy().id,)}
    for wrong, words in (({"modes": ["tape"]}, "modes"), ({"proxies": "one"}, "proxies")):
        with pytest.raises(InvalidError) as caught:
            restores.restore_vm(rig.ctx, {**request, **wrong})
        assert words in caught.value.details


def test_failed_restore_destroys_what_it_made(backed_up: Rig) -> None:
    rig = backed_up
    rig.proxies.outcome = lambda task: (Result.FAILED, "no route")
    request = {"restore_point": "db01@latest", "name": "copy"}
    shown = rig.drive(restores.restore_vm(rig.ctx, request)["id"])
    assert shown["result"] == "failed"
    assert "no route" in shown["reason"]
    assert [vm.name for vm in rig.vcenter.vms.values()] == ["db01"]


def test_cancelled_restore_destroys_what_it_made(backed_up: Rig) -> None:
    rig = backed_up
    session = restores.restore_vm(rig.ctx, {"restore_point": "db01@latest", "name": "copy"})
    for _ in range(3):
        rig.engine.run_once()
    assert len(rig.vcenter.vms) == 2
    sessions.cancel(rig.ctx, session["id"])
    assert rig.drive(session["id"])["result"] == "cancelled"
    told = _told(rig, session["id"])
    assert "the half restored VM copy was deleted" in told
    assert "cancelled: cancelled" not in told
    assert [vm.name for vm in rig.vcenter.vms.values()] == ["db01"]
    assert rig.open_intents() == []


def test_name_that_is_taken_fails_with_the_reason(backed_up: Rig) -> None:
    rig = backed_up
    session = restores.restore_vm(rig.ctx, {"restore_point": "db01@latest", "name": "db01"})
    shown = rig.drive(session["id"])
    assert shown["result"] == "failed"
    assert "db01 exists" in shown["reason"]
    # Nothing was deleted, and nothing says so: the reader would fear for the VM that has the name.
    assert "deleted" not in _told(rig, session["id"])
    assert len(rig.vcenter.vms) == 1
    assert rig.open_intents() == []


def test_vm_that_does_not_start_is_a_warning(backed_up: Rig) -> None:
    rig = backed_up
    rig.vcenter.fail("power_on", PermanentTransportError("not enough memory"))
    request = {"restore_point": "db01@latest", "name": "copy", "power_on": True}
    shown = rig.drive(restores.restore_vm(rig.ctx, request)["id"])
    assert shown["result"] == "warning"
    assert "not enough memory" in shown["reason"]
    assert len(rig.vcenter.vms) == 2


def test_transient_errors_start_over_with_one_vm(backed_up: Rig) -> None:
    rig = backed_up
    rig.vcenter.fail("add_disks", TransientTransportError("busy"))
    request = {"restore_point": "db01@latest", "name": "copy"}
    shown = rig.drive(restores.restore_vm(rig.ctx, request)["id"])
    assert shown["result"] == "success"
    assert [vm.name for vm in rig.vcenter.vms.values()] == ["db01", "copy"]


def test_point_in_use_cannot_be_deleted(backed_up: Rig) -> None:
    rig = backed_up
    session = restores.restore_vm(rig.ctx, {"restore_point": "db01@latest", "name": "copy"})
    with pytest.raises(ConflictError, match=session["id"]):
        restore_points.remove(rig.ctx, "db01@latest")
    rig.drive(session["id"])
    restore_points.remove(rig.ctx, "db01@latest")
    assert rig.points() == []
    assert rig.repository.points == {}


def test_bad_disk_requests_name_the_field(backed_up: Rig) -> None:
    requests: list[tuple[dict[str, object], str]] = [
        ({"disk": "9", "path": "/tmp/x"}, "disk"),
        ({"disk": 1, "path": "relative"}, "path"),
        ({"disk": True, "path": "/tmp/x"}, "disk"),
        ({"disk": 1, "path": "/tmp/x", "overwrite": "yes"}, "overwrite"),
        ({"disk": 1, "path": "/tmp/x", "colour": "red"}, "colour"),
    ]
    for values, field in requests:
        with pytest.raises(InvalidError) as caught:
            restores.restore_disk(backed_up.ctx, {"restore_point": "db01@latest", **values})
        assert field in caught.value.details, values


def test_bad_vm_requests_name_the_field(backed_up: Rig) -> None:
    requests: list[tuple[dict[str, object], str]] = [
        ({"name": ""}, "name"),
        ({"name": "x", "datacenter": "DC9"}, "datacenter"),
        ({"name": "x", "datastore": "ds9"}, "datastore"),
        ({"name": "x", "disks": ["9"]}, "disks"),
        ({"name": "x", "keep_identity": True}, "keep_identity"),
        ({"name": "x", "thin": "maybe"}, "thin"),
    ]
    for values, field in requests:
        with pytest.raises(InvalidError) as caught:
            restores.restore_vm(backed_up.ctx, {"restore_point": "db01@latest", **values})
        assert field in caught.value.details, values


def test_identity_may_be_kept_when_the_original_is_gone(backed_up: Rig) -> None:
    rig = backed_up
    rig.vcenter.vms.clear()
    rig.clock.advance(600)  # the inventory is read anew
    request = {"restore_point": "db01@latest", "name": "db01", "keep_identity": True}
    assert rig.drive(restores.restore_vm(rig.ctx, request)["id"])["result"] == "success"


def test_points_are_found_by_many_names(backed_up: Rig) -> None:
    rig = backed_up
    rig.clock.advance(86_400)
    rig.run()
    old, new = rig.points()
    find = lambda ref: restore_points.resolve(rig.ctx, ref)  # noqa: E731
    assert find("db01@latest") == find("db01@1") == find(new.id) == find(new.id[:8]) == new.id
    assert find("db01@2") == find("db01@2026-03-02") == old.id
    assert find(f"{old.instance_uuid}@2") == old.id
    for wrong in ("db01@0", "db01@7", "db01@2020", "db02@latest", "zzzzzzzz", "%%%%%%%%%"):
        with pytest.raises(NotFoundError):
            find(wrong)


def test_lists_have_pages(backed_up: Rig) -> None:
    rig = backed_up
    for _ in range(4):
        rig.clock.advance(3600)
        rig.run()
    seen: list[str] = []
    cursor = None
    while True:
        page = restore_points.list_all(rig.ctx, vm="db01", limit=2, after=cursor)
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == [point.id for point in reversed(rig.points())]
    with pytest.raises(InvalidError):
        restore_points.list_all(rig.ctx, after="nonsense")


def test_copy_that_somebody_made_of_a_half_restored_vm_is_left_alone(backed_up: Rig) -> None:
    made: list[str] = []

    def copy() -> None:
        [half] = [vm for vm in backed_up.vcenter.vms.values() if vm.mark]
        twin = replace(half, moref="vm-1", name="a copy")
        # Found first.
        backed_up.vcenter.vms = {twin.moref: twin, **backed_up.vcenter.vms}
        made.append(half.moref)

    backed_up.vcenter.after["add_disks"] = copy
    backed_up.proxies.outcome = lambda task: (Result.FAILED, "no")
    order = restores.restore_vm(backed_up.ctx, {"restore_point": "db01@latest", "name": "copy"})
    assert backed_up.drive(order["id"])["result"] == "failed"
    assert made
    assert made[0] not in backed_up.vcenter.vms
    assert "vm-1" in backed_up.vcenter.vms


def test_catalogue_that_differs_from_the_repository_restores_nothing(
    backed_up: Rig, tmp_path: Path
) -> None:
    with backed_up.ctx.db() as s:
        for row in s.scalars(sa.select(RestorePointRow)):
            row.disks = [{**disk, "map_root": "ab" * 32} for disk in row.disks]
    target = str(tmp_path / "disk.raw")
    orders = [
        restores.restore_disk(
            backed_up.ctx, {"restore_point": "db01@latest", "disk": 1, "path": target}
        ),
        restores.restore_vm(backed_up.ctx, {"restore_point": "db01@latest", "name": "copy"}),
    ]
    for order in orders:
        session = backed_up.drive(order["id"])
        assert session["result"] == "failed"
        assert "disagree" in session["reason"]
