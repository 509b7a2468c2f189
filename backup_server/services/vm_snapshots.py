"""VM snapshots of backups: intent first, made, found again after a crash, removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import IntentKind, IntentState, SessionState, VmState, change_state
from backup_server.db.tables import Intent, Session, SessionVm, new_id
from backup_server.services import attachments, new_intents, steps
from backup_server.services.context import Context
from backup_server.services.marks import (
    Mark,
    ours,
    snapshot_description,
    snapshot_name,
)
from backup_server.services.steps import StepFailedError, Work
from transports.errors import ObjectGoneError, QuiesceFailedError, TransportError
from transports.vsphere.api import Vsphere
from transports.vsphere.model import PowerState, SnapshotInfo, VmInfo

QUIESCE_TRIES = 2


def ensure_intent(ctx: Context, work: Work) -> Intent:
    """The VM's open snapshot intent, written down before vSphere is asked for anything."""
    with ctx.db() as s:
        intent = steps.open_intent(s, work.vm.id)
        if intent is not None:
            return intent
        intent_id = new_id()
        return new_intents.of_session(
            s,
            work,
            IntentKind.SNAPSHOT,
            ctx.clock(),
            target=new_intents.target_of(work),
            mark=snapshot_name(intent_id),
            intent_id=intent_id,
        )


def is_alive(s: DbSession, intent_id: str) -> bool:
    """True while a session works under this intent: then its snapshot must stay."""
    intent = s.get(Intent, intent_id)
    if intent is None or intent.state != IntentState.OPEN.value:
        return False
    session = s.get(Session, intent.session_id) if intent.session_id else None
    vm = s.get(SessionVm, intent.session_vm_id) if intent.session_vm_id else None
    return (
        session is not None
        and session.state != SessionState.FINISHED.value
        and vm is not None
        and vm.state != VmState.DONE.value
    )


def remove_leftovers(ctx: Context, client: Vsphere, work: Work) -> bool:
    """Remove this server's snapshots of the VM that no session works with; False when one stays."""
    clean = True
    try:
        attachments.release_over(ctx, work.vcenter_id, work.vm.moref)
    except TransportError as error:
        steps.warn(ctx, work, f"a disk is still attached to a proxy's VM: {error}")
        return False
    for snapshot, mark in ours(client.snapshots(work.vm.moref), ctx.server_id):
        with ctx.db.read() as s:
            if is_alive(s, mark.intent_id):
                continue
        try:
            client.remove_snapshot(work.vm.moref, snapshot.moref)
        except TransportError as error:
            clean = False
            steps.warn(ctx, work, f"a left over snapshot of vmhaul could not be removed: {error}")
            continue
        with ctx.db() as s:
            close_intent(s, mark.intent_id, ctx.clock())
            steps.note(s, ctx, work, "snapshot.leftover", f"left over {snapshot.name} removed")
    return clean


def close_intent(s: DbSession, intent_id: str, now: datetime, **values: Any) -> None:
    """Close an intent that is open; nothing when it is not."""
    intent = s.get(Intent, intent_id, populate_existing=True)
    if intent is not None and intent.state == IntentState.OPEN.value:
        change_state(s, Intent, intent_id, IntentState.OPEN, IntentState.DONE, closed_at=now, **values)


def find_own(ctx: Context, client: Vsphere, vm_moref: str, intent_id: str) -> list[SnapshotInfo]:
    """Snapshots that bear this intent, deepest first. Two when a crash hid the first's answer."""
    return [
        snapshot
        for snapshot, mark in ours(client.snapshots(vm_moref), ctx.server_id)
        if mark.intent_id == intent_id
    ]


def take(
    ctx: Context, client: Vsphere, work: Work, intent: Intent, info: VmInfo
) -> tuple[SnapshotInfo, datetime]:
    """The VM's snapshot for this intent and when it was taken: found again, or made now."""
    found = find_own(ctx, client, work.vm.moref, intent.id)
    if found:
        # Taken before a crash, after the intent: that time is the latest which is surely not too late.
        # Whether the VM was off then is not to be seen any more (the tree says so of every snapshot
        # without memory), and must not be claimed.
        return replace(found[0], power_state=PowerState.ON), intent.created_at
    mark = Mark(server_id=ctx.server_id, intent_id=intent.id, session_id=work.session.id)
    cancelled = steps.cancel_check(ctx, work.session.id)

    def create(*, quiesce: bool) -> tuple[SnapshotInfo, datetime]:
        at = ctx.clock()
        snapshot = client.create_snapshot(
            work.vm.moref,
            name=snapshot_name(intent.id),
            description=snapshot_description(mark),
            quiesce=quiesce,
            cancelled=cancelled,
        )
        return snapshot, at

    return _with_quiescing(ctx, work, info, create)


def _with_quiescing(
    ctx: Context,
    work: Work,
    info: VmInfo,
    create: Callable[..., tuple[SnapshotInfo, datetime]],
) -> tuple[SnapshotInfo, datetime]:
    wanted = work.job.get("options", {}).get("quiesce", "try")
    if wanted == "off" or info.power_state != PowerState.ON:
        return create(quiesce=False)
    if not info.tools_running:
        if wanted == "require":
            raise StepFailedError(
                "the guest cannot be quiesced because VMware Tools do not run in it; "
                "start them, or set the job's quiesce to try"
            )
        steps.warn(ctx, work, "not quiesced: VMware Tools do not run in the guest")
        return create(quiesce=False)
    problem = ""
    for attempt in range(QUIESCE_TRIES):
        try:
            return create(quiesce=True)
        except QuiesceFailedError as error:
            problem = str(error)
            if attempt + 1 < QUIESCE_TRIES:
                ctx.stopping.wait(ctx.settings.step_wait_s)
    if wanted == "require":
        raise StepFailedError(f"the guest could not be quiesced: {problem}")
    steps.warn(ctx, work, f"not quiesced: {problem}")
    return create(quiesce=False)


def remove(ctx: Context, client: Vsphere, intent: Intent) -> list[str]:
    """Remove every snapshot that bears the intent, consolidate when needed; answers warnings.

    Disks that are still attached to proxies are taken away first: what holds a file of the snapshot keeps it
    from being folded. Raises TransportError when that or a removal fails. A VM that is gone took its snapshots
    with it.
    """
    attachments.release_over(ctx, intent.vcenter_id, intent.vm_moref)
    try:
        for snapshot in find_own(ctx, client, intent.vm_moref, intent.id):
            client.remove_snapshot(intent.vm_moref, snapshot.moref)
        return consolidate(client, intent.vm_moref)
    except ObjectGoneError:
        return []


def consolidate(client: Vsphere, vm_moref: str) -> list[str]:
    """Fold left over deltas when vSphere says so; answers warnings instead of raising."""
    try:
        if not client.consolidation_needed(vm_moref):
            return []
        client.consolidate(vm_moref)
        if client.consolidation_needed(vm_moref):
            return ["the VM's disks still need consolidation after one was made"]
    except ObjectGoneError:
        return []
    except TransportError as error:
        return [f"the VM's disks need consolidation, which failed: {error}"]
    return []
