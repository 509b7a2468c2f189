"""Figures for Prometheus: what they say, and that asking costs the same however much there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client.parser import text_string_to_metric_families

from backup_server.api.metrics import render
from backup_server.db.tables import (
    DatastoreLoad,
    Intent,
    Leader,
    OutboxRow,
    Proxy,
    RestorePointRow,
    Session,
    SessionVm,
    Task,
    new_id,
)
from backup_server.services import about, counters
from backup_server.services.context import Context
from backup_server.services.figures import FIGURES
from tests.support.history import Clock, Seeded

DISK_KEYS = {"pending": 101, "running": 102}
Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(autouse=True)
def broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(about, "broker_problem", lambda ctx: "")


def figures(ctx: Context) -> Figures:
    text, _ = render(ctx)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def one(found: Figures, name: str, **labels: str) -> float:
    return found["vmhaul_" + name, tuple(sorted(labels.items()))]


@contextmanager
def counted(ctx: Context) -> Iterator[list[str]]:
    """SQL statements of the block."""
    statements: list[str] = []

    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    sa.event.listen(ctx.db.engine, "before_cursor_execute", note)
    yield statements
    sa.event.remove(ctx.db.engine, "before_cursor_execute", note)


def copies(row: Any, number: int, **values: Any) -> list[Any]:
    """Rows like this one with other ids; `values` are called with their number."""
    table = type(row)
    same = {c.key: getattr(row, c.key) for c in table.__table__.columns}
    return [
        table(**{**same, "id": new_id(), **{key: make(n) for key, make in values.items()}})
        for n in range(number)
    ]


def grow(ctx: Context, seeded: Seeded, number: int) -> None:
    """So many VMs, each with a pending and a running disk and a restore point."""
    with ctx.db() as s:
        task = s.get_one(Task, seeded.task_id)
        vm = s.get_one(SessionVm, task.session_vm_id)
        vms = copies(
            vm, number, instance_uuid=lambda n: f"grown-{n}", session_id=lambda n: seeded.finished_id
        )
        s.add_all(vms)
        s.flush()
        for state in ("pending", "running"):
            s.add_all(
                copies(
                    task,
                    number,
                    state=lambda n, state=state: state,
                    session_vm_id=lambda n: vms[n].id,
                    disk_key=lambda n, state=state: DISK_KEYS[state],
                )
            )
        point = s.get_one(RestorePointRow, seeded.point_id)
        s.add_all(copies(point, number, instance_uuid=lambda n: f"grown-{n}"))


def test_what_is_there_now(ctx: Context, clock: Clock, seeded: Seeded) -> None:
    now = ctx.clock()
    with ctx.db() as s:
        s.add(Leader(name="scheduler", owner="x", until=now + timedelta(seconds=5), fence=1))
        s.add(
            DatastoreLoad(
                id="l", vcenter_id="vc-1", datastore="ds1", read_latency_ms=12.0, measured_at=now
            )
        )
        s.add(OutboxRow(kind="down", proxy_id="p", task_id=None, attempt=None, body={}, created_at=now))
        proxy = s.query(Proxy).one()
        proxy.facts = {**proxy.facts, "cpu_share": 0.25, "free_memory_bytes": 1 << 30}
        proxy.state_note = "two machines say that they are it"
        task = s.get_one(Task, seeded.task_id)
        intent = Intent(
            id="i", kind="snapshot", state="open", vcenter_id="vc-1", vm_moref="vm-1", vm_instance_uuid="u",
            vm_name="v", mark="m", details={}, created_at=now - timedelta(hours=2),
        )  # fmt: skip
        s.add(intent)
        mode, kind = task.mode or "", task.kind
    found = figures(ctx)
    assert one(found, "database_up") == one(found, "broker_up") == one(found, "leader_present") == 1
    assert one(found, "outbox_messages") == 1
    assert one(found, "proxy_online", proxy="default") == 1
    assert one(found, "proxy_problem", proxy="default") == 1
    assert one(found, "proxy_cpu_share", proxy="default") == 0.25
    assert one(found, "proxy_clock_offset_seconds", proxy="default") == pytest.approx(0.1)
    assert one(found, "proxy_running_tasks", proxy="default") == 1
    assert one(found, "tasks_open", state="running", kind=kind, mode=mode) == 1
    assert one(found, "intent_oldest_seconds", kind="snapshot") == 7200
    assert one(found, "datastore_read_latency_seconds", vcenter="prod", datastore="ds1") == 0.012
    clock.now += timedelta(seconds=600)
    found = figures(ctx)
    assert one(found, "leader_present") == 0
    assert one(found, "proxy_online", proxy="default") == 0
    assert not [name for name, _ in found if "latency" in name]


def test_jobs_and_the_age_of_their_points(ctx: Context, clock: Clock, seeded: Seeded) -> None:
    with ctx.db() as s:
        name = s.get_one(Session, seeded.finished_id).job_name
        vm = s.scalars(sa.select(SessionVm).where(SessionVm.session_id == seeded.finished_id)).first()
        assert vm is not None
        point = s.get_one(RestorePointRow, seeded.point_id)
        point.instance_uuid, point.job_id = vm.instance_uuid, "job-1"
        made = point.created_at
        s.add_all(copies(vm, 1, instance_uuid=lambda n: "never-backed-up"))
        vms = s.scalar(
            sa.select(sa.func.count())
            .select_from(SessionVm)
            .where(SessionVm.session_id == seeded.finished_id)
        )
    found = figures(ctx)
    assert one(found, "job_oldest_point_seconds", job=name) == (ctx.clock() - made).total_seconds()
    assert (
        one(found, "job_vms_without_point", job=name) == vms
        or one(found, "job_vms_without_point", job=name) > 0
    )
    results = {
        labels: value for (what, labels), value in found.items() if what == "vmhaul_job_last_result"
    }
    assert sum(results.values()) == 1
    with ctx.db() as s:
        s.get_one(RestorePointRow, seeded.point_id).doubt = "tracking missed a change"
    assert not [what for what, _ in figures(ctx) if what == "vmhaul_job_oldest_point_seconds"]


def test_asking_costs_the_same_statements_however_many_vms_there_are(
    ctx: Context, seeded: Seeded
) -> None:
    grow(ctx, seeded, 2)
    with counted(ctx) as few:
        figures(ctx)
    grow_more = 300
    with ctx.db() as s:
        s.execute(sa.delete(Task).where(Task.disk_key.in_(DISK_KEYS.values())))
        s.execute(sa.delete(RestorePointRow).where(RestorePointRow.instance_uuid.like("grown-%")))
        s.execute(sa.delete(SessionVm).where(SessionVm.instance_uuid.like("grown-%")))
    grow(ctx, seeded, grow_more)
    with counted(ctx) as many:
        found = figures(ctx)
    assert len(many) == len(few)
    assert not [
        text for text in many if "FROM tasks" in text and "count(" not in text and "min(" not in text
    ]
    pending = [
        value
        for (name, labels), value in found.items()
        if name == "vmhaul_tasks_open" and ("state", "pending") in labels
    ]
    assert sum(pending) >= grow_more


def test_counts_survive_a_restart_and_a_rollback_is_not_counted(ctx: Context) -> None:
    def count(amount: int, *, fail: bool = False) -> None:
        with ctx.db() as s:
            counters.add(s, "read_bytes", ("backup-disk", "nbdssl"), amount)
            counters.add(s, "tasks_ended", ("backup-disk", "success"))
            if fail:
                raise RuntimeError("rolled back")

    count(1 << 40)
    with pytest.raises(RuntimeError):
        count(5, fail=True)
    count(7)
    with ctx.db() as s, s.begin_nested():
        counters.add(s, "leases_expired")
    found = figures(ctx)
    assert one(found, "read_bytes_total", kind="backup-disk", mode="nbdssl") == (1 << 40) + 7
    assert one(found, "tasks_ended_total", kind="backup-disk", result="success") == 2
    assert one(found, "leases_expired_total") == 1


def test_a_database_that_is_away_is_said(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any) -> Any:
        raise sa.exc.OperationalError("SELECT", {}, OSError("gone"))

    monkeypatch.setattr(sa.orm.Session, "execute", away)
    monkeypatch.setattr(sa.orm.Session, "scalar", away)
    found = figures(ctx)
    assert one(found, "database_up") == 0
    assert ("vmhaul_leader_present", ()) not in found


def test_declared_figures_have_words_and_the_samples_their_labels(ctx: Context, seeded: Seeded) -> None:
    declared = {figure.name: figure for figure in FIGURES}
    assert len(declared) == len(FIGURES)
    assert all(figure.text.endswith((".", ").")) for figure in FIGURES)
    found = figures(ctx)
    of_fleet = [key for key in found if key[0].removesuffix("_total") in declared]
    assert len(of_fleet) > 30
    for name, labels in of_fleet:
        assert {label for label, _ in labels} == set(declared[name.removesuffix("_total")].labels)
