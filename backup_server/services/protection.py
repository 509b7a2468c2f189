"""Which VMs a job means, by the inventory as last read: what makes a VM one that nobody backs up any more."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession
from sqlalchemy.orm import undefer

from backup_server.db.tables import Job, RestorePointRow, Vcenter
from backup_server.services.selection import select
from proxy_worker.contracts.codec import from_json
from transports.vsphere.model import Inventory


def inventory_of(s: DbSession, vcenter_id: str) -> Inventory | None:
    """As last read; None when it never was."""
    row = s.get(Vcenter, vcenter_id, options=[undefer(Vcenter.inventory)])
    if row is None or row.inventory is None:
        return None
    return from_json(Inventory, row.inventory, ignore_unknown=True)


def vms_of(s: DbSession, job: Job) -> set[str] | None:
    """Instance uuids of the VMs that the job takes, or would take if nothing stood in the way.

    None when it cannot be said: a copy job, an inventory that was never read, tags that are selected by and
    could not be read, or an inventory in which the job finds no VM at all, which looks more like a lost
    permission than like the end of every VM.
    """
    if job.vcenter_id is None:
        return None
    inventory = inventory_of(s, job.vcenter_id)
    if inventory is None:
        return None
    if not inventory.tags_known and any(one["type"] == "tag" for one in job.selection["include"]):
        return None
    chosen = select(job.selection, inventory)
    meant = {one.vm.instance_uuid for one in chosen.vms}
    meant |= {one.instance_uuid for one in chosen.skipped if not one.expected}
    return meant or None


def orphaned_vms(s: DbSession, repository_id: str | None = None) -> list[str]:
    """Instance uuids of VMs that have restore points and that no job takes any more.

    VMs with a point of a job of which that cannot be said are not among them.
    """
    meant: set[str] = set()
    unknown: list[str] = []
    for job in s.scalars(sa.select(Job)):
        vms = vms_of(s, job)
        if vms is None:
            unknown.append(job.id)
        else:
            meant |= vms
    query = sa.select(RestorePointRow.instance_uuid, RestorePointRow.job_id).distinct()
    if repository_id is not None:
        query = query.where(RestorePointRow.repository_id == repository_id)
    found = s.execute(query.where(RestorePointRow.deleting.is_(False))).all()
    held = {row.instance_uuid for row in found if row.job_id in unknown}
    return sorted({row.instance_uuid for row in found} - meant - held)
