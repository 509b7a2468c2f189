"""The janitor: what was written down as an intent and is still there although nobody works with it.

It looks at start, every few minutes, and when an attempt at a task ended in the middle. It touches a
snapshot only when its name and its description agree and name this server and the intent; it destroys a VM
only when it bears the intent's mark (which vSphere is asked to check again); it takes an attached disk away
only by the file and the VM that an intent names; it touches a storage snapshot or a clone only by a name that begins with this
server's mark. Everything else in a vCenter or on a storage system is none of its business.

A snapshot that cannot be removed climbs a ladder, one rung a visit: remove, consolidate, and where no
foreign snapshot exists a helper snapshot is made and removed, so that vSphere folds what it forgot.
The waits between the visits double. What remains is said in the intent (`problem`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.fenced import NotLeadingError
from backup_server.db.states import IntentKind, IntentState
from backup_server.db.tables import Intent, RestorePointRow, SessionVm, Vcenter
from backup_server.errors import VmhaulError
from backup_server.services import (
    attachments,
    events,
    history,
    restore_flow,
    restore_points,
    retention,
    storage_snapshots,
    storage_systems,
    tracking,
    vm_snapshots,
)
from backup_server.services.context import Context
from backup_server.services.marks import (
    Mark,
    ours,
    snapshot_description,
    snapshot_name,
)
from transports.errors import ObjectGoneError, TransportError
from transports.vsphere.api import Vsphere

HELPER_AFTER_TRIES: Final = 3
_MOST_DOUBLINGS: Final = 30
_FOLLOWER_WAIT_S: Final = 1.0
_SWEEP_EVERY: Final = 20
"""Visits between two looks at all VMs' snapshots: that is a call for each VM that has any."""


