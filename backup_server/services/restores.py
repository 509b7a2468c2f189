"""Restores: a disk to a raw file, a VM to a new VM. Checked here, carried out by the engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import SessionKind, VmState
from backup_server.db.tables import Proxy, RestorePointRow, SessionVm, Vcenter, new_id
from backup_server.errors import InvalidError, NotFoundError
from backup_server.services import catalogue, events, restore_points, sessions, vcenters
from backup_server.services.context import Context
from backup_server.services.proxies import check_modes, state_of
from backup_server.services.shapes import Fields, by_ref
from transports.errors import TransportError
from transports.vsphere.model import Inventory

TO_FILE = "disk-to-file"
TO_VM = "vm"


def restore_disk(ctx: Context, request: Mapping[str, Any]) -> dict[str, Any]:
    """Begin to write one disk of a point to a raw file on a proxy's machine; answers a Session.

    Without `proxy` it is one of the proxies on the server's machine.
    """
    given = Fields(request)
    point_ref = given.text("restore_point")
    disk_ref = str(given.checked("disk", _check_disk_ref))
    path = given.checked("path", _check_path)
    overwrite = given.flag("overwrite", default=False)
    proxy_ref = given.text("proxy", default="", empty=True) if request.get("proxy") else ""
    given.finish("the restore", ignore=("proxy",))
    with ctx.db() as s:
        point = restore_points.find(s, point_ref)
        disk = catalogue.disk_in(point, disk_ref)
        if disk is None:
            raise InvalidError(
                f"the restore point of {point.vm_name} has no disk {disk_ref!r}; it has {_disks(point)}",
                details={"disk": f"one of {_disks(point)}"},
            )
        details = {
            "restore": TO_FILE,
            "disks": [disk],
            "path": path,
            "overwrite": overwrite,
            "proxies": _proxies(s, proxy_ref),
        }
        session = _insert(ctx, s, point, details, title=f"{point.vm_name} / {disk['label']} to {path}")
        _say_who_is_away(ctx, s, session, details["proxies"])
    ctx.wake_engine.set()
    return sessions.get(ctx, session)


def restore_vm(ctx: Context, request: Mapping[str, Any]) -> dict[str, Any]:
    """Begin to restore a whole VM as a new one; answers a Session. InvalidError names what is missing.

    `modes` and `proxies`: only in these transport modes, only through these; any by default.
    """
    given = Fields(request)
    point_ref = given.text("restore_point")
    name = given.name()
    places = {
        key: str(request.get(key) or "")
        for key in ("datacenter", "folder", "resource_pool", "host", "datastore")
    }
    flags = {key: given.flag(key, default=False) for key in ("power_on", "keep_identity")}
    thin = given.checked("thin", _check_thin)
    modes = given.checked("modes", check_modes, default=[])
    with ctx.db.read() as s:
        proxies = given.checked("proxies", lambda value: _named_proxies(s, value), default=[])
    given.finish("the restore", ignore=(*places, "vcenter", "disks"))
    with ctx.db.read() as s:
        point = restore_points.find(s, point_ref)
        vcenter = _vcenter(s, point, str(request.get("vcenter") or ""))
        disks = _subset(point, request.get("disks"))
    try:
        inventory = vcenters.load_inventory(ctx, vcenter.id)
    except TransportError as error:
        raise vcenters.as_server_error(error) from error
    placement = _placement(inventory, point, disks, places)
    if flags["keep_identity"] and any(vm.instance_uuid == point.instance_uuid for vm in inventory.vms):
        raise InvalidError(
            f"the original of {point.vm_name} still exists in {vcenter.name}: two VMs must not have one "
            "identity; delete it first or restore without keep_identity",
            details={"keep_identity": "the original still exists"},
        )
    details = {
        "restore": TO_VM,
        "disks": disks,
        "placement": {**placement, "name": name, "keep_identity": flags["keep_identity"]},
        "own_datastores": not places["datastore"],
        "power_on": flags["power_on"],
        "thin": thin,
        "modes": modes,
        "proxies": proxies,
    }
    with ctx.db() as s:
        # Looked for again: the point may have been deleted while the inventory was read.
        point = restore_points.find(s, point.id)
        session = _insert(
            ctx, s, point, details, title=f"{point.vm_name} as {name}", vcenter_id=vcenter.id
        )
    ctx.wake_engine.set()
    return sessions.get(ctx, session)


def _insert(
    ctx: Context,
    s: DbSession,
    point: RestorePointRow,
    details: dict[str, Any],
    *,
    title: str,
    vcenter_id: str | None = None,
) -> str:
    now = ctx.clock()
    session = sessions.insert(
        s,
        SessionKind.RESTORE,
        now=now,
        repository_id=point.repository_id,
        vcenter_id=vcenter_id,
        options={"restore_point": point.id, "title": title, "restore": details["restore"]},
    )
    s.add(
        SessionVm(
            id=new_id(),
            session_id=session.id,
            position=0,
            moref="",
            instance_uuid=point.instance_uuid,
            name=point.vm_name,
            state=VmState.PENDING.value,
            result=None,
            warnings=[],
            restore_point_id=point.id,
            details=details,
            vm_config=None,
            nvram=None,
            snapshot_at=None,
            snapshot_removed_at=None,
            started_at=None,
            finished_at=None,
        )
    )
    return session.id


def _disks(point: RestorePointRow) -> str:
    return ", ".join(f"{disk['disk_key']} ({disk['label']})" for disk in point.disks)


def _check_disk_ref(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError("must be a disk's key, label or number from 1")
    return str(value)


def _check_path(value: Any) -> str:
    if not isinstance(value, str) or not PurePosixPath(value).is_absolute() or value.endswith("/"):
        raise ValueError("must be the absolute path of a file on the proxy's machine")
    return value


def _check_thin(value: Any) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise ValueError("must be true, false or null (as the disks were)")
    return value


def _named_proxies(s: DbSession, refs: Any) -> list[str]:
    if not isinstance(refs, list | tuple) or any(not isinstance(ref, str) for ref in refs):
        raise ValueError("must be a list of names of proxies; empty for any")
    return [_named_proxy(s, ref, "proxies") for ref in refs]


def _named_proxy(s: DbSession, ref: str, field: str) -> str:
    named = by_ref(s, Proxy, ref)
    if not named.enabled:
        raise InvalidError(
            f"proxy {named.name} is disabled and takes no restore: enable it or name another",
            details={field: "is disabled"},
        )
    if named.last_seen_at is None:
        raise InvalidError(
            f"proxy {named.name} never answered and takes no restore: enrol it, or name another",
            details={field: "never answered"},
        )
    return named.id


def _proxies(s: DbSession, ref: str) -> list[str]:
    if ref:
        return [_named_proxy(s, ref, "proxy")]
    local = list(s.scalars(sa.select(Proxy.id).where(Proxy.local.is_(True), Proxy.enabled.is_(True))))
    if not local:
        raise InvalidError(
            "no enabled proxy runs on the server's machine; name the proxy that is to write the file",
            details={"proxy": "must be named"},
        )
    return local


def _say_who_is_away(ctx: Context, s: DbSession, session_id: str, proxy_ids: list[str]) -> None:
    """An event when none of the proxies that may write the file answers now."""
    now, after_s = ctx.clock(), ctx.settings.proxy_offline_after_s
    rows = list(s.scalars(sa.select(Proxy).where(Proxy.id.in_(proxy_ids)).order_by(Proxy.name)))
    if any(state_of(row, now, after_s) in {"online", "draining"} for row in rows):
        return
    names = ", ".join(row.name for row in rows)
    text = (
        f"{names} is offline: the restore waits for it and fails when it stays away; start it, or cancel "
        "the session and name another proxy"
    )
    events.record(s, now, "restore.proxy-away", text, session_id=session_id, level=events.WARNING)


def _vcenter(s: DbSession, point: RestorePointRow, ref: str) -> Vcenter:
    if ref:
        return by_ref(s, Vcenter, ref)
    rows = list(s.scalars(sa.select(Vcenter)))
    same = [row for row in rows if row.instance_uuid == point.vcenter_uuid]
    if same:
        return same[0]
    if len(rows) == 1:
        return rows[0]
    if not rows:
        raise NotFoundError("no vCenter has been added; add one with `vmhaul vcenter add`")
    raise InvalidError(
        "the vCenter of this restore point is not registered; name the one to restore to",
        details={"vcenter": f"one of {', '.join(row.name for row in rows)}"},
    )


def _subset(point: RestorePointRow, wanted: Any) -> list[dict[str, Any]]:
    """Disks to restore; all when none is named."""
    if not wanted:
        return [dict(disk) for disk in point.disks]
    if not isinstance(wanted, list | tuple):
        raise InvalidError("disks must be a list", details={"disks": "must be a list"})
    found: dict[int, dict[str, Any]] = {}
    for ref in wanted:
        disk = catalogue.disk_in(point, ref)
        if disk is None:
            raise InvalidError(
                f"the restore point of {point.vm_name} has no disk {ref!r}; it has {_disks(point)}",
                details={"disks": f"some of {_disks(point)}"},
            )
        found[int(disk["disk_key"])] = disk
    return list(found.values())


def _placement(
    inventory: Inventory,
    point: RestorePointRow,
    disks: list[dict[str, Any]],
    places: Mapping[str, str],
) -> dict[str, str]:
    """Full placement: what was given, else the original's, else the only one there is."""
    problems: dict[str, str] = {}
    original = next((vm for vm in inventory.vms if vm.instance_uuid == point.instance_uuid), None)
    datacenter = places["datacenter"] or (original.datacenter if original else "")
    if not datacenter and len(inventory.datacenters) == 1:
        datacenter = inventory.datacenters[0]
    if datacenter not in inventory.datacenters:
        problems["datacenter"] = f"must be one of {', '.join(inventory.datacenters)}"
    stores = {store.name for store in inventory.datastores if store.datacenter == datacenter}
    datastore = places["datastore"]
    if not datastore:
        home = datastore_of(disks[0]["path"]) if disks else ""
        datastore = home if home in stores else ""
    if "datacenter" not in problems and datastore not in stores:
        shown = ", ".join(sorted(stores)) or "none, this datacenter has no datastore"
        problems["datastore"] = f"must be one of {shown}"
    if problems:
        listed = "; ".join(f"{name} {reason}" for name, reason in problems.items())
        raise InvalidError(f"the place of the restored VM is not clear: {listed}", details=problems)
    return {
        "datacenter": datacenter,
        "folder": places["folder"],
        "resource_pool": places["resource_pool"],
        "host": places["host"],
        "datastore": datastore,
    }


def datastore_of(path: str) -> str:
    """Name in a datastore path "[name] dir/file"; empty when there is none."""
    return path[1 : path.index("]")] if path.startswith("[") and "]" in path else ""
