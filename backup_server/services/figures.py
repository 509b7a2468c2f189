"""What monitoring asks of the fleet: figures by SQL aggregates, whose cost follows what is open and not what was.

`FIGURES` declares each with its labels; `docs/reference/metrics.md` is made from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import Session as DbSession

from backup_server.db.clock import database_time
from backup_server.db.states import IntentState, SessionState, TaskState
from backup_server.db.tables import (
    DatastoreLoad,
    Intent,
    Leader,
    OutboxRow,
    Proxy,
    Repository,
    Session,
    Task,
    Vcenter,
)
from backup_server.services import about, counters, figures_jobs
from backup_server.services.context import Context
from backup_server.services.datastore_loads import STALE_AFTER
from backup_server.services.figure import Figure, Sample, Samples
from backup_server.services.proxies import state_of
from transports.base import TransportMode
from transports.rules import NETWORK_MODES

_OF_PROXY: Final = ("proxy",)


def _gauge(name: str, text: str, *labels: str) -> Figure:
    return Figure(name=f"vmhaul_{name}", kind="gauge", text=text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> Figure:
    return Figure(name=f"vmhaul_{name}", kind="counter", text=text, labels=labels)


FIGURES: Final = (
    _gauge("server_info", "1; which release this server is.", "version"),
    _gauge("database_up", "1 while the job database answers."),
    _gauge("broker_up", "1 while the broker answers."),
    _gauge("leader_present", "1 while some server leads the fleet."),
    _gauge("outbox_messages", "Messages that wait to be sent to the broker."),
    _gauge("outbox_oldest_seconds", "Age of the oldest of them."),
    _gauge("proxy_online", "1 while the proxy is heard.", *_OF_PROXY),
    _gauge("proxy_enabled", "1 while it may take tasks.", *_OF_PROXY),
    _gauge(
        "proxy_problem", "1 while something is wrong with it that a person has to mend.", *_OF_PROXY
    ),
    _gauge("proxy_slots", "Its task slots.", *_OF_PROXY),
    _gauge("proxy_running_tasks", "Tasks that it works on.", *_OF_PROXY),
    _gauge("proxy_last_seen_timestamp_seconds", "When it was last heard (Unix time).", *_OF_PROXY),
    _gauge("proxy_clock_offset_seconds", "Its clock less the server's.", *_OF_PROXY),
    _gauge("proxy_cpu_share", "Share of its processors that is busy, 0 to 1.", *_OF_PROXY),
    _gauge("proxy_free_memory_bytes", "Its available memory.", *_OF_PROXY),
    _gauge("proxy_info", "1; its release.", "proxy", "version"),
    _gauge("tasks_open", "Tasks that are not done.", "state", "kind", "mode"),
    _gauge("task_oldest_pending_seconds", "How long the task that waits longest has waited."),
    _gauge("sessions_open", "Sessions that are not finished.", "kind", "state"),
    _gauge("repository_total_bytes", "Size of its volume.", "repository"),
    _gauge("repository_free_bytes", "Free space of its volume.", "repository"),
    _gauge("repository_running_tasks", "Tasks that write to it or read from it.", "repository"),
    _gauge("repository_max_tasks", "How many it takes at once.", "repository"),
    _gauge("host_running_tasks", "Tasks that read through the host's NFC service.", "vcenter", "host"),
    _gauge("host_max_tasks", "How many may do so at once, for each host."),
    _gauge("datastore_running_tasks", "Tasks that read or write it.", "vcenter", "datastore"),
    _gauge(
        "datastore_read_latency_seconds",
        "Its read latency when last measured, unless that is long ago.",
        "vcenter",
        "datastore",
    ),
    _gauge("intents_open", "Changes made in vSphere or on storage that are to be undone.", "kind"),
    _gauge("intent_oldest_seconds", "Age of the oldest of them.", "kind"),
    *figures_jobs.FIGURES,
    _counter("tasks_ended", "Tasks that ended.", "kind", "result"),
    _counter("task_attempts_repeated", "Attempts that came to nothing and were followed by another."),
    _counter("leases_expired", "Attempts taken back from a proxy that was not heard."),
    _counter("task_failovers", "Times that a task left a transport mode.", "mode"),
    _counter("read_bytes", "Bytes read from disks by tasks that ended.", "kind", "mode"),
    _counter("stored_bytes", "Bytes written to repositories, or to disks by restores.", "kind"),
    _counter("sessions_ended", "Sessions that ended.", "kind", "result"),
    _counter(
        "job_runs_missed",
        "Due times of a job's schedule at which nothing ran: nobody was there (away), or it could not begin "
        "(refused).",
        "job",
        "why",
    ),
)
"""Everything but what `instruments` measures."""


def collect(ctx: Context) -> list[Sample]:
    """All samples. A database that does not answer leaves only that it does not."""
    broker = Sample("vmhaul_broker_up", (), float(not about.broker_problem(ctx)))
    try:
        with ctx.db.read() as s:
            found = [sample for part in _PARTS for sample in part(ctx, s, ctx.clock())]
    except sa.exc.SQLAlchemyError:
        return [Sample("vmhaul_database_up", (), 0.0), broker]
    return [Sample("vmhaul_database_up", (), 1.0), broker, *found]


def _server(ctx: Context, s: DbSession, now: datetime) -> Samples:
    yield Sample("vmhaul_server_info", (str(about.about(ctx)["version"]),), 1.0)
    # By the clock by which servers take the lead from each other.
    present = sa.exists().where(Leader.until > database_time(ctx.clock)(s, timedelta(0)))
    yield Sample("vmhaul_leader_present", (), float(bool(s.scalar(sa.select(present)))))
    count, oldest = s.execute(sa.select(sa.func.count(), sa.func.min(OutboxRow.created_at))).one()
    yield Sample("vmhaul_outbox_messages", (), float(count))
    yield Sample("vmhaul_outbox_oldest_seconds", (), _age_s(oldest, now))
    yield Sample("vmhaul_host_max_tasks", (), float(ctx.settings.host_nfc_tasks))


def _proxies(ctx: Context, s: DbSession, now: datetime) -> Samples:
    running = _running(s, Task.proxy_id)
    for row in s.scalars(
        sa.select(Proxy).options(sa.orm.defer(Proxy.connections)).order_by(Proxy.name)
    ):
        state = state_of(row, now, ctx.settings.proxy_offline_after_s)
        values: dict[str, float | None] = {
            "online": state in {"online", "draining"},
            "enabled": row.enabled,
            "problem": bool(row.state_note),
            "slots": row.slots,
            "running_tasks": running.get((row.id,), 0),
            "last_seen_timestamp_seconds": row.last_seen_at.timestamp() if row.last_seen_at else None,
            "clock_offset_seconds": row.clock_offset_s,
            "cpu_share": row.facts.get("cpu_share"),
            "free_memory_bytes": row.facts.get("free_memory_bytes"),
        }
        for name, value in values.items():
            if value is not None:
                yield Sample(f"vmhaul_proxy_{name}", (row.name,), float(value))
        yield Sample("vmhaul_proxy_info", (row.name, row.version or ""), 1.0)


def _tasks(ctx: Context, s: DbSession, now: datetime) -> Samples:
    del ctx
    mode = sa.func.coalesce(sa.case((Task.state == TaskState.RUNNING.value, Task.mode)), "")
    rows = s.execute(
        sa.select(Task.state, Task.kind, mode, sa.func.count())
        .where(Task.state.in_((TaskState.PENDING.value, TaskState.RUNNING.value)))
        .group_by(Task.state, Task.kind, mode)
    )
    for state, kind, of_mode, count in rows:
        yield Sample("vmhaul_tasks_open", (state, kind, of_mode), float(count))
    oldest = s.scalar(
        sa.select(sa.func.min(Task.created_at)).where(Task.state == TaskState.PENDING.value)
    )
    yield Sample("vmhaul_task_oldest_pending_seconds", (), _age_s(oldest, now))


def _sessions(ctx: Context, s: DbSession, now: datetime) -> Samples:
    del ctx, now
    open_states = (SessionState.QUEUED.value, SessionState.RUNNING.value)
    rows = s.execute(
        sa.select(Session.kind, Session.state, sa.func.count())
        .where(Session.state.in_(open_states))
        .group_by(Session.kind, Session.state)
    )
    for kind, state, count in rows:
        yield Sample("vmhaul_sessions_open", (kind, state), float(count))


def _limits(ctx: Context, s: DbSession, now: datetime) -> Samples:
    del ctx
    running = _running(s, Task.repository_id)
    for row in s.scalars(sa.select(Repository).order_by(Repository.name)):
        yield Sample("vmhaul_repository_running_tasks", (row.name,), running.get((row.id,), 0))
        yield Sample("vmhaul_repository_max_tasks", (row.name,), float(row.max_tasks))
        for name, value in (("total", row.total_bytes), ("free", row.free_bytes)):
            if value is not None:
                yield Sample(f"vmhaul_repository_{name}_bytes", (row.name,), float(value))
    vcenters = {row.id: row.name for row in s.execute(sa.select(Vcenter.id, Vcenter.name))}
    for (vcenter_id, host, mode), count in _by_host(s).items():
        if host and vcenter_id and _is_network(mode):
            yield Sample("vmhaul_host_running_tasks", (vcenters.get(vcenter_id, ""), host), count)
    for (datastore,), count in _running(s, Task.datastore).items():
        vcenter_id, _, name = datastore.partition("/")
        if name:
            yield Sample("vmhaul_datastore_running_tasks", (vcenters.get(vcenter_id, ""), name), count)
    for load in s.scalars(sa.select(DatastoreLoad)):
        fresh = load.measured_at is not None and now - load.measured_at <= STALE_AFTER
        if fresh and load.read_latency_ms is not None:
            labels = (vcenters.get(load.vcenter_id, ""), load.datastore)
            yield Sample("vmhaul_datastore_read_latency_seconds", labels, load.read_latency_ms / 1000)


def _by_host(s: DbSession) -> dict[tuple[str, ...], float]:
    """Network modes of one host counted together."""
    found: dict[tuple[str, ...], float] = {}
    for (vcenter_id, host, mode), count in _running(
        s, Task.vcenter_id, Task.host_moref, Task.mode
    ).items():
        key = (vcenter_id, host, mode if not _is_network(mode) else TransportMode.NBDSSL.value)
        found[key] = found.get(key, 0) + count
    return found


def _is_network(mode: str | None) -> bool:
    return mode is not None and TransportMode(mode) in NETWORK_MODES


def _intents(ctx: Context, s: DbSession, now: datetime) -> Samples:
    del ctx
    rows = s.execute(
        sa.select(Intent.kind, sa.func.count(), sa.func.min(Intent.created_at))
        .where(Intent.state == IntentState.OPEN.value)
        .group_by(Intent.kind)
    )
    for kind, count, oldest in rows:
        yield Sample("vmhaul_intents_open", (kind,), float(count))
        yield Sample("vmhaul_intent_oldest_seconds", (kind,), _age_s(oldest, now))


def _counts(ctx: Context, s: DbSession, now: datetime) -> Samples:
    del ctx, now
    for (name, labels), count in sorted(counters.read(s).items()):
        yield Sample(f"vmhaul_{name}", labels, float(count))


def _running(s: DbSession, *columns: sa.orm.InstrumentedAttribute[Any]) -> dict[tuple[str, ...], float]:
    rows = s.execute(
        sa.select(*columns, sa.func.count())
        .where(Task.state == TaskState.RUNNING.value)
        .group_by(*columns)
    )
    return {tuple(row[:-1]): float(row[-1]) for row in rows}


def _age_s(since: datetime | None, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds()) if since is not None else 0.0


_PARTS: Final[tuple[Callable[[Context, DbSession, datetime], Iterator[Sample]], ...]] = (
    _server,
    _proxies,
    _tasks,
    _sessions,
    _limits,
    _intents,
    figures_jobs.samples,
    _counts,
)