class Janitor:
    """One for each database; all its work may be repeated and may be killed."""

    def __init__(self, ctx: Context, *, leading: Callable[[], bool] = lambda: True) -> None:
        """`leading`: as that of the engine."""
        self._ctx = ctx
        self._leading = leading
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._visits = 0
        self._next_visit_at = ctx.clock()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="janitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._ctx.wake_janitor.set()
        if self._thread is not None:
            self._thread.join()

    def _loop(self) -> None:
        while not self._stop.is_set():
            if not self._leading():
                self._stop.wait(_FOLLOWER_WAIT_S)
                continue
            self._ctx.wake_janitor.clear()
            try:
                if self._visit_is_due():
                    self._next_visit_at = self._ctx.clock() + self._interval
                    self.run_once()
                else:
                    self.clean_due()
            except NotLeadingError as error:
                self._ctx.log.info("janitor.not-leading", reason=str(error))
            except Exception:
                self._ctx.log.exception("janitor.visit-failed")
            wait = min(self._next_visit_at - self._ctx.clock(), self._interval)
            self._ctx.wake_janitor.wait(max(0.0, wait.total_seconds()))

    @property
    def _interval(self) -> timedelta:
        return timedelta(seconds=self._ctx.settings.janitor_interval_s)

    def _visit_is_due(self) -> bool:
        """Also when the next one is further ahead than it ever was set: then the clock went back."""
        ahead = self._next_visit_at - self._ctx.clock()
        return not timedelta(0) < ahead <= self._interval

    def run_once(self) -> None:
        """One visit: open intents that are due, once a day what the jobs keep no more, unfinished
        deletions; now and then every snapshot, and history that is too old.
        """
        self.clean_due()
        if self._stop.is_set():
            return
        retention.daily(self._ctx)
        self._finish_deletions()
        if self._visits % _SWEEP_EVERY == 0:
            self.sweep()
            history.forget(self._ctx)
        self._visits += 1

    # -- intents

    def clean_due(self) -> None:
        """Open intents that nobody works under."""
        for intent_id in self._due():
            if self._stop.is_set():
                return
            self._clean(intent_id)

    def _due(self) -> list[str]:
        now = self._ctx.clock()
        with self._ctx.db.read() as s:
            rows = s.execute(
                sa.select(Intent.id, Intent.kind, Intent.next_try_at, Intent.tries)
                .where(Intent.state == IntentState.OPEN.value)
                # A disk that is attached somewhere keeps the snapshot from being removed.
                .order_by(Intent.kind != IntentKind.HOT_ADDED_DISK.value, Intent.created_at)
            ).all()
            return [
                row.id
                for row in rows
                if not self._rests(row.next_try_at, row.tries, now)
                and not _KINDS[row.kind].alive(s, row.id)
            ]

    def _rests(self, until: datetime | None, tries: int, now: datetime) -> bool:
        """Whether its next try is still to come. One that reaches further ahead than a pause can was written while the
        clock was ahead, and counts no more.
        """
        longest = max(timedelta(seconds=self._wait_s(tries)), tracking.HELPER_REST)
        return until is not None and now < until <= now + longest

    def _clean(self, intent_id: str) -> None:
        with self._ctx.db.read() as s:
            intent = s.get_one(Intent, intent_id)
        try:
            problem = _KINDS[intent.kind].clean(self, intent)
        except NotLeadingError:
            return
        except (TransportError, VmhaulError) as error:
            problem = str(error)
        except Exception as error:
            # One that nobody foresaw must not keep the janitor from all the others.
            self._ctx.log.exception("janitor.unexpected", intent_id=intent_id, vm=intent.vm_name)
            problem = f"unexpected {type(error).__name__}: {error}"
        with self._ctx.db() as s:
            if problem:
                self._try_later(s, intent, problem)
            else:
                self._close(s, intent)

    def clean_snapshot(self, intent: Intent) -> str:
        """What is still wrong; empty when nothing of the intent is left. So the others."""
        client = self._ctx.vcenters.get(intent.vcenter_id)
        if intent.tries >= HELPER_AFTER_TRIES:
            self._helper_snapshot(client, intent)
        warnings = vm_snapshots.remove(self._ctx, client, intent)
        return "; ".join(warnings)

    def clean_restored_vm(self, intent: Intent) -> str:
        restore_flow.destroy(self._ctx, self._ctx.vcenters.get(intent.vcenter_id), intent)
        return ""

    def clean_attachment(self, intent: Intent) -> str:
        attachments.release(self._ctx, [intent])
        return ""

    def clean_storage(self, intent: Intent) -> str:
        storage_snapshots.clean(self._ctx, intent)
        return ""

    def _helper_snapshot(self, client: Vsphere, intent: Intent) -> None:
        """Making and removing a snapshot lets vSphere fold deltas that it lost count of.

        Not while anybody else's snapshot exists: removing ours must never fold theirs. The helper
        bears the same mark, so a crash leaves something that the next visit removes.
        """
        snapshots = client.snapshots(intent.vm_moref)
        if len(ours(snapshots, self._ctx.server_id)) != len(snapshots):
            return
        mark = Mark(
            server_id=self._ctx.server_id,
            intent_id=intent.id,
            session_id=intent.session_id or "",
        )
        client.create_snapshot(
            intent.vm_moref,
            name=snapshot_name(intent.id),
            description=snapshot_description(mark),
            # The last rungs alternate: some locks yield only when the guest was brought to rest.
            quiesce=intent.tries % 2 == 1,
        )

    def _try_later(self, s: DbSession, intent: Intent, problem: str) -> None:
        wait_s = self._wait_s(intent.tries)
        stored = s.get_one(Intent, intent.id)
        stored.tries = intent.tries + 1
        stored.problem = problem
        stored.next_try_at = self._ctx.clock() + timedelta(seconds=wait_s)
        self._ctx.log.warning("janitor.problem", intent_id=intent.id, vm=intent.vm_name, reason=problem)

    def _wait_s(self, tries: int) -> float:
        settings = self._ctx.settings
        # Bounded: an intent on a vCenter that is away for months is tried a thousand times.
        doublings = min(tries, _MOST_DOUBLINGS)
        wait_s: float = min(settings.janitor_wait_s * 2**doublings, settings.janitor_wait_max_s)
        return wait_s

    def _close(self, s: DbSession, intent: Intent) -> None:
        now = self._ctx.clock()
        vm_snapshots.close_intent(s, intent.id, now, problem="")
        if intent.session_vm_id is not None and intent.kind == IntentKind.SNAPSHOT.value:
            s.execute(
                sa.update(SessionVm)
                .where(
                    SessionVm.id == intent.session_vm_id,
                    SessionVm.snapshot_at.is_not(None),
                    SessionVm.snapshot_removed_at.is_(None),
                )
                .values(snapshot_removed_at=now)
            )
        text = f"{intent.vm_name}: nothing is left of the {_KINDS[intent.kind].what}"
        events.record(s, now, "janitor.cleaned", text, session_id=intent.session_id)

    # -- what no open intent names

    def sweep(self) -> None:
        """Remove snapshots that bear our mark although their intent is closed or unknown, of VMs and of storage
        systems.
        """
        with self._ctx.db.read() as s:
            vcenter_ids = list(s.scalars(sa.select(Vcenter.id)))
        for vcenter_id in vcenter_ids:
            if self._stop.is_set():
                return
            try:
                attachments.sweep(self._ctx, vcenter_id)
                self._sweep_vcenter(vcenter_id, self._ctx.vcenters.get(vcenter_id))
            except (TransportError, VmhaulError) as error:
                self._ctx.log.warning("janitor.sweep-failed", vcenter_id=vcenter_id, reason=str(error))

        if not self._stop.is_set():
            storage_snapshots.sweep(self._ctx)
            storage_systems.rescan_all(self._ctx)

    def _sweep_vcenter(self, vcenter_id: str, client: Vsphere) -> None:
        for vm in client.inventory().vms:
            if not vm.has_snapshots:
                continue
            try:
                self._sweep_vm(vcenter_id, client, vm.moref, vm.name)
            except ObjectGoneError:
                continue
            except TransportError as error:
                self._ctx.log.warning("janitor.sweep-failed", vm=vm.name, reason=str(error))

    def _sweep_vm(self, vcenter_id: str, client: Vsphere, vm_moref: str, vm_name: str) -> None:
        for snapshot, mark in ours(client.snapshots(vm_moref), self._ctx.server_id):
            # An open intent is looked after by its session or by _due, with its own waits.
            if not self._is_open(mark.intent_id):
                attachments.release_over(self._ctx, vcenter_id, vm_moref)
                client.remove_snapshot(vm_moref, snapshot.moref)
                self._ctx.log.info("janitor.orphan-removed", vm=vm_name, snapshot=snapshot.name)

    def _is_open(self, intent_id: str) -> bool:
        with self._ctx.db.read() as s:
            intent = s.get(Intent, intent_id)
            return intent is not None and intent.state == IntentState.OPEN.value

    def _finish_deletions(self) -> None:
        """Restore points that were marked for deletion before a crash."""
        with self._ctx.db.read() as s:
            repositories = list(
                s.scalars(
                    sa.select(RestorePointRow.repository_id)
                    .where(RestorePointRow.deleting.is_(True))
                    .distinct()
                )
            )
        for repository_id in repositories:
            try:
                restore_points.forget_marked(self._ctx, repository_id)
            except VmhaulError as error:
                self._ctx.log.warning(
                    "janitor.forget-failed", repository_id=repository_id, reason=str(error)
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """What the janitor does about one kind of intent."""

    what: str
    """For people."""
    alive: Callable[[DbSession, str], bool]
    """Whether somebody still works under the intent of that id."""
    clean: Callable[[Janitor, Intent], str]


_KINDS: Final[Mapping[str, _Kind]] = {
    IntentKind.SNAPSHOT.value: _Kind(
        what="snapshot", alive=vm_snapshots.is_alive, clean=Janitor.clean_snapshot
    ),
    IntentKind.RESTORED_VM.value: _Kind(
        what="half restored VM", alive=vm_snapshots.is_alive, clean=Janitor.clean_restored_vm
    ),
    IntentKind.HOT_ADDED_DISK.value: _Kind(
        what="attached disk", alive=attachments.is_alive_id, clean=Janitor.clean_attachment
    ),
    IntentKind.STORAGE_SNAPSHOT.value: _Kind(
        what="storage snapshot", alive=vm_snapshots.is_alive, clean=Janitor.clean_storage
    ),
    IntentKind.STORAGE_EXPOSURE.value: _Kind(
        what="clone of a storage snapshot", alive=attachments.is_alive_id, clean=Janitor.clean_storage
    ),
}
