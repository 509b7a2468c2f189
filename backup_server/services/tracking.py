"""How far change tracking is believed: which disks' tracking is put on trial, what a trial that failed
means for restore points, and how tracking is begun anew.

docs/explanation/failover-and-trust.md tells why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import IntentKind
from backup_server.db.tables import Intent, RestorePointRow, Task, new_id
from backup_server.services import events, new_intents, steps, vm_snapshots
from backup_server.services.context import Context
from backup_server.services.disk_plan import DiskPlan
from backup_server.services.marks import Mark, snapshot_description, snapshot_name
from backup_server.services.steps import Work
from pipeline.model import PointKind, ReadMode
from transports.vsphere.api import Vsphere
from transports.vsphere.model import DiskInfo

DEFAULT_SAMPLE_BLOCKS: Final = 16
MAX_SAMPLE_BLOCKS: Final = 1024
TRIAL_EVERY: Final = timedelta(days=28)
"""A disk that never changes is read all the same so often: else nobody would ever learn that its tracking
sleeps."""
_READ_AS_A_WHOLE: Final = (ReadMode.FULL.value, ReadMode.FULL_SCAN.value)
_ROWS: Final = 200
HELPER_REST: Final = timedelta(minutes=30)
"""For so long the janitor leaves the helper snapshot of a reset to the run that makes it."""


# ---- the trial ------------------------------------------------------------------------------------


def sample_order(
    options: Mapping[str, Any],
    rows: Sequence[RestorePointRow],
    disk: DiskInfo,
    plan: DiskPlan,
    now: datetime,
) -> tuple[int, bool]:
    """(blocks to sample, whether also when nothing changed); nothing where tracking is not asked. Pure."""
    blocks = int(options.get("sample_blocks", DEFAULT_SAMPLE_BLOCKS))
    if not blocks or plan.reason or not plan.previous_change_id:
        return 0, False
    at = last_trial_at(rows, disk)
    return blocks, at is None or now - at >= TRIAL_EVERY


def last_trial_at(rows: Iterable[RestorePointRow], disk: DiskInfo) -> datetime | None:
    """When the disk was last read as a whole or sampled, by the rows of its VM, newest first. Pure."""
    for row in rows:
        entry = same_disk(row.disks, disk.uuid, disk.key)
        if entry is not None and (was_read_whole(row, entry) or entry.get("sampled_blocks")):
            return row.created_at
    return None


def was_read_whole(row: RestorePointRow, disk: Mapping[str, Any]) -> bool:
    """Whether this disk of the point is what was on it, whatever tracking said. Rows of earlier releases
    tell it only of full points.
    """
    return row.kind == PointKind.FULL.value or disk.get("read_mode") in _READ_AS_A_WHOLE


def same_disk(
    disks: Sequence[Mapping[str, Any]], disk_uuid: str, disk_key: int
) -> Mapping[str, Any] | None:
    """The same disk in another point: by its uuid, by its key where there is none."""
    if disk_uuid:
        return next((disk for disk in disks if disk["disk_uuid"] == disk_uuid), None)
    return next((disk for disk in disks if disk["disk_key"] == disk_key), None)


def rows_of(s: DbSession, repository_id: str, instance_uuid: str) -> list[RestorePointRow]:
    """The newest restore points that backups of a VM made in a repository, newest first."""
    return list(
        s.scalars(
            sa.select(RestorePointRow)
            .where(
                RestorePointRow.repository_id == repository_id,
                RestorePointRow.instance_uuid == instance_uuid,
                RestorePointRow.source_point_id.is_(None),
            )
            .order_by(RestorePointRow.created_at.desc(), RestorePointRow.id)
            .limit(_ROWS)
        )
    )


# ---- what a failed trial means --------------------------------------------------------------------


def figures(task: Task) -> dict[str, Any]:
    """What the catalogue keeps of how the disk was read."""
    facts = task.facts or {}
    found: dict[str, Any] = {}
    if task.read_mode:
        found["read_mode"] = task.read_mode
    if facts.get("sampled_blocks"):
        found["sampled_blocks"] = int(facts["sampled_blocks"])
    if facts.get("tracking_mismatch"):
        found["tracking_wrong"] = str(facts["tracking_mismatch"])
    return found


def note_mismatches(ctx: Context, work: Work) -> None:
    """For each disk whose trial failed: a warning of the VM, a doubt about what tracking made of it before,
    and the note that tracking has to begin anew. Whether this run ends well or not; may be repeated.
    """
    with ctx.db.read() as s:
        tasks = steps.tasks_of(s, work.vm.id)
    for task in tasks:
        mismatch = (task.facts or {}).get("tracking_mismatch")
        if not mismatch:
            continue
        steps.warn(
            ctx,
            work,
            f"{task.disk_label}: change tracking is wrong: {mismatch}; the whole disk was compared, earlier "
            "restore points are marked as in doubt, and the next run begins tracking anew",
            "change-tracking.wrong",
        )
        facts = next(one for one in work.details["disks"] if one["disk_key"] == task.disk_key)
        with ctx.db() as s:
            _mark_doubts(s, ctx, work, facts, str(mismatch))


def _mark_doubts(
    s: DbSession, ctx: Context, work: Work, disk: Mapping[str, Any], mismatch: str
) -> None:
    """Put in doubt every point since the disk was last read as a whole, and what was copied from them."""
    at = work.vm.snapshot_at or ctx.clock()
    rows = [
        row
        for row in rows_of(s, work.session.repository_id or "", work.vm.instance_uuid)
        if row.created_at < at
    ]
    text = f"{disk['label']} may miss changes: on {at:%Y-%m-%d %H:%M} UTC {mismatch}"
    if rows and (last := _entry(rows[0], disk)) is not None:
        rows[0].disks = [
            {**entry, "tracking_wrong": mismatch} if entry["disk_key"] == last["disk_key"] else entry
            for entry in rows[0].disks
        ]
    named = [row.id[:8] for row in _since_read_whole(rows, disk) if _add_doubt(s, row, text)]
    if named:
        said = f"{disk['label']}: in doubt because change tracking was wrong: restore points "
        steps.note(s, ctx, work, "restore-point.in-doubt", said + ", ".join(named), events.WARNING)


def _entry(row: RestorePointRow, disk: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return same_disk(row.disks, str(disk["disk_uuid"]), int(disk["disk_key"]))


def _since_read_whole(
    rows: Iterable[RestorePointRow], disk: Mapping[str, Any]
) -> Iterable[RestorePointRow]:
    """Of older points, newest first, those whose disk only tracking vouches for."""
    for row in rows:
        entry = _entry(row, disk)
        if entry is None or was_read_whole(row, entry):
            return
        yield row


def _add_doubt(s: DbSession, row: RestorePointRow, text: str) -> bool:
    """False when it stands there already."""
    if text in row.doubt:
        return False
    copies = s.scalars(sa.select(RestorePointRow).where(RestorePointRow.source_point_id == row.id))
    for one in (row, *copies):
        if text not in one.doubt:
            one.doubt = f"{one.doubt}; {text}" if one.doubt else text
    return True


# ---- beginning anew -------------------------------------------------------------------------------


def reset(ctx: Context, client: Vsphere, work: Work) -> None:
    """Switch tracking off, have vSphere act on it by a snapshot that is made and removed, switch it on: its
    next snapshot, the run's own, begins a new history. The VM has no snapshot.

    The helper snapshot has an intent of its own; a run that dies leaves it to the janitor. Raises
    TransportError; then tracking may be off, which the next run sees, or as before, which its change ids
    show.
    """
    moref = work.vm.moref
    intent = _helper_intent(ctx, work)
    client.disable_change_tracking(moref)
    mark = Mark(server_id=ctx.server_id, intent_id=intent.id, session_id=work.session.id)
    client.create_snapshot(
        moref,
        name=snapshot_name(intent.id),
        description=snapshot_description(mark),
        quiesce=False,
        cancelled=steps.cancel_check(ctx, work.session.id),
    )
    vm_snapshots.remove(ctx, client, intent)
    client.enable_change_tracking(moref)
    with ctx.db() as s:
        vm_snapshots.close_intent(s, intent.id, ctx.clock(), problem="")
        steps.note(s, ctx, work, "change-tracking.reset", "change tracking begins anew")


def _helper_intent(ctx: Context, work: Work) -> Intent:
    intent_id = new_id()
    with ctx.db() as s:
        return new_intents.of_session(
            s,
            work,
            IntentKind.SNAPSHOT,
            ctx.clock(),
            target=new_intents.target_of(work),
            mark=snapshot_name(intent_id),
            intent_id=intent_id,
            # Not the VM's own snapshot: nobody is to look for it under the session's VM.
            of_vm=False,
            next_try_at=ctx.clock() + HELPER_REST,
        )
