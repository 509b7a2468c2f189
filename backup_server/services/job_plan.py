"""Preview of a job's next run: the same selection and decisions as the run, changing nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.tables import Job, RestorePointRow, Vcenter
from backup_server.errors import ConflictError
from backup_server.services import disk_facts, disk_plan, explanations, storage_snapshots, vcenters
from backup_server.services.context import Context
from backup_server.services.selection import ChosenVm, select
from backup_server.services.shapes import when
from pipeline.model import PointKind, ReadMode
from transports.rules import StorageSnapshotFacts
from transports.vsphere.model import DatastoreInfo, Inventory

_PREVIEW_TRACKED = "known when the snapshot exists"


def preview(ctx: Context, job: Job) -> dict[str, Any]:
    """The plan's answer; errors of transports.errors when the inventory cannot be read."""
    if job.vcenter_id is None:
        raise ConflictError(f"job {job.name!r} copies restore points; only a backup job has a plan")
    inventory = vcenters.load_inventory(ctx, job.vcenter_id, max_age_s=0)
    chosen = select(job.selection, inventory)
    with ctx.db.read() as s:
        options = job.options
        seer = explanations.foresight(
            ctx,
            s,
            repository_id=job.repository_id,
            allowed_proxies=options["proxies"],
            allowed_modes=options["modes"],
            failover=options.get("failover_to_network", True),
        )
        vms = [_vm(ctx, s, job, one, _placements(s, job, one, inventory, seer)) for one in chosen.vms]
        read_at = s.get_one(Vcenter, job.vcenter_id).inventory_at
    warnings = list(chosen.warnings)
    warnings += [f"VM {name!r} is named by the job but does not exist" for name in chosen.missing]
    return {
        "job": job.name,
        "inventory_at": when(read_at),
        "vms": vms,
        "skipped": [
            {"name": vm.name, "moref": vm.moref, "reason": vm.reason, "expected": vm.expected}
            for vm in chosen.skipped
        ],
        "warnings": warnings,
        "total_bytes": sum(disk["capacity_bytes"] for vm in vms for disk in vm["disks"]),
    }


def _placements(
    s: DbSession, job: Job, one: ChosenVm, inventory: Inventory, seer: explanations.Foresight
) -> dict[int, dict[str, Any]]:
    """By disk key: proxy, mode and why no better one."""
    vm = one.vm
    stores = {store.name: store for store in inventory.datastores if store.datacenter == vm.datacenter}
    quiesced = job.options["quiesce"] != "off" and vm.tools_running
    held = _storage_snapshots(s, job, one, stores, quiesced=quiesced)
    return {
        disk.key: seer.of(
            disk_facts.to_read(
                job.vcenter_id or "",
                vm,
                disk,
                stores,
                quiesced=quiesced,
                storage_snapshot=held.get(disk.key),
            ),
            _nfs_hosts(stores.get(disk.datastore)),
        )
        for disk in one.disks
    }


def _nfs_hosts(store: DatastoreInfo | None) -> tuple[str, ...]:
    return store.storage.nfs_hosts if store is not None and store.storage is not None else ()


def _storage_snapshots(
    s: DbSession,
    job: Job,
    one: ChosenVm,
    stores: Mapping[str, DatastoreInfo],
    *,
    quiesced: bool,
) -> dict[int, StorageSnapshotFacts]:
    """Where the job asks for them: what each disk's storage offers. One unfit disk excludes the whole VM."""
    if not job.options.get("storage_snapshots"):
        return {}
    places, obstacle = storage_snapshots.places_of(
        s, job.vcenter_id or "", one.vm, one.disks, stores, job.options, quiesced=quiesced
    )
    return {
        key: StorageSnapshotFacts(
            system=place.system_name if place else "",
            # A disk that is on no system has that as its own reason.
            obstacle=obstacle if place else "",
            proxies=place.proxies if place else (),
            read_by=place.read_by if place else None,
            vm_snapshot_gone=not obstacle,
        )
        for key, place in places.items()
    }


def _vm(
    ctx: Context, s: DbSession, job: Job, one: ChosenVm, placements: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    vm = one.vm
    previous = previous_point(s, job.repository_id, vm.instance_uuid)
    full = disk_plan.full_reason(
        previous,
        forced=False,
        full_every_days=job.options["full_every_days"],
        last_full_at=last_full_at(s, job.repository_id, vm.instance_uuid),
        now=ctx.clock(),
    )
    plans = disk_plan.plan_disks(
        one.disks, previous, full=full, change_tracking=job.options["change_tracking"]
    )
    warnings = []
    if job.options["change_tracking"] and not vm.change_tracking_enabled:
        if not vm.change_tracking_supported:
            warnings.append("change tracking is not supported by this VM: each run reads everything")
        elif vm.has_snapshots:
            warnings.append(
                "change tracking is off and cannot be switched on while the VM has snapshots"
            )
        else:
            warnings.append("change tracking is off: the run switches it on")
    if vm.consolidation_needed:
        warnings.append("the VM's disks need consolidation")
    return {
        "name": vm.name,
        "moref": vm.moref,
        "instance_uuid": vm.instance_uuid,
        "power_state": vm.power_state.value,
        "disks": [
            {
                "key": disk.key,
                "label": disk.label,
                "disk": disk.path,
                "controller": disk.controller,
                "capacity_bytes": disk.capacity_bytes,
                "datastore": disk.datastore,
                **_read(plans[disk.key]),
                "placement": placements[disk.key],
            }
            for disk in one.disks
        ],
        "skipped_disks": [
            {"key": disk.key, "label": disk.label, "reason": disk.reason} for disk in one.skipped_disks
        ],
        "warnings": warnings,
    }


def _read(plan: disk_plan.DiskPlan) -> dict[str, str]:
    # The inventory has no change ids, so "not tracked" only means "not known yet" here.
    if not plan.previous_map_root:
        return {"read": ReadMode.FULL.value, "reason": plan.reason}
    if plan.reason in ("", disk_plan.NOT_TRACKED):
        return {"read": ReadMode.INCREMENT.value, "reason": _PREVIEW_TRACKED}
    return {"read": ReadMode.FULL_SCAN.value, "reason": plan.reason}


def previous_point(
    s: DbSession, repository_id: str, instance_uuid: str
) -> disk_plan.PreviousPoint | None:
    """Newest good restore point of the VM that a backup made in the repository. A copy has no change ids,
    and what it is a copy of may have gone on elsewhere.
    """
    row = s.scalar(
        _points(repository_id, instance_uuid).order_by(
            RestorePointRow.created_at.desc(), RestorePointRow.id
        )
    )
    return None if row is None else disk_plan.previous_from_row(row.id, row.created_at, row.disks)


def last_full_at(s: DbSession, repository_id: str, instance_uuid: str) -> Any:
    """When the newest full restore point of the VM was taken, or None."""
    return s.scalar(
        sa.select(sa.func.max(RestorePointRow.created_at)).where(
            RestorePointRow.repository_id == repository_id,
            RestorePointRow.instance_uuid == instance_uuid,
            RestorePointRow.deleting.is_(False),
            RestorePointRow.source_point_id.is_(None),
            RestorePointRow.kind == PointKind.FULL.value,
        )
    )


def _points(repository_id: str, instance_uuid: str) -> sa.Select[RestorePointRow]:
    return (
        sa.select(RestorePointRow)
        .where(
            RestorePointRow.repository_id == repository_id,
            RestorePointRow.instance_uuid == instance_uuid,
            RestorePointRow.deleting.is_(False),
            RestorePointRow.source_point_id.is_(None),
        )
        .limit(1)
    )
