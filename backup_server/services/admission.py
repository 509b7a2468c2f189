"""How many VMs may have a snapshot: which of a session's VMs begin now.

Limits: VMs that are being prepared at once (`preparing_vms`), open snapshots of each datastore on which a VM has disks
(`max_snapshots` of the datastore, else `snapshots_per_datastore`), and one session for a VM at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.states import SessionKind, VmState, change_state
from backup_server.db.tables import Session, SessionVm
from backup_server.services import datastore_loads
from backup_server.services.context import Context

_PAGE: Final = 200
_PAGES: Final = 10
"""VMs that are looked at in one go: those whose datastores are full are passed over."""
_DATASTORES: Final = SessionVm.details["datastores"].label("datastores")
"""Of all that is known of a VM the least part: thousands are looked at."""
_ACTIVE: Final = (VmState.PREPARING.value, VmState.RUNNING.value, VmState.FINISHING.value)


def admit(ctx: Context, session: Session) -> None:
    """Move waiting VMs to preparing as far as the limits allow."""
    with ctx.db.read() as s:
        if _preparing(s) >= ctx.settings.preparing_vms or not _some_wait(s, session.id):
            return
    with ctx.db() as s:
        _admit(ctx, s, session)


def _preparing(s: DbSession) -> int:
    count = sa.select(sa.func.count()).where(SessionVm.state == VmState.PREPARING.value)
    return s.scalar(count) or 0


def _some_wait(s: DbSession, session_id: str) -> bool:
    one = sa.select(SessionVm.id).where(
        SessionVm.session_id == session_id, SessionVm.state == VmState.PENDING.value
    )
    return s.scalar(one.limit(1)) is not None


def _admit(ctx: Context, s: DbSession, session: Session) -> None:
    now = ctx.clock()
    busy = s.execute(
        sa.select(
            SessionVm.state,
            SessionVm.instance_uuid,
            _DATASTORES,
            SessionVm.snapshot_removed_at,
            Session.vcenter_id,
        )
        .join(Session, Session.id == SessionVm.session_id)
        .where(SessionVm.state.in_(_ACTIVE))
    ).all()
    left = ctx.settings.preparing_vms - sum(vm.state == VmState.PREPARING.value for vm in busy)
    # A VM is in one session at a time: two would take each other's snapshot for a foreign one.
    in_other = {(vm.vcenter_id, vm.instance_uuid) for vm in busy}
    snapshots = Counter(
        store
        for vm in busy
        if vm.snapshot_removed_at is None
        for store in _stores(vm.vcenter_id, vm.datastores)
    )
    loads = datastore_loads.read(s, ctx.settings, now)
    after = -1
    for _ in range(_PAGES):
        waiting = _waiting(s, session.id, after)
        for vm in waiting:
            if left <= 0:
                return
            after = vm.position
            stores = _stores(session.vcenter_id, vm.datastores)
            full = any(snapshots[name] >= loads.max_snapshots(name) for name in stores)
            identity = (session.vcenter_id, vm.instance_uuid)
            if full or (identity in in_other and session.kind == SessionKind.BACKUP.value):
                continue
            change_state(s, SessionVm, vm.id, VmState.PENDING, VmState.PREPARING, started_at=now)
            left -= 1
            snapshots.update(stores)
            in_other.add(identity)
        if len(waiting) < _PAGE:
            return


def _waiting(s: DbSession, session_id: str, after: int) -> Any:
    return s.execute(
        sa.select(SessionVm.id, SessionVm.position, SessionVm.instance_uuid, _DATASTORES)
        .where(
            SessionVm.session_id == session_id,
            SessionVm.state == VmState.PENDING.value,
            SessionVm.position > after,
        )
        .order_by(SessionVm.position)
        .limit(_PAGE)
    ).all()


def _stores(vcenter_id: str | None, datastores: Sequence[str] | None) -> list[str]:
    return [f"{vcenter_id}/{name}" for name in datastores or ()]
