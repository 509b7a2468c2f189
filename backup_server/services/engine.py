"""The session engine: looks at what is committed, and does the next step of everything that may move.

One thread looks (`engine_interval_s`, or when `ctx.wake_engine` is set), a pool of threads works. The
engine remembers nothing that matters: which steps are in hand is all it knows beyond SQL, and after a
crash there are none. A step that fails for now is written down with the time of its next try.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
import structlog
from sqlalchemy.orm import Session as DbSession

from backup_server.db.fenced import NotLeadingError
from backup_server.db.states import (
    Result,
    SessionKind,
    SessionState,
    StaleStateError,
    TaskState,
    VmState,
    change_state,
)
from backup_server.db.tables import Session, SessionVm, Task
from backup_server.errors import UnavailableError, VmhaulError
from backup_server.services import (
    admission,
    backup_flow,
    copy_flow,
    counters,
    events,
    job_windows,
    maintenance_flow,
    restore_flow,
    session_begin,
    session_end,
    steps,
    stopping,
)
from backup_server.services.context import Context
from backup_server.services.steps import StepCancelledError, StepFailedError, Work
from transports.errors import ObjectGoneError, TransientTransportError, TransportError

MAINTENANCE_THREADS: Final = 4
_WITH_VMS: Final = (SessionKind.BACKUP.value, SessionKind.RESTORE.value, SessionKind.COPY.value)
_FLOWS: Final[dict[str, Any]] = {
    SessionKind.BACKUP.value: backup_flow,
    SessionKind.RESTORE.value: restore_flow,
    SessionKind.COPY.value: copy_flow,
}
_WITHOUT_VMS: Final = (
    SessionKind.CHECK.value,
    SessionKind.RESCAN.value,
    SessionKind.EVACUATION.value,
)
_ALONE: Final = (SessionKind.PRUNE.value, SessionKind.REPAIR.value)
_ACTIVE: Final = (VmState.PREPARING, VmState.RUNNING, VmState.FINISHING)
_LOOKING_SHARE: Final = 4
"""After a look the engine rests so many times as long as the look took: at a large site every end of a task asks for
one, and looks must not be all that the server does.
"""


class SessionEngine:
    """Drives all sessions of one database. One engine at a time per database."""

    def __init__(self, ctx: Context, *, leading: Callable[[], bool] = lambda: True) -> None:
        """`leading`: whether this server is the one of several on the database that works now."""
        self._ctx = ctx
        self._leading = leading
        self._log = ctx.log
        self._pool = ThreadPoolExecutor(ctx.settings.engine_threads, thread_name_prefix="engine")
        self._slow = ThreadPoolExecutor(MAINTENANCE_THREADS, thread_name_prefix="maintenance")
        self._in_hand: dict[str, Future[None]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # -- life

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="session-engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin no more steps and wait for those in hand; the sessions go on at the next start."""
        self._stop.set()
        self._ctx.stopping.set()
        self._ctx.wake_engine.set()
        if self._thread is not None:
            self._thread.join()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._slow.shutdown(wait=True, cancel_futures=True)

    def _loop(self) -> None:
        while not self._stop.is_set():
            self._ctx.wake_engine.clear()
            began = self._ctx.clock()
            try:
                self.look()
            except Exception:  # noqa: BLE001 - a look that fails must not end the looking
                # The database may be away for a while; whatever it is, the next look tries again.
                self._log.exception("engine.look-failed")
            interval_s = self._ctx.settings.engine_interval_s
            took_s = (self._ctx.clock() - began).total_seconds()
            self._stop.wait(min(interval_s, max(0.0, took_s) * _LOOKING_SHARE))
            self._ctx.wake_engine.wait(interval_s)

    def run_once(self) -> None:
        """One look and all the steps that it began, to their end. For tests and one-shot commands."""
        self.look()
        with self._lock:
            pending = list(self._in_hand.values())
        wait(pending)
        for future in pending:
            future.result()

    # -- looking

    def look(self) -> None:
        """Begin every step that may be begun now."""
        if not self._leading():
            return
        now = self._ctx.clock()
        # Restores first: a backup of thousands of VMs would leave them none of the few VMs that are prepared at once.
        later = Session.kind != SessionKind.RESTORE.value
        with self._ctx.db.read() as s:
            sessions = list(
                s.scalars(
                    sa.select(Session)
                    .where(Session.state != SessionState.FINISHED.value)
                    .order_by(later, Session.created_at, Session.id)
                )
            )
            closed = job_windows.closed(s, sessions, now)
        for session in sessions:
            if self._stop.is_set():
                return
            try:
                if session.id in closed and not session.cancel_requested:
                    self._window_closed(session, now)
                if session.state == SessionState.QUEUED.value:
                    if session.id not in closed or session.cancel_requested:
                        self._look_queued(session, sessions, now)
                elif session.kind in _WITH_VMS:
                    self._look_vms(session, sessions, now)
                else:
                    self._submit(session.id, self._slow, maintenance_flow.run, self._ctx, session.id)
            except (StaleStateError, NotLeadingError):
                continue  # somebody else moved it: the next look sees where to
            except Exception:  # noqa: BLE001 - said below why
                # One session's odd row must not keep all that come after it from being driven.
                self._log.exception("engine.look-failed", session_id=session.id)

    def _window_closed(self, session: Session, now: datetime) -> None:
        """One that runs stops in order; one that waits goes on waiting."""
        if session.state != SessionState.RUNNING.value or session.stop_reason:
            return
        with self._ctx.db() as s:
            stopping.stop(s, session, stopping.WINDOW_CLOSED, now)
        session.stop_reason = stopping.WINDOW_CLOSED  # for the rest of this look
        self._ctx.wake_dispatcher.set()

    def _look_queued(self, session: Session, others: list[Session], now: datetime) -> None:
        if session.cancel_requested:
            self._end_queued(session, Result.CANCELLED, "cancelled before it began")
            return
        tries = {"not_before": session.options.get("begin_after")}
        if not steps.is_due(session.options, now) or not steps.is_due(
            tries, now, at_most_s=steps.MAX_WAIT_S
        ):
            return
        if session.kind == SessionKind.BACKUP.value:
            self._submit(session.id, self._pool, self._begin_backup, session)
            return
        if session.kind == SessionKind.COPY.value:
            self._submit(session.id, self._pool, copy_flow.begin, self._ctx, session.id)
            return
        if session.kind in _ALONE and self._needed_by_others(session, others):
            return
        if session.kind in _WITHOUT_VMS and _is_pruned(session, others):
            return  # a check would take packs that are being replaced for missing ones
        with self._ctx.db() as s:
            change_state(
                s,
                Session,
                session.id,
                SessionState.QUEUED,
                SessionState.RUNNING,
                started_at=now,
            )
            events.record(s, now, "session.started", session.kind, session_id=session.id)
        session.state = SessionState.RUNNING.value  # for those that this look comes to after it
        self._ctx.wake_engine.set()

    @staticmethod
    def _needed_by_others(session: Session, others: list[Session]) -> bool:
        """A prune and a repair run alone in their repository."""
        return any(
            other.id != session.id
            and other.repository_id == session.repository_id
            and other.state == SessionState.RUNNING.value
            for other in others
        )

    def _look_vms(self, session: Session, others: list[Session], now: datetime) -> None:
        ends = session.cancel_requested or bool(session.stop_reason)
        if ends:
            self._cancel_vms(session, now)
        if not _is_pruned(session, others):
            admission.admit(self._ctx, session)
        with self._ctx.db.read() as s:
            active = list(
                s.execute(
                    sa.select(SessionVm.id, SessionVm.state, SessionVm.details).where(
                        SessionVm.session_id == session.id,
                        SessionVm.state.in_([state.value for state in _ACTIVE]),
                    )
                )
            )
            over = _vms_with_all_tasks_over(s, session.id)
            pending = s.scalar(
                sa.select(sa.func.count())
                .select_from(SessionVm)
                .where(SessionVm.session_id == session.id, SessionVm.state == VmState.PENDING.value)
            )
        if not active and not pending:
            self._submit(session.id, self._pool, session_end.finish, self._ctx, session.id)
            return
        for vm in active:
            state = VmState(vm.state)
            if state is VmState.RUNNING:
                if vm.id not in over:
                    continue
                with self._ctx.db() as s:
                    change_state(s, SessionVm, vm.id, VmState.RUNNING, VmState.FINISHING)
                state = VmState.FINISHING
            hurry = ends and state is VmState.PREPARING
            if hurry or steps.is_due(vm.details, now, at_most_s=steps.MAX_WAIT_S):
                self._submit(vm.id, self._pool, self._step, session.kind, vm.id, state)

    def _cancel_vms(self, session: Session, now: datetime) -> None:
        from backup_server.services.tasks import cancel_session_tasks

        why = "cancelled" if session.cancel_requested else session.stop_reason
        with self._ctx.db() as s:
            cancel_session_tasks(s, session.id, now)
            waiting = s.scalars(
                sa.select(SessionVm.id).where(
                    SessionVm.session_id == session.id, SessionVm.state == VmState.PENDING.value
                )
            ).all()
            for vm_id in waiting:
                change_state(
                    s,
                    SessionVm,
                    vm_id,
                    VmState.PENDING,
                    VmState.DONE,
                    result=Result.CANCELLED.value,
                    reason=f"{why} before it began",
                    finished_at=now,
                )

    # -- working

    def _submit(
        self, key: str, pool: ThreadPoolExecutor, work: Callable[..., None], *args: Any
    ) -> None:
        with self._lock:
            if key in self._in_hand:
                return
            self._in_hand[key] = pool.submit(self._run, key, work, *args)

    def _run(self, key: str, work: Callable[..., None], *args: Any) -> None:
        with structlog.contextvars.bound_contextvars(step=getattr(work, "__name__", "step"), of=key):
            try:
                work(*args)
            except (StaleStateError, NotLeadingError) as error:
                self._log.info("engine.stale", reason=str(error))
            except Exception:  # noqa: BLE001 - the step's row tells where to go on
                self._log.exception("engine.step-failed")
            finally:
                with self._lock:
                    self._in_hand.pop(key, None)
                self._ctx.wake_engine.set()

    def _begin_backup(self, session: Session) -> None:
        try:
            session_begin.begin(self._ctx, session.id)
        except (TransportError, VmhaulError) as error:
            self._begin_failed(session, error)

    def _begin_failed(self, session: Session, error: Exception) -> None:
        """The inventory could not be read: try again soon when that may help, else end the session."""
        settings = self._ctx.settings
        transient = isinstance(error, (TransientTransportError, UnavailableError))
        tries = int(session.report.get("tries", 0)) + 1
        if not transient or tries >= settings.step_tries:
            self._end_queued(session, Result.FAILED, str(error), retry=transient)
            return
        wait_s = min(settings.step_wait_s * 2 ** (tries - 1), steps.MAX_WAIT_S)
        now = self._ctx.clock()
        with self._ctx.db() as s:
            stored = s.get_one(Session, session.id)
            stored.report = {**stored.report, "tries": tries}
            not_before = (now + timedelta(seconds=wait_s)).isoformat()
            stored.options = {**stored.options, "begin_after": not_before}
            text = f"{error}; try {tries + 1} in {wait_s:.0f} s"
            events.record(s, now, "session.waits", text, session_id=session.id, level=events.WARNING)

    def _end_queued(
        self, session: Session, result: Result, reason: str, *, retry: bool = False
    ) -> None:
        now = self._ctx.clock()
        with self._ctx.db() as s:
            change_state(
                s,
                Session,
                session.id,
                SessionState.QUEUED,
                SessionState.FINISHED,
                result=result.value,
                reason=reason,
                finished_at=now,
            )
            counters.add(s, "sessions_ended", (session.kind, result.value))
            level = events.INFO if result is Result.CANCELLED else events.ERROR
            events.record(s, now, "session.finished", reason, session_id=session.id, level=level)
            again = retry and session_end.retry_failed(self._ctx, s, session, can_help=True)
            if result is Result.FAILED and not again:
                session_end.follow(self._ctx, s, session, result, now)

    def _step(self, kind: str, vm_id: str, state: VmState) -> None:
        """The step of a VM in that state, with what each kind of error means for it."""
        # What was looked at may be old by now. Only the step in hand moves a VM on from here, so what
        # is read now holds until this step ends.
        if steps.load(self._ctx, vm_id).vm.state != state.value:
            return
        flow = _FLOWS[kind]
        step = flow.prepare if state is VmState.PREPARING else flow.finish
        try:
            step(self._ctx, vm_id)
        except (StaleStateError, NotLeadingError):
            raise
        except Exception as error:  # noqa: BLE001 - every failure of a step has to end in its row
            self._step_failed(vm_id, error)

    def _step_failed(self, vm_id: str, error: Exception) -> None:
        work = steps.load(self._ctx, vm_id)
        if work.vm.state == VmState.DONE.value:
            # It failed in what comes after its end; the result stands.
            self._log.exception("engine.after-end", vm=work.vm.name, exc_info=error)
            return
        with self._ctx.db.read() as s:
            ends = stopping.end_wanted(s, work.session.id)
        preparing = work.vm.state == VmState.PREPARING.value
        if isinstance(error, StepCancelledError) or (preparing and ends):
            self._fail(work, Result.CANCELLED, ends or "cancelled")
            return
        known = isinstance(error, (StepFailedError, TransportError, VmhaulError))
        if not known:
            self._log.exception("engine.unexpected", vm=work.vm.name, exc_info=error)
        reason = str(error) if known else f"unexpected {type(error).__name__}: {error}"
        if isinstance(error, ObjectGoneError) and work.session.kind == SessionKind.BACKUP.value:
            reason = f"{backup_flow.GONE} ({error})"
        lasting = known and not isinstance(error, (TransientTransportError, UnavailableError))
        if lasting or not steps.defer(self._ctx, work, reason, tries=self._ctx.settings.step_tries):
            self._fail(work, Result.FAILED, reason)

    def _fail(self, work: Work, result: Result, reason: str) -> None:
        if work.vm.state == VmState.PREPARING.value:
            steps.give_up(self._ctx, work, result, reason)
            return
        with self._ctx.db() as s:
            # What is left in vSphere has an open intent, which the janitor takes over.
            steps.end_vm(s, self._ctx, work, VmState.FINISHING, result, reason)


def _is_pruned(session: Session, others: list[Session]) -> bool:
    """Whether a prune or a repair of the session's repository is under way."""
    return any(
        other.kind in _ALONE
        and other.state == SessionState.RUNNING.value
        and other.repository_id == session.repository_id
        for other in others
    )


def _vms_with_all_tasks_over(s: DbSession, session_id: str) -> set[str]:
    open_task = sa.exists().where(
        Task.session_vm_id == SessionVm.id, Task.state != TaskState.DONE.value
    )
    return set(
        s.scalars(
            sa.select(SessionVm.id).where(
                SessionVm.session_id == session_id,
                SessionVm.state == VmState.RUNNING.value,
                ~open_task,
            )
        )
    )
